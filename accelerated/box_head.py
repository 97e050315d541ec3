"""Box head: RoI features -> class logits and class-specific box deltas; and the RoIs it is trained on.

Shapes: R rois, C channels, P side of the RoI features, D numbers that describe a RoI, K classes, E entries (classes that have deltas:
K, or K + 1 with the background first); N images, P proposal slots (in the sampling), G ground-truth slots, B sampled RoIs of an image.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from accelerated import box_coder, matcher, norm, sampler, shared_head


class BoxHead(nn.Module):
    """RoI features [R, C, P, P], valid [R] or None -> class_logits [R, K + 1], box_deltas [R, 4 E], class-major.

    `valid` keeps padded RoIs out of batch statistics; it changes nothing else.
    A kind adds its `layers`, and with them comes to `describe` a RoI by D numbers.
    """

    def __init__(self, config):
        super().__init__()
        width = self.layers(*shared_head.shape(config, config.box_head.pooler), config)
        self.class_logits = nn.Linear(width, config.num_classes + 1)
        self.box_deltas = nn.Linear(width, 4 * entries(config))
        for module in self.modules():
            initialise(module)
        nn.init.normal_(self.class_logits.weight, std=0.01)
        nn.init.normal_(self.box_deltas.weight, std=0.001)

    def forward(self, features, valid=None):
        x = self.describe(features, valid)
        return self.class_logits(x), self.box_deltas(x)


class TwoFC(BoxHead):
    """Fully connected layers fc6 and fc7 [FPN §4.2]; with 4096 channels, those of VGG-16."""

    def layers(self, channels, side, config):
        width = config.box_head.channels
        self.fc6, self.fc7 = nn.Linear(channels * side**2, width), nn.Linear(width, width)
        return width

    def describe(self, x, valid):
        return F.relu_(self.fc7(F.relu_(self.fc6(x.flatten(1)))))  # in the order C, P, P


class FourConvFC(BoxHead):
    """Four 3x3 convolutions, then fc6 [Group Normalization §4.2]."""

    def layers(self, channels, side, config):
        head = config.box_head
        for i in range(1, 5):
            self.add_module(
                f"conv{i}",
                nn.Conv2d(channels, head.conv_channels, 3, padding=1, bias=head.norm == "none"),
            )
            if head.norm != "none":
                self.add_module(f"conv{i}_norm", norm.make(head.norm, head.conv_channels, config))
            channels = head.conv_channels
        self.fc6 = nn.Linear(channels * side**2, head.channels)
        return head.channels

    def describe(self, x, valid):
        for i in range(1, 5):
            x = F.relu_(
                norm.conv_norm(
                    getattr(self, f"conv{i}"), getattr(self, f"conv{i}_norm", None), x, valid
                )
            )
        return F.relu_(self.fc6(x.flatten(1)))


class Mean(BoxHead):
    """The mean over the pixels: enough behind a shared stage of the backbone [He et al. 2015 §A]."""

    def layers(self, channels, side, config):
        return channels

    def describe(self, x, valid):
        return x.mean((2, 3))


KINDS = {"two_fc": TwoFC, "four_conv_fc": FourConvFC, "mean": Mean}


def make(config):
    """The box head of the configured kind."""
    return KINDS[config.box_head.kind](config)


def initialise(module):
    """Convolutions by fan out [He et al. 2015], fully connected layers uniformly by fan in, biases 0."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.kaiming_uniform_(module.weight, a=1)
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def entries(config):
    """How many classes have deltas of their own: K, or K + 1 where the (unused) background comes first."""
    return config.num_classes + (config.background == "first")


class Samples(NamedTuple):
    """The RoIs of each image that the heads train on, objects first, each kind by rising priority."""

    rois: torch.Tensor  # [N, B, 4]
    labels: torch.Tensor  # [N, B]: 1..K, 0 background, -1 empty slot
    matched: torch.Tensor  # [N, B], ground truth of each; of consequence for objects only
    deltas: torch.Tensor  # [N, B, 4], wanted; 0 unless an object


@torch.no_grad()
def targets(proposals, valid, gt_boxes, gt_labels, gt_valid, priorities, config):
    """Match proposals (and ground truths themselves) to ground truths, and draw a balanced sample [Fast R-CNN §2.3].

    proposals [N, P, 4], valid [N, P]; gt_boxes [N, G, 4], gt_labels [N, G], gt_valid [N, G]; priorities [N, P + G]:
    the smallest are taken; config: config.BoxHead. Returns Samples.
    """
    if config.append_ground_truth:
        proposals, valid = torch.cat([proposals, gt_boxes], 1), torch.cat([valid, gt_valid], 1)
    kind, matched = matcher.match_boxes(
        gt_boxes,
        gt_valid,
        proposals,
        config.foreground_iou,
        config.background_iou,
        low_quality=False,
    )
    kind = kind.masked_fill(~valid, -1)
    index, positive, filled = sampler.sample(
        kind, priorities[:, : kind.shape[1]], config.batch_size, config.positive_fraction
    )
    matched = matched.gather(1, index)
    labels = torch.where(positive, gt_labels.gather(1, matched), 0).masked_fill(~filled, -1)
    rois = proposals.gather(1, index[..., None].expand(-1, -1, 4))
    wanted = gt_boxes.gather(1, matched[..., None].expand(-1, -1, 4))
    deltas = box_coder.encode(
        wanted, rois, config.box_weights
    )  # meaningless, even NaN, but for objects
    return Samples(rois, labels, matched, torch.where(positive[..., None], deltas, 0))
