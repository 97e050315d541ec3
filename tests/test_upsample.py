"""Nearest-neighbour resizing against PyTorch's at the sizes of a pyramid; its backward at any."""

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.gradients import check_backward
from support.strategies import arrays

from accelerated.verify.equality import assert_equal
from reference.upsample import nearest


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)), st.booleans(), st.booleans(), st.integers(0, 2)
)
def test_against_torch(size, odd_height, odd_width, images):
    x = np.random.default_rng(0).standard_normal((images, 3, *size))
    wanted = (2 * size[0] - odd_height, 2 * size[1] - odd_width)
    assert_equal(
        nearest(x, *wanted),
        F.interpolate(torch.tensor(x), wanted) if images else np.zeros((0, 3, *wanted)),
    )


def test_one_pixel_becomes_two_by_two():
    assert_equal(
        nearest(np.array([[[[1.0, 2.0]]]]), 2, 4), np.array([[[[1.0, 1, 2, 2], [1, 1, 2, 2]]]])
    )


SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(st.data(), SIDES, SIDES, st.integers(0, 2))
def test_nearest_backward(data, size, wanted, images):
    """Larger, smaller and uneven; pixels that have no copy at all get 0."""
    check_nearest_backward(data.draw(arrays(images, 2, *size)), *wanted)


def check_nearest_backward(x, height, width):
    rows, columns = (
        [i * old // new for i in range(new)]
        for old, new in zip(x.shape[2:], (height, width), strict=True)
    )
    check_backward(
        lambda x: nearest(x, height, width),
        lambda x: x[:, :, rows][:, :, :, columns],
        x,
        linear=[0],
    )


@given(st.data(), SIDES, st.booleans(), st.booleans())
def test_nearest_backward_against_torch(data, size, odd_height, odd_width):
    wanted = (2 * size[0] - odd_height, 2 * size[1] - odd_width)
    check_backward(
        lambda x: nearest(x, *wanted),
        lambda x: F.interpolate(x, wanted),
        data.draw(arrays(2, 3, *size)),
    )
