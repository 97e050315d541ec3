"""Exercise of notebook 2: label anchors by their overlaps with the truths."""

from collections.abc import Callable

import numpy as np

from exercises import NOT_SOLVED, RIGHT, attempt, wrong
from reference import matcher

HIGH, LOW = 0.7, 0.3
# (overlaps [G, T], what they test), from the plain rule to its exceptions.
CASES = (
    ([[0.9, 0.5, 0.1]], "at or above `high` is 1, below `low` is 0, and -1 lies between"),
    ([[0.9, 0.1, 0.1], [0.1, 0.8, 0.4]], "the highest IoU with any truth counts, down a column"),
    ([[0.9, 0.7, 0.3]], "an IoU equal to a threshold belongs to what is above it"),
    ([[0.5, 0.2, 0.1]], "the best anchor of a truth is an object, however low its IoU"),
    ([[0.6, 0.1, 0.0], [0.1, 0.2, 0.1]], "every truth has a best anchor of its own, along its row"),
    ([[0.5, 0.5, 0.1]], "all anchors that tie for the best of a truth are objects, not only one"),
    ([[0.8, 0.0, 0.0], [0.0, 0.0, 0.0]], "a best IoU of 0 makes no object"),
)


def check(answer: Callable) -> str:
    """Check a function (iou [G, T], high, low) -> labels [T] against the oracle."""
    for iou, hint in CASES:
        if reply := _compare(answer, np.array(iou), hint):
            return reply
    empty = "without any truth, iou has the shape [0, T], and every anchor is background"
    if reply := _compare(answer, np.zeros((0, 3)), empty):
        return reply
    generator = np.random.default_rng(0)
    for _ in range(200):
        truths, anchors = generator.integers(1, 6, 2)
        iou = generator.integers(0, 11, (truths, anchors)) / 10
        if reply := _compare(answer, iou, "a random table with ties"):
            return reply
    return RIGHT


def _compare(answer, iou, hint):
    """Return the reply to one table of overlaps, or None if the labels are right."""
    labels, reply = attempt(answer, iou.copy(), HIGH, LOW)
    if reply:
        return reply if reply == NOT_SOLVED else f"{reply} ({hint})"
    expected, _ = matcher.match(iou, HIGH, LOW, low_quality=True, zero_iou=False)
    if np.shape(labels) == expected.shape and (np.asarray(labels) == expected).all():
        return None
    got = np.asarray(labels).tolist()
    return wrong(f"{hint}. For iou = {iou.tolist()} the labels are {expected.tolist()}, not {got}.")
