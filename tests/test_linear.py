"""The fully connected layer against PyTorch's, and its backward."""

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.gradients import check_backward

from accelerated.verify.equality import REDUCTION, assert_close
from reference.linear import linear


def test_linear(rng):
    for rows in (0, 1, 7):
        x, weight, bias = (
            rng.standard_normal((rows, 5)),
            rng.standard_normal((3, 5)),
            rng.standard_normal(3),
        )
        assert_close(
            linear(x, weight, bias),
            F.linear(*map(torch.tensor, (x, weight, bias))),
            REDUCTION["float64"],
        )


@given(st.integers(0, 5), st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**31))
def test_linear_backward(rows, inputs, outputs, seed):
    rng = np.random.default_rng(seed)
    check_linear_backward(
        *(rng.standard_normal(shape) for shape in ((rows, inputs), (outputs, inputs), (outputs,)))
    )


def check_linear_backward(x, weight, bias):
    check_backward(linear, F.linear, x, weight, bias)
    check_backward(lambda x, weight: linear(x, weight, 0), F.linear, x, weight, linear=[0, 1])
