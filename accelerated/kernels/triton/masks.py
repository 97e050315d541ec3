"""Triton kernels of the masks: targets straight from bit-packed ground truth, pasted masks straight to booleans.

`_mask_targets_kernel`: one program per RoI and row of bins, all bins of the row at once; it walks the samples of its bins, each of
which reads four bits. `_paste_kernel`: one program per detection and tile of pixels, four mask cells per pixel.
Nothing of the size of an image is held as floats; every output is written once, in a fixed order of operations.
"""

import torch
import triton
import triton.language as tl

LONGEST_ROI = 65536  # pixels; longer ones, and those that are not finite, have target 0 instead of a loop without end
TILE = 8, 128  # pixels of an image per program


@triton.jit
def _divide(a, b):
    """IEEE division: plain float32 "/" is approximate, and ceil(56 / 28) must be 2."""
    return tl.div_rn(a, b) if a.dtype == tl.float32 else a / b


@triton.jit
def _bit(row_ptr, x, mask):
    byte = tl.load(row_ptr + x // 8, mask=mask, other=0).to(tl.int32)
    return (byte >> (7 - x % 8)) & 1


@triton.jit
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
    roi, bin_y = tl.program_id(0).to(tl.int64), tl.program_id(1)
    bin_x = tl.arange(0, BLOCK)
    offset = 0.5 if ALIGNED else 0.0
    x1, y1 = tl.load(rois_ptr + roi * 4) - offset, tl.load(rois_ptr + roi * 4 + 1) - offset
    extent_x, extent_y = (
        tl.load(rois_ptr + roi * 4 + 2) - offset - x1,
        tl.load(rois_ptr + roi * 4 + 3) - offset - y1,
    )
    if not ALIGNED:
        extent_x, extent_y = tl.maximum(extent_x, 1.0), tl.maximum(extent_y, 1.0)
    bins = tl.full((), SIZE, extent_x.dtype)
    size_x, size_y = _divide(extent_x, bins), _divide(extent_y, bins)
    total = tl.zeros((BLOCK,), dtype=out_ptr.dtype.element_ty)
    if (tl.load(valid_ptr + roi) != 0) & (extent_x < LONGEST) & (extent_y < LONGEST):
        image = tl.load(image_index_ptr + roi)
        height, width = (
            tl.load(sizes_ptr + image * 2).to(tl.int32),
            tl.load(sizes_ptr + image * 2 + 1).to(tl.int32),
        )
        mask_ptr = masks_ptr + (image * G + tl.load(matched_ptr + roi)) * H * W8
        count_x, count_y = tl.ceil(size_x).to(tl.int32), tl.ceil(size_y).to(tl.int32)
        start_x = x1 + bin_x * size_x
        for sample_y in range(count_y):
            y = y1 + bin_y * size_y + _divide((sample_y + 0.5) * size_y, count_y.to(size_y.dtype))
            if (y >= -1) & (y <= height):
                y = tl.minimum(tl.maximum(y, 0), height - 1)
                low_y = y.to(tl.int32)
                weight_y = y - low_y
                top_ptr = mask_ptr + low_y.to(tl.int64) * W8
                bottom_ptr = mask_ptr + tl.minimum(low_y + 1, height - 1).to(tl.int64) * W8
                for sample_x in range(count_x):
                    x = start_x + _divide((sample_x + 0.5) * size_x, count_x.to(size_x.dtype))
                    inside = (x >= -1) & (x <= width) & (bin_x < SIZE)
                    x = tl.minimum(tl.maximum(x, 0), width - 1)
                    low_x = x.to(tl.int32)
                    high_x, weight_x = tl.minimum(low_x + 1, width - 1), x - low_x
                    top = (
                        _bit(top_ptr, low_x, inside) * (1 - weight_x)
                        + _bit(top_ptr, high_x, inside) * weight_x
                    )
                    bottom = (
                        _bit(bottom_ptr, low_x, inside) * (1 - weight_x)
                        + _bit(bottom_ptr, high_x, inside) * weight_x
                    )
                    total += top * (1 - weight_y) + bottom * weight_y
        total = total / tl.maximum(count_y * count_x, 1)
    if BINARY:
        total = (total >= 0.5).to(total.dtype)
    tl.store(out_ptr + (roi * SIZE + bin_y) * SIZE + bin_x, total, mask=bin_x < SIZE)


@triton.jit
def _position(pixel, low, high, SIZE: tl.constexpr, GROW: tl.constexpr):
    """Where each pixel's centre lies among the mask's cells, in cells, and whether the box covers it."""
    if GROW:
        center, half = (high + low) * 0.5, (high - low) * 0.5 * ((SIZE + 2) / SIZE)
        low, high = center - half, center + half
        low = tl.where(low < 0, tl.ceil(low), tl.floor(low))
        high = tl.where(high < 0, tl.ceil(high), tl.floor(high))
        inside = (pixel >= low) & (pixel <= high)
        position = (
            _divide(tl.full((), SIZE + 2, low.dtype), tl.maximum(high - low + 1, 1.0))
            * (pixel - low + 0.5)
            - 0.5
        )
        position = tl.minimum(tl.maximum(position, 0), SIZE + 1) - 1
    else:
        extent = high - low + tl.zeros_like(pixel)
        inside = extent > 0
        position = _divide(pixel + 0.5 - low, tl.where(inside, extent, 1.0)) * SIZE - 0.5
    return tl.minimum(tl.maximum(position, -2), SIZE + 1), inside


@triton.jit
def _paste_kernel(
    probabilities_ptr,  # [D, SIZE, SIZE], contiguous
    boxes_ptr,  # [D, 4], contiguous
    out_ptr,  # [D, H, W] uint8
    H,
    W,
    SIZE: tl.constexpr,
    GROW: tl.constexpr,
    THRESHOLD: tl.constexpr,  # constexpr, because a float argument would be rounded to float32
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    detection = tl.program_id(2).to(tl.int64)
    row, column = (
        tl.program_id(1) * BLOCK_Y + tl.arange(0, BLOCK_Y),
        tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X),
    )
    box_ptr = boxes_ptr + detection * 4
    x1, y1, x2, y2 = (
        tl.load(box_ptr),
        tl.load(box_ptr + 1),
        tl.load(box_ptr + 2),
        tl.load(box_ptr + 3),
    )
    y, inside_y = _position(row.to(y1.dtype), y1, y2, SIZE, GROW)
    x, inside_x = _position(column.to(x1.dtype), x1, x2, SIZE, GROW)
    low_y, low_x = tl.floor(y), tl.floor(x)
    weight_y, weight_x = (y - low_y)[:, None], (x - low_x)[None, :]
    iy, ix = low_y.to(tl.int32)[:, None], low_x.to(tl.int32)[None, :]
    inside = inside_y[:, None] & inside_x[None, :]
    top, next_top = inside & (iy >= 0) & (iy < SIZE), inside & (iy >= -1) & (iy < SIZE - 1)
    left, next_left = (ix >= 0) & (ix < SIZE), (ix >= -1) & (ix < SIZE - 1)
    cell_ptr = probabilities_ptr + detection * SIZE * SIZE + iy * SIZE + ix
    upper = (
        tl.load(cell_ptr, mask=top & left, other=0) * (1 - weight_x)
        + tl.load(cell_ptr + 1, mask=top & next_left, other=0) * weight_x
    )
    cell_ptr += SIZE
    lower = tl.load(cell_ptr, mask=next_top & left, other=0) * (1 - weight_x)
    lower += tl.load(cell_ptr + 1, mask=next_top & next_left, other=0) * weight_x
    found = upper * (1 - weight_y) + lower * weight_y >= THRESHOLD
    out = out_ptr + (detection * H + row[:, None]) * W + column[None, :]
    tl.store(out, found.to(tl.uint8), mask=(row < H)[:, None] & (column < W)[None, :])


def targets(masks, image_index, matched, rois, valid, sizes, size, aligned, binary):
    """masks [N, G, H, W8] uint8, rois [R, 4] float32 or float64, sizes [N, 2] -> [R, size, size] of their dtype."""
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
        enable_fp_fusion=False,  # positions round as in the other implementations
    )
    return out


def paste(mask_probabilities, boxes, height, width, grow, threshold):
    """mask_probabilities [D, S, S], boxes [D, 4] of one dtype -> [D, height, width] bool."""
    out = torch.empty(len(boxes), height, width, dtype=torch.bool, device=boxes.device)
    if out.numel() == 0:
        return out
    grid = triton.cdiv(width, TILE[1]), triton.cdiv(height, TILE[0]), len(boxes)
    _paste_kernel[grid](
        mask_probabilities.contiguous(),
        boxes.contiguous(),
        out.view(torch.uint8),
        height,
        width,
        SIZE=mask_probabilities.shape[-1],
        GROW=grow,
        THRESHOLD=threshold,
        BLOCK_Y=TILE[0],
        BLOCK_X=TILE[1],
        enable_fp_fusion=False,
        num_warps=4,
    )
    return out
