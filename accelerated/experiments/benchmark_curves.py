"""The benchmark's curves: time against the numbers of RoIs, pixels, images and objects."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from accelerated.experiments.benchmark_cases import Case, can_import, pooling
from accelerated.experiments.benchmark_models import whole_model

# The curves' names and the labels of their horizontal axes.
AXES = {
    "rois": "RoIs in two images",
    "pixels": "shorter side of one image, pixels",
    "images": "images in a batch",
    "objects": "objects per image, two images",
}


def cases(device: torch.device) -> Iterator[tuple[str, Callable[[str], Case]]]:
    """Yield (operator, function that makes its case): R50-FPN on a GPU, `tiny` on a CPU.

    No result is compared with float64: the benchmark itself does that.
    """
    gpu = device.type == "cuda"
    name, dtype = ("torchvision_r50_fpn", torch.bfloat16) if gpu else ("tiny", torch.float32)
    short, long = (800, 1344) if gpu else (128, 192)

    def model(curve, at, operator, images=2, side=(short, long), **settings):
        settings |= {"images": images, "side": side, "dtype": dtype, "device": device}
        make = partial(whole_model, name=name, checked=False, **settings)
        return operator, partial(_on_curve, curve, at, make)

    for count in (64, 256, 1024, 4096, 8192) if gpu else (16, 64, 256):
        side = (800, 1344) if gpu else (256, 384)
        for way in ("forward", "backward"):
            make = partial(
                pooling,
                dtype=torch.float32,
                layout="channels_last",
                device=device,
                rois=count // 2,
                side=side,
            )
            yield f"pyramid_roi_align_{way}", partial(_on_curve, "rois", count, make)
    for images in (1, 2, 4, 8, 16) if gpu else (1, 2, 4):
        yield model("images", images, "training_step", images)
        yield model("images", images, "detect", images)
    for at in (256, 480, 800, 1088) if gpu else (64, 128, 192):
        yield model("pixels", at, "detect", 1, (at, -(-at * long // short // 32) * 32))
    for objects in (1, 8, 32, 100) if gpu else (1, 4, 16):
        yield model("objects", objects, "training_step", objects=objects)


def _on_curve(curve, at, make, operator):
    case = make(operator)
    return replace(case, oracle=None, facts={"curve": curve, "at": at})


def draw(path: Path) -> str:
    """Draw the newest curves in a file of rows to a picture beside it; say where it is, or why not.

    Raises ValueError if the file holds no curve.
    """
    if not can_import("matplotlib"):
        return (
            f"No picture, because Matplotlib is not installed: where it is,"
            f" `maskrcnn benchmark --draw` draws {path}."
        )
    from accelerated.drawing import costs

    lines = path.read_text().splitlines() if path.exists() else []
    rows = [row for row in map(json.loads, lines) if "curve" in row and "p50_ms" in row]
    if not rows:
        raise ValueError(f"{path} holds no curve: measure with --curves")
    device = rows[-1]["device"]
    key = ("curve", "at", "operator", "backend", "variant", "dtype", "shape")
    newest = {tuple(row.get(name) for name in key): row for row in rows if row["device"] == device}
    picture = path.with_suffix(".png")
    costs.curves(list(newest.values()), AXES, title=device).savefig(picture)
    return f"Picture: {picture}"
