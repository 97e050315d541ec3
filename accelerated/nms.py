"""Greedy non-maximum suppression: keep the best box, drop what overlaps it, repeat.

`keep_mask` is the fixed-shape form of the model: B rows of M boxes each, sorted by falling score, padded; nothing asks the
device for a count. `nms` and `batched_nms` are the usual ones on top of it.
"""

import torch

from accelerated import backend as backends
from accelerated import boxes as box_ops

BLOCK = 64  # boxes whose overlap with all better ones the torch backend holds at a time


def top_k(scores, k):
    """Indices of the `k` highest scores [..., T] of each row -> [..., min(k, T)], by falling score, equal scores by rising index."""
    return scores.argsort(dim=-1, descending=True, stable=True)[
        ..., :k
    ]  # torch.topk promises no order of ties


def nms(boxes, scores, iou_threshold, backend="auto"):
    """Indices [D] of the boxes that greedy suppression keeps, by falling score (equal scores by rising index).

    boxes [R, 4], scores [R]. A box goes when its IoU with a kept box of higher score is strictly above `iou_threshold`;
    two boxes of no area do not suppress each other.
    Raises ValueError for a non-finite box or a NaN score, naming its row, on the CPU. The size of the result synchronises a GPU.
    """
    return batched_nms(boxes, scores, None, iou_threshold, backend)


def batched_nms(boxes, scores, group, iou_threshold, backend="auto"):
    """`nms` within each group (class or level; group [R] int), never across; the kept indices of all groups by falling score."""
    box_ops.check_finite(boxes, "boxes")
    if scores.device.type == "cpu" and scores.isnan().any():
        raise ValueError(f"scores must not be NaN; row {int(scores.isnan().int().argmax())} is")
    order = top_k(scores, len(scores))
    valid = torch.ones(1, len(order), dtype=torch.bool, device=boxes.device)
    keep = keep_mask(
        boxes[order][None],
        valid,
        iou_threshold,
        None if group is None else group[order][None],
        backend,
    )
    return order[keep[0]]


def keep_mask(boxes, valid, iou_threshold, group=None, backend="auto"):
    """Which boxes of each row greedy suppression keeps, without changing a shape.

    boxes [B, M, 4] and valid [B, M] bool, each row sorted by falling score; group [B, M] int or None: boxes of different groups
    never meet. Returns [B, M] bool. An invalid box is not kept and suppresses nothing. IoU is computed in float32, or float64 for
    float64 boxes.
    """
    return _keep_mask(boxes.detach(), valid, float(iou_threshold), group, backend)


@torch.library.custom_op("maskrcnn::nms_keep_mask", mutates_args=())
def _keep_mask(
    boxes: torch.Tensor,
    valid: torch.Tensor,
    iou_threshold: float,
    group: torch.Tensor | None,
    backend: str,
) -> torch.Tensor:
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32)).contiguous()
    threshold = _rounded_down(iou_threshold, boxes.dtype)
    if backends.resolve(backend, boxes) == "triton":
        from accelerated.kernels.triton import nms as kernels  # Triton may be absent

        return kernels.keep_mask(boxes, valid, threshold, None if group is None else group.long())
    rows, columns = (
        valid.any(1).nonzero(),
        valid.any(0).nonzero()[:, 0],
    )  # detections fill few of their slots
    keep = torch.zeros_like(valid)
    keep[rows, columns] = _blockwise(
        boxes[rows, columns],
        valid[rows, columns],
        threshold,
        None if group is None else group[rows, columns],
    )
    return keep


@_keep_mask.register_fake
def _(boxes, valid, iou_threshold, group, backend):
    return torch.empty_like(valid)


def _rounded_down(threshold, dtype):
    """The largest number of `dtype` not above `threshold`: `iou > it` is then the comparison with the float64 threshold."""
    rounded = torch.tensor(threshold, dtype=dtype)
    if rounded.double() > threshold:
        rounded = rounded.nextafter(torch.tensor(-torch.inf, dtype=dtype))
    return float(rounded)


def _blockwise(boxes, valid, threshold, group):
    """Torch backend: block by block, first what earlier blocks suppress, then the block itself by its fixed point.

    It asks the device whether the fixed point is reached, so unlike the Triton kernels it synchronises a GPU.
    """
    keep = torch.zeros_like(valid)
    for start in range(0, boxes.shape[1], BLOCK):
        stop = min(start + BLOCK, boxes.shape[1])
        overlap = box_ops.iou(boxes[:, start:stop], boxes[:, :stop]) > threshold
        if group is not None:
            overlap &= group[:, start:stop, None] == group[:, None, :stop]
        alive = valid[:, start:stop] & ~(overlap[..., :start] & keep[:, None, :start]).any(-1)
        keep[:, start:stop] = _fixed_point(alive, overlap[..., start:].tril(-1))
    return keep


def _fixed_point(alive, overlap):
    """alive [B, S] without what better kept boxes overlap (overlap [B, S, S] bool, strictly lower triangular): the greedy answer.

    At least one more box is settled by each round; in practice a few rounds settle all.
    """
    keep = alive
    while True:
        updated = alive & ~(overlap & keep[:, None]).any(-1)
        if torch.equal(updated, keep):
            return keep
        keep = updated
