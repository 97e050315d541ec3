"""The exercise of notebook 8: the backward of the smooth L1 loss."""

from collections.abc import Callable
from functools import partial

import numpy as np

from exercises import RIGHT, attempt, wrong
from reference.autodiff import primitive
from reference.grad_check import directional_error
from reference.losses import smooth_l1


def check(answer: Callable) -> str:
    """Put `answer` on the tape as the backward of smooth L1, and compare finite differences."""
    generator = np.random.default_rng(8)
    for beta in (0.4, 2.0):
        difference, grad_out = generator.standard_normal((2, 20, 4)) * [[[2.0]], [[1.0]]]
        result, reply = attempt(answer, grad_out.copy(), difference.copy(), beta)
        if reply:
            return reply
        result = np.asarray(result, float)
        if result.shape != difference.shape:
            return wrong(f"the gradient has the shape {result.shape}, not {difference.shape}")
        taped = partial(primitive(smooth_l1.__wrapped__, answer), beta=beta)
        error = directional_error(taped, difference, generator=generator)
        if not error < 1e-6:
            return wrong(_hint(result, grad_out, difference, beta, error))
    return RIGHT


# Mistakes: (hint, what the result would then be, from grad_out, difference and beta).
MISTAKES = [
    (
        "grad_out is not used: multiply the slope of each entry by the gradient of the result",
        lambda g, d, beta: np.clip(d / beta, -1, 1),
    ),
    (
        "the sign is lost: a negative difference has a negative slope",
        lambda g, d, beta: g * np.clip(np.abs(d) / beta, 0, 1),
    ),
    (
        "the slope of the parabola is d / beta, not d",
        lambda g, d, beta: g * np.where(np.abs(d) < beta, d, np.sign(d)),
    ),
    (
        "the slope of d² / (2 beta) is d / beta: the 2 cancels",
        lambda g, d, beta: g * np.where(np.abs(d) < beta, d / (2 * beta), np.sign(d)),
    ),
    (
        "beyond beta the slope is +1 or -1, however large the difference is",
        lambda g, d, beta: g * np.where(np.abs(d) < beta, d / beta, d),
    ),
    (
        "you took the parabola everywhere: beyond beta the slope is +1 or -1",
        lambda g, d, beta: g * d / beta,
    ),
    (
        "the two cases are swapped: the parabola lies where |d| < beta",
        lambda g, d, beta: g * np.where(np.abs(d) < beta, np.sign(d), d / beta),
    ),
    (
        "the case is chosen by d instead of |d|: large negative differences are on the line",
        lambda g, d, beta: g * np.where(d < beta, d / beta, np.sign(d)),
    ),
    (
        "the parabola ends at beta, not at 1",
        lambda g, d, beta: g * np.where(np.abs(d) < 1, d / beta, np.sign(d)),
    ),
    (
        "this is the loss itself, not its slope",
        lambda g, d, beta: g * smooth_l1(d, beta),
    ),
    (
        "the direction is reversed: the gradient points uphill",
        lambda g, d, beta: -g * np.clip(d / beta, -1, 1),
    ),
]


def _hint(result, grad_out, difference, beta, error):
    """Name the mistake that explains the result."""
    for hint, mistaken in MISTAKES:
        if np.allclose(result, mistaken(grad_out, difference, beta), rtol=1e-9, atol=1e-12):
            return hint
    return f"finite differences disagree, relative error {error:.1g}, with beta = {beta:g}"
