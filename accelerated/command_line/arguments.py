"""What the commands are given: the types of their options, and what becomes of them - a device, a model, a data set."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from reference.config import PRESETS

INTERPRETED = 32  # proposals that `verify` follows on a CPU: there Triton's kernels are interpreted, half a second for each
INTERPRETED_TRAINING = (
    16  # and RoIs of an image with `--train`: forward and backward, a second and a half for each
)

Weights = Annotated[
    str,
    typer.Argument(
        help="A run's folder, one of its checkpoints, or a file of torchvision, detectron2 or maskrcnn-benchmark.",
        metavar="CHECKPOINT",
    ),
]
Data = Annotated[Path, typer.Option(help="Annotations, COCO json.")]
Images = Annotated[
    Path, typer.Option(help="Folder that the file names in the json are relative to.")
]
Preset = Annotated[str, typer.Option(help=f"Configuration to start from: {', '.join(PRESETS)}.")]
Changes = Annotated[
    list[str],
    typer.Option("--set", help="Change one field of the configuration, FIELD=VALUE; repeatable."),
]
Output = Annotated[Path, typer.Option(help="Folder of the results.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Backend = Annotated[str, typer.Option(help="How the operators run: auto, torch or triton.")]
BatchSize = Annotated[
    int | None, typer.Option(help="Images per step; default: the configuration's.", min=1)
]
Workers = Annotated[int, typer.Option(help="Loader processes.", min=0)]
Seed = Annotated[int, typer.Option(min=0)]
Threshold = Annotated[
    float, typer.Option(help="Objects that score less are left out.", min=0, max=1)
]
SkipInvalid = Annotated[
    bool,
    typer.Option(
        "--skip-invalid", help="Leave out what `inspect` calls broken, instead of refusing."
    ),
]


def prepare(device, backend, interpret=False):
    """The torch device; sets what must be set before anything imports Triton. `interpret`: without a GPU, let kernels be interpreted."""
    import torch

    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"--backend {backend}: expected auto, torch or triton")
    if backend != "auto":
        os.environ["MASKRCNN_BACKEND"] = backend
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"--device {device}: expected auto, cpu, cuda or cuda:NUMBER") from None
    if chosen.type == "cuda" and not (
        torch.cuda.is_available() and (chosen.index or 0) < torch.cuda.device_count()
    ):
        raise ValueError(
            f"--device {device}: PyTorch {torch.__version__} sees {torch.cuda.device_count()} GPUs"
        )
    if interpret and chosen.type == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")
    return chosen


def load(checkpoint, device):
    """(model in evaluation mode on the device, its categories or None for a foreign file)."""
    from accelerated import interop

    return interop.load(checkpoint).to(device).eval(), categories(checkpoint)


def categories(checkpoint):
    from accelerated.engine import checkpoint as checkpoints

    return checkpoints.read(checkpoint).categories if Path(checkpoint).is_dir() else None


def unnamed(model):
    return [{"id": k, "name": f"class {k}"} for k in range(1, model.config.num_classes + 1)]


def dataset(data, images, skip_invalid=False, open_images=True):
    """The data set; its list of problems, or what --skip-invalid leaves out, goes to stderr line by line."""
    from accelerated.data.coco import CocoDataset

    try:
        opened = CocoDataset(data, images, skip_invalid, open_images)
        for problem in opened.report.blocking:
            print(f"maskrcnn: {data}: left out: {problem}", file=sys.stderr)
        return opened
    except ValueError as error:
        if str(error).count("\n") < 2 or os.environ.get("MASKRCNN_DEBUG"):
            raise
        print(f"maskrcnn: {data}: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def check_classes(checkpoint, model, known, data, opened):
    """ValueError unless the model of `checkpoint`, with the categories `known` (None: not known), has those of the data set `opened`."""
    from accelerated.engine import evaluate

    if len(opened.class_names) != model.config.num_classes:
        raise ValueError(
            f"{checkpoint} knows {model.config.num_classes} classes, {data} has {len(opened.class_names)} categories"
        )
    if known and known != evaluate.categories(opened):
        raise ValueError(f"{checkpoint} was trained on other categories than those of {data}")


def annotated(opened, pictures):
    """The Target of each picture, whose path ends in one file name of the data set `opened`; ValueError for another."""
    names = [Path(name).parts for name in opened.file_names]
    targets = []
    for picture in pictures:
        parts = picture.resolve().parts
        known = [index for index, name in enumerate(names) if parts[-len(name) :] == name]
        if len(known) != 1:
            raise ValueError(
                f"{picture}: the annotations have {len(known) or 'no'} images of that name"
            )
        targets.append(opened.target(known[0]))
    return targets
