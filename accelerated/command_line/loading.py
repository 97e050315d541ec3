"""Load what the arguments of a command name: the device, the model, the data set."""

import contextlib
import io
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import torch

    from accelerated.data.coco import CocoDataset
    from accelerated.data.reading import Reading
    from accelerated.mask_rcnn import MaskRCNN
    from accelerated.structures import Target


def require_one_process() -> None:
    """Raise ValueError if this is one of several processes, each of which would do the same."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return
    from accelerated.engine import group

    count = group.environment()["WORLD_SIZE"]
    if count > 1:
        raise ValueError(
            f"started as one of {count} processes, each of which would do the whole work: start"
            " this command without torchrun"
        )


def select_device(device: str, backend: str, interpret: bool = False) -> "torch.device":
    """Check the device and the backend, and set up the environment that Triton reads on import.

    interpret   without a GPU, run Triton kernels in its interpreter

    Of several processes on a machine, "auto" and "cuda" give each a GPU of its own.
    Raises ValueError if the device does not exist or a name is unknown.
    """
    import torch

    from accelerated.engine import group

    numbers = group.environment()
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"--backend {backend}: expected auto, torch or triton")
    if backend != "auto":
        os.environ["MASKRCNN_BACKEND"] = backend
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and numbers["WORLD_SIZE"] > 1:
        device = f"cuda:{numbers['LOCAL_RANK']}"
    try:
        selected = torch.device(device)
    except RuntimeError:
        raise ValueError(f"--device {device}: expected auto, cpu, cuda or cuda:INDEX") from None
    if selected.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (selected.index or 0) >= count:
            raise ValueError(f"--device {device}: PyTorch {torch.__version__} sees {count} GPUs")
    if interpret and selected.type == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")
    return selected


def join(context: typer.Context, device: "torch.device", patience: float) -> None:
    """Work with the processes that torchrun started until the command ends; the first prints."""
    from accelerated import processes
    from accelerated.engine import group

    context.with_resource(group.joined(device, patience))
    if not processes.is_first():
        context.with_resource(contextlib.redirect_stdout(io.StringIO()))


def load_model(
    checkpoint: str | Path,
    device: "torch.device | str" = "cpu",
    preset: str | None = None,
    changes: list[str] | None = None,
    names: Path | None = None,
) -> "tuple[MaskRCNN, list[dict]]":
    """Load a model in evaluation mode and its categories; print to stderr what was assumed.

    Classes without names are numbered; the model's own `categories` stay None then.
    """
    from accelerated import interop
    from accelerated.engine.classes import of_model

    loaded = interop.read_model(checkpoint, preset, changes=changes or [], names=names)
    note(loaded.notes)
    model = loaded.model.to(device)
    return model, of_model(model)


def note(lines: Iterable[str]) -> None:
    """Print lines to stderr, in the first process: what was assumed, and warnings."""
    from accelerated import processes

    for line in lines if processes.is_first() else ():
        print(line if line.startswith(" ") else f"maskrcnn: {line}", file=sys.stderr)


def looking(tta: str | None, tiles: str | None) -> dict[str, Any]:
    """Read --tta and --tiles, as arguments of `evaluate` and `predict`; ValueError if invalid."""
    from accelerated.engine import tiles as in_tiles
    from accelerated.engine import views

    return {
        "tta": () if tta is None else views.parse(tta),
        "tiles": None if tiles is None else in_tiles.parse(tiles),
    }


def reading(
    crowd: str = "ignore",
    exif: str | None = None,
    boxes_as_masks: bool = False,
    pixel_range: str | None = None,
    masks: bool = True,
) -> "Reading":
    """Check the options that say how data is read. Raises ValueError for an unknown value."""
    from accelerated.data.reading import Reading

    if crowd not in ("ignore", "objects"):
        raise ValueError(f"--crowd {crowd}: expected ignore or objects")
    if exif not in ("ignore", "apply", None):
        raise ValueError(f"--exif {exif}: expected apply or ignore")
    limits = None
    if pixel_range is not None:
        try:
            low, high = map(float, pixel_range.split(":"))
        except ValueError:
            low = high = 0.0
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"--pixel-range {pixel_range}: expected LOW:HIGH, such as 0:4095")
        limits = low, high
    return Reading(crowd, exif, boxes_as_masks, masks, limits)


def open_dataset(
    data: Path,
    images: Path | str | None,
    skip_invalid: bool = False,
    open_images: bool = True,
    reading: "Reading | None" = None,
    need_annotations: bool = True,
) -> "CocoDataset":
    """Open a data set; print to stderr the problems that stop it, are skipped or need a warning.

    need_annotations  False: a COCO file without them, such as that of COCO's test-dev, has none

    Raises typer.Exit with code 2 after a list of problems, ValueError for a single one.
    """
    from accelerated.data import sources
    from accelerated.data.coco import CocoDataset
    from accelerated.data.formats import coco
    from accelerated.data.reading import DEFAULT

    try:
        source = sources.find(data, images)
        source = source if need_annotations else coco.with_annotations(source)
        dataset = CocoDataset(source, images, skip_invalid, open_images, reading or DEFAULT)
    except ValueError as error:
        if str(error).count("\n") < 2 or os.environ.get("MASKRCNN_DEBUG"):
            raise
        print(f"maskrcnn: {data}: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    if images is None or dataset.source.format != "COCO":
        where = f"{dataset.source.format}, with images in {dataset.image_root}"
        print(f"maskrcnn: {data}: read as {where}", file=sys.stderr)
    for line in dataset.report.lines(dataset.report.blocking):
        print(f"maskrcnn: {data}: skipped: {line}", file=sys.stderr)
    for line in dataset.report.warnings:
        print(f"maskrcnn: {data}: {line}", file=sys.stderr)
    return dataset


def check_classes(
    checkpoint: str | Path, model: "MaskRCNN", data: Path, dataset: "CocoDataset"
) -> None:
    """Raise ValueError unless the model knows the classes of the data set, by id and name.

    For a file of another project, whose names may have been assumed, ids suffice if no name is
    shared. Classes that only the model has are printed to stderr. A model without class names gets
    those of the data set, by rising id.
    """
    from accelerated.engine import classes, evaluate
    from accelerated.interop.names import is_unused

    wanted, count = evaluate.categories(dataset), model.config.num_classes
    if model.categories is None:
        if len(wanted) != count:
            raise ValueError(
                f"{checkpoint} has {count} classes, but {data} has {len(wanted)} categories"
            )
        note([f"{checkpoint} has no class names: those of {data} are assumed, by rising id"])
        model.categories = wanted
    difference = classes.first_difference(model.categories, wanted)
    if (
        difference
        and not Path(checkpoint).is_dir()
        and classes.share_only_ids(model.categories, wanted)
    ):
        note([f"{data} and {checkpoint} share no class name and are matched by id: {difference}"])
    elif difference:
        raise ValueError(
            f"{data} does not fit {checkpoint}: {difference}. If the model's class names are"
            " wrong, correct them with --names FILE"
        )
    ids = set(dataset.category_ids)
    others = [c["name"] for c in model.categories if c["id"] not in ids and not is_unused(c)]
    if others:
        names = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        note([f"left out: detections of {len(others)} classes that {data} lacks: {names}"])


def targets_of(
    dataset: "CocoDataset", images: Iterable[Path], categories: list[dict]
) -> "list[Target]":
    """Find the ground truth of image files by name, with the labels that `categories` have.

    Raises ValueError unless the path ends in exactly one file name of the data set.
    """
    names = [Path(name).parts for name in dataset.file_names]
    targets = []
    label_of = {category["id"]: k for k, category in enumerate(categories, start=1)}
    for image in images:
        parts = image.resolve().parts
        matches = [index for index, name in enumerate(names) if parts[-len(name) :] == name]
        if len(matches) != 1:
            raise ValueError(
                f"{image}: the annotations list {len(matches) or 'no'} images of this name"
            )
        target = dataset.target(matches[0])
        labels = [label_of[dataset.category_ids[k - 1]] for k in target.labels.tolist()]
        targets.append(replace(target, labels=target.labels.new_tensor(labels)))
    return targets
