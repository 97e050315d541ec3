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
    order = top_k(scores, len(scores))
    return order[suppressed_by(boxes, scores, iou_threshold, group)[order] < 0]


def suppressed_by(
    boxes: Array, scores: Array, iou_threshold: float, group: Array | None = None
) -> Array:
    """Return the index of the kept box that removed each box [R] int, -1 for a box that is kept.

    If several kept boxes overlap a box too much, the one of highest score removes it. Arguments as
    in `batched_nms`; without `group`, all boxes are of one group.
    """
    boxes, scores = np.asarray(boxes), np.asarray(scores)
    group = np.zeros(len(boxes), int) if group is None else np.asarray(group)
    check_finite(boxes, "boxes")
    if np.isnan(scores).any():
        raise ValueError(f"scores must not be NaN; row {int(np.isnan(scores).argmax())} is")
    order, suppressor = top_k(scores, len(scores)), np.full(len(scores), -1)
    for value in np.unique(group):
        rest = order[group[order] == value]
        while len(rest):
            best, rest = rest[0], rest[1:]
            overlap = iou(boxes[best, None], boxes[rest])[0]
            # The threshold is a float64 also for float32 boxes.
            removed = overlap > np.float64(iou_threshold)
            suppressor[rest[removed]] = best
            rest = rest[~removed]
    return suppressor
