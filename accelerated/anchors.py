"""Anchors: boxes of a few sizes and shapes around every cell of every pyramid level [Faster R-CNN §3.1.1, FPN §4.1]."""

import functools
import math

import torch


def cell_anchors(sizes, ratios, config):
    """Anchors of one cell, centred on the origin: [A, 4] float64 on the CPU, A = len(sizes) * len(ratios).

    sizes: square roots of areas, pixels; ratios: height / width; `config`: a config.Anchors, for its rounding and order.
    """
    if config.order == "ratio_major":
        shapes = [(size, ratio) for ratio in ratios for size in sizes]
    else:
        shapes = [(size, ratio) for size in sizes for ratio in ratios]
    # math.sqrt rounds correctly on every machine; the square root of a tensor may be one unit off.
    sides = [(size / math.sqrt(ratio), size * math.sqrt(ratio)) for size, ratio in shapes]
    anchors = torch.tensor([(-w, -h, w, h) for w, h in sides], dtype=torch.float64) / 2
    return anchors.round() if config.rounding else anchors


def grid(feature_shapes, image_shape, config, *, strides, dtype=torch.float32, device="cpu"):
    """All anchors, a list with one [h * w * A, 4] tensor per level, rows ordered by y, x, anchor of the cell.

    feature_shapes [(h, w), ..] per level; image_shape (H, W) of the padded batch; strides are used where config.stride is "constant".
    Cell (0, 0) is centred at offset * stride: with offset 0 on the image's corner. Anchors may leave the image.
    Computed in float64, rounded to `dtype`, and remembered: do not write into them.
    """
    shapes = tuple((int(h), int(w)) for h, w in feature_shapes)
    build = (
        _grid.__wrapped__ if torch.compiler.is_compiling() else _grid
    )  # a compiled graph holds them anyway
    return list(
        build(
            shapes,
            (int(image_shape[0]), int(image_shape[1])),
            config,
            tuple(strides),
            dtype,
            torch.device(device),
        )
    )


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)  # what is remembered must serve training too
def _grid(feature_shapes, image_shape, config, strides, dtype, device):
    levels = []
    for (h, w), sizes, stride in zip(feature_shapes, config.sizes, strides, strict=True):
        stride_y, stride_x = (
            (stride, stride)
            if config.stride == "constant"
            else (image_shape[0] // h, image_shape[1] // w)
        )
        y = (torch.arange(h, dtype=torch.float64, device=device) + config.offset) * stride_y
        x = (torch.arange(w, dtype=torch.float64, device=device) + config.offset) * stride_x
        y, x = torch.meshgrid(y, x, indexing="ij")
        cell = cell_anchors(sizes, config.ratios, config).to(device, non_blocking=True)
        centres = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
        levels.append((centres + cell).reshape(-1, 4).to(dtype))
    return levels
