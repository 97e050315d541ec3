"""A training step in three implementations: they agree, and the first wrong row is named."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import small

from accelerated import interop, mask_rcnn
from accelerated.verify import training
from reference import mask_rcnn as oracle
from reference import optimizer, shapes
from reference.structures import Target


def model(seed=0, **settings):
    torch.manual_seed(seed)
    return mask_rcnn.MaskRCNN(small.config(**settings))


@pytest.fixture
def batch():
    samples = [shapes.sample(0, index, height=64, width=64) for index in (0, 1)]
    return [image for image, *_ in samples], [Target(*objects) for _, *objects in samples]


@pytest.fixture
def in_torch(monkeypatch):
    """Without Triton: interpreted, it is slow."""
    monkeypatch.setattr(training, "BACKENDS", ("torch",))


def test_three_implementations_agree_in_a_training_step(batch):
    images, targets = batch
    config = small.config(kind="adamw", learning_rate=0.01)
    box, mask = (
        replace(head, pooler=replace(head.pooler, output_size=size))
        for head, size in ((config.box_head, 3), (config.mask_head, 4))
    )
    torch.manual_seed(0)
    subject = mask_rcnn.MaskRCNN(replace(config, box_head=box, mask_head=mask))
    report = training.compare(subject, images[:1], targets[:1], rois=2)
    assert report.passed and not report.skipped, report.summary
    assert {name: len(rows) for name, rows in report.sections.items()} == {
        "losses": 5,
        "gradients": 115,
        "new weights": 115,
    }
    assert all(
        row.differences.keys() == {"torch", "triton"}
        and row.values.keys() == {"NumPy", "torch", "triton"}
        for row in report.rows
    )
    assert all(row.values["NumPy"] > 0 for row in report.sections["losses"]), (
        "with so few RoIs, too, one is an object's"
    )
    assert (
        all(p.grad is None for p in subject.parameters())
        and subject.config.box_head.batch_size == 16
    ), "left as it was"
    assert "adamw, learning rate 0.005" in report.title, (
        "of the two images that the rate is for, one"
    )


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_both_optimizers_in_both_precisions(batch, in_torch, kind, dtype):
    report = training.compare(
        model(kind=kind, learning_rate=0.01, weight_decay=0.1), *batch, dtype=dtype
    )
    assert report.passed, report.summary
    assert ("NumPy's gradients" in report.title) == (kind == "adamw" and dtype == "float32")
    changes = {row.name: row.values["NumPy"] for row in report.sections["new weights"]}
    assert all(
        change > 1e-6 for name, change in changes.items() if name.endswith("conv1.weight")
    ), "an update that can be seen"


def test_statistics_of_batch_norms_are_new_too(batch, in_torch):
    config = small.config()
    config = replace(config, backbone=replace(config.backbone, norm="batch"))
    report = training.compare(mask_rcnn.MaskRCNN(config), *batch)
    names = [row.name for row in report.sections["new weights"]]
    assert (
        report.passed
        and "backbone.bn1.running_mean" in names
        and "backbone.bn1.running_var" in names
    ), report.summary


def test_a_wrong_gradient_is_named(batch, in_torch, monkeypatch):
    exact = oracle.MaskRCNN.gradients

    def spoilt(self, *arguments, **options):
        result = exact(self, *arguments, **options)
        wrong = result.gradients["rpn.conv1.weight"] * (1 + 1e-6)
        return result._replace(gradients=result.gradients | {"rpn.conv1.weight": wrong})

    monkeypatch.setattr(oracle.MaskRCNN, "gradients", spoilt)
    report = training.compare(model(kind="sgd", learning_rate=0.1), *batch)
    assert [row.name for row in report.sections["gradients"] if not row.passed] == [
        "rpn.conv1.weight"
    ]
    assert "first in rpn.conv1.weight: differs > 1e-09" in report.summary


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_wrong_update_is_named(batch, in_torch, monkeypatch, dtype):
    exact = optimizer.step
    monkeypatch.setattr(
        optimizer, "step", lambda p, g, state, rate, config: exact(p, g, state, rate * 1.05, config)
    )
    report = training.compare(model(kind="adamw", learning_rate=0.01), *batch, dtype=dtype)
    failed = {
        name: [row.name for row in rows if not row.passed] for name, rows in report.sections.items()
    }
    assert not failed["losses"] and not failed["gradients"] and len(failed["new weights"]) > 50


def test_other_weights_show_in_the_losses(batch, in_torch, monkeypatch):
    exact = interop.parameters

    def spoilt(model, dtype):
        parameters = exact(model, dtype)
        return parameters | {"mask_head.logits.bias": parameters["mask_head.logits.bias"] + 1e-3}

    monkeypatch.setattr(interop, "parameters", spoilt)
    report = training.compare(model(), *batch)
    assert [row.name for row in report.sections["losses"] if not row.passed] == ["mask"]


def test_a_parameter_that_one_side_does_not_train(batch, in_torch):
    subject = model()
    subject.rpn.conv1.bias.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"do not train the same parameters: rpn\.conv1\.bias"):
        training.compare(subject, *batch)


def test_own_targets_are_the_models_detections(batch):
    images, _ = batch
    subject = model()
    everything, nothing = (
        training.own_targets(subject, images, threshold) for threshold in (0.0, 1.0)
    )
    detections = subject.detect(images)
    for image, detected, target in zip(images, detections, everything, strict=True):
        assert 0 < len(target.labels) <= len(detected.labels)
        assert target.masks.shape[1:] == image.shape[:2]
    assert not any(len(target.labels) for target in nothing)
    with pytest.raises(ValueError, match="float64 or float32"):
        training.compare(subject, images, everything, dtype="float16")


def test_nothing_to_find(batch, in_torch):
    images, _ = batch
    report = training.compare(model(), images, training.own_targets(model(), images, 1.0))
    losses = {row.name: row.values["NumPy"] for row in report.sections["losses"]}
    assert (
        report.passed
        and losses["mask"] == losses["box"] == losses["rpn_box"] == 0 < losses["class"]
    )


def test_two_runs_stay_together():
    """Warm-up, momentum, clipping, new batches: all losses agree, and differ from step to step."""
    config = small.config(kind="adamw", learning_rate=0.01)
    pairs = list(training.train(config, 4, batch_size=2, seed=3))
    assert [pair.iteration for pair in pairs] == [1, 2, 3, 4]
    assert max(pair.difference for pair in pairs) < 1e-9
    assert len({pair.numpy["class"] for pair in pairs}) == 4
    assert all(pair.numpy_seconds > 0 and pair.torch_seconds > 0 for pair in pairs)


def test_runs_that_part_are_noticed(monkeypatch):
    exact = optimizer.step
    monkeypatch.setattr(
        optimizer,
        "step",
        lambda p, g, state, rate, config: exact(p, g, replace(state, mean={}), rate, config),
    )
    pairs = list(training.train(small.config(kind="sgd", learning_rate=0.05), 4, batch_size=1))
    assert pairs[1].difference < 1e-9 < pairs[3].difference, (
        "momentum plays a part from the second step on"
    )


def test_difference_is_relative_to_each_loss():
    pair = training.Pair(
        1, {"a": 100.0, "b": 0.001, "c": 0.0}, {"a": 100.0, "b": 0.00101, "c": 0.0}, 1.0, 1.0
    )
    assert np.isclose(pair.difference, 0.01)


def test_without_a_mask_branch(batch, in_torch):
    """Four losses; the model's own detections can still be learnt from."""
    config = small.config()
    torch.manual_seed(0)
    subject = mask_rcnn.MaskRCNN(replace(config, mask_head=replace(config.mask_head, kind="none")))
    images, _ = batch
    targets = training.own_targets(subject, images, 0.0)
    assert all(
        target.masks.shape == (len(target.labels), 64, 64) and not target.masks.any()
        for target in targets
    )
    report = training.compare(subject, images, targets)
    assert report.passed and [row.name for row in report.sections["losses"]] == [
        "rpn_objectness",
        "rpn_box",
        "class",
        "box",
    ], report.summary
