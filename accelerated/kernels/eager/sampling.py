"""RoIAlign's bins and samples along one axis, in the order of arithmetic of SPEC §1.

Legend: R rois, P bins of the axis.
"""

import torch


def axis(
    low: torch.Tensor, high: torch.Tensor, bins: int, sampling_ratio: int, aligned: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return start and side of the bins in pixels, and samples per bin as floats, each [R].

    low, high [R] are the ends of the RoIs in pixels of the map.
    """
    offset = 0.5 if aligned else 0.0
    start = low - offset
    length = (high - offset) - start
    if not aligned:
        length = length.clamp(min=1)
    # On a GPU, dividing by a number multiplies by its rounded reciprocal.
    side = length / torch.full_like(length, bins)
    grid = torch.full_like(side, sampling_ratio) if sampling_ratio > 0 else side.ceil().clamp(min=0)
    return start, side, torch.where(high >= low, grid, 0) if aligned else grid


def clamp(position: torch.Tensor, size: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return positions moved onto the map's pixels 0 .. size - 1, and which of them count.

    A sample more than one pixel outside does not; exactly -1 and exactly `size` still do.
    """
    on_map = (position >= -1) & (position <= size)
    return torch.minimum(position.clamp(min=0), (size - 1).to(position.dtype)), on_map
