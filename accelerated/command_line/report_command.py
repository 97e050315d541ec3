"""The command `report`."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import accelerated
from accelerated.command_line import loading, run_options
from accelerated.command_line.arguments import (
    BoxesAsMasks,
    Crowd,
    Exif,
    PixelRange,
    SkipInvalid,
)

if TYPE_CHECKING:
    from accelerated.analysis.runs import Found
    from accelerated.engine.fingerprint import Fingerprint


def write_report(
    context: typer.Context,
    given: Annotated[
        list[Path],
        typer.Argument(
            help="Folder of a training run; folder of `evaluate --output`; or a .json file of"
            " detections, as for `evaluate`. Several are compared with the first.",
            metavar="RUN",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Annotations to compare all detections with, in any format of docs/data.md"
            " (default: the validation data of each run)."
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder with the images that the data names (default: found beside it)."),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Page to write; the numbers are written beside it as .json.")
    ] = Path("report.html"),
    threshold: Annotated[
        float,
        typer.Option(
            help="Score from which on a detection counts in the confusion matrix, by size and in"
            " pictures.",
            min=0,
            max=1,
        ),
    ] = 0.5,
    pictures: Annotated[
        int,
        typer.Option(
            help="Pictures to show of each run: half the worst, half the best (0: open no image).",
            min=0,
        ),
    ] = 12,
    boundary: Annotated[
        bool,
        typer.Option(
            help="Compute boundary AP of masks, which takes the most time on large data sets."
        ),
    ] = True,
    skip_invalid: SkipInvalid = False,
    crowd: Crowd = "ignore",
    exif: Exif = None,
    boxes_as_masks: BoxesAsMasks = False,
    pixel_range: PixelRange = None,
) -> None:
    """Write a page on runs and evaluations: what is found, missed and confused, and why.

    It shows losses, average precision by class and size, kinds of errors and what they cost, the
    best score threshold, calibration, and the worst and best pictures.
    """
    from accelerated.analysis import page, runs
    from accelerated.data.text_files import write_json, written_whole

    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--output {output}: expected the name of a page, such as report.html")
    numbers = output.with_suffix(".json")
    for path in given:
        if path.resolve() == numbers.resolve():
            raise ValueError(f"--output {output} would replace {path}: choose another name")
    options = {"crowd": crowd, "exif": exif, "boxes_as_masks": boxes_as_masks}
    options |= {"pixel_range": pixel_range}
    typed = {name: x for name, x in options.items() if run_options.is_given(context, name)}
    drawn = {"threshold": threshold, "count": pictures, "boundary": boundary}
    found = _named([runs.find(path) for path in given])
    for run in found:
        # Of a run, what is not typed is as in its training.
        run.options = run.options | typed if run.log else options
        run.images = run.images if data is None and images is None else images
        run.data = data or run.data
        if run.results is not None and run.data is None:
            raise ValueError(f"{run.name}: name the data that it was evaluated on with --data")
    parts, prints, opened = [], {}, {}
    for run in found:
        parts.append(_evaluated(run, opened, prints, skip_invalid, drawn))
    notes = _differences(prints)
    content = {"title": ", ".join(run.name for run in found), "version": accelerated.__version__}
    content |= {"notes": notes, "runs": parts}
    write_json(numbers, content)
    with written_whole(output) as file:
        file.write(page.render(content))
    loading.note(notes)
    print(f"Report: {output}. Numbers: {numbers}.")


def _named(found: "list[Found]") -> "list[Found]":
    """Make the names unique."""
    counted = Counter()
    for run in found:
        counted[run.name] += 1
        if counted[run.name] > 1:
            run.name += f" ({counted[run.name]})"
    return found


def _evaluated(run: "Found", opened: dict, prints: dict, skip_invalid: bool, drawn: dict) -> dict:
    """Return what a report shows of a run; keep its data, and the fingerprint of that."""
    from accelerated.analysis import content
    from accelerated.engine import fingerprint, results

    part: dict[str, Any] = {"name": run.name, "evaluation": None}
    part["log"] = None if run.log is None else content.log(run.log)
    part["assumed"] = "no evaluation, so that only losses are shown"
    if run.results is None or run.data is None:
        loading.note([f"{run.name}: {part['assumed']}"])
        return part
    detected = results.read(run.results)
    reading = loading.reading(**run.options, masks="segm" in detected.iou_types)
    images = run.images
    if images is None and not drawn["count"]:
        # No image is opened, so that their folder does not matter.
        images = run.data.parent if run.data.is_file() else None
    place = run.data, images, reading
    if place not in opened:
        opened[place] = loading.open_dataset(
            run.data,
            images,
            skip_invalid or run.skip_invalid,
            open_images=False,
            reading=reading,
        )
    dataset = opened[place]
    if not dataset.coco["annotations"]:
        raise ValueError(f"{run.data} has no annotations to score detections by")
    found = results.fit(detected, dataset, run.data)
    part["assumed"] = f"{run.assumed or run.results} on {run.data}"
    loading.note(f"{run.name}: {note}" for note in (part["assumed"], *detected.notes))
    numbers = content.evaluation(
        dataset, found, iou_types=detected.iou_types, max_detections=run.limit, **drawn
    )
    names = {"data": run.data.name, "iteration": run.iteration, "notes": detected.notes}
    part["evaluation"] = names | numbers
    prints[run.name] = fingerprint.of(dataset)
    return part


def _differences(prints: "dict[str, Fingerprint]") -> list[str]:
    """Tell which runs were compared with other data than the first."""
    first = next(iter(prints), "")
    others = [name for name, found in prints.items() if found != prints[first]]
    if not others:
        return []
    were = "was" if len(others) == 1 else "were"
    names = f"{', '.join(others)} {were} compared with other data than {first}"
    return [f"{names}: their numbers are not comparable. --data compares all with the same"]
