# Triton compiles these functions: blocks of numbers and constants, not the types that Python sees.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
"""RoIPool in Triton, forward over all levels of a pyramid in one launch, backward without atomics.

The backward is one launch per level.

Legend: N images, R rois, C channels, P pooled size, L levels.
"""

import torch
import triton
import triton.language as tl

from accelerated.kernels.arguments import Bins
from accelerated.kernels.triton.sampling import choose, lowest_bit, map_of, maps_of, store_tile

FORWARD_CHANNELS = 64
BACKWARD_CHANNELS = 32
# The backward's tiles are TILE x TILE features.
TILE = 8
# RoIs that a program of the backward looks at together.
WORD = 32


@triton.jit
def _roi_pool_forward_kernel(
    features,  # L x [N, C, H_l, W_l]
    bins,  # as `Bins`, int32 from tops on, contiguous
    out_ptr,  # [R, C, P_H, P_W]
    argmax_ptr,  # [R, C, P_H, P_W] int32, with the strides of out
    channels,  # C
    maps,  # heights, widths, strides of N, C, H and W: L ints each
    stride_out,  # 4 strides
    P_H: tl.constexpr,
    P_W: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program per RoI, row of bins and block of channels: all bins of the row at once.

    Reads the features of the bins in row-major order and writes the first largest, and its index.
    """
    image_index_ptr, level_index_ptr, tops_ptr, rows_ptr, lefts_ptr, columns_ptr = bins
    r = (tl.program_id(0) // P_H).to(tl.int64)
    p = tl.program_id(0) % P_H
    q = tl.arange(0, BLOCK_Q)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_mask = c < channels
    image = tl.maximum(tl.load(image_index_ptr + r), 0).to(tl.int64)
    level = tl.load(level_index_ptr + r).to(tl.int32)
    top, rows = tl.load(tops_ptr + r * P_H + p), tl.load(rows_ptr + r * P_H + p)
    left = tl.load(lefts_ptr + r * P_W + q, q < P_W, 0)
    columns = tl.load(columns_ptr + r * P_W + q, q < P_W, 0)
    widest = tl.max(columns, axis=0)
    _, width, stride_n, stride_c, stride_h, stride_w = map_of(maps, level)
    image_ptr = choose(features, level) + image * stride_n
    image_ptr = image_ptr + (c.to(tl.int64) * stride_c)[None, :]
    best = tl.zeros([BLOCK_Q, BLOCK_C], out_ptr.dtype.element_ty)
    argmax = tl.full([BLOCK_Q, BLOCK_C], -1, tl.int32)
    for y in range(top, top + rows):
        for j in range(widest):
            x = left + j
            mask = (j < columns)[:, None] & channel_mask[None, :]
            value = tl.load(image_ptr + (y * stride_h + x * stride_w)[:, None], mask, 0.0)
            # NaN is larger than any number.
            larger = (argmax < 0) | (value > best) | ((value != value) & (best == best))
            best = tl.where(mask & larger, value, best)
            argmax = tl.where(mask & larger, (y * width + x)[:, None], argmax)
    offset = r * stride_out[0] + p * stride_out[2]
    offset = offset + q[:, None] * stride_out[3] + c[None, :] * stride_out[1]
    mask = (q < P_W)[:, None] & channel_mask[None, :]
    tl.store(out_ptr + offset, best, mask)
    tl.store(argmax_ptr + offset, argmax, mask)


@triton.jit
def _roi_pool_backward_kernel(
    grad_ptr,  # [N, C, H, W] of one level
    grad_out_ptr,  # [R, C, P_H, P_W]
    argmax_ptr,  # [R, C, P_H, P_W] int32
    bins,  # as `Bins`, int32 from tops on, contiguous
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
    image_index_ptr, level_index_ptr, tops_ptr, rows_ptr, lefts_ptr, columns_ptr = bins
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
        r = base + lanes
        near = r < count
        near = near & (tl.load(image_index_ptr + r, near, -1) == image)
        near = near & (tl.load(level_index_ptr + r, near, -1) == level)
        last = r * P_H + P_H - 1
        bottom = tl.load(tops_ptr + last, near, 0) + tl.load(rows_ptr + last, near, 0)
        last = r * P_W + P_W - 1
        right = tl.load(lefts_ptr + last, near, 0) + tl.load(columns_ptr + last, near, 0)
        near = near & (tl.load(tops_ptr + r * P_H, near, 0) < tile_y + TILE) & (bottom > tile_y)
        near = near & (tl.load(lefts_ptr + r * P_W, near, 0) < tile_x + TILE) & (right > tile_x)
        word = tl.sum(near.to(tl.int64) << lanes.to(tl.int64), axis=0)
        while word != 0:
            roi = (base + lowest_bit(word)).to(tl.int64)
            word = word & (word - 1)
            for p in range(P_H):
                top, rows = tl.load(tops_ptr + roi * P_H + p), tl.load(rows_ptr + roi * P_H + p)
                if (top < tile_y + TILE) & (top + rows > tile_y):
                    out_row = roi * stride_out[0] + p * stride_out[2]
                    argmax_row = roi * stride_argmax[0] + p * stride_argmax[2]
                    for q in range(P_W):
                        offset = out_row + q * stride_out[3] + c * stride_out[1]
                        grad = tl.load(grad_out_ptr + offset, channel_mask, 0.0).to(ACC)
                        offset = argmax_row + q * stride_argmax[3] + c * stride_argmax[1]
                        argmax = tl.load(argmax_ptr + offset, channel_mask, -1)
                        total += tl.where(index == argmax[None, None, :], grad[None, None, :], 0.0)
    grad_ptr += image.to(tl.int64) * stride[0]
    store_tile(grad_ptr, total, ys, xs, c, height, width, channels, stride[2], stride[3], stride[1])


def _arguments(bins):
    """Return the bins as the kernels take them."""
    return tuple(x.contiguous() for x in (*bins[:2], *(x.int() for x in bins[2:])))


def forward(
    features: list[torch.Tensor], bins: Bins, out: torch.Tensor, argmax: torch.Tensor
) -> None:
    """Fill `out` and `argmax` [R, C, P_h, P_w], of the same strides, from `bins`, a `Bins`."""
    if out.numel() == 0:
        return
    rois, channels, pooled_height, pooled_width = out.shape
    block = min(FORWARD_CHANNELS, triton.next_power_of_2(channels))
    with torch.cuda.device_of(out):
        _roi_pool_forward_kernel[(rois * pooled_height, triton.cdiv(channels, block))](
            tuple(features),
            _arguments(bins),
            out,
            argmax,
            channels,
            maps_of(features),
            out.stride(),
            P_H=pooled_height,
            P_W=pooled_width,
            BLOCK_Q=triton.next_power_of_2(pooled_width),
            BLOCK_C=block,
        )


def backward(
    grad_out: torch.Tensor, argmax: torch.Tensor, bins: Bins, grads: list[torch.Tensor]
) -> None:
    """Fill `grads`, a tensor per level, from grad_out, argmax [R, C, P_h, P_w] and a `Bins`."""
    count, channels, pooled_height, pooled_width = grad_out.shape
    block = min(BACKWARD_CHANNELS, triton.next_power_of_2(max(1, channels)))
    arguments = _arguments(bins)
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
                arguments,
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
                P_H=pooled_height,
                P_W=pooled_width,
                TILE=TILE,
                WORD=WORD,
                BLOCK_C=block,
                ACC=tl.float64 if grad.dtype == torch.float64 else tl.float32,
            )
