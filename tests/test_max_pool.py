"""Max pooling and its backward against PyTorch's, ties included."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.gradients import check_backward, compare_with_autograd, distinct, value_and_gradients

from accelerated.verify.equality import assert_equal
from reference.max_pool import max_pool2d


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 2),
    st.tuples(st.integers(4, 9), st.integers(4, 9)),
    st.integers(0, 2),
)
def test_against_torch(kernel, stride, padding, size, images):
    padding = min(padding, kernel // 2)
    # Padding must not win.
    x = np.random.default_rng(kernel + 10 * stride).standard_normal((images, 3, *size)) - 5
    assert_equal(
        max_pool2d(x, kernel, stride, padding),
        F.max_pool2d(torch.tensor(x), kernel, stride, padding),
    )


def test_a_window_larger_than_the_image_raises():
    with pytest.raises(ValueError, match="larger than the padded image"):
        max_pool2d(np.zeros((1, 1, 2, 2)), 3, 1)


@st.composite
def windows(draw):
    """(image shape, kernel, stride, padding), padding at most half the kernel."""
    kernel, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    padding = draw(st.integers(0, kernel // 2))
    sides = [draw(st.integers(max(1, kernel - 2 * padding), 8)) for _ in range(2)]
    return (draw(st.integers(0, 2)), draw(st.integers(1, 3)), *sides), kernel, stride, padding


@given(windows(), st.integers(0, 2**31))
def test_max_pool2d_backward(case, seed):
    shape, *window = case
    check_max_pool2d_backward(distinct(np.random.default_rng(seed), shape), *window)


def check_max_pool2d_backward(x, *window):
    check_backward(lambda x: max_pool2d(x, *window), lambda x: F.max_pool2d(x, *window), x)


@given(windows(), st.integers(0, 2**31))
def test_ties_behind_a_relu(case, seed):
    shape, *window = case
    check_ties(np.maximum(np.random.default_rng(seed).integers(-2, 3, shape), 0.0), *window)


def check_ties(x, *window):
    compare_with_autograd(lambda x: max_pool2d(x, *window), lambda x: F.max_pool2d(x, *window), x)


def test_the_first_of_equal_pixels_in_row_major_order_takes_the_gradient():
    x = np.zeros((1, 1, 4, 4))
    x[0, 0, 1, 2] = x[0, 0, 2, 1] = 1
    grad_out = np.array([[[[1.0, 2], [3, 4]]]])
    _, [gradient], _ = value_and_gradients(lambda x: max_pool2d(x, 2, 2), x, grad_out=grad_out)
    expected = np.zeros((4, 4))
    expected[0, 0], expected[1, 2], expected[2, 1], expected[2, 2] = 1, 2, 3, 4
    assert_equal(gradient[0, 0], expected)
    # Windows that share pixels.
    _, [gradient], _ = value_and_gradients(lambda x: max_pool2d(x, 3, 2, 1), x, grad_out=grad_out)
    expected = np.zeros((4, 4))
    expected[0, 0], expected[1, 2] = 1, 2 + 4
    expected[2, 1] = 3
    assert_equal(gradient[0, 0], expected)
