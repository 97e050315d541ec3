"""The command `evaluate`."""

import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from accelerated.command_line import loading, run_options
from accelerated.command_line.arguments import (
    Amp,
    Backend,
    BoxesAsMasks,
    Changes,
    Compile,
    Crowd,
    Data,
    Device,
    Exif,
    FilePreset,
    Graph,
    Images,
    InTiles,
    Names,
    Output,
    Patience,
    PixelRange,
    SkipInvalid,
    Tta,
    Workers,
)

if TYPE_CHECKING:
    from accelerated.data.reading import Reading


def evaluate_model(
    context: typer.Context,
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="Folder, file or name of a model, as for `predict`; or detections to score: a"
            " .json file in COCO's result format, or predictions.json of `predict`.",
            metavar="CHECKPOINT",
        ),
    ],
    data: Data,
    images: Images = None,
    output: Output = Path("evaluation"),
    batch_size: Annotated[
        int,
        typer.Option(
            help="Images per forward pass. Images of a batch are padded to one size; above 1, a"
            " model with group norms detects slightly differently, because they see the padding.",
            min=1,
        ),
    ] = 1,
    workers: Workers = 0,
    device: Device = "auto",
    backend: Backend = "auto",
    skip_invalid: SkipInvalid = False,
    crowd: Crowd = "ignore",
    exif: Exif = None,
    boxes_as_masks: BoxesAsMasks = False,
    pixel_range: PixelRange = None,
    tta: Tta = None,
    tiles: InTiles = None,
    amp: Amp = False,
    compile: Compile = False,
    graph: Graph = False,
    preset: FilePreset = None,
    changes: Changes = None,
    names: Names = None,
    patience: Patience = 1800.0,
) -> None:
    """Compute COCO's average precision of boxes and masks.

    For data without annotations, such as COCO's test-dev, only the detections are written, to be
    submitted.
    """
    if Path(checkpoint).suffix == ".json":
        loading.require_one_process()
        reading = partial(loading.reading, crowd, exif, boxes_as_masks, pixel_range)
        options = {"--preset": preset, "--set": changes, "--names": names}
        options |= {"--amp": amp, "--compile": compile, "--graph": graph}
        options |= {"--tta": tta, "--tiles": tiles}
        given = [name for name, value in options.items() if value]
        if given:
            raise ValueError(f"{given[0]} changes a model; {checkpoint} holds its results")
        _score_file(context, Path(checkpoint), data, images, output, skip_invalid, reading)
        return
    torch_device = loading.select_device(device, backend)
    loading.join(context, torch_device, patience)
    from accelerated.command_line import report
    from accelerated.engine.evaluate import evaluate

    looking = loading.looking(tta, tiles)
    model, _ = loading.load_model(checkpoint, torch_device, preset, changes, names)
    masks = model.config.mask_head.kind != "none"
    reading = loading.reading(crowd, exif, boxes_as_masks, pixel_range, masks)
    dataset = loading.open_dataset(
        data, images, skip_invalid, reading=reading, need_annotations=False
    )
    loading.check_classes(checkpoint, model, data, dataset)
    metrics = evaluate(
        model,
        dataset,
        batch_size=batch_size,
        workers=workers,
        output=output,
        **looking,
        amp=amp,
        compile="inductor" if compile else None,
        graph=graph,
        bar=sys.stderr.isatty(),
    )
    console = report.console()
    written = f"Detections: {output / 'results.json'}"
    if masks:
        # See `evaluate.write_results`.
        written += f", without boxes, for masks in pycocotools: {output / 'results_segm.json'}"
    if not dataset.coco["annotations"]:
        images_ = report.count(len(dataset), "image")
        console.print(f"{data} has no annotations to score {images_} by. To submit: {written}.")
        return
    console.print(report.metrics(metrics), report.class_metrics(metrics))
    console.print(f"{written}. Average precision: {output / 'metrics.json'}.")
    console.print(_report_command(context, output), soft_wrap=True)


def _report_command(context: typer.Context, path: Path) -> str:
    """Tell how to make a report of what lies at `path`, with the data read as it was here."""
    from accelerated.analysis.runs import READING

    words = ["maskrcnn", "report", str(path)]
    for name in ("data", "images", "skip_invalid", *READING):
        if run_options.is_given(context, name):
            value = context.params[name]
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return f"What is missed and confused: {shlex.join(words)}"


def _score_file(
    context: typer.Context,
    path: Path,
    data: Path,
    images: Path | None,
    output: Path,
    skip_invalid: bool,
    reading: "Callable[[bool], Reading]",
) -> None:
    """Score the detections of a file."""
    from accelerated.command_line import report
    from accelerated.data.text_files import write_json
    from accelerated.engine import evaluate, results

    detected = results.read(path)
    # No image is opened, so that the folder of a file's images does not matter.
    dataset = loading.open_dataset(
        data,
        images or (data.parent if data.is_file() else None),
        skip_invalid,
        open_images=False,
        reading=reading("segm" in detected.iou_types),
    )
    if not dataset.coco["annotations"]:
        raise ValueError(f"{data} has no annotations to score detections by")
    found = results.fit(detected, dataset, data)
    metrics = evaluate.score(dataset.coco, found, iou_types=detected.iou_types)
    write_json(output / "metrics.json", metrics)
    console = report.console()
    console.print(report.metrics(metrics), report.class_metrics(metrics))
    counted = report.count(len(found), "detection")
    console.print(f"{counted}. Average precision: {output / 'metrics.json'}.")
    console.print(_report_command(context, path), soft_wrap=True)
    for note in detected.notes:
        console.print(f"Note: {note}.")
