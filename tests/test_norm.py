"""Normalisations against PyTorch's and against torchvision's frozen batch norm; the accelerated layers against the same oracle."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tolerances import GOLDEN_OPERATOR, REDUCTION, assert_close, error

from reference import config, norm

EPS = 1e-5


@pytest.fixture
def case(rng):
    x, weight, bias, mean = rng.standard_normal((2, 6, 5, 4)) * 3 + 1, *rng.standard_normal((3, 6))
    return x, weight, bias, mean, rng.uniform(0.1, 2, 6)


def test_frozen_batch_norm(case):
    x, weight, bias, mean, var = case
    expected = F.batch_norm(*map(torch.tensor, (x, mean, var, weight, bias)), eps=EPS)
    assert_close(norm.frozen_batch_norm(*case, EPS), expected, REDUCTION["float64"])


def test_batch_norm(case):
    x, weight, bias, *_ = case
    expected = F.batch_norm(torch.tensor(x), None, None, torch.tensor(weight), torch.tensor(bias), training=True, eps=EPS)
    assert_close(norm.batch_norm(x, weight, bias, EPS), expected, REDUCTION["float64"])


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm(case, groups):
    x, weight, bias, *_ = case
    expected = F.group_norm(torch.tensor(x), groups, torch.tensor(weight), torch.tensor(bias), EPS)
    assert_close(norm.group_norm(x, weight, bias, groups, EPS), expected, REDUCTION["float64"])


def test_group_norm_refuses_uneven_groups(case):
    with pytest.raises(ValueError, match="6 channels do not divide into 4 groups"):
        norm.group_norm(*case[:3], 4, EPS)


@pytest.mark.parametrize("peer", ["torchvision", "detectron2"])
def test_frozen_batch_norm_golden(golden, peer):
    z = golden("norm")
    x, weight, bias, mean, var = (z[f"{peer}/in.{name}"] for name in "xwbmv")
    assert_close(norm.frozen_batch_norm(x, weight, bias, mean, var, EPS), z[f"{peer}/out.y"], GOLDEN_OPERATOR)


def test_conv_norm_takes_the_statistics_its_kind_says(case, rng):
    x, weight, bias, mean, var = case
    parameters = {"n.weight": weight, "n.bias": bias, "n.running_mean": mean, "n.running_var": var}
    parameters["c.weight"] = rng.standard_normal((6, 6, 1, 1))

    def run(kind, training):
        return norm.conv_norm(parameters, "c", "n", x, kind, config.preset("torchvision_r50_fpn"), training)

    assert error(run("frozen", True), run("frozen", False)) == 0
    assert error(run("batch", False), run("frozen", False)) == 0
    assert error(run("batch", True), run("batch", False)) > 0.1


def test_float32_stays_float32(case):
    x, weight, bias, mean, var = (a.astype(np.float32) for a in case)
    assert norm.frozen_batch_norm(x, weight, bias, mean, var, EPS).dtype == np.float32
    assert norm.batch_norm(x, weight, bias, EPS).dtype == np.float32
    assert norm.group_norm(x, weight, bias, 2, EPS).dtype == np.float32


def test_batch_norm_of_no_rows_is_empty():
    assert norm.batch_norm(np.zeros((0, 2, 3, 3)), np.ones(2), np.zeros(2), EPS).shape == (0, 2, 3, 3)
