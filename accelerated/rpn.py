"""Region proposal network [Faster R-CNN §3.1]: its head, its proposals, its targets and its losses.

Legend: N images, A anchors per cell, T anchors of all levels, G ground-truth slots, P proposal
slots.
Flattened order: level, y, x, anchor.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from accelerated import box_coder, boxes, matcher, neck, nms, norm, processes, sampler
from accelerated.losses import binary_cross_entropy, smooth_l1
from reference.config import RPN as RPNConfig
from reference.config import Config


class Proposals(NamedTuple):
    """The proposals of N images in P slots, by falling score.

    boxes [N, P, 4] xyxy, scores [N, P], valid [N, P] bool. Empty slots stand last and hold zeros.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    valid: torch.Tensor


class Targets(NamedTuple):
    """The values that the anchors of N images should predict.

    labels   [N, T]     1 object, 0 background, -1 ignored
    matched  [N, T]     the ground truth of highest IoU, for any label; 0 if there is none
    deltas   [N, T, 4]  0 unless the label is 1
    sampled  [N, T]     the labels of the anchors that the losses use, -1 for all others
    """

    labels: torch.Tensor
    matched: torch.Tensor
    deltas: torch.Tensor
    sampled: torch.Tensor


class RPN(nn.Module):
    """Predict objectness and deltas of every anchor, by the same convolutions on each level.

    {level: [N, C, h, w]} -> two lists over levels: logits [N, A, h, w] and deltas [N, 4 A, h, w],
    channel 4 a + coordinate.
    """

    def __init__(self, config: Config):
        super().__init__()
        channels = neck.of(config).channels(config)
        anchors = len(config.anchors.sizes[0]) * len(config.anchors.ratios)
        self.conv_depth = config.rpn.conv_depth
        for i in range(1, self.conv_depth + 1):
            self.add_module(f"conv{i}", nn.Conv2d(channels, channels, 3, padding=1))
        self.logits = nn.Conv2d(channels, anchors, 1)
        self.deltas = nn.Conv2d(channels, 4 * anchors, 1)
        for module in self.children():
            assert isinstance(module, nn.Conv2d) and module.bias is not None
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)

    def forward(
        self, features: dict[int, torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        logits, deltas = [], []
        for x in features.values():
            for i in range(1, self.conv_depth + 1):
                x = norm.conv_norm(getattr(self, f"conv{i}"), None, x, relu=True)
            logits.append(self.logits(x))
            deltas.append(self.deltas(x))
        return logits, deltas


def flatten(
    logits: list[torch.Tensor], deltas: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Order the maps of all levels as the anchors: logits [N, T], deltas [N, T, 4].

    Returns float32, or float64 for float64.
    """
    precision = torch.promote_types(logits[0].dtype, torch.float32)
    images = len(logits[0])
    flat_logits = [x.permute(0, 2, 3, 1).reshape(images, -1) for x in logits]
    flat_deltas = [x.permute(0, 2, 3, 1).reshape(images, -1, 4) for x in deltas]
    return torch.cat(flat_logits, 1).to(precision), torch.cat(flat_deltas, 1).to(precision)


@torch.no_grad()
def proposals(
    logits: torch.Tensor,
    deltas: torch.Tensor,
    anchors: list[torch.Tensor],
    sizes: torch.Tensor,
    rpn: RPNConfig,
    *,
    training: bool,
    backend: str = "auto",
) -> Proposals:
    """Choose the best boxes of every image after suppression within each level (SPEC §7).

    logits   [N, T]
    deltas   [N, T, 4]
    anchors  list over levels of [T_l, 4]
    sizes    [N, 2]  (h, w) of every image without its padding
    Returns Proposals in P = post_nms_top_n slots.

    Take the pre_nms_top_n highest logits of each level; clip to the image; drop short boxes;
    suppress within each level; keep the post_nms_top_n best of all levels.
    Scores are probabilities or logits (`nms_score`). Equal scores: lower level, then lower anchor.
    """
    pre = rpn.pre_nms_top_n_train if training else rpn.pre_nms_top_n_test
    post = rpn.post_nms_top_n_train if training else rpn.post_nms_top_n_test
    counts = [len(level) for level in anchors]
    width = min(pre, max(counts))
    index = _best_of_levels(nms.keys(logits), counts, width)
    valid, index = index >= 0, index.clamp(min=0)
    score = logits.gather(1, index)
    chosen = deltas.gather(1, index[..., None].expand(-1, -1, 4))
    box = box_coder.decode(chosen, torch.cat(anchors)[index], rpn.box_weights)
    if rpn.nms_score == "probability":
        score = score.sigmoid()
    box = boxes.clip(box, sizes[:, None, 0], sizes[:, None, 1])
    valid = valid & boxes.is_valid(box, rpn.min_size, rpn.min_size_inclusive)
    # Each row of a level and an image is suppressed alone, already in order of score.
    rows = (len(logits) * len(anchors), width)
    keep = nms.keep_mask(box.reshape(*rows, 4), valid.reshape(rows), rpn.nms_iou, backend=backend)
    keep = keep.reshape(valid.shape)
    missing = max(0, post - keep.shape[1])
    box = F.pad(box, (0, 0, 0, missing))
    score, keep = F.pad(score, (0, missing)), F.pad(keep, (0, missing))
    order = nms.top_k(score.masked_fill(~keep, -torch.inf), post)
    keep = keep.gather(1, order)
    box = box.gather(1, order[..., None].expand(-1, -1, 4)).masked_fill(~keep[..., None], 0)
    return Proposals(box, score.gather(1, order).masked_fill(~keep, 0), keep)


def _best_of_levels(keys, counts, width):
    """Return the anchors of highest key in `width` slots per level: [N, L width], -1 if empty."""
    slots, start = [], 0
    for level in keys.split(counts, 1):
        index = level.topk(min(width, level.shape[1]), dim=1).indices + start
        slots.append(F.pad(index, (0, width - index.shape[1]), value=-1))
        start += level.shape[1]
    return torch.cat(slots, 1)


@torch.no_grad()
def targets(
    anchors: torch.Tensor,
    gt_boxes: torch.Tensor,
    gt_valid: torch.Tensor,
    priorities: torch.Tensor,
    rpn: RPNConfig,
    backend: str = "auto",
) -> Targets:
    """Match the anchors to the ground truth of each image and sample those that the losses use.

    anchors     [T, 4]
    gt_boxes    [N, G, 4]
    gt_valid    [N, G] bool
    priorities  [N, T]; the smallest are sampled
    """
    labels, matched, deltas = match(anchors, gt_boxes, gt_valid, rpn, backend)
    positive, negative = sampler.sampled_mask(
        labels, priorities, rpn.batch_size, rpn.positive_fraction
    )
    sampled = torch.where(positive, 1, torch.where(negative, 0, -1))
    return Targets(labels, matched, deltas, sampled)


@torch.no_grad()
def match(
    anchors: torch.Tensor,
    gt_boxes: torch.Tensor,
    gt_valid: torch.Tensor,
    rpn: RPNConfig,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return labels [N, T], matched [N, T] and deltas [N, T, 4] of the anchors; see `Targets`."""
    ious = rpn.foreground_iou, rpn.background_iou
    rules = rpn.low_quality_matches, rpn.zero_iou_matches
    labels, matched = matcher.match_boxes(gt_boxes, gt_valid, anchors, *ious, *rules, backend)
    matched_boxes = gt_boxes.gather(1, matched[..., None].expand(-1, -1, 4))
    # The deltas of empty ground-truth slots are infinite or NaN.
    deltas = box_coder.encode(matched_boxes, anchors, rpn.box_weights)
    return labels, matched, torch.where((labels == 1)[..., None], deltas, 0)


def losses(
    logits: torch.Tensor,
    deltas: torch.Tensor,
    sampled: torch.Tensor,
    target_deltas: torch.Tensor,
    rpn: RPNConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the objectness loss and the box loss of the sampled anchors, two scalars.

    logits         [N, T]
    deltas         [N, T, 4]
    sampled        [N, T]     1 positive, 0 negative, -1 not sampled
    target_deltas  [N, T, 4]  used where positive; may be anything elsewhere

    Both are divided by the number of sampled anchors (at least 1), or by batch_size * N (SPEC §7).
    """
    positive, used = sampled == 1, sampled >= 0
    normalizer = rpn.batch_size * processes.of_batch("images", len(sampled))
    if rpn.loss_normalizer == "sampled":
        normalizer = processes.count(used, "anchors")
    entropy = binary_cross_entropy(logits, positive.to(logits.dtype))
    objectness = torch.where(used, entropy, 0).sum() / normalizer
    difference = torch.where(positive[..., None], deltas - target_deltas, 0)
    return objectness, smooth_l1(difference, rpn.smooth_l1_beta).sum() / normalizer
