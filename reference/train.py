"""Training in NumPy alone: losses, their gradients, clipping, a step of the optimizer, and again.

generator = numpy.random.default_rng(0)
model = MaskRCNN(config, initial_parameters(config, generator))
for step in train(model, shape_batches(seed=1, size=4), iterations=30, generator=generator):
    print(sum(step.losses.values()))
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from reference import optimizer, shapes
from reference.mask_rcnn import MaskRCNN
from reference.structures import Array, Target


@dataclass(frozen=True)
class Step:
    """The results of one training step.

    losses      {name: scalar}, before the update
    gradients   {name: array} of every parameter that is trained, before clipping
    norm        joint L2 norm of the gradients
    priorities  those of the sampling, see `MaskRCNN.losses`
    state       of the optimizer, for the next step
    """

    losses: dict
    gradients: dict
    norm: float
    priorities: dict
    state: optimizer.State


def train(
    model: MaskRCNN, batches: Iterable, *, iterations: int, generator: np.random.Generator
) -> Iterator[Step]:
    """Train for at most `iterations` steps and yield each; `model.parameters` are new after each.

    model      its config.optimizer says how it is trained
    batches    of (list of images, list of Targets)
    generator  draws the sampling priorities
    """
    config, state = model.config.optimizer, optimizer.State()
    for iteration, (images, targets) in zip(range(iterations), batches):
        rate = optimizer.learning_rate(config, iteration, iterations, len(images))
        result = step(model, images, targets, state, rate, generator=generator)
        state = result.state
        yield result


def step(
    model: MaskRCNN,
    images: list[Array],
    targets: list[Target],
    state: optimizer.State,
    rate: float,
    *,
    priorities: dict | None = None,
    generator: np.random.Generator | None = None,
) -> Step:
    """Take one step at the learning rate `rate` from the optimizer's `state`, at first State().

    images, targets, priorities, generator: as in `MaskRCNN.losses`. `model` gets new parameters;
    the old arrays do not change.
    """
    config = model.config.optimizer
    losses, gradients, priorities = model.gradients(
        images, targets, priorities, generator=generator
    )
    clipped, norm = optimizer.clip(gradients, config.clip_gradient_norm)
    model.parameters, state = optimizer.step(model.parameters, clipped, state, rate, config)
    return Step(losses, gradients, norm, priorities, state)


def shape_batches(seed: int, size: int, **keywords) -> Iterator[tuple[list, list[Target]]]:
    """Yield endless batches of `size` images of shapes and their Targets, see `shapes.sample`."""
    for first in itertools.count(0, size):
        samples = [shapes.sample(seed, index, **keywords) for index in range(first, first + size)]
        yield [image for image, *_ in samples], [Target(*objects) for _, *objects in samples]
