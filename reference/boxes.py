"""Boxes: area, overlap, clipping, validity.

A box is (x1, y1, x2, y2) in continuous pixels. Pixel i spans [i, i + 1), so a box is x2 - x1 wide
and no "+1" appears anywhere.
"""

import numpy as np


def area(boxes: np.ndarray) -> np.ndarray:
    """Compute the area of boxes [..., 4] -> [...] in square pixels; negative if one side is."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute the intersection over union of all pairs: [..., A, 4], [..., B, 4] -> [..., A, B]."""
    a, b = np.asarray(a), np.asarray(b)
    top_left = np.maximum(a[..., :, None, :2], b[..., None, :, :2])
    bottom_right = np.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    sides = np.maximum(bottom_right - top_left, 0)
    intersection = sides[..., 0] * sides[..., 1]
    union = area(a)[..., :, None] + area(b)[..., None, :] - intersection
    # Boxes that do not intersect have IoU 0, even if their union is empty.
    zeros = np.zeros_like(union, dtype=np.result_type(union, np.float32))
    return np.divide(intersection, union, out=zeros, where=intersection > 0)


def clip(boxes: np.ndarray, height: float, width: float) -> np.ndarray:
    """Move boxes [..., 4] into [0, width] x [0, height]; a box outside loses its area."""
    boxes = np.asarray(boxes)
    x, y = boxes[..., 0::2].clip(0, width), boxes[..., 1::2].clip(0, height)
    return np.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], axis=-1)


def is_valid(boxes: np.ndarray, min_size: float, inclusive: bool) -> np.ndarray:
    """Test boxes [..., 4] -> bool [...]: finite, and both sides above `min_size` (or equal)."""
    boxes = np.asarray(boxes)
    sides = boxes[..., 2:] - boxes[..., :2]
    long_enough = sides >= min_size if inclusive else sides > min_size
    return np.logical_and(long_enough.all(axis=-1), np.isfinite(boxes).all(axis=-1))


def check_finite(boxes: np.ndarray, name: str) -> None:
    """Raise ValueError naming the first row of `boxes` [R, 4] with a NaN or an infinity."""
    bad = ~np.isfinite(boxes).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"{name} must be finite; row {row} is {np.asarray(boxes)[row].tolist()}")
