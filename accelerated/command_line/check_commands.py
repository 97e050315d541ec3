"""Commands that check something: inspect the data, verify a model, doctor the machine."""

from pathlib import Path
from typing import Annotated

import typer

from accelerated.command_line import arguments
from accelerated.command_line.arguments import Data, Device, Images, Seed, Weights


def inspect_data(
    data: Data,
    images: Images,
    output: Annotated[
        Path | None,
        typer.Option(help="Image file for a sample of the images with their masks drawn."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Images in the sample.", min=1)] = 12,
    seed: Seed = 0,
) -> None:
    """Summarise a data set and list every problem in it."""
    from accelerated.command_line import report
    from accelerated.data import lint
    from accelerated.data.coco import CocoDataset
    from accelerated.data.summary import summary
    from accelerated.drawing import detections

    console = report.console()
    result = lint.check(data, images)
    if result.problems:
        console.print(report.problems(result.problems))
    if not result.fatal:
        dataset = CocoDataset(data, images, skip_invalid=True)
        for table in report.dataset(summary(dataset)):
            console.print(table)
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
            help="Annotation file of the images in COCO format (with --train). Without it, the"
            " model's own detections serve as ground truth."
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
) -> None:
    """Compare NumPy, PyTorch and Triton on the same weights and images, stage by stage.

    With --train, compare every number of a training step.
    """
    if data and not train:
        raise ValueError("--data is used in training only; add --train")
    torch_device = arguments.select_device(device, "auto", interpret=True)
    from accelerated.command_line import report
    from accelerated.data.images import read
    from accelerated.verify import detection, training

    console = report.console()
    model, categories = arguments.load_model(checkpoint, torch_device)
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
            dataset = arguments.open_dataset(data, ".", open_images=False)
            arguments.check_classes(checkpoint, model, categories, data, dataset)
            targets = arguments.targets_of(dataset, images)
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
