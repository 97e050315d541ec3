"""Anchors: boxes of a few sizes and shapes around every cell [Faster R-CNN §3.1.1, FPN §4.1]."""

import numpy as np

from reference.config import Anchors


def cell_anchors(sizes: tuple, ratios: tuple, anchors: Anchors) -> np.ndarray:
    """Return the anchors of one cell, centred on the origin: [A, 4] float64.

    sizes, ratios  square roots of areas in pixels, height / width; A = len(sizes) * len(ratios)
    """
    ratio, size = np.meshgrid(ratios, sizes, indexing="ij")
    if anchors.order == "size_major":
        ratio, size = ratio.T, size.T
    width, height = size / np.sqrt(ratio), size * np.sqrt(ratio)
    corners = np.stack([-width, -height, width, height], axis=-1).reshape(-1, 4) / 2
    return corners.round() if anchors.rounding else corners


def grid(
    feature_shapes: list, image_shape: tuple, anchors: Anchors, *, strides: list
) -> list[np.ndarray]:
    """Return all anchors: per level [h * w * A, 4] float64, ordered by y, x, anchor of the cell.

    feature_shapes  (h, w) of each level
    image_shape     (H, W) of the padded batch; anchors may leave it
    strides         of the levels, used if `anchors.stride` is "constant"
    """
    levels = []
    for (h, w), sizes, stride in zip(feature_shapes, anchors.sizes, strides):
        stride_y = stride_x = stride
        if anchors.stride == "image_over_feature":
            stride_y, stride_x = image_shape[0] // h, image_shape[1] // w
        y, x = np.mgrid[:h, :w] + anchors.offset
        centres = np.stack([x * stride_x, y * stride_y] * 2, axis=-1).reshape(-1, 1, 4)
        levels.append((centres + cell_anchors(sizes, anchors.ratios, anchors)).reshape(-1, 4))
    return levels
