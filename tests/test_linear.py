"""The fully connected layer against PyTorch's."""

import torch
import torch.nn.functional as F
from tolerances import REDUCTION, assert_close

from reference.linear import linear


def test_linear(rng):
    for rows in (0, 1, 7):
        x, weight, bias = rng.standard_normal((rows, 5)), rng.standard_normal((3, 5)), rng.standard_normal(3)
        assert_close(linear(x, weight, bias), F.linear(*map(torch.tensor, (x, weight, bias))), REDUCTION["float64"])
