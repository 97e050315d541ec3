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
        help="Fraction of the images to hold back for validation, such as 0.2; --seed chooses them,"
        " with every class on both sides where possible."
    ),
]
Val = Annotated[Path | None, typer.Option(help="Validation data, in the same formats as --data.")]
ValImages = Annotated[
    Path | None,
    typer.Option(help="Folder with the images that --val names (default: --images)."),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help=f"Base configuration: {', '.join(PRESETS)} (default: that of --weights; without them"
        " small, or tiny for images of at most 160 pixels).",
        is_eager=True,
    ),
]
FilePreset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="Preset for the settings that tensors do not show (default: the nearest).",
    ),
]
Names = Annotated[
    Path | None,
    typer.Option(
        "--names",
        help="File with the names of the model's classes: one per line, a list in JSON or YAML, or"
        " a COCO file.",
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
Patience = Annotated[
    float,
    typer.Option(
        help="Seconds that one of several processes (docs/distributed.md) may keep the others"
        " waiting before all stop and name it (default: 1800).",
        min=0.1,
        show_default=False,
    ),
]
SkipInvalid = Annotated[
    bool,
    typer.Option("--skip-invalid", help="Skip invalid annotations and images instead of stopping."),
]

Tta = Annotated[
    str | None,
    typer.Option(
        "--tta",
        help="Test-time augmentation: the views that are merged with the image as it is, separated"
        " by commas. flip: mirrored left to right; flip_vertical: top to bottom; factors of its"
        " size, such as 0.75 or 1.5. Every combination is a view, and takes as long as the image"
        " alone: flip,0.75,1.5 are six. See docs/prediction.md.",
        metavar="LIST",
    ),
]
InTiles = Annotated[
    str | None,
    typer.Option(
        "--tiles",
        help="Cut larger pictures into tiles of SIDE x SIDE pixels, detect in each, and merge what"
        " they show. OVERLAP: pixels that neighbours share, best as many as most objects are long"
        " (default: a quarter of SIDE). See docs/prediction.md.",
        metavar="SIDE[:OVERLAP]",
    ),
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
        help="Meaning of iscrowd 1. ignore: a region of many objects, which is not trained on;"
        " objects: an object, as in CVAT's brush masks.",
    ),
]
Exif = Annotated[
    str | None,
    typer.Option(
        "--exif",
        help="Frame of the labels. apply: the picture as displayed, turned by its EXIF orientation;"
        " ignore: the picture as stored. Without --exif, pictures that leave this open are errors.",
    ),
]
BoxesAsMasks = Annotated[
    bool,
    typer.Option(
        "--boxes-as-masks", help="Use the box of an annotation without a mask as its mask."
    ),
]
PixelRange = Annotated[
    str | None,
    typer.Option(
        "--pixel-range",
        help="Values that become black and white in pictures of 16 or 32 bits, such as 0:4095"
        " (default: 0:65535 for 16 bits; required for 32 bits).",
        metavar="LOW:HIGH",
    ),
]
