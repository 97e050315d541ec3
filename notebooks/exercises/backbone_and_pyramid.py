"""Exercise of notebook 4: the pyramid level of a box [Feature Pyramid Networks, (1)]."""

from collections.abc import Callable

import numpy as np

from exercises import RIGHT, attempt, wrong
from reference import pooler
from reference.config import preset

POOLER = preset("paper_r50_fpn").box_head.pooler
# Width, height and what a wrong answer there means, the most telling cases first.
CASES = (
    (224.0, 224.0, "a square of 224 pixels is the case for which the formula gives 4"),
    (350.0, 350.0, "between two steps the value is rounded down, not to the nearest level"),
    (200.0, 200.0, "between two steps the value is rounded down, not to the nearest level"),
    (112.0, 448.0, "the size of a box is the square root of its area, not one of its sides"),
    (448.0, 112.0, "the size of a box is the square root of its area, not one of its sides"),
    (448.0, 448.0, "a box twice as large is one level higher: use the logarithm to base 2"),
    (112.0, 112.0, "a box half as large is one level lower: use the logarithm to base 2"),
    (20.0, 20.0, "there is no map below P2: clamp the level from below"),
    (3000.0, 3000.0, "no box reads a map above P5: clamp the level from above"),
    (0.0, 50.0, "a box without area reads P2, and the logarithm of 0 does not exist"),
)


def check(answer: Callable) -> str:
    """Compare `answer(width, height)` with the oracle, first on cases that name a mistake."""
    generator = np.random.default_rng(0)
    sides = np.exp(generator.uniform(np.log(4), np.log(2000), (500, 2)))
    cases = [*CASES, *((*pair, "the formula is different") for pair in sides.tolist())]
    for width, height, hint in cases:
        result, problem = attempt(answer, width, height)
        if problem and width * height == 0 and "raises" in problem:
            return wrong(hint)
        if problem:
            return problem
        level = pooler.assign(np.array([[0.0, 0.0, width, height]]), POOLER)[0]
        if result != level:
            return wrong(
                f"{hint} ({width:.0f} x {height:.0f} pixels read P{level}, not {result!r})"
            )
    return RIGHT
