# Triton compiles these functions: blocks of numbers and constants, not the types that Python sees.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false
"""The backward of RoIAlign in Triton, all levels of a pyramid, without atomic additions.

`_roi_align_mark_kernel` marks for every RoI the tiles of features that its window reaches. Then one
program per tile and block of channels adds the shares of the RoIs that reach it in registers, in
the order of the RoIs, and writes every gradient once, in its own dtype.

The mean is a product of matrices, of which tensor cores are capable: the gradients of a tile are
W G, where row y x of W [TILE TILE, K] holds the weights that K bins give to feature (y, x), and G
[K, C] their gradients. Gradients of 16 bits ask for weights of 16 bits; these are then the sum of
two numbers, the rounded weight and what rounding took.

Arguments are passed as in the forward.

Legend: N images, R rois, C channels, P pooled size, L levels, T tiles of an image, W words.
"""

import torch
import triton
import triton.language as tl
from triton import knobs

from accelerated.kernels.arguments import Sampling
from accelerated.kernels.triton.sampling import (
    accumulator,
    axis,
    choose,
    constants_of,
    load_roi,
    maps_of,
    position_of,
    sample,
    samples_of,
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

# Channels per program of the mean's kernel, by the bytes of a gradient; of the maximum's kernel.
MEAN_CHANNELS = {2: 256, 4: 128, 8: 64}
MAX_CHANNELS = 32
# Bins per product of matrices.
BINS_AT_ONCE = 16
MEAN_WARPS, MEAN_STAGES = 4, 2
# Per thread: as many as let three programs run on a multiprocessor at a time.
MEAN_REGISTERS = 168
# How tensor cores multiply float32; "tf32x3" is as exact as "ieee" to about two bits.
PRECISION = "tf32x3"


@triton.jit
def _lines_near(start, length, size):
    """First and last line that samples in [start, start + length] may read, and whether any does.

    Errs towards more.
    """
    end = start + length
    first = tl.minimum(tl.maximum(tl.floor(start), 0.0), size - 1.0).to(tl.int32)
    last = tl.minimum(tl.maximum(tl.floor(end) + 1.0, 0.0), size - 1.0).to(tl.int32)
    return first, last, (end >= -1.5) & (start <= size + 0.5)


@triton.jit
def _roi_align_mark_kernel(
    rois,  # boxes [R, 4], image indices [R], level indices [R], contiguous
    places_ptr,  # [R] int32
    order_ptr,  # [W WORD] int32
    bins_ptr,  # [W WORD, 4]: start and side of the bins, of y and of x
    marks_ptr,  # [W, T] int32
    maps,  # unit, heights, widths, strides of N, C, H and W: L ints each
    SCALES: tl.constexpr,  # L floats
    P_H: tl.constexpr,
    P_W: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
    WORD: tl.constexpr,
):
    """One program per RoI: writes its bins to its place, and marks the tiles that it reaches."""
    r = tl.program_id(0)
    x1, y1, x2, y2, _, level, valid = load_roi(rois, r, SCALES)
    if ALIGNED:
        valid = valid & (x2 >= x1) & (y2 >= y1)
    height, width = size_of(maps, level)
    start_y, side_y, _, length_y = axis(y1, y2, valid, P_H, 1, ALIGNED)
    start_x, side_x, _, length_x = axis(x1, x2, valid, P_W, 1, ALIGNED)
    top, bottom, reaches_y = _lines_near(start_y, length_y, height)
    left, right, reaches_x = _lines_near(start_x, length_x, width)
    if valid & reaches_y & reaches_x:
        place = tl.load(places_ptr + r)
        tl.store(order_ptr + place, r)
        tl.store(bins_ptr + place * 4, start_y)
        tl.store(bins_ptr + place * 4 + 1, side_y)
        tl.store(bins_ptr + place * 4 + 2, start_x)
        tl.store(bins_ptr + place * 4 + 3, side_x)
        mark_tiles(marks_ptr, place, level, top, bottom, left, right, maps, TILE, WORD)


@triton.jit
def _load_bins(bins_ptr, place):
    """Start and side of an RoI's bins, of y and of x, as `_roi_align_mark_kernel` left them."""
    start_y, side_y = tl.load(bins_ptr + place * 4), tl.load(bins_ptr + place * 4 + 1)
    return start_y, side_y, tl.load(bins_ptr + place * 4 + 2), tl.load(bins_ptr + place * 4 + 3)


@triton.jit
def _bins_near(start, side, first, BINS: tl.constexpr, TILE: tl.constexpr):
    """First bin with samples in (first - 1, first + TILE), which touch the tile, and their number.

    Errs towards more.
    """
    wide = side > 1e-30
    per_line = 1.0 / tl.where(wide, side, 1.0)
    lowest = tl.floor((first - 1 - start) * per_line - 0.01)
    highest = tl.floor((first + TILE - start) * per_line + 0.01)
    lowest = tl.minimum(tl.maximum(lowest, 0.0), BINS).to(tl.int32)
    highest = tl.minimum(tl.maximum(highest, -1.0), BINS - 1).to(tl.int32)
    return tl.where(wide, lowest, 0), tl.where(wide, tl.maximum(highest + 1 - lowest, 0), BINS)


@triton.jit
def _sums_of_weights(start, side, grid, p, size, lines, SAMPLING: tl.constexpr):
    """The sums of the weights that the samples of bins p give to features [lines, bins].

    A sample gives a feature 1 minus its distance, if that is positive.
    """
    weight = tl.zeros([lines.shape[0], p.shape[0]], side.dtype)
    for i in range(grid if SAMPLING <= 0 else SAMPLING):
        position, on_map = position_of(start, side, grid, p, i, size, SAMPLING)
        # Where a sample does not count, it is far from every line.
        position = tl.where(on_map, position, -2.0)
        distance = tl.abs(position[None, :] - lines.to(side.dtype)[:, None])
        weight += tl.maximum(1.0 - distance, 0.0)
    return weight


@triton.jit
def _roi_align_mean_backward_kernel(
    grads,  # L x [N, C, H_l, W_l]
    grad_out_ptr,  # [R, P_H, P_W, C], contiguous
    first_words_ptr,  # [N + 1] int32
    marks_ptr,  # [W, T] int32
    order_ptr,  # [W WORD] int32
    bins_ptr,  # [W WORD, 4]
    channels,  # C
    maps,  # unit, heights, widths, strides of N, C, H and W: L ints each
    P_H: tl.constexpr,
    P_W: tl.constexpr,
    SAMPLING: tl.constexpr,
    TILE: tl.constexpr,
    WORD: tl.constexpr,
    K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
    SPLIT: tl.constexpr,  # whether weights are the sum of two numbers of the gradients' dtype
    SCALE: tl.constexpr,  # of the weights: a power of 2 that keeps small ones exact
    PRECISION: tl.constexpr,
):
    """One program per tile of features and block of channels; no two write the same gradient.

    For each marked RoI in order, reads the gradients of the bins near the tile, K at a time, and
    adds A_yᵀ G A_x (SPEC §1) to its sum, which it writes once.
    """
    tile, image = tl.program_id(0), tl.program_id(2)
    level, tile_y, tile_x, tiles = locate_tile(tile, maps, TILE)
    height, width = size_of(maps, level)
    ys, xs = tile_y + tl.arange(0, TILE), tile_x + tl.arange(0, TILE)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_mask = c < channels
    total = tl.zeros([TILE * TILE, BLOCK_C], ACC)
    first, end = tl.load(first_words_ptr + image), tl.load(first_words_ptr + image + 1)
    marks_ptr += tile
    grad_out_ptr += c[None, :]
    for base in range(first, end, WORD):
        marked = marked_words(marks_ptr, base, end, tiles, WORD)
        while marked != 0:
            word = base + lowest_bit(marked)
            marked = marked & (marked - 1)
            marks = tl.load(marks_ptr + word.to(tl.int64) * tiles)
            while marks != 0:
                place = word * WORD + lowest_bit(marks)
                marks = marks & (marks - 1)
                start_y, side_y, start_x, side_x = _load_bins(bins_ptr, place)
                r = tl.load(order_ptr + place).to(tl.int64)
                grad_ptr = grad_out_ptr + r * (P_H * P_W * channels)
                grid_y, grid_x = samples_of(side_y, SAMPLING), samples_of(side_x, SAMPLING)
                samples = grid_y.to(side_y.dtype) * grid_x.to(side_y.dtype)
                mean = SCALE / tl.maximum(samples, 1.0)
                first_p, rows = _bins_near(start_y, side_y, tile_y, P_H, TILE)
                first_q, columns = _bins_near(start_x, side_x, tile_x, P_W, TILE)
                bins = rows * columns
                for number in range(0, bins, K):
                    # Behind the last bin, the last once more, without weight.
                    lane = number + tl.arange(0, K)
                    k = tl.minimum(lane, bins - 1)
                    # Whole division; exact, as there are few bins.
                    row = ((k + 0.5) * (1.0 / columns)).to(tl.int32)
                    p, q = first_p + row, first_q + k - row * columns
                    bin_ptr = grad_ptr + ((p * P_W + q) * channels)[:, None]
                    grad = tl.load(bin_ptr, channel_mask[None, :])
                    weight_y = _sums_of_weights(start_y, side_y, grid_y, p, height, ys, SAMPLING)
                    weight_x = _sums_of_weights(start_x, side_x, grid_x, q, width, xs, SAMPLING)
                    weight_y *= tl.where(lane < bins, mean, 0.0)[None, :]
                    weight = weight_y[:, None, :] * weight_x[None, :, :]
                    weight = tl.reshape(weight.to(ACC), [TILE * TILE, K])
                    if SPLIT:
                        high = weight.to(grad.dtype)
                        low = (weight - high.to(ACC)).to(grad.dtype)
                        total = tl.dot(low, grad, total)
                        total = tl.dot(high, grad, total)
                    else:
                        total = tl.dot(
                            weight, grad.to(ACC), total, input_precision=PRECISION, out_dtype=ACC
                        )
    if SCALE != 1:
        total *= 1 / SCALE
    stride_n, stride_c, stride_h, stride_w = strides_of(maps, level)
    grad_ptr = choose(grads, level) + image * stride_n
    total = tl.reshape(total, [TILE, TILE, BLOCK_C])
    store_tile(grad_ptr, total, ys, xs, c, height, width, channels, stride_h, stride_w, stride_c)


@triton.jit
def _spread(taps, lines):
    """The weights that a sample, as `sample` returns it, gives to the features `lines`."""
    lower, upper, weight_lower, weight_upper = taps
    return tl.where(lines == lower, weight_lower, 0.0) + tl.where(lines == upper, weight_upper, 0.0)


@triton.jit
def _roi_align_max_backward_kernel(
    grads,  # L x [N, C, H_l, W_l]
    grad_out_ptr,  # [R, C, P_H, P_W]
    number_ptr,  # [R, C, P_H, P_W] int32
    first_words_ptr,  # [N + 1] int32
    marks_ptr,  # [W, T] int32
    order_ptr,  # [W WORD] int32
    bins_ptr,  # [W WORD, 4]
    channels,  # C
    maps,  # unit, heights, widths, strides of N, C, H and W: L ints each
    stride_out,  # 4 strides
    stride_number,  # 4 strides
    P_H: tl.constexpr,
    P_W: tl.constexpr,
    SAMPLING: tl.constexpr,
    TILE: tl.constexpr,
    WORD: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """One program per tile of features and block of channels; no two write the same gradient.

    For each marked RoI in order, reads gradients and sample indices of the bins near the tile and
    adds each gradient, spread by the weights of that one sample, to its sum, which it writes once.
    """
    tile, image = tl.program_id(0), tl.program_id(2)
    level, tile_y, tile_x, tiles = locate_tile(tile, maps, TILE)
    height, width = size_of(maps, level)
    ys, xs = tile_y + tl.arange(0, TILE), tile_x + tl.arange(0, TILE)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_mask = c < channels
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
                place = word * WORD + lowest_bit(marks)
                marks = marks & (marks - 1)
                start_y, side_y, start_x, side_x = _load_bins(bins_ptr, place)
                r = tl.load(order_ptr + place).to(tl.int64)
                grid_y, grid_x = samples_of(side_y, SAMPLING), samples_of(side_x, SAMPLING)
                first_p, rows = _bins_near(start_y, side_y, tile_y, P_H, TILE)
                first_q, columns = _bins_near(start_x, side_x, tile_x, P_W, TILE)
                grad_ptr = grad_out_ptr + r * stride_out[0] + c * stride_out[1]
                which_ptr = number_ptr + r * stride_number[0] + c * stride_number[1]
                for p in range(first_p, first_p + rows):
                    for q in range(first_q, first_q + columns):
                        bin_ptr = grad_ptr + p * stride_out[2] + q * stride_out[3]
                        grad = tl.load(bin_ptr, channel_mask, 0.0).to(ACC)
                        bin_ptr = which_ptr + p * stride_number[2] + q * stride_number[3]
                        number = tl.load(bin_ptr, channel_mask, -1)
                        for i in range(grid_y):
                            y = sample(start_y, side_y, grid_y, p, i, height, SAMPLING)
                            weight_y = _spread(y, ys).to(ACC)
                            for j in range(grid_x):
                                x = sample(start_x, side_x, grid_x, q, j, width, SAMPLING)
                                passed = tl.where(number == i * grid_x + j, grad, 0.0)
                                share = _spread(x, xs).to(ACC)[:, None] * passed[None, :]
                                total += weight_y[:, None, None] * share[None, :, :]
    stride_n, stride_c, stride_h, stride_w = strides_of(maps, level)
    grad_ptr = choose(grads, level) + image * stride_n
    store_tile(grad_ptr, total, ys, xs, c, height, width, channels, stride_h, stride_w, stride_c)


def backward(
    grad_out: torch.Tensor,
    number: torch.Tensor | None,
    sampling: Sampling,
    grads: list[torch.Tensor],
) -> None:
    """Fill `grads`, a tensor per level, from grad_out [R, C, P_h, P_w].

    `number` is what the forward left there, None for the mean.
    """
    (count, channels), images, tiles = grad_out.shape[:2], len(grads[0]), tiles_of(grads)
    if images * tiles * channels == 0:
        return
    rois = tuple(x.contiguous() for x in sampling[:3])
    maps, constants = maps_of(grads), constants_of(sampling) | {"TILE": TILE, "WORD": WORD}
    with torch.cuda.device_of(grad_out):
        marks = empty_marks(rois[1], images, tiles)
        bins = rois[0].new_empty(len(marks.order), 4)
        if count:
            _roi_align_mark_kernel[(count,)](
                rois, marks.places, marks.order, bins, marks.words, maps, **constants, num_warps=1
            )
        constants = {k: v for k, v in constants.items() if k not in ("SCALES", "ALIGNED")}
        keywords = constants | {"SAMPLING": sampling.sampling_ratio, "ACC": accumulator(grad_out)}
        visits = marks.first_words, marks.words, marks.order, bins, channels, maps
        if number is None:
            _launch_mean(grads, grad_out, visits, keywords, tiles)
        else:
            block = min(MAX_CHANNELS, triton.next_power_of_2(channels))
            _roi_align_max_backward_kernel[tiles, triton.cdiv(channels, block), images](
                tuple(grads),
                grad_out,
                number,
                *visits,
                grad_out.stride(),
                number.stride(),
                **keywords,
                BLOCK_C=block,
            )


def _launch_mean(grads, grad_out, visits, keywords, tiles):
    """Launch the mean's kernel with the constants that suit the dtype of the gradients."""
    channels, size = grad_out.shape[1], grad_out.element_size()
    # A product of matrices has at least 16 columns.
    block = max(16, min(MEAN_CHANNELS[size], triton.next_power_of_2(channels)))
    half = grad_out.dtype == torch.float16
    # Interpreted, bfloat16 cannot be multiplied; its gradients become float32.
    split = half or (grad_out.dtype == torch.bfloat16 and not knobs.runtime.interpret)
    _roi_align_mean_backward_kernel[tiles, triton.cdiv(channels, block), len(grads[0])](
        tuple(grads),
        grad_out.contiguous(memory_format=torch.channels_last),
        *visits,
        **keywords,
        K=BINS_AT_ONCE,
        BLOCK_C=block,
        SPLIT=split,
        SCALE=2.0**15 if half else 1.0,
        PRECISION=PRECISION,
        num_warps=MEAN_WARPS,
        num_stages=MEAN_STAGES,
        maxnreg=MEAN_REGISTERS,
    )
