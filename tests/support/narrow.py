"""Narrow presets, models of them with random weights, and images with objects."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from accelerated.mask_rcnn import MaskRCNN
from reference import mask_rcnn, presets
from reference.config import Config, preset, single_map_level

PRESETS = tuple(presets.PRESETS)
# One preset for each way to wire the model, for tests too slow for all.
LAYOUTS = (
    "torchvision_r50_fpn",
    "torchvision_r50_fpn_v2",
    "detectron2_r50_fpn",
    "detectron2_r50_c4",
    "paper_vgg16",
    "tiny",
)


def config(name: str, **fields: Any) -> Config:
    """Narrow a preset: few channels, classes and samples, for images of about 100 pixels."""
    full = preset(name)
    rpn = replace(
        full.rpn,
        batch_size=32,
        pre_nms_top_n_train=60,
        pre_nms_top_n_test=40,
        post_nms_top_n_train=50,
        post_nms_top_n_test=30,
    )
    sizes = ((8,), (16,), (32,), (64,), (128,)) if full.neck == "fpn" else ((8, 16, 32, 64, 128),)
    small = replace(
        full,
        num_classes=4,
        norm_groups=4,
        transform=replace(full.transform, min_size=()),
        backbone=replace(
            full.backbone, width=8, groups=min(full.backbone.groups, 2), group_width=4
        ),
        fpn=replace(full.fpn, channels=16),
        anchors=replace(full.anchors, sizes=sizes),
        rpn=rpn,
        box_head=replace(
            full.box_head, channels=32, conv_channels=16, batch_size=24, max_detections=12
        ),
        mask_head=replace(full.mask_head, channels=16),
    )
    return replace(small, **fields)


def model(
    config: Config, seed: int = 0, dtype: torch.dtype = torch.float64, backend: str = "torch"
) -> MaskRCNN:
    """Create a model with random weights, in evaluation mode; activations stay small with depth."""
    # How much a block adds to its shortcut.
    share = 0.5 if config.backbone.depth > 50 else 1.0
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        tensor.copy_(
            torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * (high - low) + low
        )

    torch.manual_seed(seed)
    out = MaskRCNN(config, backend=backend).to(dtype)
    with torch.no_grad():
        for name, tensor in out.state_dict().items():
            last = name.endswith((".bn3.weight", ".downsample.1.weight")) or (
                config.backbone.depth < 50 and name.endswith(".bn2.weight")
            )
            if name.endswith("running_var"):
                uniform(tensor, 0.5, 1.5)
            elif name.endswith("running_mean") or (tensor.ndim == 1 and name.endswith("bias")):
                uniform(tensor, -0.1, 0.1)
            elif tensor.ndim == 1:
                uniform(tensor, 0.2 * share, 0.5 * share) if last else uniform(tensor, 0.7, 1.3)
        for name, gain in (
            ("rpn.logits", 30),
            ("rpn.deltas", 3),
            ("box_head.class_logits", 30),
            ("box_head.box_deltas", 300),
            ("mask_head.logits", 500),
        ):
            if f"{name}.weight" in out.state_dict():
                out.get_parameter(f"{name}.weight").mul_(gain)
    return out.eval()


def twins(
    config: Config, dtype: str = "float64", backend: str = "torch"
) -> tuple[MaskRCNN, mask_rcnn.MaskRCNN]:
    """Create the accelerated model and the reference with the same weights."""
    accelerated = model(config, dtype=getattr(torch, dtype), backend=backend)
    return accelerated, mask_rcnn.MaskRCNN(config, parameters(accelerated, dtype))


def scene(
    rng: np.random.Generator,
    shapes: Sequence[tuple[int, int]] = ((96, 128), (80, 100)),
    objects: Sequence[int] = (3, 2),
    classes: int = 4,
) -> tuple[list[np.ndarray], list[dict[str, np.ndarray]]]:
    """Draw noise images [H, W, 3], 0..255, and targets {boxes, labels, masks}: random ellipses."""
    images, targets = [], []
    for (height, width), count in zip(shapes, objects, strict=True):
        sides = rng.uniform(0.15, 0.6, (count, 2)) * (width, height)
        corner = rng.uniform(0, 1, (count, 2)) * ((width, height) - sides)
        boxes = np.concatenate([corner, corner + sides], axis=1)
        y, x = np.mgrid[:height, :width] + 0.5
        centre, radius = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
        dx = (x - centre[:, 0, None, None]) / radius[:, 0, None, None]
        dy = (y - centre[:, 1, None, None]) / radius[:, 1, None, None]
        images.append(rng.uniform(0, 255, (height, width, 3)))
        targets.append(
            {
                "boxes": boxes,
                "labels": rng.integers(1, classes + 1, count),
                "masks": dx**2 + dy**2 <= 1,
            }
        )
    return images, targets


def parameters(model: MaskRCNN, dtype: str = "float64") -> dict[str, np.ndarray]:
    """Return {name: array} of a model, as the reference takes it."""
    return {
        name: tensor.numpy(force=True).astype(dtype)
        for name, tensor in model.state_dict().items()
        if tensor.ndim
    }


def priorities(
    rng: np.random.Generator,
    config: Config,
    image_shapes: Sequence[tuple[int, int]],
    objects: Sequence[int],
) -> dict[str, list[np.ndarray]]:
    """Draw distinct sampling priorities {"rpn": [N][T], "roi": [N][P + G]} for padded images."""
    divisor = max(config.transform.size_divisor, 1)
    height, width = (-(-max(side) // divisor) * divisor for side in zip(*image_shapes, strict=True))
    levels = (2, 3, 4, 5, 6) if config.neck == "fpn" else (single_map_level(config),)
    shrink = math.floor if config.backbone.kind == "vgg" else math.ceil
    cells = 0
    for level in levels:
        h, w = height, width
        for _ in range(level):
            h, w = shrink(h / 2), shrink(w / 2)
        cells += h * w
    count = cells * len(config.anchors.ratios) * len(config.anchors.sizes[0])
    return {
        "rpn": [rng.permutation(count) / count for _ in objects],
        "roi": [rng.permutation(config.rpn.post_nms_top_n_train + g) / 1000 for g in objects],
    }
