"""Greedy non-maximum suppression: keep the best box, drop what overlaps it, repeat."""

import numpy as np

from reference import boxes as box_ops


def top_k(scores, k):
    """Indices of the `k` highest scores [..., T] of each row -> [..., min(k, T)], by falling score, equal scores by rising index."""
    return np.argsort(-np.asarray(scores), axis=-1, kind="stable")[..., :k]


def nms(boxes, scores, iou_threshold):
    """Indices [D] of the boxes that greedy suppression keeps, by falling score (equal scores by rising index).

    boxes [R, 4], scores [R]. A box goes when its IoU with a kept box of higher score is strictly above `iou_threshold`;
    two boxes of no area do not suppress each other.
    Raises ValueError for a non-finite box or a NaN score, naming its row.
    """
    return batched_nms(boxes, scores, np.zeros(len(boxes), int), iou_threshold)


def batched_nms(boxes, scores, group, iou_threshold):
    """`nms` within each group (class or level; group [R] int), never across; the kept indices of all groups by falling score."""
    boxes, scores, group = np.asarray(boxes), np.asarray(scores), np.asarray(group)
    box_ops.check_finite(boxes, "boxes")
    if np.isnan(scores).any():
        raise ValueError(f"scores must not be NaN; row {int(np.isnan(scores).argmax())} is")
    order = top_k(scores, len(scores))
    keep = np.zeros(len(scores), bool)
    for value in np.unique(group):
        rows = order[group[order] == value]
        keep[rows[_greedy(boxes[rows], iou_threshold)]] = True
    return order[keep[order]]


def _greedy(boxes, iou_threshold):
    """Kept rows of boxes that are sorted by falling score."""
    keep, rest = [], np.arange(len(boxes))
    while len(rest):
        first, rest = rest[0], rest[1:]
        keep.append(first)
        overlap = box_ops.iou(boxes[first, None], boxes[rest])[0]
        rest = rest[
            ~(overlap > np.float64(iou_threshold))
        ]  # a float64 threshold also for float32 boxes
    return np.array(keep, int)
