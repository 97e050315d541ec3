"""The command `predict`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from accelerated.command_line import arguments
from accelerated.command_line.arguments import (
    Amp,
    Backend,
    Changes,
    Compile,
    Device,
    FilePreset,
    Graph,
    Names,
    Output,
    Threshold,
    Weights,
)


def draw_predictions(
    checkpoint: Weights,
    images: Annotated[
        list[str],
        typer.Argument(help="Image files, folders or glob patterns.", metavar="IMAGES..."),
    ],
    output: Output = Path("predictions"),
    threshold: Threshold = 0.5,
    device: Device = "auto",
    backend: Backend = "auto",
    amp: Amp = False,
    compile: Compile = False,
    graph: Graph = False,
    preset: FilePreset = None,
    changes: Changes = None,
    names: Names = None,
) -> None:
    """Detect objects in images, draw them, and write them to a JSON file in COCO format.

    Unreadable images are reported and skipped.
    """
    torch_device = arguments.select_device(device, backend)
    from accelerated.command_line import report
    from accelerated.engine.predict import predict

    model, categories = arguments.load_model(checkpoint, torch_device, preset, changes, names)
    result = predict(
        model,
        images,
        output,
        categories=categories,
        threshold=threshold,
        amp=amp,
        compile="inductor" if compile else None,
        graph=graph,
        bar=sys.stderr.isatty(),
    )
    for path, reason in result.failed:
        message = reason if path in reason else f"{path}: {reason}"
        print(f"maskrcnn: skipped: {message}", file=sys.stderr)
    objects, detected = (len(result.predictions[key]) for key in ("annotations", "images"))
    print(
        f"{report.count(objects, 'object')} in {report.count(detected, 'image')}."
        f" Drawings: {output}. Detections: {output / 'predictions.json'}."
    )
    if result.failed:
        raise typer.Exit(2)
