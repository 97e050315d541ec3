"""Tests of the tests: changing a sign or a term of a backward makes its check fail.

The checks are those that other files run on arrays from hypothesis; here on one fixed case.
"""

import importlib
import inspect
import pkgutil
from dataclasses import dataclass

import numpy as np
import pytest
import test_activations
import test_average_pool
import test_conv
import test_linear
import test_losses
import test_max_pool
import test_norm
import test_pooler
import test_roi_align
import test_roi_pool
import test_roi_warp
import test_upsample
from support.gradients import distinct

import reference
from reference import (
    activations,
    autodiff,
    average_pool,
    conv,
    linear,
    losses,
    max_pool,
    norm,
    pooler,
    roi_align,
    roi_pool,
    roi_warp,
    upsample,
)


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape)


ROIS, IMAGES = np.array([[1.0, 2, 9, 11], [-3, 4, 6, 20], [5, 5, 17, 9]]), np.array([0, 1, 1])
MAP = distinct(np.random.default_rng(3), (2, 2, 7, 9))
OVERLAPPING = {"stride": 1, "padding": 1, "dilation": 2, "groups": 2}

CHECKS = {
    "linear": lambda: test_linear.check_linear_backward(normal(5, 3), normal(2, 3), normal(2)),
    "conv2d": lambda: test_conv.check_conv2d_backward(
        normal(2, 4, 6, 7), normal(4, 2, 3, 2), normal(4), OVERLAPPING
    ),
    "conv_transpose2d": lambda: test_conv.check_conv_transpose2d_backward(
        normal(2, 3, 4, 5), normal(3, 2, 3, 2), normal(2), stride=2
    ),
    "frozen_batch_norm": lambda: test_norm.check_frozen_batch_norm_backward(
        normal(2, 4, 3, 3), normal(4), normal(4)
    ),
    "batch_norm": lambda: test_norm.check_batch_norm_backward(
        normal(2, 4, 3, 3), normal(4), normal(4)
    ),
    "group_norm": lambda: test_norm.check_group_norm_backward(
        normal(2, 4, 3, 3), normal(4), normal(4), 2
    ),
    "relu": lambda: test_activations.check_relu_backward(normal(4, 5)),
    "max_pool": lambda: test_max_pool.check_max_pool2d_backward(
        distinct(np.random.default_rng(0), (2, 2, 6, 7)), 3, 2, 1
    ),
    "max_pool_ties": lambda: test_max_pool.check_ties(
        np.maximum(normal(2, 2, 6, 7).round(), 0), 3, 2, 1
    ),
    "global_average_pool": lambda: test_average_pool.check_global_average_pool_backward(
        normal(2, 3, 4, 5)
    ),
    "nearest": lambda: test_upsample.check_nearest_backward(normal(2, 3, 4, 3), 7, 6),
    "smooth_l1": lambda: test_losses.check_smooth_l1_backward(normal(4, 4), 1.0),
    "l1": lambda: test_losses.check_smooth_l1_backward(normal(4, 4), 0.0),
    "binary_cross_entropy": lambda: test_losses.check_binary_cross_entropy_backward(
        normal(4, 5), normal(4, 5) > 0
    ),
    "cross_entropy": lambda: test_losses.check_cross_entropy_backward(
        normal(4, 3), np.array([0, 2, 1, 2])
    ),
    "soft_cross_entropy": lambda: test_losses.check_soft_cross_entropy_backward(
        normal(4, 3), normal(4, 3) ** 2
    ),
    "roi_align_mean": lambda: test_roi_align.check_backward_on_the_tape(
        MAP, ROIS, IMAGES, True, "mean"
    ),
    "roi_align_max": lambda: test_roi_align.check_backward_on_the_tape(
        MAP, ROIS, IMAGES, True, "max"
    ),
    "interpolation_matrix": test_roi_align.check_interpolation_matrix,
    "roi_pool": lambda: test_roi_pool.check_backward_on_the_tape(MAP, ROIS, IMAGES),
    "roi_warp": lambda: test_roi_warp.check_backward_on_the_tape(MAP, ROIS + 0.75, IMAGES, "mean"),
    "pooler": lambda: test_pooler.check_backward_on_the_tape(
        np.random.default_rng(0), 2 * ROIS, IMAGES, test_pooler.SMALL
    ),
}


@dataclass
class Mutant:
    """What `check` must notice: in the function `name` of `module`, `old` replaced by `new`."""

    check: str
    module: object
    name: str
    old: str
    new: str

    def __str__(self):
        return f"{self.name}: {self.old} -> {self.new}"

    def function(self):
        source = inspect.getsource(getattr(self.module, self.name))
        assert source.count(self.old) == 1, (
            f"{self.old!r} is {source.count(self.old)} times in {self.name}: this mutant has rotted"
        )
        defined = {}
        exec(
            compile(source.replace(self.old, self.new), str(self), "exec"),
            vars(self.module),
            defined,
        )
        return defined[self.name]


MUTANTS = [
    Mutant("linear", linear, "linear_backward", "grad_out @ weight", "-grad_out @ weight"),
    Mutant("linear", linear, "linear_backward", "grad_out.sum(axis=0)", "grad_out[0]"),
    Mutant("conv2d", conv, "_spread", "] += (", "] -= ("),
    Mutant(
        "conv2d", conv, "_spread", "] += (", "] = ("
    ),  # of the taps that meet at a pixel the last alone
    Mutant("conv2d", conv, "_correlate", "] += grad_out", "] -= grad_out"),
    Mutant("conv2d", conv, "_correlate", "] += grad_out", "] = grad_out"),  # the last image alone
    Mutant("conv2d", conv, "_correlate", "pad(x, padding)", "pad(x, padding, 1.0)"),
    Mutant(
        "conv2d",
        conv,
        "conv2d_backward",
        "grad_out.sum(axis=(0, 2, 3))",
        "grad_out.sum(axis=(2, 3))[0]",
    ),
    Mutant(
        "conv_transpose2d", conv, "conv_transpose2d_backward", "conv2d(grad_out", "-conv2d(grad_out"
    ),
    Mutant(
        "conv_transpose2d",
        conv,
        "conv_transpose2d_backward",
        "grad_out.sum(axis=(0, 2, 3))",
        "grad_out.sum(axis=(2, 3))[0]",
    ),
    Mutant("frozen_batch_norm", norm, "frozen_batch_norm_backward", "-mean / std", "mean / std"),
    Mutant("frozen_batch_norm", norm, "frozen_batch_norm_backward", "var + eps", "var"),
    Mutant("batch_norm", norm, "batch_norm_backward", "grad_out - (grad", "grad_out + (grad"),
    Mutant("batch_norm", norm, "batch_norm_backward", " - (grad_bias / n)[:, None, None]", ""),
    Mutant(
        "batch_norm", norm, "batch_norm_backward", " - z * (grad_weight / n)[:, None, None]", ""
    ),
    Mutant("batch_norm", norm, "batch_norm_backward", "var + eps", "var"),
    Mutant("group_norm", norm, "group_norm_backward", "- z * (", "+ z * ("),
    Mutant("group_norm", norm, "group_norm_backward", " - grad_z.mean(axis=2, keepdims=True)", ""),
    Mutant(
        "group_norm",
        norm,
        "group_norm_backward",
        " - z * (grad_z * z).mean(axis=2, keepdims=True)",
        "",
    ),
    Mutant("relu", activations, "relu_backward", "(x > 0)", "(x < 0)"),
    Mutant("relu", activations, "relu_backward", " * (x > 0)", ""),
    Mutant(
        "max_pool", max_pool, "max_pool2d_backward", "+= grad_out * first", "-= grad_out * first"
    ),
    Mutant(
        "max_pool", max_pool, "max_pool2d_backward", "+= grad_out * first", "= grad_out * first"
    ),
    Mutant(
        "max_pool_ties", max_pool, "max_pool2d_backward", " * ~first", ""
    ),  # all of the largest get it
    Mutant(
        "global_average_pool",
        average_pool,
        "global_average_pool_backward",
        "(grad_out[",
        "(-grad_out[",
    ),
    Mutant(
        "global_average_pool",
        average_pool,
        "global_average_pool_backward",
        "(x.shape[2] * x.shape[3])",
        "x.shape[2]",
    ),
    Mutant("nearest", upsample, "nearest_backward", "rows @ grad", "-rows @ grad"),
    Mutant(
        "nearest",
        upsample,
        "nearest_backward",
        "np.arange(size) * side // size",
        "np.arange(size) * side / size",
    ),  # first copy alone
    Mutant(
        "smooth_l1",
        losses,
        "smooth_l1_backward",
        "difference / beta, sign",
        "difference / beta, -sign",
    ),
    Mutant(
        "smooth_l1", losses, "smooth_l1_backward", "difference / beta, sign", "difference, 2 * sign"
    ),
    Mutant("l1", losses, "smooth_l1_backward", "return grad_out * sign", "return grad_out"),
    Mutant(
        "binary_cross_entropy", losses, "binary_cross_entropy_backward", "- targets", "+ targets"
    ),
    Mutant("binary_cross_entropy", losses, "binary_cross_entropy_backward", " - targets", ""),
    Mutant("cross_entropy", losses, "cross_entropy_backward", "-= 1", "+= 1"),
    Mutant("cross_entropy", losses, "cross_entropy_backward", "-= 1", "-= 0"),
    Mutant("cross_entropy", losses, "cross_entropy_backward", " * grad_out[:, None]", ""),
    Mutant(
        "soft_cross_entropy",
        losses,
        "soft_cross_entropy_backward",
        "logits) - targets) *",
        "logits) + targets) *",
    ),
    Mutant("soft_cross_entropy", losses, "soft_cross_entropy_backward", " * grad_out[:, None]", ""),
    Mutant("roi_align_mean", roi_align, "roi_align_backward", "] += _product", "] -= _product"),
    Mutant(
        "roi_align_mean", roi_align, "roi_align_backward", "] += _product", "] = _product"
    ),  # the last RoI alone
    Mutant("roi_align_max", roi_align, "_to_largest", " == first", " != first"),
    Mutant(
        "roi_align_max", roi_align, "_to_largest", " == first", " >= first"
    ),  # the later ones get it too
    Mutant("interpolation_matrix", roi_align, "neighbours", "positions >= -1", "positions > -1"),
    Mutant("interpolation_matrix", roi_align, "neighbours", "<= size)", "< size)"),
    Mutant("interpolation_matrix", roi_align, "neighbours", "positions >= -1", "positions >= 0"),
    Mutant("interpolation_matrix", roi_align, "sample_positions", "low - 0.5 if", "low if"),
    Mutant("roi_pool", roi_pool, "roi_pool_backward", "np.add.at(", "np.subtract.at("),
    Mutant(
        "roi_pool",
        roi_pool,
        "roi_pool_backward",
        "[:, None] * channels + np.arange(channels)",
        "[:, None] * channels + 0 * np.arange(channels)",
    ),
    Mutant(
        "roi_warp",
        roi_warp,
        "roi_warp_backward",
        "roi_align_backward(grad_out",
        "roi_align_backward(-grad_out",
    ),
    Mutant(
        "roi_warp",
        roi_warp,
        "roi_warp_backward",
        "features, rois, image_index, **keywords)",
        "features, rois + 0.5, image_index, **keywords)",
    ),
    Mutant("pooler", pooler, "pool_backward", "operator(grad_out", "-operator(grad_out"),
    Mutant(
        "pooler",
        pooler,
        "pool_backward",
        "in _by_level(rois, pooler)",
        "in list(_by_level(rois, pooler))[:1]",
    ),  # the finest level alone
    Mutant("pooler", autodiff, "_accumulate", ".grad + part", ".grad - part"),
    Mutant("pooler", autodiff, "_accumulate", "variable.grad + part", "part"),
    Mutant("pooler", autodiff, "getitem_backward", "np.add.at(grad", "np.subtract.at(grad"),
]


@pytest.mark.parametrize("check", CHECKS)
def test_the_backward_as_it_is_passes(check):
    CHECKS[check]()


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_noticed(mutant, monkeypatch):
    monkeypatch.setattr(mutant.module, mutant.name, mutant.function())
    with pytest.raises(AssertionError):
        CHECKS[mutant.check]()


def test_every_backward_has_two_mutants():
    """Every backward has mutants; for conv2d's they are in `spread` and `correlate`."""
    changed = [(mutant.module.__name__, mutant.name) for mutant in MUTANTS]
    for module in pkgutil.iter_modules(reference.__path__, "reference."):
        for name, function in vars(importlib.import_module(module.name)).items():
            if (
                name.endswith("_backward")
                and function.__module__ == module.name
                and module.name != autodiff.__name__
            ):
                assert changed.count((module.name, name)) >= (
                    1 if name == "conv2d_backward" else 2
                ), f"{module.name}.{name}"
