"""Anchors: boxes of a few sizes and shapes around every cell of every pyramid level [Faster R-CNN §3.1.1, FPN §4.1]."""

import numpy as np


def cell_anchors(sizes, ratios, config):
    """Anchors of one cell, centred on the origin: [A, 4] float64, A = len(sizes) * len(ratios).

    sizes: square roots of areas, pixels; ratios: height / width; `config`: a config.Anchors, for its rounding and order.
    """
    sizes, ratios = np.asarray(sizes, float), np.asarray(ratios, float)
    if config.order == "ratio_major":
        ratio, size = (grid.ravel() for grid in np.meshgrid(ratios, sizes, indexing="ij"))
    else:
        size, ratio = (grid.ravel() for grid in np.meshgrid(sizes, ratios, indexing="ij"))
    width, height = size / np.sqrt(ratio), size * np.sqrt(ratio)
    anchors = np.stack([-width, -height, width, height], axis=1) / 2
    return anchors.round() if config.rounding else anchors


def grid(feature_shapes, image_shape, config, *, strides):
    """All anchors, a list with one [h * w * A, 4] float64 array per level, rows ordered by y, x, anchor of the cell.

    feature_shapes [(h, w), ..] per level; image_shape (H, W) of the padded batch; strides are used where config.stride is "constant".
    Cell (0, 0) is centred at offset * stride: with offset 0 on the image's corner. Anchors may leave the image.
    """
    levels = []
    for (h, w), sizes, stride in zip(feature_shapes, config.sizes, strides, strict=True):
        stride_y, stride_x = (
            (stride, stride)
            if config.stride == "constant"
            else (image_shape[0] // h, image_shape[1] // w)
        )
        y, x = np.meshgrid(
            (np.arange(h) + config.offset) * stride_y,
            (np.arange(w) + config.offset) * stride_x,
            indexing="ij",
        )
        centres = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
        levels.append((centres + cell_anchors(sizes, config.ratios, config)).reshape(-1, 4))
    return levels
