"""Checks of every backward: finite differences, adjoint test, PyTorch's autograd, float32."""

import numpy as np
import torch

from accelerated.verify.equality import REDUCTION, assert_close, assert_equal
from reference.autodiff import Tape
from reference.grad_check import adjoint_error, directional_error

# Relative error of a gradient along a random direction.
SLOPE = 1e-6
ADJOINT = 1e-12


def value_and_gradients(function, *arrays, grad_out=None):
    """Return the result of `function`, the gradients Jᵀ grad_out for each array, and grad_out.

    grad_out is random unless given.
    """
    tape = Tape()
    variables = [tape.variable(x) for x in arrays]
    out = function(*variables)
    if grad_out is None:
        # A backward takes any strides.
        grad_out = np.transpose(np.random.default_rng(1).standard_normal(out.shape[::-1]))
    tape.backward(out, grad_out)
    return out.value, [v.grad for v in variables], grad_out


def check_backward(function, twin, *arrays, linear=()):
    """Raise AssertionError unless the gradients of `function` are right, and equal `twin`'s.

    function, twin  the same function of arrays and of tensors; constants in it have the dtype of
                    its first argument
    arrays          float64, where the function is smooth
    linear          positions of the arrays in which, the others fixed, it is linear
    """
    generator = np.random.default_rng(0)
    slope = directional_error(function, *arrays, generator=generator)
    assert slope <= SLOPE, f"finite differences: {slope:.2g}"
    for i in linear:
        adjoint = adjoint_error(
            lambda x, i=i: function(*arrays[:i], x, *arrays[i + 1 :]),
            arrays[i],
            generator=generator,
        )
        assert adjoint <= ADJOINT, f"adjoint of argument {i}: {adjoint:.2g}"
    compare_with_autograd(function, twin, *arrays)
    check_float32(function, *arrays)


def compare_with_autograd(function, twin, *arrays):
    """Compare the gradients with PyTorch's autograd, also at kinks and ties.

    The value must be the same to the bit without a tape.
    """
    out, gradients, grad_out = value_and_gradients(function, *arrays)
    assert_equal(out, function(*arrays), "taped value")
    leaves = [torch.tensor(x, requires_grad=True) for x in arrays]
    expected = torch.autograd.grad(twin(*leaves), leaves, torch.tensor(grad_out))
    for i, (gradient, theirs) in enumerate(zip(gradients, expected, strict=True)):
        assert_close(gradient, theirs, REDUCTION["float64"], f"gradient of argument {i}")


def check_float32(function, *arrays):
    """float32 in, float32 out; close to the float64 gradients at the rounded numbers."""
    arrays = [x.astype(np.float32) for x in arrays]
    out, gradients, grad_out = value_and_gradients(function, *arrays)
    assert out.dtype == np.float32
    _, expected, _ = value_and_gradients(
        function, *(x.astype(np.float64) for x in arrays), grad_out=grad_out.astype(np.float32)
    )
    for i, (gradient, exact) in enumerate(zip(gradients, expected, strict=True)):
        assert gradient.dtype == np.float32, f"gradient of argument {i} is {gradient.dtype}"
        assert_close(gradient, exact, REDUCTION["float32"], f"float32 gradient of argument {i}")


def away(x, *points):
    """Move the entries of `x` that are within 0.01 of a point, the kink of a function, off it."""
    for point in points:
        x = np.where(np.abs(x - point) < 0.01, point + 0.02, x)
    return x


def distinct(rng, shape):
    """Draw numbers that differ by at least 0.05 and are at least 0.02 from 0.

    No small step changes their order.
    """
    numbers = rng.permutation(int(np.prod(shape)))
    return (numbers - numbers.size // 2 + 0.5).reshape(shape) * 0.05
