"""Global average pooling and its backward."""

import numpy as np
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.gradients import check_backward, value_and_gradients
from support.strategies import arrays

from accelerated.verify.equality import assert_close, assert_equal
from reference.average_pool import global_average_pool


def test_by_hand():
    x = np.arange(12.0).reshape(1, 2, 2, 3)
    assert_equal(global_average_pool(x), [[2.5, 8.5]])
    _, [gradient], _ = value_and_gradients(
        global_average_pool, x, grad_out=np.array([[6.0, -12.0]])
    )
    assert_close(gradient[0], np.array([1.0, -2.0])[:, None, None] * np.ones((2, 2, 3)), 1e-15)


@given(st.data(), st.integers(0, 3), *[st.integers(1, 4)] * 3)
def test_global_average_pool_backward(data, rows, channels, height, width):
    check_global_average_pool_backward(data.draw(arrays(rows, channels, height, width)))


def check_global_average_pool_backward(x):
    check_backward(
        global_average_pool, lambda x: F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0], x, linear=[0]
    )
