"""Which ground truth a candidate (anchor or proposal) belongs to, and whether it is foreground, background or ignored."""

import numpy as np


def match(iou, high, low, low_quality, zero_iou=True):
    """Labels and matches from overlaps [Faster R-CNN §3.1.2].

    iou [G, T] of G ground truths with T candidates.
    Returns labels [T]: 1 foreground (best IoU >= high), 0 background (best IoU < low), -1 ignored (between);
    and matched [T]: the ground truth of highest IoU, the first of equals, whatever the label (0 where G = 0).

    low_quality: the candidates whose IoU equals the maximum of some ground truth (all of them, on ties) are foreground too,
    and keep their own match. zero_iou: also where that maximum is 0, which makes every candidate that misses it foreground.
    Without ground truth everything is background.
    """
    count, candidates = iou.shape
    if count == 0:
        return np.zeros(candidates, int), np.zeros(candidates, int)
    best = iou.max(axis=0)
    labels = np.where(best >= high, 1, np.where(best < low, 0, -1))
    if low_quality:
        best_of_truth = iou.max(axis=1, keepdims=True, initial=0)
        labels[((iou == best_of_truth) & (zero_iou | (best_of_truth > 0))).any(axis=0)] = 1
    return labels, iou.argmax(axis=0)
