"""Greedy suppression in plain PyTorch, block by block.

A block first loses what the kept boxes of earlier blocks overlap, and is then settled by iterating
the rule to its fixed point. That asks the device whether the fixed point is reached, so unlike the
Triton kernels it synchronises a GPU.

Legend: B rows, M boxes in a row, S boxes in a block.
"""

import torch

# Boxes whose overlap with all better ones is held at a time.
BLOCK = 64


def keep_mask(
    boxes: torch.Tensor, valid: torch.Tensor, threshold: float, group: torch.Tensor | None
) -> torch.Tensor:
    """Return which boxes of each row are kept [B, M] bool; rows are sorted by falling score.

    boxes [B, M, 4] float32 or float64, valid [B, M] bool, group [B, M] int or None.
    """
    # Detections fill few of their slots.
    rows, columns = valid.any(1).nonzero(), valid.any(0).nonzero()[:, 0]
    keep = torch.zeros_like(valid)
    group = None if group is None else group[rows, columns]
    keep[rows, columns] = _blockwise(boxes[rows, columns], valid[rows, columns], threshold, group)
    return keep


def _blockwise(boxes, valid, threshold, group):
    """Return which boxes are kept."""
    keep = torch.zeros_like(valid)
    for start in range(0, boxes.shape[1], BLOCK):
        stop = min(start + BLOCK, boxes.shape[1])
        overlap = iou(boxes[:, start:stop], boxes[:, :stop]) > threshold
        if group is not None:
            overlap &= group[:, start:stop, None] == group[:, None, :stop]
        alive = valid[:, start:stop] & ~(overlap[..., :start] & keep[:, None, :start]).any(-1)
        keep[:, start:stop] = _fixed_point(alive, overlap[..., start:].tril(-1))
    return keep


def _fixed_point(alive, overlap):
    """Return alive [B, S] without the boxes that better kept boxes overlap: the greedy answer.

    overlap [B, S, S] bool is strictly lower triangular. Each round settles at least one more box;
    in practice a few rounds settle all.
    """
    keep = alive
    while True:
        updated = alive & ~(overlap & keep[:, None]).any(-1)
        if torch.equal(updated, keep):
            return keep
        keep = updated


def iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return intersection over union of every pair, 0 without intersection: [B, S, T]."""
    a_x1, a_y1, a_x2, a_y2 = a[..., None].unbind(-2)
    # Contiguous, which is several times faster on a CPU.
    b_x1, b_y1, b_x2, b_y2 = b.mT.contiguous()[..., None, :].unbind(-3)
    width = (torch.minimum(a_x2, b_x2) - torch.maximum(a_x1, b_x1)).clamp(min=0)
    height = (torch.minimum(a_y2, b_y2) - torch.maximum(a_y1, b_y1)).clamp(min=0)
    intersection = width * height
    area_a, area_b = (a_x2 - a_x1) * (a_y2 - a_y1), (b_x2 - b_x1) * (b_y2 - b_y1)
    return torch.where(intersection > 0, intersection / (area_a + area_b - intersection), 0)
