"""DeepMask and SharpMask, both implementations: windows, outputs, losses, gradients, training."""

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import torch

from accelerated import deepmask as fast
from accelerated.verify.equality import (
    MODEL,
    POINTWISE,
    arbitrary_boxes,
    assert_close,
    assert_equal,
)
from reference import deepmask, grad_check, shapes
from reference.config import DeepMask, Optimizer
from reference.windows import canonical

NARROW = DeepMask(window=16, channels=(3, 4, 5), hidden=6)
SHARP = replace(NARROW, refinement=(2, 4, 3))
KINDS = pytest.mark.parametrize("config", [NARROW, SHARP], ids=["DeepMask", "SharpMask"])
SETTINGS = Optimizer(
    kind="adamw", learning_rate=0.005, batch_size=16, warmup_iterations=20, schedule="cosine"
)


def random_parameters(config, rng):
    """Weights and biases, none of which is 0."""
    parameters = deepmask.initial_parameters(config, rng)
    return {k: v + 0.1 * rng.standard_normal(v.shape) for k, v in parameters.items()}


def random_windows(config, rng, count=5):
    labels = np.array([1, 0, 1, 1, 0])[:count]
    masks = (rng.random((count, config.window, config.window)) > 0.5).astype(np.float64)
    return deepmask.Windows(
        rng.uniform(-0.5, 0.5, (count, 3, config.window, config.window)), labels, masks
    )


def network(parameters, config):
    model = fast.Network(config).double()
    model.load_state_dict({name: torch.from_numpy(x) for name, x in parameters.items()})
    return model


# A window is cut by RoIAlign.


def test_a_window_of_whole_pixels_is_copied(rng):
    maps = rng.standard_normal((2, 9, 11))
    [square] = deepmask.cut(maps, np.array([[3.0, 2, 7, 6]]), 4)
    assert_close(square, maps[:, 2:6, 3:7], 1e-15)
    # Half as many: each is the mean of four pixels.
    [half] = deepmask.cut(maps, np.array([[3.0, 2, 7, 6]]), 2)
    assert_close(half, maps[:, 2:6, 3:7].reshape(2, 2, 2, 2, 2).mean(axis=(2, 4)), 1e-15)


def test_outside_of_the_image_is_grey(rng):
    image = rng.integers(0, 256, (8, 8, 3))
    # A row of two pixels: channel, row, column.
    row = deepmask.normalized(np.array([[[0, 255, 51], [255, 0, 0]]]))
    assert row.tolist() == [[[-0.5, 0.5]], [[0.5, -0.5]], [[-0.3, -0.5]]]
    [square] = deepmask.cut(deepmask.normalized(image), np.array([[-8.0, 0, 8, 16]]), 16)
    assert_close(square[:, :8, 8:], deepmask.normalized(image), 1e-15)
    # Next to the image lies half a pixel of the border, as RoIAlign has it.
    assert (square[:, :, :7] == 0).all() and (square[:, 9:] == 0).all()


@pytest.mark.parametrize("side", [4, 7])
def test_cut_twins(rng, side, backend):
    maps = rng.standard_normal((4, 20, 17))
    windows = np.array([[2.3, 4.1, 13.9, 15.7], [-6, -3, 5, 8], [9.5, 11, 22, 23.5], [1, 1, 4, 4]])
    expected = deepmask.cut(maps, windows, side)
    actual = fast.cut(torch.from_numpy(maps), torch.from_numpy(windows), side, backend)
    assert expected.shape == (4, 4, side, side)
    assert_close(actual, expected, arbitrary_boxes("float64", 20, 17))


# Both models.


@KINDS
def test_same_parameters(config):
    state = fast.Network(config).state_dict()
    assert {name: tuple(x.shape) for name, x in state.items()} == deepmask.parameter_shapes(config)
    trained = {name for name, p in fast.Network(config).named_parameters() if p.requires_grad}
    assert trained == set(deepmask.trained_parameters(config))


def test_the_refinement_alone_is_trained():
    assert deepmask.trained_parameters(NARROW) == list(deepmask.parameter_shapes(NARROW))
    assert set(deepmask.trained_parameters(SHARP)) == (
        deepmask.parameter_shapes(SHARP).keys() - deepmask.parameter_shapes(NARROW).keys()
    )


@KINDS
def test_both_start_alike(config):
    weights = deepmask.initial_parameters(config, np.random.default_rng(0), np.float32)
    torch.manual_seed(0)
    for name, p in fast.Network(config).named_parameters():
        assert weights[name].shape == p.shape and weights[name].dtype == np.float32
        if name.endswith("bias"):
            assert (weights[name] == 0).all() and (p == 0).all()
    wide = replace(config, hidden=400, channels=(64, 64, 64))
    first = deepmask.initial_parameters(wide, np.random.default_rng(0))["code.weight"]
    second = fast.Network(wide).code.weight.numpy(force=True)
    scale = (2 / first.shape[1]) ** 0.5
    assert np.std(first) == pytest.approx(scale, rel=0.02)
    assert np.std(second) == pytest.approx(scale, rel=0.02)


@KINDS
def test_outputs_losses_and_gradients_of_the_twins(rng, config):
    parameters, windows = random_parameters(config, rng), random_windows(config, rng)
    model = network(parameters, config)
    outputs = deepmask.forward(parameters, windows.pixels, config)
    pixels, labels, masks = map(torch.from_numpy, windows)
    results = model(pixels)
    side = config.window if config.refinement else config.window // 4
    assert outputs[0].shape == (5,) and outputs[1].shape == (5, side, side)
    for result, output in zip(results, outputs, strict=True):
        assert_close(result, output, MODEL["float64"])
    losses, gradients = deepmask.gradients(parameters, windows, config)
    found = fast.losses(*results, labels, masks, config)
    assert list(found) == list(losses) == ["score", "mask"]
    for name, value in losses.items():
        assert_close(found[name], value, MODEL["float64"], name)
    sum(found.values()).backward()
    assert list(gradients) == deepmask.trained_parameters(config)
    for name, gradient in gradients.items():
        assert np.abs(gradient).max() > 0, name
        assert_close(model.get_parameter(name).grad, gradient, MODEL["float64"], name)


@KINDS
def test_gradients_by_finite_differences(rng, config):
    parameters, windows = random_parameters(config, rng), random_windows(config, rng)
    names = deepmask.trained_parameters(config)

    def total(*arrays):
        given = parameters | dict(zip(names, arrays, strict=True))
        outputs = deepmask.forward(given, windows.pixels, config)
        losses = deepmask.losses(*outputs, windows.labels, windows.masks, config)
        return losses["score"] + losses["mask"]

    arrays = [parameters[name] for name in names]
    assert grad_check.directional_error(total, *arrays, generator=rng, step=1e-6) < 1e-7


@KINDS
def test_probabilities_twins(rng, config):
    logits = 3 * rng.standard_normal(
        (4, *[config.window if config.refinement else config.window // 4] * 2)
    )
    expected = deepmask.probabilities(logits, config)
    assert expected.shape == (4, config.window, config.window)
    assert_close(
        fast.probabilities(torch.from_numpy(logits), config), expected, POINTWISE["float64"]
    )
    if config.refinement:
        assert_close(expected, 1 / (1 + np.exp(-logits)), 1e-15)


def test_losses_by_hand():
    """Where all logits are 0, every answer costs ln 2; the mask counts for objects alone."""
    labels, masks = np.array([1, 0, 0, 1]), np.ones((4, 16, 16))
    losses = deepmask.losses(np.zeros(4), np.zeros((4, 4, 4)), labels, masks, NARROW)
    assert losses["score"] == pytest.approx(np.log(2) / 32)
    assert losses["mask"] == pytest.approx(np.log(2) / 2)
    # A cell of which the object covers a quarter has the target 1/4.
    masks[0, :4, :4] = 0
    masks[0, :2, :2] = 1
    logits = np.full((4, 4, 4), 50.0)
    mask = deepmask.losses(np.zeros(4), logits, labels, masks, NARROW)["mask"]
    assert mask == pytest.approx(0.75 * 50 / (4 * 16))


@KINDS
def test_the_mask_of_a_negative_window_changes_nothing(rng, config):
    parameters, windows = random_parameters(config, rng), random_windows(config, rng)
    other = windows.masks.copy()
    other[windows.labels == 0] = 1 - other[windows.labels == 0]
    losses, gradients = deepmask.gradients(parameters, windows, config)
    same, again = deepmask.gradients(parameters, windows._replace(masks=other), config)
    assert losses == same
    for name in gradients:
        assert_equal(again[name], gradients[name])


def test_sharpmask_has_the_scores_of_its_deepmask(rng):
    parameters, windows = random_parameters(SHARP, rng), random_windows(SHARP, rng)
    scores, coarse = deepmask.forward(parameters, windows.pixels, NARROW)
    same, fine = deepmask.forward(parameters, windows.pixels, SHARP)
    assert_equal(same, scores)
    assert coarse.shape[1:] == (4, 4) and fine.shape[1:] == (16, 16)


def test_no_object_at_all(rng):
    windows = random_windows(NARROW, rng)._replace(labels=np.zeros(5, dtype=np.int64))
    losses, gradients = deepmask.gradients(random_parameters(NARROW, rng), windows, NARROW)
    assert losses["mask"] == 0 and losses["score"] > 0
    assert (gradients["mask.weight"] == 0).all()


# Training.


def test_sampled_windows(rng):
    windows = deepmask.sample(3, 40, DeepMask())
    assert [x.shape for x in windows] == [(40, 3, 32, 32), (40,), (40, 32, 32)]
    assert np.abs(windows.pixels).max() <= 0.5 and set(np.unique(windows.masks)) == {0, 1}
    for again, x in zip(deepmask.sample(3, 40, DeepMask()), windows, strict=True):
        assert_equal(again, x)
    # The object that fits is in the middle, and 4/7 of the window long, each up to its tolerance.
    for mask in windows.masks[windows.labels == 1]:
        for occupied in (mask.any(axis=0), mask.any(axis=1)):
            [pixels] = np.nonzero(occupied)
            assert abs((pixels[0] + pixels[-1] + 1) / 2 - 16) <= 32 / 14 + 1
    lengths = [max(m.any(axis=0).sum(), m.any(axis=1).sum()) for m in windows.masks]
    fits = np.array(lengths)[windows.labels == 1]
    assert fits.min() >= 32 * 4 / 7 * 2**-0.25 - 1.5 and fits.max() <= 32 * 4 / 7 * 2**0.25 + 1.5


def test_a_sweep_sees_each_window_alone(rng):
    image, boxes, *_ = shapes.sample(0, 1, height=40, width=48)
    parameters = random_parameters(SHARP, rng)
    squares = np.concatenate([canonical(boxes), [[0.0, 0, 40, 40]]])
    scores, masks = deepmask.sweep(parameters, image, squares, SHARP)
    assert scores.shape == (len(squares),) and masks.shape == (len(squares), 16, 16)
    for probabilities in (scores, masks):
        assert (probabilities > 0).all() and (probabilities < 1).all()
    one, mask = deepmask.sweep(parameters, image, squares[-1:], SHARP)
    assert_close(scores[-1:], one, 1e-12)
    assert_close(masks[-1:], mask, 1e-12)


def test_every_second_pass_is_mirrored(rng):
    windows, parameters = random_windows(NARROW, rng, 5), random_parameters(NARROW, rng)
    settings = replace(SETTINGS, batch_size=2)
    seen = [p for p, _ in deepmask.train(parameters, windows, NARROW, settings, 4)]
    assert len(seen) == 4
    # Five windows are two batches of two; the third step begins the second pass.
    first = deepmask.Windows(*(x[:2] for x in windows))
    mirrored = first._replace(pixels=first.pixels[..., ::-1], masks=first.masks[..., ::-1])
    losses = [value for _, value in deepmask.train(parameters, windows, NARROW, settings, 4)]
    assert losses[0] == deepmask.gradients(parameters, first, NARROW)[0]
    assert losses[2] == deepmask.gradients(seen[1], mirrored, NARROW)[0]
    with pytest.raises(ValueError, match="5 windows are fewer than a batch of 6"):
        next(deepmask.train(parameters, windows, NARROW, replace(settings, batch_size=6), 1))


def iou(found, masks):
    found, masks = found >= 0.5, masks >= 0.5
    return (found & masks).sum(axis=(1, 2)) / (found | masks).sum(axis=(1, 2))


def last(training):
    [(parameters, _)] = deque(training, maxlen=1)
    return parameters


def test_trained_both_are_above_their_floors_and_sharpmask_is_sharper():
    """On windows of other images; 9 CPU seconds.

    Measured: DeepMask has a mean IoU of 0.76 and scores 95 % right, SharpMask a mean IoU of 0.85.
    A mask that ignores the pixels of its window, the mean of all masks, has 0.62.
    """
    config = DeepMask(channels=(8, 16, 32), hidden=64)
    windows, held_out = (
        deepmask.sample(seed, count, config, max_objects=3) for seed, count in ((1, 960), (2, 120))
    )
    start = deepmask.initial_parameters(config, np.random.default_rng(0))
    coarse = last(deepmask.train(start, windows, config, SETTINGS, 300))
    scores, masks = deepmask.forward(coarse, held_out.pixels, config)
    objects = held_out.labels == 1
    assert ((scores > 0) == objects).mean() > 0.9
    of_deepmask = iou(deepmask.probabilities(masks, config), held_out.masks)[objects]
    assert of_deepmask.mean() > 0.7

    sharp = replace(config, refinement=(4, 8, 8))
    start = deepmask.initial_parameters(sharp, np.random.default_rng(1)) | coarse
    with_objects = deepmask.Windows(*(x[windows.labels == 1] for x in windows))
    settings = replace(SETTINGS, learning_rate=0.01, batch_size=8)
    fine = last(deepmask.train(start, with_objects, sharp, settings, 300))
    for name in coarse:
        assert_equal(fine[name], coarse[name], name)
    masks = deepmask.forward(fine, held_out.pixels, sharp)[1]
    of_sharpmask = iou(deepmask.probabilities(masks, sharp), held_out.masks)[objects]
    assert of_sharpmask.mean() > 0.8 and (of_sharpmask > of_deepmask).mean() > 0.8
