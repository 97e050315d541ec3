"""Arguments and options that commands share: their types and help texts."""

from pathlib import Path
from typing import Annotated

import typer

from accelerated.command_line import fields
from reference.config import PRESETS

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


Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change one configuration field, for example optimizer.learning_rate=0.01."
        " May be repeated. `--set help` lists the fields.",
        metavar="FIELD=VALUE",
        callback=fields.list_and_exit,
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
