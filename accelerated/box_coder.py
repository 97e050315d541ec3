"""Boxes <-> deltas (dx, dy, dw, dh) from reference boxes [R-CNN, Girshick et al. 2014, §C]."""

import math

import torch

# Limit of dw and dh before exp: a box grows at most 62.5-fold.
MAX_LOG_SCALE = math.log(1000 / 16)


def encode(boxes: torch.Tensor, reference_boxes: torch.Tensor, weights: tuple) -> torch.Tensor:
    """Compute the deltas that turn `reference_boxes` into `boxes`.

    boxes [..., 4], reference_boxes [..., 4], weights (wx, wy, ww, wh) -> [..., 4].
    dx = wx (x - x_ref) / w_ref, dw = ww ln(w / w_ref), on centres and sides.
    Boxes and reference boxes need positive sides; otherwise (padding) the deltas are infinite or
    NaN: mask them with `torch.where` before a loss, not after.
    """
    wx, wy, ww, wh = map(float, weights)
    x, y, w, h = _centres(boxes)
    x_ref, y_ref, w_ref, h_ref = _centres(reference_boxes)
    dx, dy = wx * (x - x_ref) / w_ref, wy * (y - y_ref) / h_ref
    dw, dh = ww * (w / w_ref).log(), wh * (h / h_ref).log()
    return torch.cat([dx, dy, dw, dh], dim=-1)


def decode(deltas: torch.Tensor, reference_boxes: torch.Tensor, weights: tuple) -> torch.Tensor:
    """Compute boxes from deltas: the inverse of `encode`, except for the limit.

    deltas [..., 4k] class-major (4 * class + coordinate), reference_boxes [..., 4],
    weights (wx, wy, ww, wh) -> [..., 4k], at least float32.
    dw and dh are limited to ln(1000 / 16); shrinking is not limited.
    """
    wx, wy, ww, wh = map(float, weights)
    deltas = deltas.to(torch.promote_types(deltas.dtype, torch.float32))
    x_ref, y_ref, w_ref, h_ref = _centres(reference_boxes)
    x = deltas[..., 0::4] / wx * w_ref + x_ref
    y = deltas[..., 1::4] / wy * h_ref + y_ref
    half_w = 0.5 * (deltas[..., 2::4] / ww).clamp(max=MAX_LOG_SCALE).exp() * w_ref
    half_h = 0.5 * (deltas[..., 3::4] / wh).clamp(max=MAX_LOG_SCALE).exp() * h_ref
    return torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], dim=-1).flatten(-2)


def _centres(boxes):
    """Convert [..., 4] to centre x, centre y, width, height, each [..., 1]."""
    x1, y1, x2, y2 = boxes.split(1, dim=-1)
    width, height = x2 - x1, y2 - y1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height
