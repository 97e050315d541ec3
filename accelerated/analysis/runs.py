"""What a path holds: a run with its log and evaluations, an evaluation, or detections."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerated.data.text_files import read_json
from accelerated.engine import best, checkpoint

# Options of a training that say how its data is read, as in RUN/run.json.
READING = ("crowd", "exif", "boxes_as_masks", "pixel_range")


@dataclass
class Found:
    """What there is to report of a path.

    name       as it was given
    log        the log of a run, which may not exist; None: no run
    results    the file of detections; None: the run was not evaluated
    iteration  the steps of the model that made them, if known
    assumed    which of several evaluations it is, in words
    data, images, options
               the validation data of a run, the folder of its images, and how both were read
    limit      detections per image and class that counted in its metrics
    """

    name: str
    log: Path | None = None
    results: Path | None = None
    iteration: int | None = None
    assumed: str = ""
    data: Path | None = None
    images: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    limit: int = 100


def find(path: Path) -> Found:
    """Recognise a run's folder, an evaluation's folder or a file of detections.

    Of a run's evaluations, that of RUN/best is taken, else the newest. Its data is
    RUN/split/val.json, or what RUN/run.json names.
    Raises ValueError, of one line, if the path is neither, or if run.json is damaged.
    """
    name = str(path)
    if path.suffix == ".json" and path.is_file():
        return Found(name, results=path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if (path / "log.jsonl").is_file():
        return _run(path)
    if (path / "results.json").is_file():
        return Found(name, results=path / "results.json", limit=_limit(path))
    raise ValueError(
        f"{path} is no folder of a run (with log.jsonl), no folder of `maskrcnn evaluate --output`"
        " (with results.json) and no .json file of detections"
    )


def _run(run):
    found = Found(str(run), log=run / "log.jsonl")
    evaluated = sorted(path.parent for path in run.glob("evaluations/[0-9]*/results.json"))
    name = checkpoint.best(run)
    if evaluated:
        chosen, why = evaluated[-1], "the newest"
        if name is not None and best.evaluations(run, int(name)) in evaluated:
            chosen, why = best.evaluations(run, int(name)), f"{run / 'best'}"
        found.results, found.iteration = chosen / "results.json", int(chosen.name)
        found.assumed = f"the evaluation of step {found.iteration} ({why})"
        found.limit = _limit(chosen)
    path = run / "run.json"
    options = read_json(path) if path.is_file() else {}
    if not isinstance(options, dict):
        raise ValueError(f"{path}: damaged (no options in it); name the data with --data")
    found.options = {key: options[key] for key in READING if options.get(key) is not None}
    if (run / "split" / "val.json").is_file():
        found.data = run / "split" / "val.json"
    elif isinstance(options.get("val"), str):
        found.data = Path(options["val"])
        folder = options.get("val_images") or options.get("images")
        found.images = Path(folder) if isinstance(folder, str) else None
    return found


def _limit(folder):
    """Return the detections per image and class that counted in metrics.json; 100 if unknown."""
    path = folder / "metrics.json"
    content = read_json(path) if path.is_file() else {}
    numbers = content.get("bbox") if isinstance(content, dict) else None
    names = numbers if isinstance(numbers, dict) else {}
    limits = [int(name[2:]) for name in names if re.fullmatch(r"AR\d+", name)]
    return max(limits, default=100)
