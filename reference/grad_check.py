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
    return _mismatch(function, arrays, directions, change, generator)


def adjoint_error(function: Callable, array: Array, *, generator: np.random.Generator) -> float:
    """Compare <Jᵀ w, x> with <w, f(x)> for a linear f, random w: |difference| / (|w| |f(x)|)."""
    return _mismatch(function, [array], [array], function(array), generator)


def _mismatch(function, arrays, directions, change, generator):
    """Compare <Jᵀ w, d> with <w, change> for random w: |difference| / (|w| |change|)."""
    tape = Tape()
    variables = [tape.variable(array) for array in arrays]
    result = function(*variables)
    weight = generator.standard_normal(result.shape)
    tape.backward(result, weight)
    # A gradient is None if the function does not depend on its array.
    pulled = sum(np.vdot(v.grad, d) for v, d in zip(variables, directions) if v.grad is not None)
    scale = np.linalg.norm(weight) * np.linalg.norm(change)
    return float(abs(pulled - np.vdot(weight, change)) / max(scale, np.finfo(float).tiny))
