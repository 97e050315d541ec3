"""Exercise of notebook 15: three sick models, and what is wrong with each."""

from functools import cache
from pathlib import Path

from exercises import NOT_SOLVED, RIGHT, wrong
from exercises.one_image import first_to_change, record
from reference import checkpoint, config, shapes
from reference.mask_rcnn import MaskRCNN

MODEL = Path(__file__).parents[1] / "data" / "tiny"
# What may be wrong: the setting that makes it so.
CAUSES = {
    "mean colour not subtracted": "transform.mean=[0, 0, 0]",
    "anchors half a stride too far": "anchors.offset=0.5",
    "RPN decodes with the box head's weights": "rpn.box_weights=[10, 10, 5, 5]",
    "box head reads half a cell too far": "box_head.pooler.aligned=false",
    "mask head reads half a cell too far": "mask_head.pooler.aligned=false",
    "score threshold far too high": "box_head.score_threshold=0.9",
}
PATIENTS = {
    "A": "RPN decodes with the box head's weights",
    "B": "mask head reads half a cell too far",
    "C": "score threshold far too high",
}


@cache
def records() -> dict[str, dict]:
    """Return {patient: {field: value}} of one detection each, and that of the "healthy" model."""
    model, image = checkpoint.load(MODEL), shapes.sample(1, 46)[0]
    sick = {name: config.override(model.config, CAUSES[cause]) for name, cause in PATIENTS.items()}
    models = {name: MaskRCNN(changed, model.parameters) for name, changed in sick.items()}
    return {name: record(m, image) for name, m in ({"healthy": model} | models).items()}


def check(answer: dict[str, str] | None) -> str:
    """Compare `answer` {"A": cause, "B": cause, "C": cause} with the truth."""
    if answer is None:
        return NOT_SOLVED
    if set(answer) != set(PATIENTS):
        return wrong(f"name a cause for each of {', '.join(PATIENTS)}")
    for name, cause in PATIENTS.items():
        if answer[name] not in CAUSES:
            return wrong(f"{name}: {answer[name]!r} is not in the list of causes")
        if answer[name] != cause:
            first = first_to_change(records()["healthy"], records()[name])
            return wrong(f"{name}: its first field to differ is {first}; what is computed there?")
    return RIGHT
