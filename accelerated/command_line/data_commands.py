"""Commands on data sets: inspect."""

from pathlib import Path
from typing import Annotated

import typer

from accelerated.command_line import arguments
from accelerated.command_line.arguments import (
    BoxesAsMasks,
    Crowd,
    Data,
    Exif,
    Images,
    PixelRange,
    Seed,
)


def inspect_data(
    data: Data,
    images: Images = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Image file for a sample of the images with their masks drawn."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Images in the sample.", min=1)] = 12,
    seed: Seed = 0,
    everything: Annotated[
        bool, typer.Option("--all", help="List every problem, not a few of each kind.")
    ] = False,
    crowd: Crowd = "ignore",
    exif: Exif = None,
    boxes_as_masks: BoxesAsMasks = False,
    pixel_range: PixelRange = None,
) -> None:
    """Summarise a data set and list every problem in it."""
    from accelerated.command_line import introduction, report
    from accelerated.data import lint
    from accelerated.data.coco import CocoDataset
    from accelerated.data.summary import default_preset, input_objects, summary
    from accelerated.drawing import detections
    from reference.config import preset

    console = report.console()
    reading = arguments.reading(crowd, exif, boxes_as_masks, pixel_range)
    result = lint.check(data, images, reading=reading)
    console.print(*report.problems(result, data.name, everything))
    if not result.fatal:
        dataset = CocoDataset(data, images, skip_invalid=True, reading=reading)
        for table in report.dataset(summary(dataset)):
            console.print(table)
        name = default_preset(dataset.sizes)
        transform = preset(name).transform
        objects = input_objects(dataset, transform)
        text = introduction.describe_input(transform, objects)
        console.print(f"What train sees by default, with the preset {name}: {text}.")
        if objects.advice:
            console.print(f"Warning: {objects.advice}.")
        if output is not None and len(dataset):
            detections.save(detections.sample(dataset, samples, seed), output)
            console.print(f"Sample: {output}.")
    blocking = len(result.blocking)
    if blocking:
        remedy = "Correct them, or train with --skip-invalid."
        if result.fatal:
            remedy = "Correct the file."
        console.print(f"Problems that stop training: {blocking}. {remedy}")
        raise typer.Exit(1)
    console.print("The data is ready for training.")
