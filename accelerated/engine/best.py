"""The best checkpoint of a run: RUN/best, by the average precision of its evaluation.

It is that of masks, or of boxes for a model without masks.
"""

from dataclasses import dataclass
from pathlib import Path

from accelerated.data.text_files import parse_json
from accelerated.engine import checkpoint

NAMES = {"segm": "mask AP", "bbox": "box AP"}


@dataclass(frozen=True)
class Best:
    """The steps that the best checkpoint has taken, and "mask AP" or "box AP" with its value."""

    iteration: int
    metric: str
    value: float


def evaluations(run: Path, iteration: int) -> Path:
    """Return the folder of the evaluation after `iteration` steps."""
    return run / "evaluations" / f"{iteration:08d}"


def read(run: Path) -> Best | None:
    """Return the checkpoint that RUN/best points at; None if there is none.

    Raises ValueError if the metrics of its evaluation are damaged.
    """
    name = checkpoint.best(run)
    if name is None:
        return None
    path = evaluations(run, int(name)) / "metrics.json"
    try:
        return _rated(int(name), parse_json(path)) if path.exists() else None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: damaged ({error}); delete it to do without") from None


def update(run: Path, iteration: int, metrics: dict, before: Best | None) -> Best | None:
    """Point RUN/best at the checkpoint of `iteration` if it is better than the one before."""
    now = _rated(iteration, metrics)
    if now is None or (before is not None and now.value <= before.value):
        return before
    checkpoint.mark_best(run, iteration)
    return now


def describe(iteration: int, metrics: dict, best: Best | None) -> str:
    """Tell the result of an evaluation in a line."""
    texts = []
    for branch, name in NAMES.items():
        value = metrics.get(branch, {}).get("AP")
        if branch in metrics:
            texts.append(f"{name} {'-' if value is None else format(value, '.3f')}")
    text = f"step {iteration}  evaluation: {', '.join(texts)}"
    if best is None:
        return text
    if best.iteration == iteration:
        return f"{text} (the best so far)"
    return f"{text} (best: {best.value:.3f} at step {best.iteration})"


def _rated(iteration, metrics):
    branch = "segm" if "segm" in metrics else "bbox"
    value = metrics[branch]["AP"]
    return None if value is None else Best(iteration, NAMES[branch], value)
