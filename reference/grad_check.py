"""Two checks of a backward: finite differences along a random direction, and the adjoint test.

Both ask a function's tape for Jᵀ w with a random w, where J is the Jacobian.
"""

from collections.abc import Callable

import numpy as np

from reference.autodiff import Array, Tape


def directional_error(
    function: Callable, *arrays: Array, generator: np.random.Generator, step: float = 1e-5
) -> float:
    """Compare <Jᵀ w, d> with <w, J d> for random w and d; return |difference| / (|w| |J d|).

    arrays     the points x at which to differentiate, float64
    generator  draws w and d
    step       h of J d = (f(x + h d) - f(x - h d)) / 2h. Rounding costs about 1e-16 / h, curvature
               h²; no kink may lie within h of a point
    """
    directions = [generator.standard_normal(array.shape) for array in arrays]
    ahead = function(*(x + step * d for x, d in zip(arrays, directions)))
    behind = function(*(x - step * d for x, d in zip(arrays, directions)))
    change = (ahead - behind) / (2 * step)
    weight, gradients = _pulled_back(function, arrays, generator)
    expected = sum(np.vdot(gradient, d) for gradient, d in zip(gradients, directions))
    return _relative(expected - np.vdot(weight, change), weight, change)


def adjoint_error(function: Callable, array: Array, *, generator: np.random.Generator) -> float:
    """Compare <Jᵀ w, x> with <w, f(x)> for a linear f, random w: |difference| / (|w| |f(x)|)."""
    weight, (gradient,) = _pulled_back(function, [array], generator)
    out = function(array)
    return _relative(np.vdot(gradient, array) - np.vdot(weight, out), weight, out)


def _pulled_back(function, arrays, generator):
    """Return w, and Jᵀ w for each array: zeros if the function does not depend on it."""
    tape = Tape()
    variables = [tape.variable(array) for array in arrays]
    result = function(*variables)
    weight = generator.standard_normal(result.shape)
    tape.backward(result, weight)
    return weight, [np.zeros_like(v.value) if v.grad is None else v.grad for v in variables]


def _relative(difference, a, b):
    return float(abs(difference) / max(np.linalg.norm(a) * np.linalg.norm(b), np.finfo(float).tiny))
