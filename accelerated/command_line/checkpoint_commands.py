"""Commands on checkpoints: convert, export, weights."""

from pathlib import Path
from typing import Annotated

import typer

from accelerated.command_line import loading
from accelerated.command_line.arguments import Changes, FilePreset, Names, Weights

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
    preset: FilePreset = None,
    changes: Changes = None,
    names: Names = None,
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
    if format is not None and not target.suffix:
        raise ValueError(f"--format {format} is that of a file; {target} is a folder's name")
    model, categories = loading.load_model(checkpoint, preset=preset, changes=changes, names=names)
    if target.suffix:
        target.parent.mkdir(parents=True, exist_ok=True)
        interop.save(model, target, format)
    else:
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
    preset: FilePreset = None,
    changes: Changes = None,
    names: Names = None,
) -> None:
    """Write a model as a program for ONNX or torch.export, with fixed shapes.

    The program detects without this package. docs/export.md shows what stands around it.
    """
    from accelerated.interop.export import export, program_shape

    model, categories = loading.load_model(checkpoint, preset=preset, changes=changes, names=names)
    if height is None or width is None:
        default = program_shape(model.config)
        height, width = height or default[0], width or default[1]
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
    shapes = export(
        model,
        *targets,
        height=height,
        width=width,
        batch=batch_size,
        categories=categories,
    )
    for target in targets:
        print(f"Written to {target}: {target.stat().st_size / 1e6:,.1f} MB.")
    for name, shape in shapes.items():
        print(f"  {name:20}{shape:28}{MEANINGS[name]}")


def list_weights(
    name: Annotated[
        str | None,
        typer.Argument(help="Name of the file to download (default: list all).", metavar="NAME"),
    ] = None,
) -> None:
    """List the published weights, or download one and print its path.

    Files are kept in ~/.cache/maskrcnn/weights, or in the folder that MASKRCNN_CACHE names; files
    put there by hand are found. MASKRCNN_WEIGHTS_MIRROR names an address to download them from, by
    their file names, instead of the publishers'.
    """
    from accelerated.command_line import report
    from accelerated.interop import download, files, zoo

    if name is not None:
        if name not in zoo.ENTRIES:
            files.refuse(name)
        print(download.fetch(zoo.ENTRIES[name]))
        return
    rows = [
        (
            name,
            entry.what,
            entry.licence,
            entry.bytes and f"{entry.bytes / 1e6:.0f} MB",
            "yes" if download.cached(entry) else "",
        )
        for name, entry in zoo.ENTRIES.items()
    ]
    columns = ["name", "what", "licence of the project", "size", "here"]
    console = report.console()
    console.print(report.table("Published weights", columns, rows))
    console.print(f"Folder: {download.folder()}. The data they were trained on has its own terms.")
