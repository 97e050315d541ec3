"""Wrong answers to the notebooks' exercises, and a word that the checker's hint must contain.

{module of `notebooks/exercises`: [(wrong answer, word of the hint)]}
"""

import numpy as np

MISTAKES = {}


def greedy(iou, threshold, *, free=True, retry=True, inclusive=True, last=True):
    """Match as the answer to notebook 10 does, or without one of its rules."""
    taken, out = set(), []
    for row in iou:
        allowed = [g for g, value in enumerate(row) if value > threshold - 1e-9 * inclusive]
        if free and retry:
            allowed = [g for g in allowed if g not in taken]
        best = max(allowed, key=lambda g: (row[g], g if last else -g), default=-1)
        if free and best in taken:
            best = -1
        out.append(best)
        taken.add(best)
    return out


def truth_by_truth(iou, threshold):
    """Let every truth choose the best detection, instead of every detection the best truth."""
    out = np.full(len(iou), -1)
    for g, column in enumerate(iou.T if len(iou) else ()):
        best = column.argmax()
        if column[best] >= threshold:
            out[best] = g
    return out


def best_pairing(iou, threshold):
    """Choose the pairing with the most matches, and among these the best for the upper rows."""
    pairings = [()]
    for row in iou:
        reach = [-1, *np.flatnonzero(row >= threshold).tolist()]
        pairings = [(*p, g) for p in pairings for g in reach if g < 0 or g not in p]
    padded = np.pad(iou, ((0, 0), (0, 1)))
    return max(pairings, key=lambda p: (sum(g >= 0 for g in p), *padded[range(len(p)), p]))


def first_within_reach(iou, threshold):
    """Take the first free truth above the threshold, not the best."""
    return greedy((iou >= threshold) * 1.0, 0.5, last=False)


MISTAKES["average_precision"] = [
    (lambda iou, t: [int(row.argmax()) for row in iou], "-1 for none"),
    (truth_by_truth, "two detections on one object"),
    (lambda iou, t: greedy(iou, t, free=False), "only once"),
    (first_within_reach, "highest IoU"),
    (lambda iou, t: greedy(iou, t, retry=False), "tries the next best"),
    (best_pairing, "greedy"),
    (lambda iou, t: greedy(iou, t, inclusive=False), "exactly the threshold"),
    (lambda iou, t: greedy(iou, t, last=False), "last one is taken"),
    (lambda iou, t: greedy(iou, t) if iou.size else 1 / 0, "no truth, or no detection"),
]

MISTAKES["triton_kernel"] = [
    (lambda ys, xs, h, w: (ys >= 0)[:, None] & (xs >= 0)[None, :], "every place"),
    (lambda ys, xs, h, w: (ys >= 0)[:, None] & (xs < w)[None, :], "rows below"),
    (lambda ys, xs, h, w: (ys < h)[:, None] & (xs >= 0)[None, :], "to the right"),
    (lambda ys, xs, h, w: (ys <= h)[:, None] & (xs <= w)[None, :], "too many"),
    (lambda ys, xs, h, w: (ys < h - 1)[:, None] & (xs < w - 1)[None, :], "not read"),
    (lambda ys, xs, h, w: (ys < w)[:, None] & (xs < h)[None, :], "swapped"),
    (lambda ys, xs, h, w: (ys < h)[:, None] | (xs < w)[None, :], "with &"),
    (lambda ys, xs, h, w: (ys < h)[None, :] & (xs < w)[:, None], "transposed"),
    (lambda ys, xs, h, w: ys[:, None] * w + xs[None, :] < h * w, "next row"),
    (lambda ys, xs, h, w: (ys >= h)[:, None] | (xs >= w)[None, :], "inverted"),
    (lambda ys, xs, h, w: (ys < h)[:, None] & (xs < 2)[None, :], "the place y = 0, x = 2"),
]
