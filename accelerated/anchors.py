"""Anchors: boxes of a few sizes and shapes around every cell [Faster R-CNN §3.1.1, FPN §4.1]."""

import functools
import math

import torch

from reference.config import Anchors

# Shapes whose anchors are kept.
SHAPES = 32


def cell_anchors(sizes: tuple, ratios: tuple, anchors: Anchors) -> torch.Tensor:
    """Return the anchors of one cell, centred on the origin: [A, 4] float64 on the CPU.

    `sizes` are square roots of areas, `ratios` height / width; A = len(sizes) * len(ratios).
    """
    if anchors.order == "ratio_major":
        shapes = [(size, ratio) for ratio in ratios for size in sizes]
    else:
        shapes = [(size, ratio) for size in sizes for ratio in ratios]
    # math.sqrt rounds correctly on every machine; the square root of a tensor may be one unit off.
    sides = [(size / math.sqrt(ratio), size * math.sqrt(ratio)) for size, ratio in shapes]
    corners = torch.tensor([(-w, -h, w, h) for w, h in sides], dtype=torch.float64) / 2
    return corners.round() if anchors.rounding else corners


def grid(
    feature_shapes: list,
    image_shape: tuple,
    anchors: Anchors,
    *,
    strides: list,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> list[torch.Tensor]:
    """Return all anchors: per level [h * w * A, 4], ordered by y, x, anchor of the cell.

    feature_shapes  (h, w) of each level
    image_shape     (H, W) of the padded batch
    strides         of the levels, used if `anchors.stride` is "constant"

    Cell (0, 0) is centred at offset * stride; offset 0 is the corner of the image. Anchors may
    leave the image. They are computed in float64, rounded to `dtype` and cached: do not
    write into them.
    """
    shapes = tuple((int(h), int(w)) for h, w in feature_shapes)
    height, width = image_shape
    # A compiled graph stores the anchors itself.
    build = _grid.__wrapped__ if torch.compiler.is_compiling() else _grid
    sides = (int(height), int(width))
    return list(build(shapes, sides, anchors, tuple(strides), dtype, torch.device(device)))


# Cached tensors must not be inference tensors, or autograd rejects them.
@functools.lru_cache(maxsize=SHAPES)
@torch.inference_mode(False)
def _grid(feature_shapes, image_shape, anchors, strides, dtype, device):
    levels = []
    for (h, w), sizes, stride in zip(feature_shapes, anchors.sizes, strides, strict=True):
        stride_y = stride_x = stride
        if anchors.stride == "image_over_feature":
            stride_y, stride_x = image_shape[0] // h, image_shape[1] // w
        y = (torch.arange(h, dtype=torch.float64, device=device) + anchors.offset) * stride_y
        x = (torch.arange(w, dtype=torch.float64, device=device) + anchors.offset) * stride_x
        y, x = torch.meshgrid(y, x, indexing="ij")
        cell = cell_anchors(sizes, anchors.ratios, anchors).to(device, non_blocking=True)
        centres = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
        levels.append((centres + cell).reshape(-1, 4).to(dtype))
    return levels
