"""The two checks of a backward: right ones pass; a wrong sign, factor or term is noticed."""

import numpy as np
import pytest

from reference.autodiff import primitive
from reference.grad_check import adjoint_error, directional_error

WEIGHT = np.array([[1.0, 2, 0], [0, -1, 3]])


def product(backward):
    return primitive(lambda x, y: x * y, backward)


def matrix(backward):
    return primitive(lambda x: WEIGHT @ x, backward)


def test_a_right_backward_passes(rng):
    right = product(lambda grad, x, y: (grad * y, grad * x))
    assert directional_error(right, *rng.standard_normal((2, 4)), generator=rng) < 1e-9
    sine = primitive(np.sin, lambda grad, x: grad * np.cos(x))
    assert (
        directional_error(lambda x: sine(sine(x)), rng.standard_normal((3, 4)), generator=rng)
        < 1e-9
    )
    right = matrix(lambda grad, x: WEIGHT.T @ grad)
    assert adjoint_error(right, rng.standard_normal(3), generator=rng) < 1e-15
    assert directional_error(right, rng.standard_normal(3), generator=rng) < 1e-9


@pytest.mark.parametrize(
    "wrong",
    [
        # A wrong sign.
        lambda grad, x, y: (grad * y, -grad * x),
        # A wrong factor.
        lambda grad, x, y: (grad * y, 0.999 * grad * x),
        # A missing term.
        lambda grad, x, y: (grad * y, None),
        # The wrong argument.
        lambda grad, x, y: (grad * x, grad * y),
    ],
)
def test_a_wrong_gradient_is_noticed(wrong, rng):
    assert directional_error(product(wrong), *rng.standard_normal((2, 4)), generator=rng) > 1e-4


@pytest.mark.parametrize(
    "wrong",
    [
        lambda grad, x: -WEIGHT.T @ grad,
        lambda grad, x: 0.999 * WEIGHT.T @ grad,
        lambda grad, x: WEIGHT[0] * grad[0],
    ],
)
def test_a_wrong_adjoint_is_noticed(wrong, rng):
    assert adjoint_error(matrix(wrong), rng.standard_normal(3), generator=rng) > 1e-4
    assert directional_error(matrix(wrong), rng.standard_normal(3), generator=rng) > 1e-4


def test_what_the_result_does_not_depend_on_has_no_gradient(rng):
    assert directional_error(lambda x, y: x / 3, *rng.standard_normal((2, 4)), generator=rng) < 1e-9


def test_no_rows_are_no_error(rng):
    right = product(lambda grad, x, y: (grad * y, grad * x))
    assert directional_error(right, np.zeros((0, 4)), np.zeros((0, 4)), generator=rng) == 0
    assert (
        adjoint_error(matrix(lambda grad, x: WEIGHT.T @ grad), np.zeros((3, 0)), generator=rng) == 0
    )
