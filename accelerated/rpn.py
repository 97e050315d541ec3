"""Region proposal network [Ren et al. 2015, arXiv 1506.01497 §3.1]: its head, what it is trained towards, and the proposals it makes.

Shapes: N images, L levels, A anchors per cell, T anchors of all levels, G ground truths, P proposal slots.
Flattened order: level, y, x, anchor.
"""

import torch
import torch.nn.functional as F
from torch import nn

from accelerated import box_coder, boxes, matcher, neck, nms


class RPN(nn.Module):
    """{level: [N, C, h, w]} -> (logits, deltas), lists over the levels of [N, A, h, w] and [N, 4 A, h, w] (channel 4 a + coordinate)."""

    def __init__(self, config):
        super().__init__()
        channels, anchors = (
            neck.of(config).channels(config),
            len(config.anchors.sizes[0]) * len(config.anchors.ratios),
        )
        self.conv_depth = config.rpn.conv_depth
        for i in range(1, self.conv_depth + 1):
            self.add_module(f"conv{i}", nn.Conv2d(channels, channels, 3, padding=1))
        self.logits = nn.Conv2d(channels, anchors, 1)
        self.deltas = nn.Conv2d(channels, 4 * anchors, 1)
        for module in self.children():
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)

    def forward(self, features):
        logits, deltas = [], []
        for x in features.values():
            for i in range(1, self.conv_depth + 1):
                x = F.relu_(getattr(self, f"conv{i}")(x))
            logits.append(self.logits(x))
            deltas.append(self.deltas(x))
        return logits, deltas


def flatten(logits, deltas):
    """Per-level maps -> logits [N, T] and deltas [N, T, 4], float32 or better."""
    precision = torch.promote_types(logits[0].dtype, torch.float32)
    n = len(logits[0])
    flat_logits = torch.cat([x.permute(0, 2, 3, 1).reshape(n, -1) for x in logits], 1)
    flat_deltas = torch.cat([x.permute(0, 2, 3, 1).reshape(n, -1, 4) for x in deltas], 1)
    return flat_logits.to(precision), flat_deltas.to(precision)


@torch.no_grad()
def proposals(logits, deltas, anchors, sizes, config, *, training, backend="auto"):
    """The best-scored boxes of every image after suppression within each level, in a fixed number of slots (SPEC §7).

    logits [N, T], deltas [N, T, 4]; anchors: list over levels of [T_l, 4]; sizes [N, 2] (h, w) to clip to
    Returns boxes [N, P, 4], scores [N, P] (probabilities, or logits where `nms_score` says so) falling, valid [N, P].
    P is `post_nms_top_n`; an empty slot has box 0, score 0 and stands behind all others. Ties: lower level, then lower anchor first.
    """
    rpn = config.rpn
    pre = rpn.pre_nms_top_n_train if training else rpn.pre_nms_top_n_test
    post = rpn.post_nms_top_n_train if training else rpn.post_nms_top_n_test
    counts = [len(a) for a in anchors]
    width = min(pre, max(counts))
    chosen_boxes, chosen_scores, chosen_valid = [], [], []
    for level_logits, level_deltas, level_anchors in zip(
        logits.split(counts, 1), deltas.split(counts, 1), anchors, strict=True
    ):
        k = min(pre, len(level_anchors))
        index = nms.top_k(level_logits, k)
        score = level_logits.gather(1, index)
        decoded = box_coder.decode(
            level_deltas.gather(1, index[..., None].expand(-1, -1, 4)),
            level_anchors[index],
            rpn.box_weights,
        )
        chosen_boxes.append(F.pad(decoded, (0, 0, 0, width - k)))
        chosen_scores.append(F.pad(score, (0, width - k)))
        chosen_valid.append(F.pad(torch.ones_like(score, dtype=torch.bool), (0, width - k)))
    box, score, valid = (
        torch.cat(chosen_boxes, 1),
        torch.cat(chosen_scores, 1),
        torch.cat(chosen_valid, 1),
    )
    if rpn.nms_score == "probability":
        score = score.sigmoid()
    box = boxes.clip(box, sizes[:, None, 0], sizes[:, None, 1])
    valid = valid & boxes.is_valid(box, rpn.min_size, rpn.min_size_inclusive)
    by_level = (
        len(logits) * len(anchors),
        width,
    )  # rows of one suppression each, already in order of score
    keep = nms.keep_mask(
        box.reshape(*by_level, 4), valid.reshape(by_level), rpn.nms_iou, backend=backend
    ).reshape(valid.shape)
    missing = max(0, post - keep.shape[1])
    box, score, keep = (
        F.pad(box, (0, 0, 0, missing)),
        F.pad(score, (0, missing)),
        F.pad(keep, (0, missing)),
    )
    order = nms.top_k(score.masked_fill(~keep, -torch.inf), post)
    keep = keep.gather(1, order)
    box = box.gather(1, order[..., None].expand(-1, -1, 4)).masked_fill(~keep[..., None], 0)
    return box, score.gather(1, order).masked_fill(~keep, 0), keep


@torch.no_grad()
def targets(anchors, gt_boxes, gt_valid, config):
    """What each anchor should say: labels [N, T] (1 object, 0 background, -1 ignored) and deltas [N, T, 4] (0 unless the label is 1).

    anchors [T, 4]; gt_boxes [N, G, 4]; gt_valid [N, G]; config: config.RPN
    """
    labels, matched = matcher.match_boxes(
        gt_boxes,
        gt_valid,
        anchors,
        config.foreground_iou,
        config.background_iou,
        config.low_quality_matches,
        config.zero_iou_matches,
    )
    wanted = gt_boxes.gather(1, matched[..., None].expand(-1, -1, 4))
    deltas = box_coder.encode(
        wanted, anchors, config.box_weights
    )  # of padded ground truths infinite or NaN
    return labels, torch.where((labels == 1)[..., None], deltas, 0)
