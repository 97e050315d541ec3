# Triton compiles these functions: blocks of numbers and constants, not the types that Python sees.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false
"""The backward of RoIAlign in Triton, all levels of a pyramid, without atomics.

`_roi_align_mark_kernel` marks for every tile of features the RoIs whose windows reach it, one bit
each. Then one program per tile and block of channels adds the shares of these RoIs in registers, in
the order of the RoIs, and writes every gradient once, in its own dtype.

Arguments are passed as in the forward; sums ask for fused multiply-adds.

Legend: N images, R rois, C channels, P pooled size, L levels, T tiles, W words of 32 RoIs.
"""

from itertools import accumulate

import torch
import triton
import triton.language as tl

from accelerated.kernels.arguments import Sampling
from accelerated.kernels.triton.sampling import (
    accumulator,
    axis,
    choose,
    constants_of,
    divide,
    load_roi,
    lowest_bit,
    map_of,
    maps_of,
    sample,
    store_tile,
)

CHANNELS = 32
# Tiles are TILE x TILE features.
TILE = 8
# RoIs per word of a tile's mask; a word has 64 bits, so that no sign gets in the way.
WORD = 32
WORDS_AT_ONCE = 4


@triton.jit
def _locate_tile(tile, tiles, TILE: tl.constexpr):
    """Level, image, first row and first column of a tile; tiles are ordered alike."""
    ends, tiles_across, tiles_down = tiles
    level = 0
    first = 0
    for l in tl.static_range(1, len(ends)):
        level = tl.where(tile >= ends[l - 1], l, level)
        first = tl.where(tile >= ends[l - 1], ends[l - 1], first)
    across, down = choose(tiles_across, level), choose(tiles_down, level)
    tile = tile - first
    return level, tile // (across * down), (tile // across) % down * TILE, tile % across * TILE


@triton.jit
def _reaches(start, length, size, first, TILE: tl.constexpr):
    """Tell whether samples in [start, start + length] may touch features first .. first + TILE - 1.

    Errs towards yes.
    """
    end = start + length
    on_map = (end >= -1.0) & (start <= size)
    below = tl.minimum(tl.floor(start), size - 1.0) < first + TILE
    return on_map & below & (tl.maximum(tl.floor(end) + 1.0, 0.0) >= first)


@triton.jit
def _roi_align_mark_kernel(
    rois,  # boxes [R, 4], image indices [R], level indices [R], contiguous
    marks_ptr,  # [T, W] int64
    count,  # R
    words,  # W
    maps,  # heights, widths, strides of N, C, H and W: L ints each
    tiles,  # one past each level's last tile, tiles across, tiles down: L ints each
    SCALES: tl.constexpr,  # L floats
    P_H: tl.constexpr,
    P_W: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
    WORD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per tile and BLOCK words: reads their RoIs, writes which reach the tile."""
    tile = tl.program_id(0)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    bit = tl.arange(0, WORD)
    tile_level, tile_image, tile_y, tile_x = _locate_tile(tile, tiles, TILE)
    r = word[:, None] * WORD + bit[None, :]
    x1, y1, x2, y2, image, level, valid = load_roi(rois, r, count, SCALES)
    valid_y = valid & (x2 >= x1) if ALIGNED else valid
    height, width, _, _, _, _ = map_of(maps, tile_level)
    start_y, _, _, length_y = axis(y1, y2, valid_y, P_H, 1, ALIGNED)
    start_x, _, _, length_x = axis(x1, x2, valid, P_W, 1, ALIGNED)
    hit = valid & (image == tile_image) & (level == tile_level)
    hit = hit & _reaches(start_y, length_y, height, tile_y, TILE)
    hit = hit & _reaches(start_x, length_x, width, tile_x, TILE)
    marks = tl.sum(hit.to(tl.int64) << bit[None, :].to(tl.int64), axis=1)
    tl.store(marks_ptr + tile.to(tl.int64) * words + word, marks, word < words)


@triton.jit
def _nonzero_words(marks_ptr, base, words, WORD: tl.constexpr):
    """One bit for each of the words base .. base + WORD - 1 of a tile that marks an RoI."""
    lanes = tl.arange(0, WORD)
    marks = tl.load(marks_ptr + base + lanes, base + lanes < words, 0)
    return tl.sum((marks != 0).to(tl.int64) << lanes.to(tl.int64), axis=0)


@triton.jit
def _bins_near(start, side, first, BINS: tl.constexpr, TILE: tl.constexpr):
    """First and one-past-last bin with samples in (first - 1, first + TILE), which touch the tile.

    Errs towards more.
    """
    positive = side > 0
    side = tl.where(positive, side, 1.0)
    lowest = tl.minimum(tl.maximum(tl.floor((first - 1 - start) / side - 0.01), 0.0), BINS)
    highest = tl.minimum(tl.maximum(tl.floor((first + TILE - start) / side + 0.01), -1.0), BINS - 1)
    lowest, end = lowest.to(tl.int32), highest.to(tl.int32) + 1
    return tl.where(positive, lowest, 0), tl.where(positive, end, BINS)


@triton.jit
def _spread(taps, lines):
    """The weights that a sample, as `sample` returns it, gives to the features `lines`."""
    lower, upper, weight_lower, weight_upper = taps
    return tl.where(lines == lower, weight_lower, 0.0) + tl.where(lines == upper, weight_upper, 0.0)


@triton.jit
def _mean_spread(start, side, grid, p, size, lines, SAMPLING: tl.constexpr, ACC: tl.constexpr):
    """The weights that the mean of bin p gives to the features `lines`."""
    weight = tl.zeros([lines.shape[0]], side.dtype)
    for i in range(grid if SAMPLING <= 0 else SAMPLING):
        weight += _spread(sample(start, side, grid, p, i, size), lines)
    return divide(weight, tl.maximum(grid, 1).to(side.dtype)).to(ACC)


@triton.jit
def _roi_align_mean_backward_kernel(
    grads,  # L x [N, C, H_l, W_l]
    marks_ptr,  # [T, W] int64
    grad_out_ptr,  # [R, C, P_H, P_W]
    rois,  # boxes [R, 4], image indices [R], level indices [R], contiguous
    count,  # R
    words,  # W
    channels,  # C
    maps,  # heights, widths, strides of N, C, H and W: L ints each
    tiles,  # one past each level's last tile, tiles across, tiles down: L ints each
    stride_out,  # 4 strides
    SCALES: tl.constexpr,  # L floats
    P_H: tl.constexpr,
    P_W: tl.constexpr,
    SAMPLING: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
    WORD: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """One program per tile of features and block of channels; no two write the same gradient.

    For each marked RoI in order, reads the gradients of the bins near the tile and adds
    A_yᵀ G A_x (SPEC §1) to its sum, which it writes once.
    """
    tile = tl.program_id(0)
    level, image, tile_y, tile_x = _locate_tile(tile, tiles, TILE)
    height, width, stride_n, stride_c, stride_h, stride_w = map_of(maps, level)
    ys, xs = tile_y + tl.arange(0, TILE), tile_x + tl.arange(0, TILE)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_mask = c < channels
    total = tl.zeros([TILE, TILE, BLOCK_C], ACC)
    marks_ptr += tile.to(tl.int64) * words
    for base in range(0, words, WORD):
        nonzero = _nonzero_words(marks_ptr, base, words, WORD)
        while nonzero != 0:
            word = base + lowest_bit(nonzero)
            nonzero = nonzero & (nonzero - 1)
            marks = tl.load(marks_ptr + word)
            while marks != 0:
                r = (word * WORD + lowest_bit(marks)).to(tl.int64)
                marks = marks & (marks - 1)
                x1, y1, x2, y2, _, _, valid = load_roi(rois, r, count, SCALES)
                start_y, side_y, grid_y, _ = axis(y1, y2, valid, P_H, SAMPLING, ALIGNED)
                start_x, side_x, grid_x, _ = axis(x1, x2, valid, P_W, SAMPLING, ALIGNED)
                first_p, end_p = _bins_near(start_y, side_y, tile_y, P_H, TILE)
                first_q, end_q = _bins_near(start_x, side_x, tile_x, P_W, TILE)
                grad_ptr = grad_out_ptr + r * stride_out[0] + c * stride_out[1]
                for p in range(first_p, end_p):
                    across = tl.zeros([TILE, BLOCK_C], ACC)
                    for q in range(first_q, end_q):
                        bin_ptr = grad_ptr + p * stride_out[2] + q * stride_out[3]
                        grad = tl.load(bin_ptr, channel_mask, 0.0).to(ACC)
                        weight_x = _mean_spread(
                            start_x, side_x, grid_x, q, width, xs, SAMPLING, ACC
                        )
                        across = tl.fma(weight_x[:, None], grad[None, :], across)
                    weight_y = _mean_spread(start_y, side_y, grid_y, p, height, ys, SAMPLING, ACC)
                    total = tl.fma(weight_y[:, None, None], across[None, :, :], total)
    grad_ptr = choose(grads, level) + image.to(tl.int64) * stride_n
    store_tile(grad_ptr, total, ys, xs, c, height, width, channels, stride_h, stride_w, stride_c)


@triton.jit
def _roi_align_max_backward_kernel(
    grads,  # L x [N, C, H_l, W_l]
    marks_ptr,  # [T, W] int64
    grad_out_ptr,  # [R, C, P_H, P_W]
    number_ptr,  # [R, C, P_H, P_W] int32
    rois,  # boxes [R, 4], image indices [R], level indices [R], contiguous
    count,  # R
    words,  # W
    channels,  # C
    maps,  # heights, widths, strides of N, C, H and W: L ints each
    tiles,  # one past each level's last tile, tiles across, tiles down: L ints each
    stride_out,  # 4 strides
    stride_number,  # 4 strides
    SCALES: tl.constexpr,  # L floats
    P_H: tl.constexpr,
    P_W: tl.constexpr,
    SAMPLING: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
    WORD: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """One program per tile of features and block of channels; no two write the same gradient.

    For each marked RoI in order, reads gradients and sample indices of the bins near the tile and
    adds each gradient, spread by the weights of that one sample, to its sum, which it writes once.
    """
    tile = tl.program_id(0)
    level, image, tile_y, tile_x = _locate_tile(tile, tiles, TILE)
    height, width, stride_n, stride_c, stride_h, stride_w = map_of(maps, level)
    ys, xs = tile_y + tl.arange(0, TILE), tile_x + tl.arange(0, TILE)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_mask = c < channels
    total = tl.zeros([TILE, TILE, BLOCK_C], ACC)
    marks_ptr += tile.to(tl.int64) * words
    for base in range(0, words, WORD):
        nonzero = _nonzero_words(marks_ptr, base, words, WORD)
        while nonzero != 0:
            word = base + lowest_bit(nonzero)
            nonzero = nonzero & (nonzero - 1)
            marks = tl.load(marks_ptr + word)
            while marks != 0:
                r = (word * WORD + lowest_bit(marks)).to(tl.int64)
                marks = marks & (marks - 1)
                x1, y1, x2, y2, _, _, valid = load_roi(rois, r, count, SCALES)
                start_y, side_y, grid_y, _ = axis(y1, y2, valid, P_H, SAMPLING, ALIGNED)
                start_x, side_x, grid_x, _ = axis(x1, x2, valid, P_W, SAMPLING, ALIGNED)
                first_p, end_p = _bins_near(start_y, side_y, tile_y, P_H, TILE)
                first_q, end_q = _bins_near(start_x, side_x, tile_x, P_W, TILE)
                grad_ptr = grad_out_ptr + r * stride_out[0] + c * stride_out[1]
                which_ptr = number_ptr + r * stride_number[0] + c * stride_number[1]
                for p in range(first_p, end_p):
                    for q in range(first_q, end_q):
                        bin_ptr = grad_ptr + p * stride_out[2] + q * stride_out[3]
                        grad = tl.load(bin_ptr, channel_mask, 0.0).to(ACC)
                        bin_ptr = which_ptr + p * stride_number[2] + q * stride_number[3]
                        number = tl.load(bin_ptr, channel_mask, -1)
                        for i in range(grid_y):
                            y = sample(start_y, side_y, grid_y, p, i, height)
                            weight_y = _spread(y, ys).to(ACC)
                            for j in range(grid_x):
                                x = sample(start_x, side_x, grid_x, q, j, width)
                                passed = tl.where(number == i * grid_x + j, grad, 0.0)
                                share = _spread(x, xs).to(ACC)[:, None] * passed[None, :]
                                total += weight_y[:, None, None] * share[None, :, :]
    grad_ptr = choose(grads, level) + image.to(tl.int64) * stride_n
    store_tile(grad_ptr, total, ys, xs, c, height, width, channels, stride_h, stride_w, stride_c)


def _tiles_of(tensors):
    """Return one past the last tile of each level, and its tiles across and down."""
    down = tuple(triton.cdiv(x.shape[2], TILE) for x in tensors)
    across = tuple(triton.cdiv(x.shape[3], TILE) for x in tensors)
    counts = (len(x) * d * a for x, d, a in zip(tensors, down, across, strict=True))
    return tuple(accumulate(counts)), across, down


def backward(
    grad_out: torch.Tensor,
    number: torch.Tensor | None,
    sampling: Sampling,
    grads: list[torch.Tensor],
) -> None:
    """Fill `grads`, a tensor per level, from grad_out [R, C, P_h, P_w].

    `number` is what the forward left there, None for the mean.
    """
    count, channels = grad_out.shape[:2]
    words, tiles = triton.cdiv(count, WORD), _tiles_of(grads)
    last = tiles[0][-1]
    if last * channels == 0:
        return
    rois = tuple(x.contiguous() for x in sampling[:3])
    marks = torch.empty((last, words), dtype=torch.int64, device=grad_out.device)
    block = min(CHANNELS, triton.next_power_of_2(channels))
    common = {"rois": rois, "count": count, "words": words, "maps": maps_of(grads), "tiles": tiles}
    common |= {**constants_of(sampling), "TILE": TILE, "WORD": WORD}
    keywords = {"channels": channels, "stride_out": grad_out.stride(), "BLOCK_C": block}
    keywords |= {"SAMPLING": sampling.sampling_ratio, "ACC": accumulator(grad_out), **common}
    grid = last, triton.cdiv(channels, block)
    with torch.cuda.device_of(grad_out):
        if words:
            _roi_align_mark_kernel[(last, triton.cdiv(words, WORDS_AT_ONCE))](
                marks_ptr=marks, **common, BLOCK=WORDS_AT_ONCE
            )
        if number is None:
            _roi_align_mean_backward_kernel[grid](tuple(grads), marks, grad_out, **keywords)
        else:
            keywords["stride_number"] = number.stride()
            _roi_align_max_backward_kernel[grid](tuple(grads), marks, grad_out, number, **keywords)
