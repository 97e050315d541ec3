"""The bins of RoIPool in plain PyTorch, in whole pixels.

Legend: R rois, P pooled size, L levels.
"""

from typing import NamedTuple

import torch

from accelerated.kernels.arguments import Pooling
from accelerated.kernels.eager.tables import choose


class Bins(NamedTuple):
    """The bins of RoIPool in feature pixels.

    tops, rows      [R, P_h]  int64, first row and how many; no rows in RoIs that pool nothing
    lefts, columns  [R, P_w]  int64
    """

    tops: torch.Tensor
    rows: torch.Tensor
    lefts: torch.Tensor
    columns: torch.Tensor


def bins(pooling: Pooling, features: list[torch.Tensor]) -> Bins:
    """Return the bins of all RoIs on their level of `features`, L tensors [N, C, H_l, W_l]."""
    rois, image_index, level_index, scales, output_size = pooling
    height, width = (
        choose(level_index, [x.shape[axis] for x in features], torch.int64) for axis in (2, 3)
    )
    valid = (image_index >= 0) & rois.isfinite().all(1)
    rois = torch.where(valid[:, None], rois, 0)
    left, top, right, bottom = whole_pixels(rois, choose(level_index, scales, rois.dtype)).unbind(1)
    tops, rows = _edges(top, bottom, height, output_size[0])
    lefts, columns = _edges(left, right, width, output_size[1])
    return Bins(tops, rows * valid[:, None], lefts, columns)


def whole_pixels(rois: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Round RoIs [R, 4], each times its `scale` [R], to whole feature pixels, xyxy [SPEC §2].

    Half a pixel rounds away from zero. The last pixel belongs to the RoI, so its end lies one
    further; an RoI is at least one pixel wide.
    """
    low, high = _round(rois * scale[:, None]).split(2, dim=1)
    return torch.cat([low, torch.maximum(high, low) + 1], 1)


def _round(x):
    """Round half away from zero, as C does."""
    whole = x.trunc()
    return whole + x.sign() * ((x - whole).abs() >= 0.5)


def _edges(start, end, size, bins):
    """Return the first feature pixel of each bin along one axis, and how many [R, P] int64."""
    # On a GPU, dividing by a number multiplies by its rounded reciprocal.
    side = ((end - start) / torch.full_like(start, bins))[:, None]
    corner = torch.arange(bins + 1, device=start.device, dtype=start.dtype)
    first = (corner[:-1] * side).floor() + start[:, None]
    last = (corner[1:] * side).ceil() + start[:, None]
    size = size[:, None].to(start.dtype)
    first, last = (torch.minimum(x.clamp(min=0), size).long() for x in (first, last))
    return first, (last - first).clamp(min=0)
