"""Boxes: area, overlap, clipping, validity.

A box is (x1, y1, x2, y2) in continuous pixels. Pixel i spans [i, i + 1), so a box is x2 - x1 wide
and no "+1" appears anywhere. The order of operations is the reference's, so that equal dtypes give
equal bits.
"""

import torch


def area(boxes: torch.Tensor) -> torch.Tensor:
    """Compute the area of boxes [..., 4] -> [...] in square pixels; negative if one side is."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compute the intersection over union of every pair.

    a [..., A, 4], b [..., B, 4] -> [..., A, B] in [0, 1].
    Boxes that do not intersect have IoU 0, even if their union is empty (0/0).
    """
    # [..., A, 1] each
    a_x1, a_y1, a_x2, a_y2 = a[..., None].unbind(-2)
    # [..., 1, B] each; contiguous rows are several times faster on a CPU.
    b_x1, b_y1, b_x2, b_y2 = b.mT.contiguous()[..., None, :].unbind(-3)
    width = (torch.minimum(a_x2, b_x2) - torch.maximum(a_x1, b_x1)).clamp(min=0)
    height = (torch.minimum(a_y2, b_y2) - torch.maximum(a_y1, b_y1)).clamp(min=0)
    intersection = width * height
    union = area(a)[..., :, None] + area(b)[..., None, :] - intersection
    return torch.where(intersection > 0, intersection / union, 0)


def clip(
    boxes: torch.Tensor, height: float | torch.Tensor, width: float | torch.Tensor
) -> torch.Tensor:
    """Move boxes [..., 4] into [0, width] x [0, height]; those outside lose their area.

    height, width  numbers, or tensors that broadcast against boxes[..., 0]
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    x1, x2 = (x.clamp(min=0).clamp(max=width) for x in (x1, x2))
    y1, y2 = (y.clamp(min=0).clamp(max=height) for y in (y1, y2))
    return torch.stack([x1, y1, x2, y2], dim=-1)


def is_valid(boxes: torch.Tensor, min_size: float, inclusive: bool) -> torch.Tensor:
    """Test boxes [..., 4] -> [...]: finite, both sides > `min_size` (>= if `inclusive`) pixels."""
    sides = boxes[..., 2:] - boxes[..., :2]
    long_enough = sides >= min_size if inclusive else sides > min_size
    return long_enough.all(dim=-1) & boxes.isfinite().all(dim=-1)


def check_finite(boxes: torch.Tensor, name: str) -> None:
    """Raise ValueError naming the first row of `boxes` [R, 4] with a NaN or an infinity.

    On a GPU nothing is checked, because that would wait for the device.
    """
    if boxes.device.type != "cpu" or torch.compiler.is_compiling():
        return
    bad = ~boxes.isfinite().all(dim=1)
    if bad.any():
        row = int(bad.int().argmax())
        raise ValueError(f"{name} must be finite; row {row} is {boxes[row].tolist()}")
