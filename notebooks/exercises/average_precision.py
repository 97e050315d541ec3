"""Exercise of notebook 10: match detections with truths at one threshold."""

from collections.abc import Callable

import numpy as np

from exercises import NOT_SOLVED, RIGHT, attempt, wrong
from reference.average_precision import match

# (iou, threshold, what it tests), from the plain rule to its corners.
CASES = (
    (
        [[0.0, 0.8], [0.7, 0.0], [0.2, 0.1]],
        0.5,
        "return the truth's column for each detection in the order of the rows, -1 for none",
    ),
    (
        [[0.9, 0.0], [0.9, 0.0]],
        0.5,
        "a truth can be taken only once: a duplicate is wrong",
    ),
    (
        [[0.6], [0.9]],
        0.5,
        "two detections on one object: the one of higher score, the upper row, takes it, even if"
        " the other fits better",
    ),
    (
        [[0.6, 0.7]],
        0.5,
        "of the truths within reach, take the one of highest IoU",
    ),
    (
        [[0.9, 0.2], [0.8, 0.6]],
        0.5,
        "a detection whose best truth is taken tries the next best one that is free",
    ),
    (
        [[0.60, 0.55], [0.70, 0.00]],
        0.5,
        "the matching is greedy: the upper row takes its best truth, whatever that leaves to"
        " others",
    ),
    (
        [[0.75]],
        0.75,
        "an IoU of exactly the threshold is enough",
    ),
    (
        [[0.8, 0.8, 0.3]],
        0.5,
        "of truths with equal IoU, the last one is taken, as in pycocotools",
    ),
)


def check(answer: Callable) -> str:
    """Check a function (iou [D, G], threshold) -> truths [D] against the oracle."""
    for iou, threshold, hint in CASES:
        if reply := _compare(answer, np.array(iou), threshold, hint):
            return reply
    for shape in ((3, 0), (0, 2)):
        what = "there may be no truth, or no detection at all"
        if reply := _compare(answer, np.zeros(shape), 0.5, what):
            return reply
    generator = np.random.default_rng(0)
    for _ in range(200):
        iou = generator.integers(0, 21, generator.integers(1, 7, 2)) / 20
        if reply := _compare(answer, iou, 0.5, "a random matrix"):
            return reply
    return RIGHT


def _compare(answer, iou, threshold, hint):
    """Return the reply to one matrix, or None if the matches are right."""
    matched, reply = attempt(answer, iou.copy(), threshold)
    if reply:
        return reply if reply == NOT_SOLVED else f"{reply} ({hint})"
    nothing = np.zeros(iou.shape[1], bool)
    expected = match(iou, nothing, nothing, np.array([threshold]))[0].tolist()
    matched = np.asarray(matched).tolist()
    if matched == expected:
        return None
    data = f"iou = {iou.tolist()}, threshold = {threshold}"
    return wrong(f"{hint}. For {data}, the detections take {expected}, not {matched}.")
