# Triton compiles these functions: blocks of numbers and constants, not the types that Python sees.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
"""Triton kernels of greedy suppression over B rows of M boxes sorted by falling score.

1. `_nms_overlap_kernel` writes for each box i a bit mask of the better boxes j < i that overlap it.
2. `_nms_scan_kernel` drops a box if its mask meets the bits kept so far, block by block.

Legend: B rows, M boxes in a row, W words of 32 boxes.
"""

import torch
import triton
import triton.language as tl

from accelerated.kernels.triton.sampling import divide

# Boxes per mask word, and per block of the scan.
WORD = 32
# Mask words that the scan reads at a time.
WORDS = 64


@triton.jit
def load_boxes(boxes_ptr, i, valid):
    """x1, y1, x2, y2 of a block of boxes; 0 where not valid."""
    x1, y1 = tl.load(boxes_ptr + i * 4, valid, 0), tl.load(boxes_ptr + i * 4 + 1, valid, 0)
    x2, y2 = tl.load(boxes_ptr + i * 4 + 2, valid, 0), tl.load(boxes_ptr + i * 4 + 3, valid, 0)
    return x1, y1, x2, y2


@triton.jit(do_not_specialize=["M", "W"])
def _nms_overlap_kernel(
    boxes_ptr,  # [B, M, 4], contiguous
    valid_ptr,  # [B, M] uint8
    group_ptr,  # [B, M] int64, unused unless HAS_GROUP
    masks_ptr,  # [B, M, W] int32
    M,
    W,
    THRESHOLD: tl.constexpr,  # constexpr, because a float argument would be rounded to float32
    HAS_GROUP: tl.constexpr,
    WORD: tl.constexpr,
):
    """One program per row and pair of blocks of WORD boxes: reads both, writes one word per box.

    Only words of blocks not above the diagonal are written, the others stay as allocated.
    """
    block, word, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    if word > block:
        return
    lane = tl.arange(0, WORD)
    i, j = block * WORD + lane, word * WORD + lane
    valid_i = tl.load(valid_ptr + row * M + i, mask=i < M, other=0) != 0
    valid_j = tl.load(valid_ptr + row * M + j, mask=j < M, other=0) != 0
    if (tl.max(valid_i.to(tl.int32), axis=0) == 0) | (tl.max(valid_j.to(tl.int32), axis=0) == 0):
        # The scan reads only masks of valid boxes, and there bits of kept ones.
        return
    x1_i, y1_i, x2_i, y2_i = load_boxes(boxes_ptr, row * M + i, valid_i)
    x1_j, y1_j, x2_j, y2_j = load_boxes(boxes_ptr, row * M + j, valid_j)
    left, right = tl.maximum(x1_i[:, None], x1_j[None, :]), tl.minimum(x2_i[:, None], x2_j[None, :])
    top, bottom = tl.maximum(y1_i[:, None], y1_j[None, :]), tl.minimum(y2_i[:, None], y2_j[None, :])
    width, height = tl.maximum(right - left, 0), tl.maximum(bottom - top, 0)
    area_i, area_j = (x2_i - x1_i) * (y2_i - y1_i), (x2_j - x1_j) * (y2_j - y1_j)
    intersection = width * height
    union = area_i[:, None] + area_j[None, :] - intersection
    union = tl.where(intersection > 0, union, 1)
    overlap = (divide(intersection, union) > THRESHOLD) & (j[None, :] < i[:, None])
    if HAS_GROUP:
        group_i = tl.load(group_ptr + row * M + i, mask=valid_i, other=0)
        group_j = tl.load(group_ptr + row * M + j, mask=valid_j, other=0)
        overlap &= group_i[:, None] == group_j[None, :]
    bits = tl.sum(overlap.to(tl.int32) << lane[None, :], axis=1)
    tl.store(masks_ptr + (row * M + i) * W + word, bits, mask=i < M)


@triton.jit(do_not_specialize=["M", "W"])
def _nms_scan_kernel(
    valid_ptr,  # [B, M] uint8
    masks_ptr,  # [B, M, W] int32
    bits_ptr,  # [B, W] int32: kept boxes, scratch
    keep_ptr,  # [B, M] uint8
    M,
    W,
    WORD: tl.constexpr,
    WORDS: tl.constexpr,
):
    """One program per row: walks its blocks of WORD boxes, reads masks, writes which are kept.

    Inside a block the rule is iterated to its fixed point.
    """
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, WORD)
    for block in range(W):
        i = block * WORD + lane
        alive = tl.load(valid_ptr + row * M + i, mask=i < M, other=0) != 0
        kept = tl.sum(alive.to(tl.int32) << lane, axis=0)
        if kept != 0:
            mask_ptr = masks_ptr + (row * M + i) * W
            for start in range(0, block, WORDS):
                word = start + tl.arange(0, WORDS)
                earlier = tl.load(bits_ptr + row * W + word, mask=word < block, other=0)
                masks = tl.load(
                    mask_ptr[:, None] + word[None, :],
                    mask=alive[:, None] & (word < block)[None, :],
                    other=0,
                )
                alive &= tl.max(((masks & earlier[None, :]) != 0).to(tl.int32), axis=1) == 0
            inside = tl.load(mask_ptr + block, mask=alive, other=0)
            kept = tl.sum(alive.to(tl.int32) << lane, axis=0)
            changed = True
            while changed:
                updated = tl.sum((alive & ((inside & kept) == 0)).to(tl.int32) << lane, axis=0)
                changed = updated != kept
                kept = updated
        tl.store(bits_ptr + row * W + block, kept)
        tl.store(keep_ptr + row * M + i, ((kept >> lane) & 1).to(tl.uint8), mask=i < M)
        # The next block reads these bits, in other threads.
        tl.debug_barrier()


def keep_mask(
    boxes: torch.Tensor, valid: torch.Tensor, threshold: float, group: torch.Tensor | None
) -> torch.Tensor:
    """Return which boxes of each row are kept [B, M] bool; rows are sorted by falling score.

    boxes [B, M, 4] float32 or float64, valid [B, M] bool, group [B, M] int or None.
    """
    rows, count, _ = boxes.shape
    words = triton.cdiv(count, WORD)
    keep = torch.empty_like(valid, memory_format=torch.contiguous_format)
    if keep.numel() == 0:
        return keep
    valid = valid.contiguous().view(torch.uint8)
    masks = torch.empty(rows, count, words, dtype=torch.int32, device=boxes.device)
    bits = torch.empty(rows, words, dtype=torch.int32, device=boxes.device)
    _nms_overlap_kernel[(words, words, rows)](
        boxes.contiguous(),
        valid,
        valid if group is None else group.long().contiguous(),
        masks,
        count,
        words,
        THRESHOLD=threshold,
        HAS_GROUP=group is not None,
        WORD=WORD,
        num_warps=4,
        # A fused multiply-add would round the union differently from the other implementations.
        enable_fp_fusion=False,
    )
    _nms_scan_kernel[(rows,)](
        valid,
        masks,
        bits,
        keep.view(torch.uint8),
        count,
        words,
        WORD=WORD,
        WORDS=WORDS,
        num_warps=4,
    )
    return keep
