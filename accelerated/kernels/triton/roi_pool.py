"""RoIPool in Triton, forward over all levels of a pyramid in one launch, backward without atomics, one launch per level.

The bins come in as whole numbers: tops and rows [R, P_h], lefts and columns [R, P_w], int32 and contiguous, `rows` 0 in RoIs
that pool nothing. Forward: one program per RoI, row of bins and block of channels. Backward: one program per tile of features and
block of channels finds the RoIs that reach its tile, adds in their order what their argmax sends to it, and writes every
gradient once, in its own dtype.
"""

import torch
import triton
import triton.language as tl

FORWARD_CHANNELS = 64
BACKWARD_CHANNELS = 32
TILE = 8
WORD = 32  # RoIs looked at at once


@triton.jit
def _choose(values, level, LEVELS: tl.constexpr):
    """values[level] of a tuple."""
    chosen = values[0]
    for l in tl.static_range(1, LEVELS):
        chosen = tl.where(level == l, values[l], chosen)
    return chosen


@triton.jit
def _forward_kernel(
    features, image_index_ptr, level_index_ptr, tops_ptr, rows_ptr, lefts_ptr, columns_ptr, out_ptr, argmax_ptr,
    channels, widths, stride_n, stride_c, stride_h, stride_w, stride_out_r, stride_out_c, stride_out_h, stride_out_w,
    LEVELS: tl.constexpr, P_H: tl.constexpr, P_W: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
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
    width, row_stride, column_stride = (
        _choose(widths, level, LEVELS),
        _choose(stride_h, level, LEVELS),
        _choose(stride_w, level, LEVELS),
    )
    image_ptr = _choose(features, level, LEVELS) + image * _choose(stride_n, level, LEVELS)
    image_ptr = image_ptr + (c.to(tl.int64) * _choose(stride_c, level, LEVELS))[None, :]
    best = tl.zeros([BLOCK_Q, BLOCK_C], out_ptr.dtype.element_ty)
    argmax = tl.full([BLOCK_Q, BLOCK_C], -1, tl.int32)
    for y in range(top, top + rows):
        for j in range(widest):
            x = left + j
            mask = (j < columns)[:, None] & channel_mask[None, :]
            value = tl.load(image_ptr + (y * row_stride + x * column_stride)[:, None], mask, 0.0)
            larger = mask & (
                (argmax < 0) | (value > best) | ((value != value) & (best == best))
            )  # NaN is larger than all
            best = tl.where(larger, value, best)
            argmax = tl.where(larger, (y * width + x)[:, None], argmax)
    offset = (
        r * stride_out_r + p * stride_out_h + q[:, None] * stride_out_w + c[None, :] * stride_out_c
    )
    mask = (q < P_W)[:, None] & channel_mask[None, :]
    tl.store(out_ptr + offset, best, mask)
    tl.store(argmax_ptr + offset, argmax, mask)


@triton.jit
def _backward_kernel(
    grad_ptr, grad_out_ptr, argmax_ptr, image_index_ptr, level_index_ptr, tops_ptr, rows_ptr, lefts_ptr, columns_ptr,
    level, count, channels, height, width, tiles_across, tiles_down, stride_n, stride_c, stride_h, stride_w,
    stride_out_r, stride_out_c, stride_out_h, stride_out_w, stride_argmax_r, stride_argmax_c, stride_argmax_h, stride_argmax_w,
    P_H: tl.constexpr, P_W: tl.constexpr, TILE: tl.constexpr, WORD: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    image = tile // (tiles_across * tiles_down)
    tile_y, tile_x = (tile // tiles_across) % tiles_down * TILE, tile % tiles_across * TILE
    ys, xs = tile_y + tl.arange(0, TILE), tile_x + tl.arange(0, TILE)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_mask = c < channels
    place = (ys * width)[:, None, None] + xs[None, :, None]
    lanes = tl.arange(0, WORD)
    total = tl.zeros([TILE, TILE, BLOCK_C], ACC)
    for base in range(0, count, WORD):
        r = base + lanes
        near = r < count
        near = (
            near
            & (tl.load(image_index_ptr + r, near, -1) == image)
            & (tl.load(level_index_ptr + r, near, -1) == level)
        )
        bottom = tl.load(tops_ptr + r * P_H + P_H - 1, near, 0) + tl.load(
            rows_ptr + r * P_H + P_H - 1, near, 0
        )
        right = tl.load(lefts_ptr + r * P_W + P_W - 1, near, 0) + tl.load(
            columns_ptr + r * P_W + P_W - 1, near, 0
        )
        near = near & (tl.load(tops_ptr + r * P_H, near, 0) < tile_y + TILE) & (bottom > tile_y)
        near = near & (tl.load(lefts_ptr + r * P_W, near, 0) < tile_x + TILE) & (right > tile_x)
        word = tl.sum(near.to(tl.int64) << lanes.to(tl.int64), axis=0)
        while word != 0:
            bit = (
                (word & -word).to(tl.float32).to(tl.int32, bitcast=True) >> 23
            ) - 127  # the lowest one
            word = word & (word - 1)
            roi = (base + bit).to(tl.int64)
            for p in range(P_H):
                top, rows = tl.load(tops_ptr + roi * P_H + p), tl.load(rows_ptr + roi * P_H + p)
                if (top < tile_y + TILE) & (top + rows > tile_y):
                    for q in range(P_W):
                        out = (
                            roi * stride_out_r
                            + p * stride_out_h
                            + q * stride_out_w
                            + c * stride_out_c
                        )
                        from_place = (
                            roi * stride_argmax_r
                            + p * stride_argmax_h
                            + q * stride_argmax_w
                            + c * stride_argmax_c
                        )
                        grad = tl.load(grad_out_ptr + out, channel_mask, 0.0).to(ACC)
                        argmax = tl.load(argmax_ptr + from_place, channel_mask, -1)
                        total += tl.where(place == argmax[None, None, :], grad[None, None, :], 0.0)
    offset = (
        (ys * stride_h)[:, None, None]
        + (xs * stride_w)[None, :, None]
        + (c.to(tl.int64) * stride_c)[None, None, :]
    )
    mask = (ys < height)[:, None, None] & (xs < width)[None, :, None] & channel_mask[None, None, :]
    tl.store(
        grad_ptr + image.to(tl.int64) * stride_n + offset, total.to(grad_ptr.dtype.element_ty), mask
    )


def forward(features, image_index, level_index, bins, out, argmax):
    """Fill `out` and `argmax` [R, C, P_h, P_w], which have the same strides; `bins`: tops, rows, lefts, columns."""
    if out.numel() == 0:
        return
    rois, channels, pooled_height, pooled_width = out.shape
    block = min(FORWARD_CHANNELS, triton.next_power_of_2(channels))
    strides = tuple(zip(*(x.stride() for x in features), strict=True))
    with torch.cuda.device_of(out):
        _forward_kernel[(rois * pooled_height, triton.cdiv(channels, block))](
            tuple(features), image_index.contiguous(), level_index.contiguous(), *bins, out, argmax,
            channels, tuple(x.shape[3] for x in features), *strides, *out.stride(),
            LEVELS=len(features), P_H=pooled_height, P_W=pooled_width, BLOCK_Q=triton.next_power_of_2(pooled_width), BLOCK_C=block,
        )  # fmt: skip


def backward(grad_out, argmax, image_index, level_index, bins, grads):
    """Fill `grads`, one tensor per level, from grad_out and argmax [R, C, P_h, P_w]."""
    count, channels, pooled_height, pooled_width = grad_out.shape
    block = min(BACKWARD_CHANNELS, triton.next_power_of_2(max(1, channels)))
    image_index, level_index = image_index.contiguous(), level_index.contiguous()
    for level, grad in enumerate(grads):
        height, width = grad.shape[2:]
        across, down = triton.cdiv(width, TILE), triton.cdiv(height, TILE)
        if grad.numel() == 0:
            continue
        with torch.cuda.device_of(grad):
            _backward_kernel[(len(grad) * across * down, triton.cdiv(channels, block))](
                grad, grad_out, argmax, image_index, level_index, *bins,
                level, count, channels, height, width, across, down, *grad.stride(), *grad_out.stride(), *argmax.stride(),
                P_H=pooled_height, P_W=pooled_width, TILE=TILE, WORD=WORD, BLOCK_C=block,
                ACC=tl.float64 if grad.dtype == torch.float64 else tl.float32,
            )  # fmt: skip
