"""Exercise of notebook 6: the gradient of the softmax loss of a pixel."""

from collections.abc import Callable

import numpy as np

from exercises import RIGHT, attempt, wrong
from reference.activations import sigmoid, softmax
from reference.losses import cross_entropy

STEP = 1e-6
# What a wrong gradient may be instead, from the logits and the one-hot vector of the class.
MISTAKES = {
    "this is the probability itself; -x_k in the loss has a gradient too": lambda x, one: softmax(
        x
    ),
    "the sign is reversed: this is the gradient of +ln p": lambda x, one: one - softmax(x),
    "these are sigmoids: with a softmax, all logits share one sum": lambda x, one: sigmoid(x) - one,
    "the sum in the softmax depends on the other logits too": lambda x, one: one * (softmax(x) - 1),
    "this is the gradient of ln of a sum of exponentials without -x_k, times the class": (
        lambda x, one: one * softmax(x)
    ),
}


def check(answer: Callable) -> str:
    """Compare `answer(logits, column)` with finite differences of the loss."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        logits, column = 2 * generator.standard_normal(4), int(generator.integers(4))
        result, problem = attempt(answer, logits.copy(), column)
        if problem:
            return problem
        result, one = np.asarray(result, dtype=float), np.eye(4)[column]
        if result.shape != logits.shape:
            return wrong(
                f"the gradient has one entry per logit, [4]; yours has shape {result.shape}"
            )
        if not np.allclose(result, _finite_differences(logits, column), atol=1e-6):
            for hint, mistake in MISTAKES.items():
                if np.allclose(result, mistake(logits, one), atol=1e-6):
                    return wrong(hint)
            return wrong(f"finite differences disagree at logits {logits.round(2)}, class {column}")
    result, problem = attempt(answer, np.array([1000.0, 999.0, -1000.0, 0.0]), 0)
    if problem:
        return problem
    if not np.isfinite(result).all():
        return wrong("e^1000 overflows: subtract the largest logit first, which changes nothing")
    return RIGHT


def _finite_differences(logits, column):
    """Differentiate the loss numerically, one logit after the other."""
    moved = STEP * np.eye(len(logits))
    columns = np.full(len(logits), column)
    ahead, behind = (cross_entropy(logits + way * moved, columns) for way in (1, -1))
    return (ahead - behind) / (2 * STEP)
