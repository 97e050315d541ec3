# Triton compiles these functions: blocks of numbers and constants, not the types that Python sees.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
"""Triton kernels of the masks: targets from bit-packed ground truth, pasted masks as booleans.

Nothing of the size of an image is held as floats; every output is written once, in a fixed order of
operations.

Legend: N images, G ground-truth slots, R rois, D detections, H and W sides of an image, W8 bytes of
a row of a mask.
"""

from itertools import accumulate

import torch
import triton
import triton.language as tl

from accelerated.kernels.eager.masks import windows_of
from accelerated.kernels.triton.sampling import axis, divide, sample

# RoIs with more pixels on a side, or not finite, have target 0 instead of a loop without end.
LONGEST_ROI = 65536
# Pixels of an image per program.
TILE = 8, 128


@triton.jit
def _bit(row_ptr, x, mask):
    byte = tl.load(row_ptr + x // 8, mask=mask, other=0).to(tl.int32)
    return (byte >> (7 - x % 8)) & 1


@triton.jit(do_not_specialize=["G", "H", "W8"])
def _mask_targets_kernel(
    masks_ptr,  # [N, G, H, W8] uint8, contiguous
    image_index_ptr,  # [R] int64
    matched_ptr,  # [R] int64
    rois_ptr,  # [R, 4], contiguous
    valid_ptr,  # [R] uint8
    sizes_ptr,  # [N, 2] int64
    out_ptr,  # [R, SIZE, SIZE]
    G,
    H,
    W8,
    SIZE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BINARY: tl.constexpr,
    LONGEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per RoI and row of bins, all bins of the row at once.

    Walks the samples of its bins, each of which reads four bits, and writes their means.
    """
    roi, bin_y = tl.program_id(0).to(tl.int64), tl.program_id(1)
    bin_x = tl.arange(0, BLOCK)
    roi_ptr = rois_ptr + roi * 4
    valid = tl.load(valid_ptr + roi) != 0
    start_y, size_y, count_y, extent_y = axis(
        tl.load(roi_ptr + 1), tl.load(roi_ptr + 3), valid, SIZE, 0, ALIGNED
    )
    start_x, size_x, count_x, extent_x = axis(
        tl.load(roi_ptr), tl.load(roi_ptr + 2), valid, SIZE, 0, ALIGNED
    )
    total = tl.zeros((BLOCK,), dtype=out_ptr.dtype.element_ty)
    if valid & (extent_x < LONGEST) & (extent_y < LONGEST):
        image = tl.load(image_index_ptr + roi)
        height = tl.load(sizes_ptr + image * 2).to(tl.int32)
        width = tl.load(sizes_ptr + image * 2 + 1).to(tl.int32)
        mask_ptr = masks_ptr + (image * G + tl.load(matched_ptr + roi)) * H * W8
        for sample_y in range(count_y):
            low, high, weight_low, weight_high = sample(
                start_y, size_y, count_y, bin_y, sample_y, height, 0
            )
            if weight_low + weight_high > 0:
                top_ptr = mask_ptr + low.to(tl.int64) * W8
                bottom_ptr = mask_ptr + high.to(tl.int64) * W8
                for sample_x in range(count_x):
                    left, right, weight_left, weight_right = sample(
                        start_x, size_x, count_x, bin_x, sample_x, width, 0
                    )
                    inside = (weight_left + weight_right > 0) & (bin_x < SIZE)
                    top = _bit(top_ptr, left, inside) * weight_left
                    top += _bit(top_ptr, right, inside) * weight_right
                    bottom = _bit(bottom_ptr, left, inside) * weight_left
                    bottom += _bit(bottom_ptr, right, inside) * weight_right
                    total += top * weight_low + bottom * weight_high
        total = total / tl.maximum(count_y * count_x, 1)
    if BINARY:
        total = (total >= 0.5).to(total.dtype)
    tl.store(out_ptr + (roi * SIZE + bin_y) * SIZE + bin_x, total, mask=bin_x < SIZE)


@triton.jit
def _position(pixel, low, high, SIZE: tl.constexpr, GROW: tl.constexpr):
    """Position of each pixel's centre among the mask's cells, and whether the box covers it."""
    if GROW:
        center, half = (high + low) * 0.5, (high - low) * 0.5 * ((SIZE + 2) / SIZE)
        low, high = center - half, center + half
        low = tl.where(low < 0, tl.ceil(low), tl.floor(low))
        high = tl.where(high < 0, tl.ceil(high), tl.floor(high))
        inside = (pixel >= low) & (pixel <= high)
        cells = divide(tl.full((), SIZE + 2, low.dtype), tl.maximum(high - low + 1, 1.0))
        position = cells * (pixel - low + 0.5) - 0.5
        position = tl.minimum(tl.maximum(position, 0), SIZE + 1) - 1
    else:
        extent = high - low + tl.zeros_like(pixel)
        inside = extent > 0
        position = divide(pixel + 0.5 - low, tl.where(inside, extent, 1.0)) * SIZE - 0.5
    return tl.minimum(tl.maximum(position, -2), SIZE + 1), inside


@triton.jit(do_not_specialize=["H"])
def _mask_paste_kernel(
    probabilities_ptr,  # [D, SIZE, SIZE], contiguous
    boxes_ptr,  # [D, 4], contiguous
    windows_ptr,  # [D, 4] int64: first row, column, end of both; within the image
    starts_ptr,  # [D] int64: where a window's pixels start in `out`; None: `out` is [D, H, W]
    out_ptr,  # uint8: [D, H, W], or the pixels of all windows
    H,
    W,
    SIZE: tl.constexpr,
    GROW: tl.constexpr,
    THRESHOLD: tl.constexpr,  # constexpr, because a float argument would be rounded to float32
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """One program per detection and tile: reads four mask cells per pixel, writes a boolean.

    The tiles cover the image, or, given `starts`, each window.
    """
    detection = tl.program_id(2).to(tl.int64)
    row = tl.program_id(1) * BLOCK_Y + tl.arange(0, BLOCK_Y)
    column = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)
    window_ptr = windows_ptr + detection * 4
    top, left = tl.load(window_ptr).to(tl.int32), tl.load(window_ptr + 1).to(tl.int32)
    bottom, right = tl.load(window_ptr + 2).to(tl.int32), tl.load(window_ptr + 3).to(tl.int32)
    if starts_ptr is not None:
        row, column = top + row, left + column
        stored = (row < bottom)[:, None] & (column < right)[None, :]
        out_ptr += tl.load(starts_ptr + detection) - (top.to(tl.int64) * (right - left) + left)
        out = out_ptr + row[:, None].to(tl.int64) * (right - left) + column[None, :]
    else:
        stored = (row < H)[:, None] & (column < W)[None, :]
        out = out_ptr + (detection * H + row[:, None]) * W + column[None, :]
    missed = (tl.min(row) >= bottom) | (tl.max(row) < top)
    if missed | (tl.min(column) >= right) | (tl.max(column) < left):
        tl.store(out, tl.zeros((BLOCK_Y, BLOCK_X), tl.uint8), stored)
        return
    box_ptr = boxes_ptr + detection * 4
    x1, y1 = tl.load(box_ptr), tl.load(box_ptr + 1)
    x2, y2 = tl.load(box_ptr + 2), tl.load(box_ptr + 3)
    y, inside_y = _position(row.to(y1.dtype), y1, y2, SIZE, GROW)
    x, inside_x = _position(column.to(x1.dtype), x1, x2, SIZE, GROW)
    low_y, low_x = tl.floor(y), tl.floor(x)
    weight_y, weight_x = (y - low_y)[:, None], (x - low_x)[None, :]
    iy, ix = low_y.to(tl.int32)[:, None], low_x.to(tl.int32)[None, :]
    inside = inside_y[:, None] & inside_x[None, :]
    top, next_top = inside & (iy >= 0) & (iy < SIZE), inside & (iy >= -1) & (iy < SIZE - 1)
    left, next_left = (ix >= 0) & (ix < SIZE), (ix >= -1) & (ix < SIZE - 1)
    cell_ptr = probabilities_ptr + detection * SIZE * SIZE + iy * SIZE + ix
    upper = tl.load(cell_ptr, mask=top & left, other=0) * (1 - weight_x)
    upper += tl.load(cell_ptr + 1, mask=top & next_left, other=0) * weight_x
    cell_ptr += SIZE
    lower = tl.load(cell_ptr, mask=next_top & left, other=0) * (1 - weight_x)
    lower += tl.load(cell_ptr + 1, mask=next_top & next_left, other=0) * weight_x
    pasted = upper * (1 - weight_y) + lower * weight_y
    tl.store(out, (pasted >= THRESHOLD).to(tl.uint8), stored)


def targets(
    masks: torch.Tensor,
    image_index: torch.Tensor,
    matched: torch.Tensor,
    rois: torch.Tensor,
    valid: torch.Tensor,
    sizes: torch.Tensor,
    size: int,
    aligned: bool,
    binary: bool,
) -> torch.Tensor:
    """Return targets [R, size, size] in the dtype of `rois`.

    masks [N, G, H, W8] uint8, rois [R, 4] float32 or float64, sizes [N, 2].
    """
    out = rois.new_empty(len(rois), size, size)
    if len(rois) == 0:
        return out
    _mask_targets_kernel[(len(rois), size)](
        masks.contiguous(),
        image_index.long().contiguous(),
        matched.long().contiguous(),
        rois.contiguous(),
        valid.contiguous().view(torch.uint8),
        sizes.long().contiguous(),
        out,
        *masks.shape[1:],
        SIZE=size,
        ALIGNED=aligned,
        BINARY=binary,
        LONGEST=LONGEST_ROI,
        BLOCK=triton.next_power_of_2(size),
        num_warps=1,
        # Positions round as in the other implementations.
        enable_fp_fusion=False,
    )
    return out


def paste(
    mask_probabilities: torch.Tensor,
    boxes: torch.Tensor,
    height: int,
    width: int,
    convention: str,
    threshold: float,
) -> torch.Tensor:
    """Return [D, height, width] bool from masks [D, S, S] and boxes [D, 4] of one dtype."""
    out = torch.empty(len(boxes), height, width, dtype=torch.bool, device=boxes.device)
    if out.numel() == 0:
        return out
    windows = windows_of(boxes, mask_probabilities.shape[-1], height, width, threshold)
    _launch_paste(mask_probabilities, boxes, windows, None, out, convention, threshold)
    return out


def paste_windows(
    mask_probabilities: torch.Tensor,
    boxes: torch.Tensor,
    windows: torch.Tensor,
    convention: str,
    threshold: float,
) -> list[torch.Tensor]:
    """Return each mask's pixels [h, w] bool in its window, on the CPU; windows [D, 4] too."""
    sides = (windows[:, 2:] - windows[:, :2]).tolist()
    areas = [height * width for height, width in sides]
    out = torch.empty(sum(areas), dtype=torch.bool, device=boxes.device)
    if out.numel():
        starts = torch.tensor([0, *accumulate(areas)][:-1], device=boxes.device)
        arguments = windows.to(boxes.device), starts, out, convention, threshold
        _launch_paste(mask_probabilities, boxes, *arguments, *map(max, zip(*sides, strict=True)))
    return [crop.view(side) for crop, side in zip(out.cpu().split(areas), sides, strict=True)]


def _launch_paste(masks, boxes, windows, starts, out, convention, threshold, *sides):
    """Paste into an image, or into windows of at most `sides`."""
    height, width = sides or out.shape[1:]
    grid = triton.cdiv(width, TILE[1]), triton.cdiv(height, TILE[0]), len(boxes)
    _mask_paste_kernel[grid](
        masks.contiguous(),
        boxes.contiguous(),
        windows,
        starts,
        out.view(torch.uint8),
        height,
        width,
        SIZE=masks.shape[-1],
        GROW=convention == "torchvision",
        THRESHOLD=threshold,
        BLOCK_Y=TILE[0],
        BLOCK_X=TILE[1],
        enable_fp_fusion=False,
        num_warps=4,
    )
