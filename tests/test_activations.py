"""Activations against PyTorch's, on numbers small and extreme."""

import numpy as np
import pytest
import torch
from tolerances import POINTWISE, assert_close

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
