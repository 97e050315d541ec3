"""Exercise of notebook 0: the first stage of the river that knows the class."""

from pathlib import Path
from typing import Any

import numpy as np

from exercises import NOT_SOLVED, RIGHT, wrong
from reference import checkpoint, shapes
from reference.labels import class_layout, delta_layout, mask_layout
from reference.mask_rcnn import MaskRCNN
from reference.structures import Stages

MODEL = Path(__file__).parents[1] / "data" / "tiny"
RPN = ("rpn_logits", "rpn_deltas", "anchors", "proposals", "proposal_scores")
LATER = {
    "box_deltas": "there are deltas for every class; which of them count was known before",
    "detections": "there the label is written down, but it is read off numbers that came before",
    "mask_features": "the mask head runs on the detections, which have their labels already",
    "mask_logits": "there is a channel for every class, but the label has long been chosen",
    "mask_probabilities": "one channel has been taken from every mask, that of the label",
}


def check(answer: str | None) -> str:
    """Compare `answer`, the name of a field of Stages, with an experiment: `first_to_change`."""
    if answer is None:
        return NOT_SOLVED
    model, image = checkpoint.load(MODEL), shapes.sample(1, 46)[0]
    before, after = (record(m, image) for m in (model, renamed(model)))
    first = first_to_change(before, after)
    if answer == first:
        return RIGHT
    if answer not in before:
        return wrong(f"the record has no field {answer!r}; take a name from the table")
    if answer in LATER:
        return wrong(f"{answer} is not the first: {LATER[answer]}")
    if answer in RPN:
        return wrong(f"{answer} is about objects of any class: the RPN asks whether, not what")
    return wrong(f"{answer} stays the same, bit for bit, when two classes change their names")


def renamed(model: MaskRCNN) -> MaskRCNN:
    """Exchange the names of disc and triangle: their columns in every weight that has any."""
    parameters, config = dict(model.parameters), model.config
    layouts = {
        "box_head.class_logits": class_layout(config),
        "box_head.box_deltas": delta_layout(config),
        "mask_head.logits": mask_layout(config),
    }
    for layer, layout in layouts.items():
        order = np.arange(layout.columns)
        order[layout.column(np.array([1, 3]))] = layout.column(np.array([3, 1]))
        for name in (f"{layer}.weight", f"{layer}.bias"):
            value = parameters[name]
            per_class = value.reshape(layout.columns, -1)
            parameters[name] = per_class[order].reshape(value.shape)
    return MaskRCNN(config, parameters)


def record(model: MaskRCNN, image: np.ndarray) -> dict:
    """Return {field: value} of one detection, in order."""
    stages = Stages()
    model.detect([image], record=stages)
    return stages.computed()


def first_to_change(before: dict, after: dict) -> str | None:
    """Return the first field whose numbers differ, or None."""
    return next((name for name in before if not equal(before[name], after[name])), None)


def equal(a: Any, b: Any) -> bool:
    """Compare arrays, or lists and tuples of them; None equals None."""
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return np.array_equal(a, b)
