# Triton compiles these functions: blocks of numbers and constants, not the types that Python sees.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
"""Triton kernels of matching; the IoU of a pair is computed where it is needed, never stored.

1. `_matcher_truth_kernel` finds the highest IoU of each ground truth, if low quality counts.
2. `_matcher_label_kernel` finds the best ground truth of each candidate, and labels it.

Legend: N images, G ground-truth slots, T candidates.
"""

import torch
import triton
import triton.language as tl

from accelerated.kernels.arguments import Matching
from accelerated.kernels.triton.nms import load_boxes
from accelerated.kernels.triton.sampling import divide

# Candidates per program.
BLOCK = 1024
# The bits of numbers that are not negative are ordered as the numbers are, NaN last.
BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _smaller(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _iou(a, b):
    """Intersection over union of a block of boxes and one, 0 without intersection."""
    a_x1, a_y1, a_x2, a_y2 = a
    b_x1, b_y1, b_x2, b_y2 = b
    width = _larger(_smaller(a_x2, b_x2) - _larger(a_x1, b_x1), 0)
    height = _larger(_smaller(a_y2, b_y2) - _larger(a_y1, b_y1), 0)
    intersection = width * height
    area_a, area_b = (a_x2 - a_x1) * (a_y2 - a_y1), (b_x2 - b_x1) * (b_y2 - b_y1)
    union = tl.where(intersection > 0, area_b + area_a - intersection, 1)
    return tl.where(intersection > 0, divide(intersection, union), 0)


@triton.jit
def _matcher_truth_kernel(
    truth_ptr,  # [N, G, 4]
    valid_ptr,  # [N, G] uint8
    candidate_ptr,  # [T, 4] or [N, T, 4]
    best_ptr,  # [N, G] int: bits of the highest IoU, 0 before
    G,
    T,
    stride_n,  # candidates from one image to the next, 0 if they share them
    BLOCK: tl.constexpr,
):
    """One program per image and block of candidates; the maximum has no order."""
    n, t = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    boxes = load_boxes(candidate_ptr, n * stride_n + t, t < T)
    for g in range(G):
        if tl.load(valid_ptr + n * G + g) != 0:
            iou = _iou(boxes, load_boxes(truth_ptr, n * G + g, True))
            # NaN has many bit patterns, some of them negative.
            iou = tl.where(iou == iou, iou, float("nan"))
            highest = tl.max(iou.to(best_ptr.dtype.element_ty, bitcast=True), axis=0)
            if highest > 0:
                tl.atomic_max(best_ptr + n * G + g, highest, sem="relaxed")


@triton.jit
def _matcher_label_kernel(
    truth_ptr,  # [N, G, 4]
    valid_ptr,  # [N, G] uint8
    candidate_ptr,  # [T, 4] or [N, T, 4]
    best_ptr,  # [N, G], the dtype of the boxes: highest IoU; unused unless LOW_QUALITY
    labels_ptr,  # [N, T] int64
    matched_ptr,  # [N, T] int64
    G,
    T,
    stride_n,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
    LOW_QUALITY: tl.constexpr,
    ZERO_IOU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per image and block of candidates: reads their boxes, writes what they match."""
    n, t = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    boxes = load_boxes(candidate_ptr, n * stride_n + t, t < T)
    best = tl.full([BLOCK], -1, candidate_ptr.dtype.element_ty)
    matched = tl.zeros([BLOCK], tl.int64)
    is_best = tl.zeros([BLOCK], tl.int1)
    for g in range(G):
        if tl.load(valid_ptr + n * G + g) != 0:
            iou = _iou(boxes, load_boxes(truth_ptr, n * G + g, True))
            # The first of equals, and the first NaN before all numbers.
            better = (iou > best) | ((iou != iou) & (best == best))
            best, matched = tl.where(better, iou, best), tl.where(better, g, matched)
            if LOW_QUALITY:
                highest = tl.load(best_ptr + n * G + g)
                is_best |= (iou == highest) & (ZERO_IOU | (highest > 0))
    label = tl.where(best >= HIGH, 1, tl.where(best < LOW, 0, -1))
    label = tl.where(is_best, 1, label)
    tl.store(labels_ptr + n * T + t, label.to(tl.int64), t < T)
    tl.store(matched_ptr + n * T + t, matched, t < T)


def match_boxes(
    gt_boxes: torch.Tensor, gt_valid: torch.Tensor, candidates: torch.Tensor, rules: Matching
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return labels and matched [N, T] int64; all boxes have one dtype, G >= 1 and T >= 1.

    gt_boxes [N, G, 4], gt_valid [N, G] bool, candidates [T, 4] or [N, T, 4].
    """
    images, truths, _ = gt_boxes.shape
    count = candidates.shape[-2]
    labels = torch.empty(images, count, dtype=torch.int64, device=gt_boxes.device)
    matched = torch.empty_like(labels)
    boxes = gt_boxes.contiguous(), gt_valid.contiguous().view(torch.uint8), candidates.contiguous()
    sizes = truths, count, count if candidates.dim() == 3 else 0
    grid = triton.cdiv(count, BLOCK), images
    # A fused multiply-add would round the union differently from the other implementations.
    constants = {"BLOCK": BLOCK, "num_warps": 8, "enable_fp_fusion": False}
    best = boxes[0]
    if rules.low_quality:
        bits = torch.zeros(images, truths, dtype=BITS[gt_boxes.dtype], device=gt_boxes.device)
        _matcher_truth_kernel[grid](*boxes, bits, *sizes, **constants)
        best = bits.view(gt_boxes.dtype)
    _matcher_label_kernel[grid](
        *boxes,
        best,
        labels,
        matched,
        *sizes,
        HIGH=rules.high,
        LOW=rules.low,
        LOW_QUALITY=rules.low_quality,
        ZERO_IOU=rules.zero_iou,
        **constants,
    )
    return labels, matched
