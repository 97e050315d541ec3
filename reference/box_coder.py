"""Boxes <-> deltas (dx, dy, dw, dh) from reference boxes [R-CNN, Girshick et al. 2014, §C]."""

import math

import numpy as np

# Limit of dw and dh before exp: a box grows at most 62.5-fold.
MAX_LOG_SCALE = math.log(1000 / 16)


def encode(boxes: np.ndarray, reference_boxes: np.ndarray, weights: tuple) -> np.ndarray:
    """Compute the deltas that turn `reference_boxes` into `boxes`.

    boxes [..., 4], reference_boxes [..., 4], weights (wx, wy, ww, wh) -> [..., 4].
    dx = wx (x - x_ref) / w_ref, dw = ww ln(w / w_ref), on centres and sides. Without positive
    sides the deltas are infinite or NaN, and no loss may use them.
    """
    wx, wy, ww, wh = map(float, weights)
    x, y, w, h = _centres(np.asarray(boxes))
    x_ref, y_ref, w_ref, h_ref = _centres(np.asarray(reference_boxes))
    with np.errstate(divide="ignore", invalid="ignore"):
        dx, dy = wx * (x - x_ref) / w_ref, wy * (y - y_ref) / h_ref
        dw, dh = ww * np.log(w / w_ref), wh * np.log(h / h_ref)
    return np.concatenate([dx, dy, dw, dh], axis=-1)


def decode(deltas: np.ndarray, reference_boxes: np.ndarray, weights: tuple) -> np.ndarray:
    """Compute boxes from deltas: the inverse of `encode`, except for the limit.

    deltas [..., 4k] class-major (4 * class + coordinate), reference_boxes [..., 4],
    weights (wx, wy, ww, wh) -> [..., 4k]. Growing is limited to ln(1000 / 16), shrinking is not.
    """
    deltas = np.asarray(deltas)
    dx, dy, dw, dh = (deltas[..., i::4] / float(weight) for i, weight in enumerate(weights))
    x_ref, y_ref, w_ref, h_ref = _centres(np.asarray(reference_boxes))
    x, y = dx * w_ref + x_ref, dy * h_ref + y_ref
    half_w = 0.5 * np.exp(np.minimum(dw, MAX_LOG_SCALE)) * w_ref
    half_h = 0.5 * np.exp(np.minimum(dh, MAX_LOG_SCALE)) * h_ref
    boxes = np.stack([x - half_w, y - half_h, x + half_w, y + half_h], axis=-1)
    return boxes.reshape(deltas.shape)


def _centres(boxes):
    """Convert [..., 4] to centre x, centre y, width, height, each [..., 1]."""
    x1, y1, x2, y2 = (boxes[..., i : i + 1] for i in range(4))
    width, height = x2 - x1, y2 - y1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height
