"""The reference's training loop: it learns without torch, step by step, and stops in time."""

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import small

from reference import optimizer, train
from reference.mask_rcnn import MaskRCNN
from reference.parameters import initial_parameters, trained_parameters


@pytest.fixture
def model():
    config = small.config(kind="sgd", learning_rate=0.02, momentum=0.5)
    return MaskRCNN(config, initial_parameters(config, np.random.default_rng(0)))


def batches(size=2):
    return train.shape_batches(3, size, height=64, width=64)


def test_batches_go_through_the_data_set():
    endless = batches()
    (images, targets), (more, _) = next(endless), next(endless)
    assert len(images) == len(targets) == 2 and images[0].shape == (64, 64, 3)
    assert not np.array_equal(images[0], images[1]) and not np.array_equal(images[0], more[0])
    assert targets[0].masks.shape == (len(targets[0].labels), 64, 64)


def test_a_step_is_gradient_clipping_and_optimizer(model):
    images, targets = next(batches())
    before = model.parameters
    losses, gradients, _ = model.gradients(images, targets, generator=np.random.default_rng(5))
    taken = train.step(
        model, images, targets, optimizer.State(), 0.01, generator=np.random.default_rng(5)
    )
    assert (
        taken.losses == losses
        and taken.norm == optimizer.clip(gradients, 0)[1]
        and taken.state.steps == 1
    )
    assert taken.gradients.keys() == set(trained_parameters(model.config))
    clipped, _ = optimizer.clip(gradients, model.config.optimizer.clip_gradient_norm)
    expected, _ = optimizer.step(before, clipped, optimizer.State(), 0.01, model.config.optimizer)
    assert all(np.array_equal(model.parameters[name], expected[name]) for name in expected)
    again = train.step(
        MaskRCNN(model.config, before),
        images,
        targets,
        optimizer.State(),
        0.01,
        priorities=taken.priorities,
    )
    assert again.losses == losses, "the priorities that a step gives back are those it sampled by"


def test_momentum_and_warm_up_run_through_the_loop(model):
    config, parameters = model.config.optimizer, model.parameters
    steps = list(train.train(model, batches(), iterations=3, generator=np.random.default_rng(1)))
    assert [taken.state.steps for taken in steps] == [1, 2, 3]
    state = optimizer.State()
    for iteration, taken in enumerate(steps):
        rate = optimizer.learning_rate(config, iteration, 3, 2)
        clipped, _ = optimizer.clip(taken.gradients, config.clip_gradient_norm)
        parameters, state = optimizer.step(parameters, clipped, state, rate, config)
    assert all(np.array_equal(model.parameters[name], parameters[name]) for name in parameters)


def test_it_ends_with_the_batches(model):
    few = [next(batches(1))]
    assert len(list(train.train(model, few, iterations=5, generator=np.random.default_rng(1)))) == 1


def test_it_learns(model):
    """The same two images again and again: the loss falls by a half."""
    config = replace(
        model.config,
        optimizer=replace(model.config.optimizer, kind="adamw", learning_rate=0.005, momentum=0.9),
    )
    model = MaskRCNN(config, model.parameters)
    always = itertools.repeat(next(batches()))
    totals = [
        sum(s.losses.values())
        for s in train.train(model, always, iterations=60, generator=np.random.default_rng(1))
    ]
    assert np.mean(totals[-10:]) < 0.5 * np.mean(totals[:3]), totals


def test_it_trains_where_there_is_no_torch():
    code = """if True:
        import sys
        sys.modules["torch"] = sys.modules["triton"] = None
        import numpy as np
        from reference import config, mask_rcnn, train
        from reference.parameters import initial_parameters
        tiny = config.preset("tiny")
        model = mask_rcnn.MaskRCNN(tiny, initial_parameters(tiny, np.random.default_rng(0)))
        batches = train.shape_batches(0, 1, height=64, width=64)
        (taken,) = train.train(model, batches, iterations=1, generator=np.random.default_rng(0))
        assert len(taken.losses) == 5 and taken.norm > 0
    """
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
