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
    reason = reasons(iou, high, low, low_quality, zero_iou)
    labels = np.where(reason == "below", 0, np.where(reason == "between", -1, 1))
    return labels, iou.argmax(axis=0) if len(iou) else np.zeros(iou.shape[1], int)


def reasons(
    iou: np.ndarray, high: float, low: float, low_quality: bool, zero_iou: bool = True
) -> np.ndarray:
    """Return why `match`, whose arguments these are, labels each candidate as it does: [T] str.

    "above"            foreground: best IoU >= high
    "below"            background: best IoU < low, or there is no ground truth
    "between"          ignored: low <= best IoU < high
    "best of a truth"  foreground by `low_quality` alone: best IoU < high
    """
    if len(iou) == 0:
        return np.full(iou.shape[1], "below")
    best = iou.max(axis=0)
    reason = np.where(best >= high, "above", np.where(best < low, "below", "between"))
    if not low_quality:
        return reason
    best_of_truth = iou.max(axis=1, keepdims=True, initial=0)
    is_best = ((iou == best_of_truth) & (zero_iou | (best_of_truth > 0))).any(axis=0)
    return np.where(is_best & (reason != "above"), "best of a truth", reason)
