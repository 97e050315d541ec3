"""Max pooling against PyTorch's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_equal

from reference.max_pool import max_pool2d


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.tuples(st.integers(4, 9), st.integers(4, 9)), st.integers(0, 2))
def test_against_torch(kernel, stride, padding, size, images):
    padding = min(padding, kernel // 2)
    x = np.random.default_rng(kernel + 10 * stride).standard_normal((images, 3, *size)) - 5  # padding must not win
    assert_equal(max_pool2d(x, kernel, stride, padding), F.max_pool2d(torch.tensor(x), kernel, stride, padding))


def test_a_window_larger_than_the_image_raises():
    with pytest.raises(ValueError, match="larger than the padded image"):
        max_pool2d(np.zeros((1, 1, 2, 2)), 3, 1)
