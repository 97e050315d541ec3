"""Greedy non-maximum suppression: keep the best box, drop what overlaps it, repeat.

`keep_mask` is the fixed-shape form that the model uses: padded rows, sorted by falling score, and
no count that the device would have to be asked for. `nms` and `batched_nms` are built on it. The
kernels are in kernels/triton and, in plain PyTorch, in kernels/eager.

Legend: R boxes, D kept boxes, T scores in a row, B rows of M boxes.
"""

import torch

from accelerated.backend import kernels
from accelerated.boxes import check_finite

# Dtypes of scores that fit into the upper half of a key.
PACKED = (torch.float32, torch.float16, torch.bfloat16)
LOWEST = -(2**63)


def top_k(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Return the indices of the `k` highest scores of each row: [..., T] -> [..., min(k, T)].

    They are ordered by falling score, NaN first, equal scores by rising index (torch.topk alone
    promises no order of equals).
    """
    if k >= scores.shape[-1] or not _packs(scores):
        return scores.argsort(dim=-1, descending=True, stable=True)[..., :k]
    return keys(scores).topk(k).indices


def keys(scores: torch.Tensor, descending: bool = True) -> torch.Tensor:
    """Return int64 keys that differ within a row; the order of falling keys is that of the scores.

    scores [..., T] in falling order if `descending`, NaN first; else in rising order, NaN last.
    Equal scores have their order by rising index. No key is as low as LOWEST.
    """
    count, device = scores.shape[-1], scores.device
    # An earlier index is higher.
    index = torch.arange(0, -count, -1, device=device)
    if not _packs(scores):
        order = scores.argsort(dim=-1, descending=descending, stable=True)
        return torch.empty_like(order).scatter_(-1, order, index.expand_as(order))
    # Sign and magnitude become an integer, in which -0 is 0 and NaN lies above infinity.
    bits = scores.float().view(torch.int32)
    ranks = torch.where(bits < 0, -(2**31) - bits, bits).masked_fill(scores.isnan(), 2**31 - 1)
    return torch.add(index, ranks, alpha=2**32 if descending else -(2**32))


def _packs(scores):
    """Test whether bits of scores fit into a key; ONNX does not read the bits of a float."""
    return scores.dtype in PACKED and not torch.compiler.is_exporting()


def nms(
    boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float, backend: str = "auto"
) -> torch.Tensor:
    """Return the indices [D] of the boxes that greedy suppression keeps, by falling score.

    boxes          [R, 4]  xyxy
    scores         [R]     equal scores rank by rising index
    iou_threshold  a box is dropped if its IoU with a kept box of higher score is strictly above it

    Two boxes without area do not suppress each other. Raises ValueError for a non-finite box or a
    NaN score, naming its row, on the CPU. The size of the result synchronises a GPU.
    """
    return batched_nms(boxes, scores, None, iou_threshold, backend)


def batched_nms(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    group: torch.Tensor | None,
    iou_threshold: float,
    backend: str = "auto",
) -> torch.Tensor:
    """Apply `nms` within each group, never across: the kept indices of all, by falling score.

    group [R] int is a class or a level, or None; the other arguments are those of `nms`.
    """
    check_finite(boxes, "boxes")
    if scores.device.type == "cpu" and scores.isnan().any():
        raise ValueError(f"scores must not be NaN; row {int(scores.isnan().int().argmax())} is")
    order = top_k(scores, len(scores))
    group = None if group is None else group[order][None]
    valid = torch.ones(1, len(order), dtype=torch.bool, device=boxes.device)
    return order[keep_mask(boxes[order][None], valid, iou_threshold, group, backend)[0]]


def keep_mask(
    boxes: torch.Tensor,
    valid: torch.Tensor,
    iou_threshold: float,
    group: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Return which boxes of each row greedy suppression keeps [B, M] bool.

    boxes  [B, M, 4]  each row sorted by falling score
    valid  [B, M]     bool; an invalid box is not kept and suppresses nothing
    group  [B, M]     int or None; boxes of different groups never suppress each other

    IoU is computed in float32, or float64 for float64 boxes.
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
    threshold = rounded_down(iou_threshold, boxes.dtype)
    return kernels("nms", backend, boxes).keep_mask(boxes, valid, threshold, group)


@_keep_mask.register_fake
def _(boxes, valid, iou_threshold, group, backend):
    return torch.empty_like(valid)


def rounded_down(threshold: float, dtype: torch.dtype) -> float:
    """Return the largest number of `dtype` that is not above `threshold`.

    `iou > it` is then the same as the comparison with the float64 threshold.
    """
    rounded = torch.tensor(threshold, dtype=dtype)
    if rounded.double() > threshold:
        rounded = rounded.nextafter(torch.tensor(-torch.inf, dtype=dtype))
    return float(rounded)
