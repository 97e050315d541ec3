"""The command `train`."""

from typing import Annotated

import typer

from accelerated.command_line import arguments
from accelerated.command_line.arguments import (
    Amp,
    Backend,
    BatchSize,
    BoxesAsMasks,
    Changes,
    Crowd,
    Data,
    Device,
    Exif,
    Images,
    Names,
    Output,
    PixelRange,
    Preset,
    Seed,
    SkipInvalid,
    Val,
    ValImages,
    Workers,
)


def train_model(
    data: Data,
    output: Output,
    images: Images = None,
    iterations: Annotated[int, typer.Option(help="Training steps.", min=1)] = 1000,
    preset: Preset = None,
    changes: Changes = None,
    val: Val = None,
    val_images: ValImages = None,
    evaluate_every: Annotated[
        int, typer.Option(help="Steps between evaluations (0: only at the end).", min=0)
    ] = 0,
    checkpoint_every: Annotated[
        int, typer.Option(help="Steps between checkpoints (0: only at the end).", min=0)
    ] = 500,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Initial weights: a run or checkpoint; a torchvision, detectron2,"
            " maskrcnn-benchmark or Caffe2 file of a detector or a backbone; or a name of"
            " `maskrcnn weights`, such as coco (default: random)."
        ),
    ] = None,
    names: Names = None,
    batch_size: BatchSize = None,
    workers: Workers = 0,
    device: Device = "auto",
    backend: Backend = "auto",
    seed: Seed = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the output folder.")
    ] = False,
    amp: Amp = False,
    fixed_shapes: Annotated[
        bool,
        typer.Option("--fixed-shapes", help="Pad all batches to at most six shapes."),
    ] = False,
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Compile the losses (with --fixed-shapes)."),
    ] = False,
    graph: Annotated[
        bool,
        typer.Option("--graph", help="Replay steps as CUDA graphs (with --fixed-shapes)."),
    ] = False,
    skip_invalid: SkipInvalid = False,
    crowd: Crowd = "ignore",
    exif: Exif = None,
    boxes_as_masks: BoxesAsMasks = False,
    pixel_range: PixelRange = None,
) -> None:
    """Train a model on a data set in COCO format."""
    torch_device = arguments.select_device(device, backend)
    from accelerated.command_line import report
    from accelerated.command_line.configuration import configuration
    from accelerated.drawing import curves
    from accelerated.engine.train import train

    def open_data(masks):
        reading = arguments.reading(crowd, exif, boxes_as_masks, pixel_range, masks)
        return arguments.open_dataset(data, images, skip_invalid, reading=reading)

    start = configuration(preset, weights, changes or [], names, open_data)
    console = report.console()
    console.print(*start.lines, sep="\n")
    evaluation = None
    if val:
        folder, reading = val_images or images, start.dataset.reading
        evaluation = arguments.open_dataset(val, folder, skip_invalid, reading=reading)
    result = train(
        start.config,
        start.dataset,
        output,
        iterations=iterations,
        batch_size=batch_size,
        workers=workers,
        device=torch_device,
        seed=seed,
        amp=amp,
        fixed_shapes=fixed_shapes,
        compile="inductor" if compile else None,
        graph=graph,
        weights=start.weights,
        resume=resume,
        evaluation=evaluation,
        evaluate_every=evaluate_every,
        checkpoint_every=checkpoint_every,
    )
    curves.loss_curve(output / "log.jsonl").savefig(output / "loss.png")
    if result.metrics:
        console.print(report.metrics(result.metrics))
    if result.interrupted:
        console.print(f"Interrupted after {result.iteration} steps. Continue with --resume.")
        raise typer.Exit(130)
    console.print(
        f"Trained for {result.iteration} steps."
        f" Weights: {output / 'last'}. Loss curve: {output / 'loss.png'}."
    )
