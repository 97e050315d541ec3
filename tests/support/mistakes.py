"""Wrong answers to the notebooks' exercises, and a word that the checker's hint must contain.

{module of `notebooks/exercises`: [(wrong answer, word of the hint)]}
"""

import numpy as np

from reference.boxes import area, iou

MISTAKES = {}


# 2. Anchors


def labels(table, high, low, *, best_rule=lambda table: False, strict=False, axis=0):
    """The rule of the anchors, to be broken in one place."""
    if len(table) == 0:
        return np.zeros(table.shape[1], int)
    best = table.max(axis=axis)[: table.shape[1]]
    above = best > high if strict else best >= high
    below = best <= low if strict else best < low
    return np.where(above | best_rule(table), 1, np.where(below, 0, -1))


def of_truth(table):
    """The anchors that are the best of some truth, at an IoU above 0."""
    return ((table == table.max(axis=1, keepdims=True)) & (table > 0)).any(axis=0)


def no_low_quality(table, high, low):
    return labels(table, high, low)


def first_of_ties(table, high, low):
    first = np.isin(np.arange(table.shape[1]), table.argmax(axis=1)) if len(table) else False
    return labels(table, high, low, best_rule=lambda table: first & (table > 0).any(axis=0))


def one_best_of_all(table, high, low):
    return labels(table, high, low, best_rule=lambda t: ((t == t.max()) & (t > 0)).any(axis=0))


def best_at_zero(table, high, low):
    return labels(
        table, high, low, best_rule=lambda t: (t == t.max(axis=1, keepdims=True)).any(axis=0)
    )


def thresholds_to_the_other_side(table, high, low):
    return labels(table, high, low, best_rule=of_truth, strict=True)


def first_truth_only(table, high, low):
    return labels(table[:1], high, low, best_rule=lambda t: of_truth(table))


def halo_is_background(table, high, low):
    return np.maximum(labels(table, high, low, best_rule=of_truth), 0)


def never_empty(table, high, low):
    return labels(table, high, low, best_rule=of_truth) if table.max() >= 0 else None


MISTAKES["anchors"] = [
    (halo_is_background, "-1 lies between"),
    (first_truth_only, "down a column"),
    (thresholds_to_the_other_side, "equal to a threshold"),
    (no_low_quality, "however low"),
    (one_best_of_all, "of its own"),
    (first_of_ties, "tie for the best"),
    (best_at_zero, "IoU of 0"),
    (never_empty, "[0, T]"),
]


# 3. RPN


def suppress(boxes, scores, threshold, *, order=None, overlaps=iou, remove=np.greater):
    """Non-maximum suppression, to be broken in one place."""
    keep, rest = [], np.argsort(-scores, kind="stable") if order is None else order
    while len(rest):
        best, rest = rest[0], rest[1:]
        keep.append(int(best))
        rest = rest[~remove(overlaps(boxes[[best]], boxes[rest])[0], threshold)]
    return np.array(keep, int)


def in_order_of_index(boxes, scores, threshold):
    return np.sort(suppress(boxes, scores, threshold))


def worst_first(boxes, scores, threshold):
    return suppress(boxes, scores, threshold, order=np.argsort(scores, kind="stable"))[::-1]


def removed_boxes_remove(boxes, scores, threshold):
    order = np.argsort(-scores, kind="stable")
    overlaps = np.triu(iou(boxes[order], boxes[order]) > threshold, 1)
    return order[~overlaps.any(axis=0)]


def at_the_threshold(boxes, scores, threshold):
    return suppress(boxes, scores, threshold, remove=np.greater_equal)


def plus_one(boxes, scores, threshold):
    def overlaps(a, b):
        wider = np.array([0, 0, 1, 1])
        return iou(a + wider, b + wider)

    return suppress(boxes, scores, threshold, overlaps=overlaps)


def over_the_smaller(boxes, scores, threshold):
    def overlaps(a, b):
        total = area(a)[:, None] + area(b)
        shared = total * iou(a, b) / (1 + iou(a, b))
        return shared / np.minimum(area(a)[:, None], area(b))

    return suppress(boxes, scores, threshold, overlaps=overlaps)


def higher_index_first(boxes, scores, threshold):
    order = np.argsort(scores, kind="stable")[::-1]
    return suppress(boxes, scores, threshold, order=order)


MISTAKES["rpn"] = [
    (in_order_of_index, "falling score"),
    (worst_first, "higher score stays"),
    (removed_boxes_remove, "removes nothing"),
    (at_the_threshold, "strictly above"),
    (plus_one, "+1"),
    (over_the_smaller, "union"),
    (higher_index_first, "lower index"),
]
