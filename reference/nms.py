"""Greedy non-maximum suppression: keep the best box, drop what overlaps it, repeat.

Legend: R boxes, D kept boxes, T scores in a row.
"""

import numpy as np

from reference.autodiff import Array
from reference.boxes import check_finite, iou


def top_k(scores: Array, k: int) -> Array:
    """Return the indices of the `k` highest scores of each row: [..., T] -> [..., min(k, T)].

    Ordered by falling score, equal scores by rising index.
    """
    return np.argsort(-np.asarray(scores), axis=-1, kind="stable")[..., :k]


def nms(boxes: Array, scores: Array, iou_threshold: float) -> Array:
    """Return the indices [D] of the boxes that greedy suppression keeps, by falling score.

    boxes          [R, 4]  xyxy
    scores         [R]     equal scores rank by rising index
    iou_threshold  a box is dropped if its IoU with a kept box of higher score is strictly above it

    Two boxes without area do not suppress each other. Raises ValueError for a non-finite box or a
    NaN score, naming its row.
    """
    return batched_nms(boxes, scores, np.zeros(len(boxes), int), iou_threshold)


def batched_nms(boxes: Array, scores: Array, group: Array, iou_threshold: float) -> Array:
    """Apply `nms` within each group, never across: the kept indices of all, by falling score.

    group [R] int is a class or a level; the other arguments are those of `nms`.
    """
    boxes, scores, group = np.asarray(boxes), np.asarray(scores), np.asarray(group)
    check_finite(boxes, "boxes")
    if np.isnan(scores).any():
        raise ValueError(f"scores must not be NaN; row {int(np.isnan(scores).argmax())} is")
    order = top_k(scores, len(scores))
    keep = np.zeros(len(scores), bool)
    for value in np.unique(group):
        rows = order[group[order] == value]
        keep[rows[_greedy(boxes[rows], iou_threshold)]] = True
    return order[keep[order]]


def _greedy(boxes: Array, iou_threshold: float) -> Array:
    """Return the kept rows of boxes that are sorted by falling score."""
    keep, rest = [], np.arange(len(boxes))
    while len(rest):
        best, rest = rest[0], rest[1:]
        keep.append(best)
        overlap = iou(boxes[best, None], boxes[rest])[0]
        # The threshold is a float64 also for float32 boxes.
        rest = rest[~(overlap > np.float64(iou_threshold))]
    return np.array(keep, int)
