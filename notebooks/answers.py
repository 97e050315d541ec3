"""Answers to the notebooks' exercises, each under the name of its module in `exercises/`.

A notebook never imports this file. The tests put every answer before its checker.
"""

import numpy as np

from reference.boxes import iou as overlaps

# 2. Anchors


def anchors(iou, high, low):
    """Label anchors by their overlaps with the truths."""
    if len(iou) == 0:
        return np.zeros(iou.shape[1], int)
    best = iou.max(axis=0)
    labels = np.where(best >= high, 1, np.where(best < low, 0, -1))
    best_of_truth = iou.max(axis=1, keepdims=True)
    labels[((iou == best_of_truth) & (iou > 0)).any(axis=0)] = 1
    return labels


# 3. RPN


def rpn(boxes, scores, threshold):
    """Keep the best box, drop what overlaps it, repeat."""
    keep, rest = [], np.argsort(-scores, kind="stable")
    while len(rest):
        best, rest = rest[0], rest[1:]
        keep.append(best)
        rest = rest[overlaps(boxes[[best]], boxes[rest])[0] <= threshold]
    return np.array(keep, int)
