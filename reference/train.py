"""Training in NumPy alone: losses, their gradient, clipping, one step of the optimizer, and again.

generator = numpy.random.default_rng(0)
model = MaskRCNN(config, initial_parameters(config, generator))
for taken in train(model, shape_batches(seed=1, size=4), iterations=30, generator=generator):
    print(sum(taken.losses.values()))
"""

import itertools
from dataclasses import dataclass

from reference import optimizer, shapes
from reference.structures import Target


@dataclass(frozen=True)
class Step:
    """What one training step did."""

    losses: dict  # {name: scalar}, before the update
    gradients: dict  # {name: array} of every parameter that is trained, before clipping
    norm: float  # joint L2 norm of these
    priorities: dict  # who was sampled, see `MaskRCNN.losses`
    state: optimizer.State  # for the next step


def train(model, batches, *, iterations, generator):
    """One step for each of `batches`, `iterations` at most; yields each as a Step. `model.parameters` are new after each.

    model      reference.mask_rcnn.MaskRCNN; its config.optimizer says how it is trained
    batches    iterable of (list of images, list of Targets)
    generator  numpy.random.Generator of the sampling priorities
    """
    config, state = model.config.optimizer, optimizer.State()
    for iteration, (images, targets) in zip(range(iterations), batches, strict=False):
        rate = optimizer.learning_rate(config, iteration, iterations, len(images))
        taken = step(model, images, targets, state, rate, generator=generator)
        state = taken.state
        yield taken


def step(model, images, targets, state, rate, *, priorities=None, generator=None):
    """One step at the learning rate `rate`, from the optimizer's `state` (fresh: optimizer.State()); returns a Step.

    images, targets, priorities, generator: as in `MaskRCNN.losses`. `model` gets new parameters; the old arrays are left as they are.
    """
    config, record = model.config.optimizer, {}
    losses, gradients = model.gradients(images, targets, priorities, record, generator)
    clipped, norm = optimizer.clip(gradients, config.clip_gradient_norm)
    model.parameters, state = optimizer.step(model.parameters, clipped, state, rate, config)
    return Step(losses, gradients, norm, record["priorities"], state)


def shape_batches(seed, size, **keywords):
    """Endless batches of `size` synthetic images: (list of images, list of Targets). Keywords as in `shapes.sample`."""
    for first in itertools.count(0, size):
        samples = [shapes.sample(seed, index, **keywords) for index in range(first, first + size)]
        yield [image for image, *_ in samples], [Target(*objects) for _, *objects in samples]
