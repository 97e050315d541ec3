"""Arguments of the commands: types and help texts, and the device, model or data they name."""

import json
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from accelerated.command_line import fields
from reference.config import PRESETS, override, preset

if TYPE_CHECKING:
    import torch

    from accelerated.data.coco import CocoDataset
    from accelerated.data.reading import Reading
    from accelerated.mask_rcnn import MaskRCNN
    from accelerated.structures import Target

# Proposals per image that `verify` follows on a CPU, where Triton kernels run in an interpreter:
# half a second for each.
INTERPRETED = 32
# RoIs per image in a training step there: forward and backward, a second and a half for each.
INTERPRETED_TRAINING = 16

Weights = Annotated[
    str,
    typer.Argument(
        help="Folder of a training run (its last checkpoint), RUN/best, a checkpoint file of"
        " torchvision, detectron2 or maskrcnn-benchmark, or a name of `maskrcnn weights`.",
        metavar="CHECKPOINT",
    ),
]
Data = Annotated[
    Path,
    typer.Option(
        help="Annotations: a file of COCO (JSON), YOLO (data.yaml), VIA, CVAT or Label Studio, or a"
        " folder of LabelMe, YOLO, Pascal VOC, Cityscapes or masks. PATH:PART names a part of it,"
        " such as data.yaml:val. See docs/data.md."
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(help="Folder with the images that --data names (default: found beside it)."),
]
Split = Annotated[
    float | None,
    typer.Option(
        help="Hold this fraction of the images back for validation, such as 0.2: chosen by --seed,"
        " with every class on both sides."
    ),
]
Val = Annotated[
    Path | None, typer.Option(help="Annotations of the evaluation data, as for --data.")
]
ValImages = Annotated[
    Path | None,
    typer.Option(help="Folder with the images that --val names (default: --images)."),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help=f"Base configuration: {', '.join(PRESETS)} (default: with --weights the file's,"
        " otherwise small, or tiny for images of at most 160 pixels).",
        is_eager=True,
    ),
]
FilePreset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="Preset for what the tensors of the file do not show (default: the nearest).",
    ),
]
Names = Annotated[
    Path | None,
    typer.Option(
        "--names",
        help="File with the class names of the weights: one a line, a COCO json, or a JSON or YAML"
        " list.",
    ),
]


def list_fields(context: typer.Context, changes: list[str] | None) -> list[str] | None:
    """Print the fields of the configuration and exit if one of the changes is "help"."""
    if changes and "help" in changes and not context.resilient_parsing:
        name = context.params.get("preset") or "small"
        config = preset(name)
        for change in changes:
            config = config if change == "help" else override(config, change)
        print(f"The fields that --set changes, with their values in the preset {name}.")
        print(*fields.listing(config), sep="\n")
        raise typer.Exit()
    return changes


Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change one configuration field, for example optimizer.learning_rate=0.01."
        " May be repeated. `--set help` lists the fields.",
        metavar="FIELD=VALUE",
        callback=list_fields,
    ),
]
Output = Annotated[Path, typer.Option(help="Output folder.")]
Device = Annotated[
    str, typer.Option(help="Device: cpu, cuda, cuda:1, ..., or auto (a GPU if there is one).")
]
Backend = Annotated[
    str,
    typer.Option(help="Implementation of the operators: torch, triton, or auto (see `doctor`)."),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Images per step, to which the learning rate is proportional (default: from the"
        " configuration).",
        min=1,
    ),
]
Workers = Annotated[
    int, typer.Option(help="Data loading processes (0: load in the main process).", min=0)
]
Seed = Annotated[int, typer.Option(help="Random seed.", min=0)]
Threshold = Annotated[
    float, typer.Option(help="Minimum score of a detection, 0 to 1.", min=0, max=1)
]
SkipInvalid = Annotated[
    bool,
    typer.Option("--skip-invalid", help="Skip invalid annotations and images instead of stopping."),
]

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
Crowd = Annotated[
    str,
    typer.Option(
        "--crowd",
        help="What annotations with iscrowd 1 are: ignore, regions of many objects, which are not"
        " trained on; or objects, as CVAT marks its brush masks.",
    ),
]
Exif = Annotated[
    str | None,
    typer.Option(
        "--exif",
        help="Whether labels are on the picture as displayed (apply its EXIF orientation) or as"
        " stored (ignore). Without it, pictures that leave this open stop the work.",
    ),
]
BoxesAsMasks = Annotated[
    bool,
    typer.Option(
        "--boxes-as-masks", help="Take the box of an annotation without a mask as its mask."
    ),
]
PixelRange = Annotated[
    str | None,
    typer.Option(
        "--pixel-range",
        help="Values that become black and white, for example 0:4095, in pictures of 16 or 32 bits"
        " (default: 0:65535, and none for 32 bits).",
        metavar="LOW:HIGH",
    ),
]


def select_device(device: str, backend: str, interpret: bool = False) -> "torch.device":
    """Check the device and the backend, and set up the environment that Triton reads on import.

    interpret   without a GPU, run Triton kernels in its interpreter

    Raises ValueError if the device does not exist, a name is unknown, or this is one of several
    processes that would do the same.
    """
    _check_alone()
    import torch

    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"--backend {backend}: expected auto, torch or triton")
    if backend != "auto":
        os.environ["MASKRCNN_BACKEND"] = backend
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
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


def _check_alone():
    """Raise ValueError under torchrun and its like."""
    numbers = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    several = numbers["WORLD_SIZE"] not in ("", "0", "1") or numbers["RANK"] not in ("", "0")
    if several or numbers["LOCAL_RANK"]:
        named = ", ".join(f"{name}={value}" for name, value in numbers.items() if value)
        raise ValueError(
            f"started as one of several processes ({named}), each of which would do the whole work:"
            " several GPUs are not supported; start the command without torchrun"
        )


def load_model(
    checkpoint: str | Path,
    device: "torch.device | str" = "cpu",
    preset: str | None = None,
    changes: list[str] | None = None,
    names: Path | None = None,
) -> "tuple[MaskRCNN, list[dict]]":
    """Load a model in evaluation mode, and name its classes; print to stderr what was assumed.

    Where nobody names the classes, they are numbered, and the model's own `categories` stay None.
    """
    from accelerated import interop

    loaded = interop.read_model(checkpoint, preset, changes=changes or [], names=names)
    note(loaded.notes)
    model = loaded.model.to(device)
    return model, model.categories or numbered_categories(model)


def note(lines: Iterable[str]) -> None:
    """Print lines to stderr that say what was assumed or done on the way."""
    for line in lines:
        print(line if line.startswith(" ") else f"maskrcnn: {line}", file=sys.stderr)


def numbered_categories(model: "MaskRCNN") -> list[dict]:
    """Name the classes of a model without categories by their labels."""
    return [{"id": k, "name": name} for k, name in enumerate(model.class_names, start=1)]


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
    """Open a data set and say on stderr which problems stop it, are skipped, or deserve a warning.

    need_annotations  False: a COCO file without them, such as that of COCO's test-dev, has none

    Raises typer.Exit with code 2 after a list of problems, ValueError for a single one.
    """
    from accelerated.data.coco import CocoDataset
    from accelerated.data.reading import DEFAULT

    try:
        source = data if need_annotations else _perhaps_without_annotations(data, images)
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


def _perhaps_without_annotations(data, images):
    from accelerated.data import sources

    source = sources.find(data, images)
    if source.format != "COCO" or source.content is not None or not source.path.is_file():
        return source
    raw = source.path.read_bytes()
    if b'"annotations"' in raw:
        return source
    try:
        content = json.loads(raw)
    # The reader says what is wrong.
    except ValueError:
        return source
    whole = isinstance(content, dict) and {"images", "categories"} <= content.keys()
    return replace(source, content=content | {"annotations": []}) if whole else source


def check_classes(
    checkpoint: str | Path, model: "MaskRCNN", data: Path, dataset: "CocoDataset"
) -> None:
    """Raise ValueError unless the model knows the classes of the data set, by id and name.

    For a file of another project, whose names may have been assumed, ids suffice if no name is
    shared. Classes that only the model knows are named on stderr. If nobody named the model's
    classes, they are those of the data set, by rising id.
    """
    from accelerated.engine import classes, evaluate
    from accelerated.interop.names import is_unused

    wanted, count = evaluate.categories(dataset), model.config.num_classes
    if model.categories is None:
        if len(wanted) != count:
            raise ValueError(
                f"{checkpoint} has {count} classes, but {data} has {len(wanted)} categories"
            )
        note([f"{checkpoint} does not name its classes: taken as those of {data}, by rising id"])
        model.categories = wanted
    difference = classes.first_difference(model.categories, wanted)
    if (
        difference
        and not Path(checkpoint).is_dir()
        and classes.share_only_ids(model.categories, wanted)
    ):
        note([f"{data} shares no class name with {checkpoint}: taken by id, although {difference}"])
    elif difference:
        raise ValueError(
            f"{data} does not fit {checkpoint}: {difference}. If the names of the model are wrong:"
            " --names FILE"
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
