"""Two ways to doubt a backward: finite differences along a random direction, and the adjoint test of a linear function.

Both take any function of arrays that is made of primitives, and ask its tape for Jᵀ w with a random w: J is the Jacobian at the arrays.
"""

import numpy as np

from reference.autodiff import Tape


def directional_error(function, *arrays, generator, step=1e-5):
    """How far <Jᵀ w, d> is from <w, J d>, relative to |w| |J d|; d random, J d = (f(x + h d) - f(x - h d)) / 2h.

    arrays     the points at which to differentiate, float64; all of them move at once
    generator  numpy.random.Generator of w and d
    step       h. Rounding costs about 1e-16 / h, curvature h²; no kink may lie within h of a point
    """
    moves = [generator.standard_normal(array.shape) for array in arrays]
    ahead, behind = (
        function(*(x + h * d for x, d in zip(arrays, moves, strict=True))) for h in (step, -step)
    )
    change = (ahead - behind) / (2 * step)
    weight, gradients = _pulled_back(function, arrays, generator)
    expected = sum(np.vdot(gradient, d) for gradient, d in zip(gradients, moves, strict=True))
    return _relative(expected - np.vdot(weight, change), weight, change)


def adjoint_error(function, array, *, generator):
    """How far <Jᵀ w, x> is from <w, f(x)>, relative to |w| |f(x)|, for a function that is linear in x = `array`: exact but for rounding."""
    weight, (gradient,) = _pulled_back(function, [array], generator)
    out = function(array)
    return _relative(np.vdot(gradient, array) - np.vdot(weight, out), weight, out)


def _pulled_back(function, arrays, generator):
    """w, and Jᵀ w for each array; 0 where the function does not depend on it."""
    tape = Tape()
    variables = [tape.variable(array) for array in arrays]
    result = function(*variables)
    weight = generator.standard_normal(result.shape)
    tape.backward(result, weight)
    return weight, [np.zeros_like(v.value) if v.grad is None else v.grad for v in variables]


def _relative(difference, a, b):
    return float(abs(difference) / max(np.linalg.norm(a) * np.linalg.norm(b), np.finfo(float).tiny))
