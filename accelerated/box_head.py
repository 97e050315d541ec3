"""Box head [Fast R-CNN §2]: its RoIs in training, its class logits and box deltas, its losses.

Legend: R RoIs, C channels, P side of the RoI features, D features that describe a RoI, K classes,
E box deltas per RoI (see labels.delta_layout), N images, G ground-truth slots, P proposal slots in
sampling, B sampled RoIs of an image.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from accelerated import box_coder, matcher, norm, processes, sampler, shared_head
from accelerated.labels import class_layout, delta_layout
from accelerated.losses import cross_entropy, smooth_l1
from accelerated.parameters import initialise
from reference.config import BoxHead as BoxHeadConfig
from reference.config import Config


class Samples(NamedTuple):
    """The RoIs of each image that the heads learn from, objects first.

    rois     [N, B, 4]  xyxy
    labels   [N, B]     0..K, -1 in empty slots
    matched  [N, B]     ground-truth slot; used for objects
    deltas   [N, B, 4]  0 unless an object
    """

    rois: torch.Tensor
    labels: torch.Tensor
    matched: torch.Tensor
    deltas: torch.Tensor


@torch.no_grad()
def targets(
    proposals: torch.Tensor,
    valid: torch.Tensor,
    gt_boxes: torch.Tensor,
    gt_labels: torch.Tensor,
    gt_valid: torch.Tensor,
    priorities: torch.Tensor,
    head: BoxHeadConfig,
    backend: str = "auto",
) -> Samples:
    """Sample RoIs among the proposals of each image and, if configured, its ground truths.

    This is SPEC §6.

    proposals   [N, P, 4]
    valid       [N, P] bool
    gt_boxes    [N, G, 4]
    gt_labels   [N, G]      1..K
    gt_valid    [N, G] bool
    priorities  [N, P + G]  of the proposals, then of the ground truths; the smallest are sampled
    """
    candidates = proposals
    if head.append_ground_truth:
        candidates = torch.cat([proposals, gt_boxes], 1)
        valid = torch.cat([valid, gt_valid], 1)
    candidate_labels, matched = matcher.match_boxes(
        gt_boxes,
        gt_valid,
        candidates,
        head.foreground_iou,
        head.background_iou,
        low_quality=False,
        backend=backend,
    )
    candidate_labels = candidate_labels.masked_fill(~valid, -1)
    index, positive, filled = sampler.sample(
        candidate_labels,
        priorities[:, : candidate_labels.shape[1]],
        head.batch_size,
        head.positive_fraction,
    )
    matched = matched.gather(1, index)
    labels = torch.where(positive, gt_labels.gather(1, matched), 0).masked_fill(~filled, -1)
    rois = candidates.gather(1, index[..., None].expand(-1, -1, 4))
    matched_boxes = gt_boxes.gather(1, matched[..., None].expand(-1, -1, 4))
    # The deltas of background and empty slots are meaningless and may be NaN.
    deltas = box_coder.encode(matched_boxes, rois, head.box_weights)
    return Samples(rois, labels, matched, torch.where(positive[..., None], deltas, 0))


class BoxHead(nn.Module):
    """Predict class logits [R, K + 1] and box deltas [R, 4 E] from RoI features [R, C, P, P].

    Deltas are class-major (4 * class + coordinate). `valid` [R] keeps padded RoIs out of batch
    statistics and changes nothing else. Subclasses define `layers` (create modules, return D) and
    `describe` (RoI features -> [R, D]).
    """

    def __init__(self, config: Config):
        super().__init__()
        width = self.layers(*shared_head.shape(config, config.box_head.pooler), config)
        self.class_logits = nn.Linear(width, class_layout(config).columns)
        self.box_deltas = nn.Linear(width, 4 * delta_layout(config).columns)
        for module in self.modules():
            initialise(module)
        nn.init.normal_(self.class_logits.weight, std=0.01)
        nn.init.normal_(self.box_deltas.weight, std=0.001)

    def forward(
        self, features: torch.Tensor, valid: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.describe(features, valid)
        return self.class_logits(x), self.box_deltas(x)

    def layers(self, channels: int, side: int, config: Config) -> int:
        """Create the modules for RoI features [R, channels, side, side] and return D."""
        raise NotImplementedError

    def describe(self, x: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Describe each RoI by D features: [R, C, P, P] -> [R, D]."""
        raise NotImplementedError


class TwoFC(BoxHead):
    """Describe RoIs by fully connected layers fc6 and fc7 [FPN §4.2].

    With 4096 channels these are VGG-16's.
    """

    def layers(self, channels: int, side: int, config: Config) -> int:
        width = config.box_head.channels
        self.fc6, self.fc7 = nn.Linear(channels * side**2, width), nn.Linear(width, width)
        return width

    def describe(self, x: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        return F.relu_(self.fc7(F.relu_(self.fc6(x.flatten(1)))))


class FourConvFC(BoxHead):
    """Describe RoIs by four 3x3 convolutions, then fc6 [Group Normalization §4.2]."""

    def layers(self, channels: int, side: int, config: Config) -> int:
        head = config.box_head
        for i in range(1, 5):
            bias = head.norm == "none"
            self.add_module(
                f"conv{i}", nn.Conv2d(channels, head.conv_channels, 3, padding=1, bias=bias)
            )
            if head.norm != "none":
                self.add_module(f"conv{i}_norm", norm.make(head.norm, head.conv_channels, config))
            channels = head.conv_channels
        self.fc6 = nn.Linear(channels * side**2, head.channels)
        return head.channels

    def describe(self, x: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        for i in range(1, 5):
            normalise = getattr(self, f"conv{i}_norm", None)
            x = norm.conv_norm(getattr(self, f"conv{i}"), normalise, x, valid, relu=True)
        return F.relu_(self.fc6(x.flatten(1)))


class Mean(BoxHead):
    """Describe RoIs by the mean over their pixels.

    It is enough after a shared stage of the backbone [Deep Residual Learning §A].
    """

    def layers(self, channels: int, side: int, config: Config) -> int:
        return channels

    def describe(self, x: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        return x.mean((2, 3))


KINDS = {"two_fc": TwoFC, "four_conv_fc": FourConvFC, "mean": Mean}


def make(config: Config) -> BoxHead:
    """Create the configured box head."""
    return KINDS[config.box_head.kind](config)


def losses(
    class_logits: torch.Tensor,
    box_deltas: torch.Tensor,
    labels: torch.Tensor,
    target_deltas: torch.Tensor,
    config: Config,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the classification loss and the box loss of the sampled RoIs, two scalars.

    class_logits   [R, K + 1]
    box_deltas     [R, 4 E]
    labels         [R]     0..K, -1 in empty slots
    target_deltas  [R, 4]  used for objects; may be anything elsewhere

    Both are divided by the number of filled slots (at least 1). Boxes count for objects only, in
    the deltas of their class. Every loss depends on every input, if only by a factor of 0.
    """
    filled, objects = labels >= 0, labels > 0
    normalizer = processes.count(filled, "rois")
    per_roi = cross_entropy(class_logits, class_layout(config).column(labels))
    classification = torch.where(filled, per_roi, 0).sum() / normalizer
    layout = delta_layout(config)
    per_class = box_deltas.unflatten(1, (layout.columns, 4))
    deltas = per_class.take_along_dim(layout.column(labels)[:, None, None], 1)[:, 0]
    difference = torch.where(objects[:, None], deltas - target_deltas, 0)
    return classification, smooth_l1(difference, config.box_head.smooth_l1_beta).sum() / normalizer
