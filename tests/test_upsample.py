"""Nearest-neighbour resizing against PyTorch's at the sizes a pyramid meets: twice as many pixels, or one less."""

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_equal

from reference.upsample import nearest


@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.booleans(), st.booleans(), st.integers(0, 2))
def test_against_torch(size, odd_height, odd_width, images):
    x = np.random.default_rng(0).standard_normal((images, 3, *size))
    wanted = (2 * size[0] - odd_height, 2 * size[1] - odd_width)
    assert_equal(nearest(x, *wanted), F.interpolate(torch.tensor(x), wanted) if images else np.zeros((0, 3, *wanted)))


def test_one_pixel_becomes_two_by_two():
    assert_equal(nearest(np.array([[[[1.0, 2.0]]]]), 2, 4), np.array([[[[1.0, 1, 2, 2], [1, 1, 2, 2]]]]))
