# Triton compiles these functions: blocks of numbers and constants, not the types that Python sees.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
"""RoIPool in Triton, all levels of a pyramid in one launch, backward without atomic additions.

The backward marks for every RoI the tiles of features that it pools from. Then one program per tile
and block of channels adds the gradients of the RoIs that reach it, in the order of the RoIs.

Legend: N images, R rois, C channels, P pooled size, L levels, T tiles of an image, W words.
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
    maps_of,
    size_of,
    store_tile,
    strides_of,
)
from accelerated.kernels.triton.tiles import (
    TILE,
    WORD,
    empty_marks,
    locate_tile,
    lowest_bit,
    mark_tiles,
    marked_words,
    tiles_of,
)

FORWARD_CHANNELS = 64
BACKWARD_CHANNELS = 64


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
    channels,  # C
    maps,  # unit, heights, widths, strides of N, C, H and W: L ints each
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
    x1, y1, x2, y2, image, level, valid = load_roi(rois, r, SCALES)
    height, width = size_of(maps, level)
    stride_n, stride_c, stride_h, stride_w = strides_of(maps, level)
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
def _roi_pool_mark_kernel(
    rois,  # boxes [R, 4], image indices [R], level indices [R], contiguous
    places_ptr,  # [R] int32
    order_ptr,  # [W WORD] int32
    marks_ptr,  # [W, T] int32
    maps,  # unit, heights, widths, strides of N, C, H and W: L ints each
    SCALES: tl.constexpr,  # L floats
    P_H: tl.constexpr,
    P_W: tl.constexpr,
    TILE: tl.constexpr,
    WORD: tl.constexpr,
):
    """One program per RoI: marks the tiles whose features it pools."""
    r = tl.program_id(0)
    x1, y1, x2, y2, _, level, valid = load_roi(rois, r, SCALES)
    height, width = size_of(maps, level)
    top, _ = _bin(y1, y2, valid, 0, height, P_H)
    _, bottom = _bin(y1, y2, valid, P_H - 1, height, P_H)
    left, _ = _bin(x1, x2, valid, 0, width, P_W)
    _, right = _bin(x1, x2, valid, P_W - 1, width, P_W)
    if valid & (top < bottom) & (left < right):
        place = tl.load(places_ptr + r)
        tl.store(order_ptr + place, r)
        mark_tiles(marks_ptr, place, level, top, bottom - 1, left, right - 1, maps, TILE, WORD)


@triton.jit
def _roi_pool_backward_kernel(
    grads,  # L x [N, C, H_l, W_l]
    grad_out_ptr,  # [R, C, P_H, P_W]
    argmax_ptr,  # [R, C, P_H, P_W] int32
    rois,  # boxes [R, 4], image indices [R], level indices [R], contiguous
    first_words_ptr,  # [N + 1] int32
    marks_ptr,  # [W, T] int32
    order_ptr,  # [W WORD] int32
    channels,  # C
    maps,  # unit, heights, widths, strides of N, C, H and W: L ints each
    stride_out,  # 4 strides each
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

    For each marked RoI in order, adds the gradients whose argmax lies in the tile to its sum, which
    it writes once, in the dtype of the gradient.
    """
    tile, image = tl.program_id(0), tl.program_id(2)
    level, tile_y, tile_x, tiles = locate_tile(tile, maps, TILE)
    height, width = size_of(maps, level)
    ys, xs = tile_y + tl.arange(0, TILE), tile_x + tl.arange(0, TILE)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_mask = c < channels
    index = (ys * width)[:, None, None] + xs[None, :, None]
    total = tl.zeros([TILE, TILE, BLOCK_C], ACC)
    first, end = tl.load(first_words_ptr + image), tl.load(first_words_ptr + image + 1)
    marks_ptr += tile
    for base in range(first, end, WORD):
        marked = marked_words(marks_ptr, base, end, tiles, WORD)
        while marked != 0:
            word = base + lowest_bit(marked)
            marked = marked & (marked - 1)
            marks = tl.load(marks_ptr + word.to(tl.int64) * tiles)
            while marks != 0:
                r = tl.load(order_ptr + word * WORD + lowest_bit(marks)).to(tl.int64)
                marks = marks & (marks - 1)
                low_x, low_y, high_x, high_y, _i, _l, valid = load_roi(rois, r, SCALES)
                for p in range(P_H):
                    first_y, end_y = _bin(low_y, high_y, valid, p, height, P_H)
                    if (first_y < tile_y + TILE) & (end_y > tile_y):
                        for q in range(P_W):
                            first_x, end_x = _bin(low_x, high_x, valid, q, width, P_W)
                            if (first_x < tile_x + TILE) & (end_x > tile_x):
                                offset = r * stride_out[0] + c * stride_out[1]
                                offset = offset + p * stride_out[2] + q * stride_out[3]
                                grad = tl.load(grad_out_ptr + offset, channel_mask, 0.0).to(ACC)
                                offset = r * stride_argmax[0] + c * stride_argmax[1]
                                offset = offset + p * stride_argmax[2] + q * stride_argmax[3]
                                argmax = tl.load(argmax_ptr + offset, channel_mask, -1)
                                hit = index == argmax[None, None, :]
                                total += tl.where(hit, grad[None, None, :], 0.0)
    stride_n, stride_c, stride_h, stride_w = strides_of(maps, level)
    grad_ptr = choose(grads, level) + image * stride_n
    store_tile(grad_ptr, total, ys, xs, c, height, width, channels, stride_h, stride_w, stride_c)


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
    (count, channels), images, tiles = grad_out.shape[:2], len(grads[0]), tiles_of(grads)
    if images * tiles * channels == 0:
        return
    block = min(BACKWARD_CHANNELS, triton.next_power_of_2(channels))
    rois, constants = _arguments(pooling)
    maps, constants = maps_of(grads), constants | {"TILE": TILE, "WORD": WORD}
    with torch.cuda.device_of(grad_out):
        marks = empty_marks(rois[1], images, tiles)
        if count:
            _roi_pool_mark_kernel[(count,)](
                rois, marks.places, marks.order, marks.words, maps, **constants, num_warps=1
            )
        _roi_pool_backward_kernel[tiles, triton.cdiv(channels, block), images](
            tuple(grads),
            grad_out,
            argmax,
            rois,
            marks.first_words,
            marks.words,
            marks.order,
            channels,
            maps,
            grad_out.stride(),
            argmax.stride(),
            **constants,
            BLOCK_C=block,
            ACC=accumulator(grad_out),
        )
