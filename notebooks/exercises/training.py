"""Exercise of notebook 9: the learning rate that learns one image in the fewest steps."""

import itertools
from functools import cache
from typing import Any

import numpy as np

from exercises import NOT_SOLVED, RIGHT, wrong
from reference import shapes, train
from reference.config import override, preset
from reference.mask_rcnn import MaskRCNN
from reference.parameters import initial_parameters
from reference.structures import Target

# The model of the notebook: the preset "tiny", and what is different from it.
SETTINGS = (
    "transform.min_size=[64]",
    "backbone.width=8",
    "rpn.pre_nms_top_n_train=64",
    "rpn.post_nms_top_n_train=64",
    "box_head.kind=two_fc",
    "box_head.channels=64",
    "box_head.positive_fraction=0.5",
    "optimizer.learning_rate=0.005",
    "optimizer.batch_size=1",
    "optimizer.warmup_iterations=10",
    "optimizer.steps=[0.6, 0.85]",
)
# A mask loss counts as learned when its mean over the last WINDOW steps is below ENOUGH.
WINDOW, ENOUGH = 5, 0.5
# As many steps are tried, of a training whose rate falls later.
STEPS, ITERATIONS = 20, 120


def check(answer: Any) -> str:
    """Train at the rate `answer`, at a lower and at a higher one, and compare the steps needed."""
    if answer is None:
        return NOT_SOLVED
    if not isinstance(answer, int | float):
        return wrong(f"the answer is a number, such as 0.005, not {answer!r}")
    if not answer > 0:
        return wrong("a rate is positive: the optimizer already walks against the gradient")
    if answer >= 1:
        return wrong("a step of AdamW moves every weight by about the rate; most weights are < 0.1")
    low, mine, high = (steps_needed(answer * factor) for factor in (1 / 4, 1, 4))
    if mine <= min(low, high, STEPS) + 1:
        return RIGHT
    found, other, best = ("low", "higher", high) if high < low else ("high", "lower", low)
    return wrong(f"too {found}: you need {_text(mine)}, and a {other} rate needs {_text(best)}")


@cache
def steps_needed(rate: float) -> float:
    """Return the steps until the mask is learned; if it is not, STEPS + 1 + its mean loss."""
    config = preset("tiny")
    for change in (*SETTINGS, f"optimizer.learning_rate={rate}"):
        config = override(config, change)
    generator = np.random.default_rng(0)
    model = MaskRCNN(config, initial_parameters(config, generator))
    image, *objects = shapes.sample(1, 46, height=64, width=64)
    batches = itertools.repeat(([image], [Target(*objects)]))
    steps = train.train(model, batches, iterations=ITERATIONS, generator=generator)
    losses = []
    for step in itertools.islice(steps, STEPS):
        losses.append(step.losses["mask"])
        if len(losses) >= WINDOW and np.mean(losses[-WINDOW:]) < ENOUGH:
            return len(losses)
    return STEPS + 1 + float(np.mean(losses[-WINDOW:]))


def _text(steps):
    """Say how many steps it takes."""
    return f"{steps} steps" if steps <= STEPS else f"more than {STEPS} steps"
