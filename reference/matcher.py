"""Matching of candidates (anchors or proposals) to ground truths.

Legend: G ground truths, T candidates.
"""

import numpy as np


def match(
    iou: np.ndarray, high: float, low: float, low_quality: bool, zero_iou: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Label and match candidates by their overlaps, iou [G, T] [Faster R-CNN §3.1.2].

    low_quality  candidates whose IoU equals the maximum of some ground truth (all of them, on ties)
                 are foreground too, and keep their match
    zero_iou     even if that maximum is 0, which makes every candidate that misses it foreground
    Returns
    labels   [T]  1 foreground (best IoU >= high), 0 background (best IoU < low), -1 ignored
    matched  [T]  the ground truth of highest IoU, the first of equals, for any label; 0 if G = 0
    """
    if len(iou) == 0:
        return np.zeros(iou.shape[1], int), np.zeros(iou.shape[1], int)
    best = iou.max(axis=0)
    labels = np.where(best >= high, 1, np.where(best < low, 0, -1))
    if low_quality:
        best_of_truth = iou.max(axis=1, keepdims=True, initial=0)
        labels[((iou == best_of_truth) & (zero_iou | (best_of_truth > 0))).any(axis=0)] = 1
    return labels, iou.argmax(axis=0)
