"""Activations against PyTorch's, on numbers small and extreme; the backward of ReLU."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.gradients import away, check_backward, compare_with_autograd, value_and_gradients
from support.strategies import arrays

from accelerated.verify.equality import POINTWISE, assert_close, assert_equal
from reference import activations

TWINS = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: torch.softmax(x, -1),
    "log_softmax": lambda x: torch.log_softmax(x, -1),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", TWINS)
def test_against_torch(name, dtype, rng):
    for x in (rng.standard_normal((4, 7)), np.array([[-800.0, -30, 0, 30, 800]]), np.zeros((0, 3))):
        x = x.astype(dtype)
        out = getattr(activations, name)(x)
        assert out.dtype == dtype
        assert_close(out, TWINS[name](torch.tensor(x)), POINTWISE[dtype], name)


def test_sigmoid_keeps_the_small_end():
    assert activations.sigmoid(np.array([-100.0]))[0] == pytest.approx(np.exp(-100.0), rel=1e-12)


@given(st.integers(0, 5).flatmap(lambda rows: arrays(rows, 3, 4)))
def test_relu_backward(x):
    check_relu_backward(away(x, 0))


def check_relu_backward(x):
    check_backward(activations.relu, torch.relu, x)


def test_relu_at_its_kink():
    x = np.array([-1.0, -0.0, 0.0, 5e-324, 1.0])
    _, [gradient], _ = value_and_gradients(activations.relu, x, grad_out=np.full(5, 2.0))
    assert_equal(gradient, [0, 0, 0, 2, 2])
    compare_with_autograd(activations.relu, torch.relu, x)
