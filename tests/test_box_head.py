"""The box head and its samples in both implementations; batch statistics ignore padding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import narrow
from torch import nn

from accelerated import box_head as fast
from accelerated.norm import BatchNorm2d
from accelerated.verify.equality import MODEL, REDUCTION, assert_close, assert_equal
from reference import box_head, boxes
from reference.labels import delta_layout

KINDS = [
    ("two_fc", "none"),
    ("mean", "none"),
    ("four_conv_fc", "none"),
    ("four_conv_fc", "batch"),
    ("four_conv_fc", "group"),
]


def settings(kind, norm, background="first"):
    full = narrow.config("torchvision_r50_fpn", background=background)
    return replace(full, box_head=replace(full.box_head, kind=kind, norm=norm))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("background", ["first", "last"])
@pytest.mark.parametrize(("kind", "norm"), KINDS)
def test_twins(rng, kind, norm, background, training):
    """Padded rows between the others change nothing, batch statistics included."""
    config = settings(kind, norm, background)
    model = narrow.model(config).train(training)
    pooled = rng.standard_normal((9, config.fpn.channels, 7, 7))
    valid = np.array([1, 1, 0, 1, 0, 1, 1, 1, 0], bool)
    expected = box_head.forward(
        narrow.parameters(model), pooled[valid], config, {} if training else None
    )
    actual = model.box_head(torch.from_numpy(pooled), torch.from_numpy(valid))
    assert actual[0].shape == (9, config.num_classes + 1) and actual[1].shape == (
        9,
        4 * delta_layout(config).columns,
    )
    for a, e in zip(actual, expected, strict=True):
        assert_close(a[torch.from_numpy(valid)], e, MODEL["float64"])


@pytest.mark.parametrize("background", ["first", "last"])
@pytest.mark.parametrize(("kind", "norm"), KINDS)
def test_same_parameters(kind, norm, background):
    config = settings(kind, norm, background)
    shapes = {
        f"box_head.{n}": tuple(t.shape)
        for n, t in fast.make(config).state_dict().items()
        if not n.endswith("tracked")
    }
    assert shapes == box_head.parameter_shapes(config)


def test_mean_is_one_number_per_channel(rng):
    """The mean has no parameters, ignores the order of pixels and returns a constant as it is."""
    config = settings("mean", "none")
    model, pooled = narrow.model(config), rng.standard_normal((2, config.fpn.channels, 7, 7))
    expected = model.box_head(torch.from_numpy(pooled))
    constant = np.broadcast_to(pooled.mean((2, 3), keepdims=True), pooled.shape)
    for x in (pooled[:, :, ::-1, ::-1], constant):
        for ours, theirs in zip(model.box_head(torch.from_numpy(x.copy())), expected, strict=True):
            assert_close(ours, theirs.detach(), MODEL["float64"])
    assert set(dict(model.box_head.named_parameters())) == {
        f"{n}.{p}" for n in ("class_logits", "box_deltas") for p in ("weight", "bias")
    }


def test_batch_norm_of_valid_rows_is_pytorchs(rng):
    """Output, gradients and running statistics equal nn.BatchNorm2d's on the valid rows."""
    x = torch.from_numpy(rng.standard_normal((7, 5, 3, 4))).requires_grad_()
    valid = torch.tensor([1, 0, 1, 1, 0, 0, 1], dtype=torch.bool)
    ours, theirs = BatchNorm2d(5).double(), nn.BatchNorm2d(5).double()
    with torch.no_grad():
        for layer in (ours, theirs):
            layer.weight.copy_(torch.arange(1.0, 6.0))
            layer.bias.copy_(torch.arange(5.0))
    upstream = torch.from_numpy(rng.standard_normal((4, 5, 3, 4)))
    outputs = [ours(x, valid)[valid], theirs(x[valid])]
    gradients = [
        torch.autograd.grad((y * upstream).sum(), [x, layer.weight, layer.bias])
        for y, layer in zip(outputs, (ours, theirs), strict=True)
    ]
    assert_close(outputs[0], outputs[1].detach(), REDUCTION["float64"])
    for a, e in zip(*gradients, strict=True):
        assert_close(a, e, REDUCTION["float64"])
    for name, buffer in theirs.named_buffers():
        assert_close(ours.get_buffer(name), buffer, REDUCTION["float64"], name)


def test_batch_norm_without_valid_rows(rng):
    """Nothing to learn statistics from: they stay, and nothing turns NaN."""
    layer = BatchNorm2d(5)
    y = layer(torch.randn(3, 5, 2, 2), torch.zeros(3, dtype=torch.bool))
    assert y.isfinite().all()
    assert (layer.running_mean == 0).all() and (layer.running_var == 1).all()


@given(st.integers(0, 10**6), st.integers(0, 3), st.integers(0, 12), st.booleans())
def test_targets_twins(seed, objects, proposals, append):
    rng, config = np.random.default_rng(seed), narrow.config("torchvision_r50_fpn")
    config = replace(
        config, box_head=replace(config.box_head, append_ground_truth=append, batch_size=8)
    )
    corner, side = rng.uniform(0, 60, (objects, 2)), rng.uniform(5, 40, (objects, 2))
    gt = np.concatenate([corner, corner + side], axis=1)
    labels = rng.integers(1, 5, objects)
    found = rng.uniform(0, 100, (proposals, 4))
    found = np.concatenate(
        [np.minimum(found[:, :2], found[:, 2:]), np.maximum(found[:, :2], found[:, 2:]) + 1], axis=1
    )
    near = min(proposals, objects)
    found[:near] = gt[:near] + rng.uniform(-4, 4, (near, 4))
    overlap = boxes.iou(gt, found)
    if overlap.size and np.abs(overlap - 0.5).min() < 1e-9:
        return
    slots, gt_slots = 15, max(objects, 1) + 1
    priorities = rng.permutation(slots + gt_slots) / 100.0
    own = np.concatenate([priorities[:proposals], priorities[slots : slots + objects]])
    expected = box_head.targets(found, gt, labels, own, config.box_head)

    def padded(values, count):
        out = np.zeros((count, *values.shape[1:]), values.dtype)
        out[: len(values)] = values
        return torch.from_numpy(out)[None]

    actual = fast.targets(
        padded(found, slots),
        padded(np.ones(proposals, bool), slots),
        padded(gt, gt_slots),
        padded(labels, gt_slots),
        padded(np.ones(objects, bool), gt_slots),
        torch.from_numpy(priorities)[None],
        config.box_head,
    )
    count = len(expected.rois)
    assert actual.rois.shape == (1, 8, 4)
    assert_equal(
        actual.labels[0], np.concatenate([expected.labels, np.full(8 - count, -1)]), "labels"
    )
    assert_equal(actual.rois[0, :count], expected.rois, "rois")
    assert_close(actual.deltas[0, :count], expected.deltas, REDUCTION["float64"], "deltas")
    objects_chosen = expected.labels > 0
    assert_equal(
        actual.matched[0, :count][torch.from_numpy(objects_chosen)],
        expected.matched[objects_chosen],
        "matched",
    )


def test_losses_of_no_sample_are_zero():
    config = settings("two_fc", "none")
    logits = torch.randn(3, config.num_classes + 1, requires_grad=True)
    deltas = torch.randn(3, 4 * delta_layout(config).columns, requires_grad=True)
    labels = torch.full((3,), -1)
    losses = fast.losses(logits, deltas, labels, torch.full((3, 4), torch.nan), config)
    assert [loss.item() for loss in losses] == [0, 0]
    for x in torch.autograd.grad(sum(losses), (logits, deltas)):
        assert not x.any()
