"""Exercise of notebook 1: intersection over union of two boxes."""

from collections.abc import Callable

import numpy as np

from exercises import NOT_SOLVED, RIGHT, attempt, wrong
from reference import boxes

EMPTY = "two boxes without area have no 0 / 0: they share nothing, so their IoU is 0"
# Two boxes, and the mistake that shows there first; earlier cases do not show it.
CASES = (
    ((1, 2, 3, 4), (1, 2, 3, 4), "a box overlaps itself entirely: count the shared area once"),
    ((1, 2, 7, 4), (1, 2, 7, 4), "the order of a box is x1, y1, x2, y2"),
    ((0, 0, 4, 4), (4, 0, 8, 4), "boxes that only touch share nothing: x2 - x1, without a +1"),
    ((0, 0, 2, 2), (5, 5, 8, 8), "two negative sides have a positive product: cut each off at 0"),
    ((0, 0, 2, 4), (5, 0, 7, 4), "a negative side is no side: cut each off at 0"),
    ((0, 0, 4, 4), (1, 1, 2, 2), "divide by the union, which is at least as large as either box"),
    ((3, 3, 3, 5), (3, 3, 3, 5), EMPTY),
    ((5, 0, 1, 4), (0, 0, 6, 6), "a box whose right edge is left of its left edge covers nothing"),
)


def check(answer: Callable) -> str:
    """Compare `answer(a, b)` with the oracle, first on cases that name a mistake."""
    generator = np.random.default_rng(0)
    pairs = generator.uniform(-20, 100, (1000, 2, 4))
    # Most are proper boxes, the others inverted.
    pairs[200:] = np.sort(pairs[200:].reshape(-1, 2, 2, 2), axis=2).reshape(-1, 2, 4)
    cases = [*CASES, *((*pair, "the formula is different") for pair in pairs.tolist())]
    for a, b, hint in cases:
        with np.errstate(all="ignore"):
            result, problem = attempt(answer, np.array(a, float), np.array(b, float))
        if problem and problem != NOT_SOLVED and hint == EMPTY:
            return wrong(hint)
        if problem:
            return problem
        expected = float(boxes.iou(np.array([a], float), np.array([b], float))[0, 0])
        if np.ndim(result) or not abs(result - expected) <= 1e-12:
            return wrong(f"{hint} ({show(a)} and {show(b)}: {expected:.3f}, not {result})")
    return RIGHT


def show(box: tuple) -> str:
    """Write a box with at most one digit after the point."""
    return f"({', '.join(f'{side:.4g}' for side in box)})"
