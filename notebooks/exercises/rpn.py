"""Exercise of notebook 3: non-maximum suppression."""

from collections.abc import Callable

import numpy as np

from exercises import NOT_SOLVED, RIGHT, attempt, wrong
from reference import nms

# (boxes, scores, threshold, what they test), from the plain rule to its corners.
CASES = (
    (
        [[0, 0, 2, 2], [5, 5, 7, 7], [9, 9, 11, 11]],
        [0.3, 0.9, 0.6],
        0.5,
        "return the indices in the order of falling score",
    ),
    (
        [[0, 0, 4, 4], [0, 0, 4, 3]],
        [0.2, 0.9],
        0.5,
        "the box of the higher score stays and the one that overlaps it goes",
    ),
    (
        [[0, 0, 4, 4], [0, 1, 4, 5], [0, 2, 4, 6]],
        [0.9, 0.8, 0.7],
        0.5,
        "a box that is gone removes nothing: box 1 goes, and so it cannot take box 2 with it",
    ),
    (
        [[0, 0, 8, 8], [0, 0, 4, 4]],
        [0.9, 0.8],
        0.5,
        "divide by the union, not by the smaller of the two areas",
    ),
    (
        [[0, 0, 3, 2], [1, 0, 4, 2]],
        [0.9, 0.8],
        0.55,
        'a box is x2 - x1 wide; a "+1" makes these two overlap too much',
    ),
    (
        [[0, 0, 2, 1], [0, 0, 1, 1]],
        [0.9, 0.8],
        0.5,
        "only an IoU strictly above the threshold removes a box",
    ),
    (
        [[0, 0, 4, 4], [0, 0, 4, 3], [9, 9, 12, 12], [6, 9, 9, 12]],
        [0.5, 0.5, 0.7, 0.7],
        0.5,
        "among equal scores the lower index comes first",
    ),
)


def check(answer: Callable) -> str:
    """Check a function (boxes [R, 4], scores [R], threshold) -> kept [D] against the oracle."""
    for boxes, scores, threshold, hint in CASES:
        arguments = np.array(boxes, float), np.array(scores), threshold
        if reply := _compare(answer, *arguments, hint):
            return reply
    nothing = np.zeros((0, 4)), np.zeros(0), 0.5
    if reply := _compare(answer, *nothing, "there may be no box at all"):
        return reply
    generator = np.random.default_rng(0)
    for _ in range(200):
        count = generator.integers(2, 12)
        corner, side = generator.integers(0, 6, (count, 2)), generator.integers(1, 6, (count, 2))
        boxes = np.concatenate([corner, corner + side], axis=1).astype(float)
        scores = generator.integers(0, 5, count) / 4
        if reply := _compare(answer, boxes, scores, 0.5, "a random set of boxes with ties"):
            return reply
    return RIGHT


def _compare(answer, boxes, scores, threshold, hint):
    """Return the reply to one set of boxes, or None if the kept indices are right."""
    kept, reply = attempt(answer, boxes.copy(), scores.copy(), threshold)
    if reply:
        return reply if reply == NOT_SOLVED else f"{reply} ({hint})"
    expected, kept = nms.nms(boxes, scores, threshold).tolist(), np.asarray(kept).tolist()
    if kept == expected:
        return None
    data = f"boxes = {boxes.tolist()}, scores = {scores.tolist()}, threshold = {threshold}"
    return wrong(f"{hint}. For {data}, {expected} stay, not {kept}.")
