"""Every preset made narrow, models with random weights of them, and images with objects: small enough for both implementations."""

import math
from dataclasses import replace

import numpy as np
import torch

from accelerated.mask_rcnn import MaskRCNN
from reference import config as configuration
from reference import mask_rcnn, presets

PRESETS = tuple(presets.PRESETS)
LAYOUTS = (  # one preset of each way to wire the model, for what is too slow for all
    "torchvision_r50_fpn",
    "torchvision_r50_fpn_v2",
    "detectron2_r50_fpn",
    "detectron2_r50_c4",
    "paper_vgg16",
    "tiny",
)


def config(name, **fields):
    """The preset `name` with few channels, few classes and small samples, for images of about 100 pixels that are not resized."""
    full = configuration.preset(name)
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


def model(config, seed=0, dtype=torch.float64, backend="torch"):
    """A model in evaluation mode whose weights are random, deltas and scores included, and tame through the depth of the backbone."""
    share = 0.5 if config.backbone.depth > 50 else 1.0  # of what a block adds to its shortcut
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


def twins(config, dtype="float64", backend="torch"):
    """The accelerated model and the reference with the same weights."""
    accelerated = model(config, dtype=getattr(torch, dtype), backend=backend)
    return accelerated, mask_rcnn.MaskRCNN(config, parameters(accelerated, dtype))


def scene(rng, shapes=((96, 128), (80, 100)), objects=(3, 2), classes=4):
    """(images float64 [H, W, 3] in 0..255, list of dict(boxes, labels, masks)), ellipses in boxes off every dyadic grid."""
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


def parameters(model, dtype="float64"):
    """{name: array}, as the reference takes them."""
    return {
        name: tensor.numpy(force=True).astype(dtype)
        for name, tensor in model.state_dict().items()
        if tensor.ndim
    }


def priorities(rng, config, image_shapes, objects):
    """{"rpn": [N][T], "roi": [N][P + G]} for images of these padded shapes, all distinct."""
    divisor = max(config.transform.size_divisor, 1)
    height, width = (-(-max(side) // divisor) * divisor for side in zip(*image_shapes, strict=True))
    levels = (2, 3, 4, 5, 6) if config.neck == "fpn" else (configuration.single_map_level(config),)
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
