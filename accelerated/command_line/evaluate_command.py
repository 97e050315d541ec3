"""The command `evaluate`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from accelerated.command_line import arguments
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
    Names,
    Output,
    PixelRange,
    SkipInvalid,
    Weights,
    Workers,
)


def evaluate_model(
    checkpoint: Weights,
    data: Data,
    images: Images = None,
    output: Output = Path("evaluation"),
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.", min=1)] = 1,
    workers: Workers = 0,
    device: Device = "auto",
    backend: Backend = "auto",
    skip_invalid: SkipInvalid = False,
    crowd: Crowd = "ignore",
    exif: Exif = None,
    boxes_as_masks: BoxesAsMasks = False,
    pixel_range: PixelRange = None,
    amp: Amp = False,
    compile: Compile = False,
    graph: Graph = False,
    preset: FilePreset = None,
    changes: Changes = None,
    names: Names = None,
) -> None:
    """Compute COCO's average precision of boxes and masks."""
    torch_device = arguments.select_device(device, backend)
    from accelerated.command_line import report
    from accelerated.engine.evaluate import evaluate

    model, _ = arguments.load_model(checkpoint, torch_device, preset, changes, names)
    masks = model.config.mask_head.kind != "none"
    reading = arguments.reading(crowd, exif, boxes_as_masks, pixel_range, masks)
    dataset = arguments.open_dataset(data, images, skip_invalid, reading=reading)
    arguments.check_classes(checkpoint, model, data, dataset)
    metrics = evaluate(
        model,
        dataset,
        batch_size=batch_size,
        workers=workers,
        output=output,
        amp=amp,
        compile="inductor" if compile else None,
        graph=graph,
        bar=sys.stderr.isatty(),
    )
    console = report.console()
    console.print(report.metrics(metrics), report.class_metrics(metrics))
    console.print(
        f"Detections: {output / 'results.json'}. Average precision: {output / 'metrics.json'}."
    )
