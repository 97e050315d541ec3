"""Commands that work with a model: train, evaluate, predict, convert, export."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

import reference.config
from accelerated.command_line import arguments
from accelerated.command_line.arguments import (
    Backend,
    BatchSize,
    Changes,
    Data,
    Device,
    Images,
    Output,
    Preset,
    Seed,
    SkipInvalid,
    Threshold,
    Val,
    ValImages,
    Weights,
    Workers,
)

Amp = Annotated[
    bool,
    typer.Option(
        "--amp",
        help="Compute convolutions and products in bfloat16 (mixed precision): faster on a GPU, and"
        " on a CPU that has instructions for it.",
    ),
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Compile the model, anew for each shape of its input."),
]
Graph = Annotated[
    bool,
    typer.Option("--graph", help="Replay a CUDA graph for each shape of the model's input."),
]

# The inputs and outputs of an exported program, as `export_model` reports them.
MEANINGS = {
    "images": "input: RGB, 0..255, resized, at the top left",
    "sizes": "input: height and width of each image in it",
    "boxes": "x1, y1, x2, y2 in pixels of images",
    "scores": "falling",
    "labels": "from 1",
    "valid": "whether the slot holds a detection",
    "mask_probabilities": "inside of each box",
}


def train_model(
    data: Data,
    images: Images,
    output: Output,
    iterations: Annotated[int, typer.Option(help="Training steps.", min=1)] = 1000,
    preset: Preset = "tiny",
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
        Path | None,
        typer.Option(
            help="Initial weights: a run or checkpoint, or a torchvision, detectron2,"
            " maskrcnn-benchmark or Caffe2 file of a detector or a backbone (default: random)."
        ),
    ] = None,
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
) -> None:
    """Train a model on a data set in COCO format."""
    config = reference.config.preset(preset)
    for change in changes or []:
        config = reference.config.override(config, change)
    torch_device = arguments.select_device(device, backend)
    from accelerated.command_line import report
    from accelerated.drawing import curves
    from accelerated.engine.train import train

    dataset = arguments.open_dataset(data, images, skip_invalid)
    evaluation = arguments.open_dataset(val, val_images or images, skip_invalid) if val else None
    result = train(
        replace(config, num_classes=len(dataset.class_names)),
        dataset,
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
        weights=weights,
        resume=resume,
        evaluation=evaluation,
        evaluate_every=evaluate_every,
        checkpoint_every=checkpoint_every,
    )
    console = report.console()
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


def evaluate_model(
    checkpoint: Weights,
    data: Data,
    images: Images,
    output: Output = Path("evaluation"),
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.", min=1)] = 1,
    workers: Workers = 0,
    device: Device = "auto",
    backend: Backend = "auto",
    skip_invalid: SkipInvalid = False,
    amp: Amp = False,
    compile: Compile = False,
    graph: Graph = False,
) -> None:
    """Compute COCO's average precision of boxes and masks."""
    torch_device = arguments.select_device(device, backend)
    from accelerated.command_line import report
    from accelerated.engine.evaluate import evaluate

    model, categories = arguments.load_model(checkpoint, torch_device)
    dataset = arguments.open_dataset(data, images, skip_invalid)
    arguments.check_classes(checkpoint, model, categories, data, dataset)
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
) -> None:
    """Detect objects in images, draw them, and write them to a JSON file in COCO format.

    Unreadable images are reported and skipped.
    """
    torch_device = arguments.select_device(device, backend)
    from accelerated.command_line import report
    from accelerated.engine.predict import predict

    model, categories = arguments.load_model(checkpoint, torch_device)
    result = predict(
        model,
        images,
        output,
        categories=categories or arguments.numbered_categories(model),
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


def convert_checkpoint(
    checkpoint: Weights,
    target: Annotated[
        Path,
        typer.Argument(
            help="New folder for this project's format, or a new file, NAME.safetensors or"
            " NAME.pth, in torchvision's or detectron2's format.",
            metavar="TARGET",
        ),
    ],
    preset: Annotated[
        str | None,
        typer.Option(
            help="Preset for settings that cannot be inferred from the tensors (default: inferred)."
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="Format of a target file: torchvision or detectron2 (default: detectron2 if the"
            " background is the last class, else torchvision)."
        ),
    ] = None,
) -> None:
    """Convert a torchvision or detectron2 checkpoint to this project's format, or back."""
    from accelerated import interop, optimizer
    from accelerated.command_line import report
    from accelerated.engine.checkpoint import save

    if target.exists():
        raise ValueError(f"{target} already exists")
    model = interop.load(checkpoint, preset)
    if target.suffix:
        interop.save(model, target, format)
    else:
        categories = arguments.read_categories(checkpoint) or arguments.numbered_categories(model)
        new_optimizer = optimizer.build(model, model.config.optimizer)
        save(target, model, model.config, categories, new_optimizer, 0)
    count = sum(parameter.numel() for parameter in model.parameters())
    classes = report.count(model.config.num_classes, "class", "classes")
    print(f"Written to {target}: {count:,} parameters, {classes}.")


def export_model(
    checkpoint: Weights,
    targets: Annotated[
        list[Path],
        typer.Argument(
            help="New files: NAME.onnx for ONNX, NAME.pt2 for torch.export.", metavar="TARGET..."
        ),
    ],
    height: Annotated[
        int | None,
        typer.Option(help="Height of the images, in pixels (default: of landscapes).", min=1),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(help="Width of the images, in pixels (default: of landscapes).", min=1),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per call.", min=1)] = 1,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Preset for settings that cannot be inferred from the tensors (default: inferred)."
        ),
    ] = None,
) -> None:
    """Write a model as a program for ONNX or torch.export, with fixed shapes.

    The program detects without this package. docs/export.md shows what stands around it.
    """
    from accelerated import interop
    from accelerated.interop.export import export, program_shape

    model = interop.load(checkpoint, preset)
    if height is None or width is None:
        default = program_shape(model.config)
        height, width = height or default[0], width or default[1]
    shapes = export(
        model,
        *targets,
        height=height,
        width=width,
        batch=batch_size,
        categories=arguments.read_categories(checkpoint) or arguments.numbered_categories(model),
    )
    for target in targets:
        print(f"Written to {target}: {target.stat().st_size / 1e6:,.1f} MB.")
    for name, shape in shapes.items():
        print(f"  {name:20}{shape:28}{MEANINGS[name]}")
