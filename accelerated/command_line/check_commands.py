"""Commands that check something: verify a model, doctor the machine."""

from pathlib import Path
from typing import Annotated

import typer

from accelerated.command_line import arguments, loading
from accelerated.command_line.arguments import Changes, Device, FilePreset, Names, Weights


def verify_model(
    checkpoint: Weights,
    images: Annotated[
        list[Path],
        typer.Argument(help="Image files; with --train they form one batch.", metavar="IMAGES..."),
    ],
    train: Annotated[
        bool,
        typer.Option(
            "--train", help="Compare a training step: losses, gradients and updated weights."
        ),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Annotations of the images, in any format of docs/data.md (with --train). Without"
            " them, the model's own detections serve as ground truth."
        ),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(
            help="Minimum score of a detection used as ground truth (with --train, without"
            " --data).",
            min=0,
            max=1,
        ),
    ] = 0.5,
    dtype: Annotated[str, typer.Option(help="Precision: float64 or float32.")] = "float64",
    proposals: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of proposals per image; with --train also of sampled RoIs"
            " (default: no limit; on a CPU, where Triton is interpreted,"
            f" {arguments.INTERPRETED}, with --train {arguments.INTERPRETED_TRAINING}).",
            min=1,
        ),
    ] = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Random seed for sampling (with --train).", min=0)] = 0,
    preset: FilePreset = None,
    changes: Changes = None,
    names: Names = None,
) -> None:
    """Compare NumPy, PyTorch and Triton on the same weights and images, stage by stage.

    With --train, compare every number of a training step.
    """
    if data and not train:
        raise ValueError("--data is used in training only; add --train")
    torch_device = loading.select_device(device, "auto", interpret=True)
    from accelerated.command_line import report
    from accelerated.data.formats import coco
    from accelerated.data.formats.place import Place
    from accelerated.data.images import read
    from accelerated.verify import detection, training

    console = report.console()
    model, _ = loading.load_model(checkpoint, torch_device, preset, changes, names)
    arrays = [read(image) for image in images]
    if proposals is None and torch_device.type == "cpu":
        proposals = arguments.INTERPRETED_TRAINING if train else arguments.INTERPRETED
        console.print(
            f"Triton kernels are interpreted on a CPU:"
            f" at most {proposals} {'RoIs' if train else 'proposals'} per image are compared."
        )
    if not train:
        results = (
            detection.compare(model, array, dtype=dtype, proposals=proposals) for array in arrays
        )
    else:
        if data:
            # No image of the data is opened. A COCO file's could be anywhere.
            folder = "." if coco.is_file(Place(data).content) else None
            dataset = loading.open_dataset(data, folder, open_images=False)
            loading.check_classes(checkpoint, model, data, dataset)
            targets = loading.targets_of(dataset, images, model.categories or [])
        else:
            targets = training.own_targets(model, arrays, threshold)
            console.print(
                f"Without --data, the model's own detections with a score of at least {threshold:g}"
                " serve as ground truth."
            )
        results = [training.compare(model, arrays, targets, dtype=dtype, rois=proposals, seed=seed)]
    passed = [report.print_verification(console, result) for result in results]
    raise typer.Exit(0 if all(passed) else 1)


def examine_machine() -> None:
    """Show the installed versions, the devices, and which backend runs on each and why."""
    from accelerated.command_line import doctor, report

    console = report.console()
    console.print(report.table("Packages", ["package", "version"], doctor.versions()))
    console.print(report.table("Devices", ["device", "description"], doctor.devices()))
    console.print(report.table("Backends", ["device", 'backend "auto"'], doctor.backends()))
    missing = doctor.missing()
    if missing:
        for line in missing:
            console.print(f"Cannot import {line}")
        raise typer.Exit(1)
    console.print("Every required package works.")
