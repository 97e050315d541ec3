"""Exercise of notebook 13: the parameters of a DeepMask that predicts a mask for every class."""

import math
from collections.abc import Callable

from exercises import RIGHT, attempt, wrong
from reference import deepmask
from reference.config import DeepMask

CASES = [
    (DeepMask(), 1),
    (DeepMask(), 3),
    (DeepMask(window=224, hidden=512), 80),
    (DeepMask(window=64, channels=(4, 8, 8), hidden=20), 5),
]


def check(answer: Callable) -> str:
    """Compare `answer(settings, classes)` with the shapes of the layers."""
    for settings, classes in CASES:
        result, problem = attempt(answer, settings, classes)
        if problem:
            return problem
        right, mistakes = count(settings, classes), wrong_counts(settings, classes)
        if result != right:
            for hint, value in mistakes.items():
                if result == value:
                    return wrong(hint)
            return wrong(f"{settings} with {classes} classes has {right:,}, not {result:,}")
    return RIGHT


def count(settings: DeepMask, classes: int) -> int:
    """Count the parameters with one mask for each class."""
    sizes = _sizes(settings)
    return sum(sizes.values()) + (classes - 1) * (sizes["mask.weight"] + sizes["mask.bias"])


def wrong_counts(settings: DeepMask, classes: int) -> dict[str, int]:
    """Return the counts that a mistake would give, with its hint."""
    sizes, more = _sizes(settings), classes - 1
    whole, weight, bias = sum(sizes.values()), sizes["mask.weight"], sizes["mask.bias"]
    score = sizes["score.weight"] + sizes["score.bias"]
    return {
        "only the layer of the masks grows: trunk, code and score serve all classes": (
            whole * classes
        ),
        "the mask has a fourth of the window's side": whole + more * 16 * (weight + bias),
        "there is a bias for each pixel of each mask": whole + more * weight,
        "these are the layer of the masks alone; count the rest too": classes * (weight + bias),
        "biases are parameters as well": sum(
            size for name, size in sizes.items() if name.endswith(".weight")
        )
        + more * weight,
        "the background has no mask: there are as many masks as classes": (
            whole + classes * (weight + bias)
        ),
        "there is still a single score: whether there is an object, not which": (
            whole + more * (weight + bias + score)
        ),
    }


def _sizes(settings):
    """Return {parameter: how many numbers}."""
    return {name: math.prod(x) for name, x in deepmask.parameter_shapes(settings).items()}
