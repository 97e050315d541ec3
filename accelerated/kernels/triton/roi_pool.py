# Triton compiles these functions: blocks of numbers and constants, not the types that Python sees.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
"""RoIPool in Triton, forward over all levels of a pyramid in one launch, backward without atomics.

The backward is one launch per level.

Legend: N images, R rois, C channels, P pooled size, L levels.
"""

import torch
import triton
import triton.language as tl

from accelerated.kernels.arguments import Pooling
from accelerated.kernels.triton.sampling import (
    accumulator,
    choose,
    divide,
    load_roi,
    lowest_bit,
    map_of,
    maps_of,
    store_tile,
)

FORWARD_CHANNELS = 64
# Each warp of each program of the backward scans all RoIs, so there are few of both.
BACKWARD_CHANNELS = 128
BACKWARD_WARPS = 2
# The backward's tiles are TILE x TILE features.
TILE = 8
# RoIs that a program of the backward looks at together.
WORD = 32


@triton.jit
def _round(x):
    """Round half away from zero."""
    whole = tl.where(x < 0, tl.ceil(x), tl.floor(x))
    step = tl.where(x < 0, -1.0, 1.0)
    return whole + tl.where(tl.abs(x - whole) >= 0.5, step, 0.0)


@triton.jit
def _bin(low, high, valid, p, size, BINS: tl.constexpr):
    """First pixel of bin p along one axis, and the one after its last (SPEC §2).

    The bins of an invalid RoI are empty.
    """
    start = _round(tl.where(valid, low, 0.0))
    length = (tl.maximum(_round(tl.where(valid, high, 0.0)), start) + 1.0) - start
    side = divide(length, tl.full([], BINS, length.dtype))
    one = tl.full([], 1.0, side.dtype)
    first = tl.floor(p * one * side) + start
    end = tl.ceil((p + one) * side) + start
    limit = size.to(side.dtype)
    first = tl.minimum(tl.maximum(first, 0.0), limit).to(tl.int32)
    end = tl.minimum(tl.maximum(end, 0.0), limit).to(tl.int32)
    return first, tl.where(valid, end, first)


@triton.jit
def _roi_pool_forward_kernel(
    features,  # L x [N, C, H_l, W_l]
    rois,  # boxes [R, 4], image indices [R], level indices [R], contiguous
    out_ptr,  # [R, C, P_H, P_W]
    argmax_ptr,  # [R, C, P_H, P_W] int32, with the strides of out
    count,  # R
    channels,  # C
    maps,  # heights, widths, strides of N, C, H and W: L ints each
    stride_out,  # 4 strides
    SCALES: tl.constexpr,  # L floats
    P_H: tl.constexpr,
    P_W: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program per RoI, row of bins and block of channels: all bins of the row at once.

    Reads the features of the bins in row-major order and writes the first largest, and its index.
    """
    r, p = tl.program_id(0) // P_H, tl.program_id(0) % P_H
    q = tl.arange(0, BLOCK_Q)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_mask = c < channels
    x1, y1, x2, y2, image, level, valid = load_roi(rois, r, count, SCALES)
    height, width, stride_n, stride_c, stride_h, stride_w = map_of(maps, level)
    top, bottom = _bin(y1, y2, valid, p, height, P_H)
    left, right = _bin(x1, x2, valid, q, width, P_W)
    columns = tl.where(q < P_W, right - left, 0)
    widest = tl.max(columns, axis=0)
    image_ptr = choose(features, level) + tl.maximum(image, 0) * stride_n
    image_ptr = image_ptr + (c.to(tl.int64) * stride_c)[None, :]
    best = tl.zeros([BLOCK_Q, BLOCK_C], out_ptr.dtype.element_ty)
    argmax = tl.full([BLOCK_Q, BLOCK_C], -1, tl.int32)
    for y in range(top, bottom):
        for j in range(widest):
            x = left + j
            mask = (j < columns)[:, None] & channel_mask[None, :]
            value = tl.load(image_ptr + (y * stride_h + x * stride_w)[:, None], mask, 0.0)
            # NaN is larger than any number.
            larger = (argmax < 0) | (value > best) | ((value != value) & (best == best))
            best = tl.where(mask & larger, value, best)
            argmax = tl.where(mask & larger, (y * width + x)[:, None], argmax)
    offset = r.to(tl.int64) * stride_out[0] + p * stride_out[2]
    offset = offset + q[:, None] * stride_out[3] + c[None, :] * stride_out[1]
    mask = (q < P_W)[:, None] & channel_mask[None, :]
    tl.store(out_ptr + offset, best, mask)
    tl.store(argmax_ptr + offset, argmax, mask)


@triton.jit
def _reaches(
    rois,
    r,
    count,
    image,
    level,
    tile_y,
    tile_x,
    height,
    width,
    SCALES: tl.constexpr,
    P_H: tl.constexpr,
    P_W: tl.constexpr,
    TILE: tl.constexpr,
):
    """Whether RoI r (or a block) pools a feature of the tile of an image's level."""
    x1, y1, x2, y2, roi_image, roi_level, valid = load_roi(rois, r, count, SCALES)
    first, last_y, last_x = r * 0, r * 0 + (P_H - 1), r * 0 + (P_W - 1)
    top, _ = _bin(y1, y2, valid, first, height, P_H)
    _, bottom = _bin(y1, y2, valid, last_y, height, P_H)
    left, _ = _bin(x1, x2, valid, first, width, P_W)
    _, right = _bin(x1, x2, valid, last_x, width, P_W)
    reaches = (top < tile_y + TILE) & (bottom > tile_y)
    reaches = reaches & (left < tile_x + TILE) & (right > tile_x)
    return valid & (roi_image == image) & (roi_level == level) & reaches


@triton.jit
def _roi_pool_backward_kernel(
    grad_ptr,  # [N, C, H, W] of one level
    grad_out_ptr,  # [R, C, P_H, P_W]
    argmax_ptr,  # [R, C, P_H, P_W] int32
    rois,  # boxes [R, 4], image indices [R], level indices [R], contiguous
    level,
    count,  # R
    channels,  # C
    height,  # H
    width,  # W
    tiles_across,
    tiles_down,
    stride,  # 4 strides each
    stride_out,
    stride_argmax,
    SCALES: tl.constexpr,  # L floats
    P_H: tl.constexpr,
    P_W: tl.constexpr,
    TILE: tl.constexpr,
    WORD: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """One program per tile of features and block of channels; no two write the same gradient.

    Looks for RoIs that reach the tile, WORD at a time, and adds in their order the gradients whose
    argmax lies in the tile to its sum, which it writes once, in the dtype of the gradient.
    """
    tile = tl.program_id(0)
    image = tile // (tiles_across * tiles_down)
    tile_y, tile_x = (tile // tiles_across) % tiles_down * TILE, tile % tiles_across * TILE
    ys, xs = tile_y + tl.arange(0, TILE), tile_x + tl.arange(0, TILE)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_mask = c < channels
    index = (ys * width)[:, None, None] + xs[None, :, None]
    lanes = tl.arange(0, WORD)
    total = tl.zeros([TILE, TILE, BLOCK_C], ACC)
    for base in range(0, count, WORD):
        near = _reaches(
            rois, base + lanes, count, image, level, tile_y, tile_x, height, width,
            SCALES, P_H, P_W, TILE,
        )  # fmt: skip
        word = tl.sum(near.to(tl.int64) << lanes.to(tl.int64), axis=0)
        while word != 0:
            roi = base + lowest_bit(word)
            word = word & (word - 1)
            low_x, low_y, high_x, high_y, _i, _l, valid = load_roi(rois, roi, count, SCALES)
            out_roi = roi.to(tl.int64) * stride_out[0]
            argmax_roi = roi.to(tl.int64) * stride_argmax[0]
            for p in range(P_H):
                first_y, end_y = _bin(low_y, high_y, valid, p, height, P_H)
                if (first_y < tile_y + TILE) & (end_y > tile_y):
                    for q in range(P_W):
                        first_x, end_x = _bin(low_x, high_x, valid, q, width, P_W)
                        if (first_x < tile_x + TILE) & (end_x > tile_x):
                            offset = out_roi + p * stride_out[2] + q * stride_out[3]
                            offset = offset + c * stride_out[1]
                            grad = tl.load(grad_out_ptr + offset, channel_mask, 0.0).to(ACC)
                            offset = argmax_roi + p * stride_argmax[2] + q * stride_argmax[3]
                            offset = offset + c * stride_argmax[1]
                            argmax = tl.load(argmax_ptr + offset, channel_mask, -1)
                            hit = index == argmax[None, None, :]
                            total += tl.where(hit, grad[None, None, :], 0.0)
    grad_ptr += image.to(tl.int64) * stride[0]
    store_tile(grad_ptr, total, ys, xs, c, height, width, channels, stride[2], stride[3], stride[1])


def _arguments(pooling):
    """Return the RoIs as the kernels take them, and the compile-time arguments of both."""
    height, width = pooling.output_size
    constants = {"SCALES": tuple(pooling.scales), "P_H": height, "P_W": width}
    return tuple(x.contiguous() for x in pooling[:3]), constants | {"enable_fp_fusion": False}


def forward(
    features: list[torch.Tensor], pooling: Pooling, out: torch.Tensor, argmax: torch.Tensor
) -> None:
    """Fill `out` and `argmax` [R, C, P_h, P_w], of the same strides."""
    if out.numel() == 0:
        return
    count, channels, pooled_height, pooled_width = out.shape
    block = min(FORWARD_CHANNELS, triton.next_power_of_2(channels))
    rois, constants = _arguments(pooling)
    with torch.cuda.device_of(out):
        _roi_pool_forward_kernel[(count * pooled_height, triton.cdiv(channels, block))](
            tuple(features),
            rois,
            out,
            argmax,
            count,
            channels,
            maps_of(features),
            out.stride(),
            **constants,
            BLOCK_Q=triton.next_power_of_2(pooled_width),
            BLOCK_C=block,
        )


def backward(
    grad_out: torch.Tensor, argmax: torch.Tensor, pooling: Pooling, grads: list[torch.Tensor]
) -> None:
    """Fill `grads`, a tensor per level, from grad_out and argmax [R, C, P_h, P_w]."""
    count, channels = grad_out.shape[:2]
    # A sum in float64 takes twice the registers.
    widest = BACKWARD_CHANNELS // (2 if grad_out.dtype == torch.float64 else 1)
    block = min(widest, triton.next_power_of_2(max(1, channels)))
    rois, constants = _arguments(pooling)
    for level, grad in enumerate(grads):
        height, width = grad.shape[2:]
        across, down = triton.cdiv(width, TILE), triton.cdiv(height, TILE)
        if grad.numel() == 0:
            continue
        with torch.cuda.device_of(grad):
            _roi_pool_backward_kernel[(len(grad) * across * down, triton.cdiv(channels, block))](
                grad,
                grad_out,
                argmax,
                rois,
                level,
                count,
                channels,
                height,
                width,
                across,
                down,
                grad.stride(),
                grad_out.stride(),
                argmax.stride(),
                **constants,
                TILE=TILE,
                WORD=WORD,
                BLOCK_C=block,
                ACC=accumulator(grad),
                num_warps=BACKWARD_WARPS,
            )
