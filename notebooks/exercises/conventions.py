"""Exercise of notebook 12: five pairs of outputs, each with another switch between the two."""

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from exercises import NOT_SOLVED, RIGHT, wrong
from reference import checkpoint, config, shapes
from reference.mask_rcnn import MaskRCNN
from reference.structures import Stages

MODEL = Path(__file__).parents[1] / "data" / "tiny"
# Five of these are to be found.
CHOICES = (
    "transform.channel_order=bgr",
    "anchors.offset=0.5",
    "rpn.box_weights=[10, 10, 5, 5]",
    "box_head.pooler.aligned=false",
    "box_head.pooler.operator=roi_pool",
    "box_head.box_weights=[5, 5, 2, 2]",
    "mask_head.pooler.aligned=false",
    "mask_head.pooler.operator=roi_pool",
    "mask_head.paste=torchvision",
    "mask_head.threshold=0.3",
)
SEED = 23


class Pair(NamedTuple):
    """Two outputs of the same weights for one image: {stage or field of the detections: value}."""

    before: dict[str, Any]
    after: dict[str, Any]


def image() -> np.ndarray:
    """Return the image of all pairs, [H, W, 3] RGB."""
    return shapes.sample(1, 9, height=151, width=190)[0]


def pairs() -> list[Pair]:
    """Return the five pairs; `before` is the model as it was trained."""
    order = np.random.default_rng(SEED).permutation(len(CHOICES))[:5]
    return [Pair(_output(""), _output(CHOICES[i])) for i in order]


def check(answer: list[str] | None) -> str:
    """Flip each switch that `answer` names, and compare what comes out with the pair."""
    if answer is None:
        return NOT_SOLVED
    hidden = pairs()
    if isinstance(answer, str):
        return wrong(f"give a list of {len(hidden)} names, not a text")
    if len(answer) != len(hidden):
        return wrong(f"give a list of {len(hidden)} names, one for each pair")
    for i, (name, pair) in enumerate(zip(answer, hidden, strict=True)):
        if name not in CHOICES:
            return wrong(f"pair {i}: {name!r} is none of the choices; copy a name from the list")
        mine = _output(name)
        if first_difference(mine, pair.after) is not None:
            return wrong(f"pair {i}: {_hint(name, mine, pair)}")
    return RIGHT


def first_difference(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """Return the first field, in the order of computation, whose numbers differ."""
    return next((name for name in before if not _equal(before[name], after[name])), None)


def _hint(name, mine, pair):
    """Say where the pair and what the answer does part."""
    wanted, given = (first_difference(pair.before, after) for after in (pair.after, mine))
    if wanted == given:
        return (
            f"{given} is indeed the first stage that differs, but {name} is not the only switch of"
            " this stage; look at which way the boxes or masks move, and at the scores"
        )
    order = list(pair.before)
    if order.index(given) < order.index(wanted):
        return f"{name} would change {given}; look at {given}, which is the same in both outputs"
    return f"{name} changes nothing before {given}; look at {wanted}, which differs already"


@cache
def _output(switch):
    """Detect with one switch flipped; "" for none."""
    model = checkpoint.load(MODEL)
    settings = config.override(model.config, switch) if switch else model.config
    record = Stages()
    [found] = MaskRCNN(settings, model.parameters).detect([image()], record=record)
    return record.computed() | vars(found)


def _equal(a, b):
    """Compare arrays, or lists and tuples of them; None equals None."""
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return np.array_equal(a, b)
