"""This project's operators as programs of PyTorch's own, for torch.export.

An operator of `torch.library` is opaque to torch.export, and a program that contains one cannot run
without this package. These decompositions replace it. They compute what kernels/eager computes, but
write nothing in place and decide nothing on the host.

Legend: B rows of M boxes, R rois, C channels, P pooled size.
"""

from typing import Any

import torch

# The import registers the operators.
from accelerated import boxes as geometry
from accelerated import nms, roi_align  # noqa: F401
from accelerated.kernels.arguments import Sampling
from accelerated.kernels.eager import roi_align as eager


def keep_mask(
    boxes: torch.Tensor, valid: torch.Tensor, iou_threshold: float, group: None, backend: str
) -> torch.Tensor:
    """Return which boxes greedy suppression keeps [B, M] bool, by its definition.

    Keep the best box that is left in every row, drop it and what it overlaps, and repeat while any
    is left. A round takes at least one box, so there are at most M.
    """
    slots = torch.arange(valid.shape[1], device=valid.device)

    def any_left(left, keep, boxes, slots):
        return left.any()

    def keep_best(left, keep, boxes, slots):
        # The first of the largest.
        best = left.int().argmax(1, keepdim=True)
        box = boxes.gather(1, best[..., None].expand(-1, -1, 4))
        # In float64, because the threshold is no number of float32.
        overlaps = geometry.iou(box, boxes)[:, 0].double() > iou_threshold
        chosen = left & (slots == best)
        return left & ~chosen & ~overlaps, keep | chosen

    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    start = valid.clone(), torch.zeros_like(valid)
    return torch.ops.higher_order.while_loop(any_left, keep_best, start, (boxes, slots))[1]


def align(features: list[torch.Tensor], *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return RoIAlign's means [R, C, P_h, P_w] and, as the operator does, an empty tensor."""
    *fields, _, _ = arguments
    return eager.mean(features, Sampling(*fields)), features[0].new_empty(0, dtype=torch.int32)


DECOMPOSITIONS = {
    torch.ops.maskrcnn.nms_keep_mask.default: keep_mask,
    torch.ops.maskrcnn.roi_align.default: align,
}
