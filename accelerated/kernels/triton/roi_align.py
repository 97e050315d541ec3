"""RoIAlign in Triton, all levels of a pyramid in one launch, forward and backward, without atomics.

Forward: one program per RoI, row of bins and block of channels. Backward: a first kernel marks for every tile of features
the RoIs whose windows reach it, a bit each; then one program per tile and block of channels adds their shares in
registers, in the order of the RoIs, and writes every gradient once, in its own dtype.

L levels, R rois, P pooled size. `features` and `grads` are tuples of L tensors [N, C, H_l, W_l], their strides tuples of L
numbers. SCALES are compile-time constants, as Triton passes a Python float as float32. Launched without contraction to fused
multiply-adds, so that coordinates round as in PyTorch; sums ask for it.
"""

import torch
import triton
import triton.language as tl

FORWARD_CHANNELS = 64
BACKWARD_CHANNELS = 32
TILE = 8  # the backward's tiles are TILE x TILE features
WORD = 32  # RoIs per word of a tile's mask (of 64 bits: no sign to mind)
WORDS_AT_ONCE = 4


@triton.jit
def _divide(a, b):
    """IEEE division; the operator `/` is approximate in float32."""
    return a / b if a.dtype == tl.float64 else tl.div_rn(a, b)


@triton.jit
def _choose(values, level, LEVELS: tl.constexpr):
    """values[level] of a tuple."""
    chosen = values[0]
    for l in tl.static_range(1, LEVELS):
        chosen = tl.where(level == l, values[l], chosen)
    return chosen


@triton.jit
def _load_roi(
    rois_ptr, image_index_ptr, level_index_ptr, r, count, SCALES: tl.constexpr, LEVELS: tl.constexpr
):
    """x1, y1, x2, y2 in feature pixels, image, level, and whether the RoI is one: neither padding nor non-finite. `r` may be a block."""
    exists = r < count
    x1 = tl.load(rois_ptr + r * 4, exists, 0.0)
    y1 = tl.load(rois_ptr + r * 4 + 1, exists, 0.0)
    x2 = tl.load(rois_ptr + r * 4 + 2, exists, 0.0)
    y2 = tl.load(rois_ptr + r * 4 + 3, exists, 0.0)
    image = tl.load(image_index_ptr + r, exists, -1).to(tl.int64)
    level = tl.load(level_index_ptr + r, exists, 0).to(tl.int32)
    valid = (
        (image >= 0) & (x1 - x1 == 0) & (y1 - y1 == 0) & (x2 - x2 == 0) & (y2 - y2 == 0)
    )  # x - x is 0 where x is finite
    scale = tl.full([], SCALES[0], x1.dtype)
    for l in tl.static_range(1, LEVELS):
        scale = tl.where(level == l, tl.full([], SCALES[l], x1.dtype), scale)
    return x1 * scale, y1 * scale, x2 * scale, y2 * scale, image, level, valid


@triton.jit
def _axis(low, high, valid, BINS: tl.constexpr, SAMPLING: tl.constexpr, ALIGNED: tl.constexpr):
    """Start and side of the bins of one axis and samples per bin, in the order of SPEC §1. An invalid RoI lies outside every map."""
    if ALIGNED:
        start = low - 0.5
        length = (high - 0.5) - start
        valid = valid & (high >= low)
    else:
        start = low
        length = tl.maximum(high - start, 1.0)
    start, length = tl.where(valid, start, -9.0), tl.where(valid, length, 0.0)
    side = _divide(length, tl.full([], BINS, length.dtype))
    grid = (
        tl.full([], SAMPLING, tl.int32)
        if SAMPLING > 0
        else tl.minimum(tl.ceil(side), 1048576.0).to(tl.int32)
    )
    return start, side, grid, length


@triton.jit
def _sample(start, side, grid, p, i, size):
    """Sample i of bin p on one axis: its two neighbours and their weights, 0 if it lies more than one pixel outside the map."""
    position = (start + p * side) + _divide(
        (i + tl.full([], 0.5, side.dtype)) * side, tl.maximum(grid, 1).to(side.dtype)
    )
    inside = (position >= -1.0) & (
        position <= size
    )  # exactly -1 and exactly `size` are still valid
    position = tl.minimum(tl.maximum(position, 0.0), (size - 1).to(side.dtype))
    lower = position.to(tl.int32)
    fraction = position - lower.to(side.dtype)
    return (
        lower,
        tl.minimum(lower + 1, size - 1),
        tl.where(inside, 1.0 - fraction, 0.0),
        tl.where(inside, fraction, 0.0),
    )


@triton.jit
def _corner(
    image_ptr,
    y,
    weight_y,
    x,
    weight_x,
    stride_h,
    stride_w,
    channel_offset,
    channel_mask,
    ACC: tl.constexpr,
):
    """weight * feature [Q, C]; what has no weight is not read."""
    weight = (weight_y * weight_x).to(ACC)
    pointers = image_ptr + (y * stride_h + x * stride_w)[:, None] + channel_offset[None, :]
    return weight[:, None] * tl.load(
        pointers, (weight != 0)[:, None] & channel_mask[None, :], 0.0
    ).to(ACC)


@triton.jit
def _bilinear(image_ptr, y, x, stride_h, stride_w, channel_offset, channel_mask, ACC: tl.constexpr):
    """The bilinear samples at `y` (one) and `x` (a block), each as `_sample` returns it [Q, C]."""
    above, below, weight_above, weight_below = y
    left, right, weight_left, weight_right = x
    value = _corner(
        image_ptr,
        above,
        weight_above,
        left,
        weight_left,
        stride_h,
        stride_w,
        channel_offset,
        channel_mask,
        ACC,
    )
    value += _corner(
        image_ptr,
        above,
        weight_above,
        right,
        weight_right,
        stride_h,
        stride_w,
        channel_offset,
        channel_mask,
        ACC,
    )
    value += _corner(
        image_ptr,
        below,
        weight_below,
        left,
        weight_left,
        stride_h,
        stride_w,
        channel_offset,
        channel_mask,
        ACC,
    )
    value += _corner(
        image_ptr,
        below,
        weight_below,
        right,
        weight_right,
        stride_h,
        stride_w,
        channel_offset,
        channel_mask,
        ACC,
    )
    return value


@triton.jit
def _forward_kernel(
    features, rois_ptr, image_index_ptr, level_index_ptr, out_ptr, number_ptr,
    count, channels, heights, widths, stride_n, stride_c, stride_h, stride_w,
    stride_out_r, stride_out_c, stride_out_h, stride_out_w, stride_number_r, stride_number_c, stride_number_h, stride_number_w,
    SCALES: tl.constexpr, LEVELS: tl.constexpr, P_H: tl.constexpr, P_W: tl.constexpr, SAMPLING: tl.constexpr, ALIGNED: tl.constexpr,
    MAXIMUM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0) // P_H
    p = tl.program_id(0) % P_H
    q = tl.arange(0, BLOCK_Q)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    x1, y1, x2, y2, image, level, valid = _load_roi(
        rois_ptr, image_index_ptr, level_index_ptr, r, count, SCALES, LEVELS
    )
    height, width = _choose(heights, level, LEVELS), _choose(widths, level, LEVELS)
    start_y, side_y, grid_y, _ = _axis(
        y1, y2, valid & (x2 >= x1) if ALIGNED else valid, P_H, SAMPLING, ALIGNED
    )
    start_x, side_x, grid_x, _ = _axis(x1, x2, valid, P_W, SAMPLING, ALIGNED)
    image_ptr = _choose(features, level, LEVELS) + tl.maximum(image, 0) * _choose(
        stride_n, level, LEVELS
    )
    row, column = _choose(stride_h, level, LEVELS), _choose(stride_w, level, LEVELS)
    channel_offset, channel_mask = c.to(tl.int64) * _choose(stride_c, level, LEVELS), c < channels
    best = tl.zeros([BLOCK_Q, BLOCK_C], ACC)
    number = tl.full([BLOCK_Q, BLOCK_C], -1, tl.int32)
    for i in range(grid_y if SAMPLING <= 0 else SAMPLING):
        y = _sample(start_y, side_y, grid_y, p, i, height)
        for j in range(grid_x if SAMPLING <= 0 else SAMPLING):
            x = _sample(start_x, side_x, grid_x, q, j, width)
            value = _bilinear(image_ptr, y, x, row, column, channel_offset, channel_mask, ACC)
            if MAXIMUM:
                larger = (number < 0) | (value > best) | ((value != value) & (best == best))
                best = tl.where(larger, value, best)
                number = tl.where(larger, i * grid_x + j, number)
            else:
                best += value
    mask = (q < P_W)[:, None] & channel_mask[None, :]
    if MAXIMUM:
        offset = (
            r.to(tl.int64) * stride_number_r
            + p * stride_number_h
            + q[:, None] * stride_number_w
            + c[None, :] * stride_number_c
        )
        tl.store(number_ptr + offset, number, mask)
    else:
        best = best / tl.maximum(grid_y * grid_x, 1).to(ACC)
    offset = (
        r.to(tl.int64) * stride_out_r
        + p * stride_out_h
        + q[:, None] * stride_out_w
        + c[None, :] * stride_out_c
    )
    tl.store(out_ptr + offset, best.to(out_ptr.dtype.element_ty), mask)


@triton.jit
def _locate_tile(tile, ends, tiles_across, tiles_down, LEVELS: tl.constexpr, TILE: tl.constexpr):
    """Level, image and first row and column of a tile; tiles are numbered by level, image, row, column."""
    level = 0
    first = 0
    for l in tl.static_range(1, LEVELS):
        level = tl.where(tile >= ends[l - 1], l, level)
        first = tl.where(tile >= ends[l - 1], ends[l - 1], first)
    across, down = _choose(tiles_across, level, LEVELS), _choose(tiles_down, level, LEVELS)
    inside = tile - first
    return (
        level,
        inside // (across * down),
        (inside // across) % down * TILE,
        inside % across * TILE,
    )


@triton.jit
def _reaches(start, length, size, first, TILE: tl.constexpr):
    """Whether bilinear samples in [start, start + length] can touch the features first .. first + TILE - 1; errs towards yes."""
    end = start + length
    on_map = (end >= -1.0) & (start <= size)
    return (
        on_map
        & (tl.minimum(tl.floor(start), size - 1.0) < first + TILE)
        & (tl.maximum(tl.floor(end) + 1.0, 0.0) >= first)
    )


@triton.jit
def _mark_kernel(
    rois_ptr, image_index_ptr, level_index_ptr, marks_ptr, count, words, heights, widths, ends, tiles_across, tiles_down,
    SCALES: tl.constexpr, LEVELS: tl.constexpr, P_H: tl.constexpr, P_W: tl.constexpr, ALIGNED: tl.constexpr,
    TILE: tl.constexpr, WORD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    bit = tl.arange(0, WORD)
    tile_level, tile_image, tile_y, tile_x = _locate_tile(
        tile, ends, tiles_across, tiles_down, LEVELS, TILE
    )
    r = word[:, None] * WORD + bit[None, :]
    x1, y1, x2, y2, image, level, valid = _load_roi(
        rois_ptr, image_index_ptr, level_index_ptr, r, count, SCALES, LEVELS
    )
    start_y, _, _, length_y = _axis(
        y1, y2, valid & (x2 >= x1) if ALIGNED else valid, P_H, 1, ALIGNED
    )
    start_x, _, _, length_x = _axis(x1, x2, valid, P_W, 1, ALIGNED)
    hit = valid & (image == tile_image) & (level == tile_level)
    hit = hit & _reaches(start_y, length_y, _choose(heights, tile_level, LEVELS), tile_y, TILE)
    hit = hit & _reaches(start_x, length_x, _choose(widths, tile_level, LEVELS), tile_x, TILE)
    marks = tl.sum(hit.to(tl.int64) << bit[None, :].to(tl.int64), axis=1)
    tl.store(marks_ptr + tile.to(tl.int64) * words + word, marks, word < words)


@triton.jit
def _lowest_bit(word):
    """The number of the lowest bit set, of the lower 32."""
    return ((word & -word).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def _bins_near(start, side, first, BINS: tl.constexpr, TILE: tl.constexpr):
    """First and one-past-last bin with samples in (first - 1, first + TILE), where those that touch the tile lie; errs towards more."""
    positive = side > 0
    side = tl.where(positive, side, 1.0)
    lowest = tl.minimum(tl.maximum(tl.floor((first - 1 - start) / side - 0.01), 0.0), BINS)
    highest = tl.minimum(tl.maximum(tl.floor((first + TILE - start) / side + 0.01), -1.0), BINS - 1)
    return tl.where(positive, lowest.to(tl.int32), 0), tl.where(
        positive, highest.to(tl.int32) + 1, BINS
    )


@triton.jit
def _spread(sample, lines):
    """The weights a sample gives to the features `lines` of one axis."""
    lower, upper, weight_lower, weight_upper = sample
    return tl.where(lines == lower, weight_lower, 0.0) + tl.where(lines == upper, weight_upper, 0.0)


@triton.jit
def _mean_spread(start, side, grid, p, size, lines, SAMPLING: tl.constexpr, ACC: tl.constexpr):
    """The weights the mean of bin p gives to the features `lines`."""
    weight = tl.zeros([lines.shape[0]], side.dtype)
    for i in range(grid if SAMPLING <= 0 else SAMPLING):
        weight += _spread(_sample(start, side, grid, p, i, size), lines)
    return _divide(weight, tl.maximum(grid, 1).to(side.dtype)).to(ACC)


@triton.jit
def _backward_kernel(
    grads, marks_ptr, grad_out_ptr, number_ptr, rois_ptr, image_index_ptr, level_index_ptr,
    count, words, channels, heights, widths, ends, tiles_across, tiles_down, stride_n, stride_c, stride_h, stride_w,
    stride_out_r, stride_out_c, stride_out_h, stride_out_w, stride_number_r, stride_number_c, stride_number_h, stride_number_w,
    SCALES: tl.constexpr, LEVELS: tl.constexpr, P_H: tl.constexpr, P_W: tl.constexpr, SAMPLING: tl.constexpr, ALIGNED: tl.constexpr,
    MAXIMUM: tl.constexpr, TILE: tl.constexpr, WORD: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_mask = c < channels
    level, image, tile_y, tile_x = _locate_tile(tile, ends, tiles_across, tiles_down, LEVELS, TILE)
    height, width = _choose(heights, level, LEVELS), _choose(widths, level, LEVELS)
    ys, xs = tile_y + tl.arange(0, TILE), tile_x + tl.arange(0, TILE)
    total = tl.zeros([TILE, TILE, BLOCK_C], ACC)
    marks_ptr += tile.to(tl.int64) * words
    lanes = tl.arange(0, WORD)
    for base in range(0, words, WORD):
        some = tl.load(marks_ptr + base + lanes, base + lanes < words, 0)
        nonzero = tl.sum((some != 0).to(tl.int64) << lanes.to(tl.int64), axis=0)
        while nonzero != 0:
            word = base + _lowest_bit(nonzero)
            nonzero = nonzero & (nonzero - 1)
            marks = tl.load(marks_ptr + word)
            while marks != 0:
                r = word * WORD + _lowest_bit(marks)
                marks = marks & (marks - 1)
                x1, y1, x2, y2, _, _, valid = _load_roi(
                    rois_ptr, image_index_ptr, level_index_ptr, r, count, SCALES, LEVELS
                )
                start_y, side_y, grid_y, _ = _axis(y1, y2, valid, P_H, SAMPLING, ALIGNED)
                start_x, side_x, grid_x, _ = _axis(x1, x2, valid, P_W, SAMPLING, ALIGNED)
                first_p, end_p = _bins_near(start_y, side_y, tile_y, P_H, TILE)
                first_q, end_q = _bins_near(start_x, side_x, tile_x, P_W, TILE)
                grad_ptr = grad_out_ptr + r.to(tl.int64) * stride_out_r + c * stride_out_c
                for p in range(first_p, end_p):
                    if MAXIMUM:
                        which_ptr = (
                            number_ptr
                            + r.to(tl.int64) * stride_number_r
                            + c * stride_number_c
                            + p * stride_number_h
                        )
                        for q in range(first_q, end_q):
                            grad = tl.load(
                                grad_ptr + p * stride_out_h + q * stride_out_w, channel_mask, 0.0
                            ).to(ACC)
                            number = tl.load(which_ptr + q * stride_number_w, channel_mask, -1)
                            for i in range(grid_y):
                                weight_y = _spread(
                                    _sample(start_y, side_y, grid_y, p, i, height), ys
                                ).to(ACC)
                                for j in range(grid_x):
                                    weight_x = _spread(
                                        _sample(start_x, side_x, grid_x, q, j, width), xs
                                    ).to(ACC)
                                    share = (
                                        weight_x[:, None]
                                        * tl.where(number == i * grid_x + j, grad, 0.0)[None, :]
                                    )
                                    total += weight_y[:, None, None] * share[None, :, :]
                    else:
                        across = tl.zeros([TILE, BLOCK_C], ACC)
                        for q in range(first_q, end_q):
                            grad = tl.load(
                                grad_ptr + p * stride_out_h + q * stride_out_w, channel_mask, 0.0
                            ).to(ACC)
                            weight_x = _mean_spread(
                                start_x, side_x, grid_x, q, width, xs, SAMPLING, ACC
                            )
                            across = tl.fma(weight_x[:, None], grad[None, :], across)
                        weight_y = _mean_spread(
                            start_y, side_y, grid_y, p, height, ys, SAMPLING, ACC
                        )
                        total = tl.fma(weight_y[:, None, None], across[None, :, :], total)
    grad_ptr = _choose(grads, level, LEVELS) + image.to(tl.int64) * _choose(stride_n, level, LEVELS)
    offset = (ys * _choose(stride_h, level, LEVELS))[:, None, None] + (
        xs * _choose(stride_w, level, LEVELS)
    )[None, :, None]
    offset = offset + (c.to(tl.int64) * _choose(stride_c, level, LEVELS))[None, None, :]
    mask = (ys < height)[:, None, None] & (xs < width)[None, :, None] & channel_mask[None, None, :]
    tl.store(grad_ptr + offset, total.to(grad_ptr.dtype.element_ty), mask)


def _levels_of(tensors):
    """Sizes and strides of the levels, by the names of the kernels' arguments."""
    strides = zip(
        ("stride_n", "stride_c", "stride_h", "stride_w"),
        zip(*(x.stride() for x in tensors), strict=True),
        strict=True,
    )
    return {
        "heights": tuple(x.shape[2] for x in tensors),
        "widths": tuple(x.shape[3] for x in tensors),
        **dict(strides),
    }


def _tiles_of(tensors, tile):
    """(how many tiles in all, the arguments that locate one)."""
    down = tuple(triton.cdiv(x.shape[2], tile) for x in tensors)
    across = tuple(triton.cdiv(x.shape[3], tile) for x in tensors)
    ends, total = [], 0
    for x, rows, columns in zip(tensors, down, across, strict=True):
        total += len(x) * rows * columns
        ends.append(total)
    return total, {"ends": tuple(ends), "tiles_across": across, "tiles_down": down}


def _strides_of(tensor, name):
    """Strides of [R, C, P_h, P_w], by the names of the kernels' arguments."""
    strides = (0, 0, 0, 0) if tensor is None else tensor.stride()
    return {f"stride_{name}_{axis}": stride for axis, stride in zip("rchw", strides, strict=True)}


def _accumulator(tensor):
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


def forward(
    features,
    rois,
    image_index,
    level_index,
    scales,
    output_size,
    sampling_ratio,
    aligned,
    out,
    number,
):
    """Fill `out` [R, C, P_h, P_w], and with a `number` of its shape (int32) take the maximum and note which sample it was."""
    if out.numel() == 0:
        return
    rois, image_index, level_index = (
        rois.contiguous(),
        image_index.contiguous(),
        level_index.contiguous(),
    )
    channels, block = out.shape[1], min(FORWARD_CHANNELS, triton.next_power_of_2(out.shape[1]))
    with torch.cuda.device_of(rois):
        _forward_kernel[(len(rois) * output_size[0], triton.cdiv(channels, block))](
            tuple(features), rois, image_index, level_index, out, number,
            count=len(rois), channels=channels, **_levels_of(features), **_strides_of(out, "out"), **_strides_of(number, "number"),
            SCALES=tuple(scales), LEVELS=len(scales), P_H=output_size[0], P_W=output_size[1], SAMPLING=sampling_ratio, ALIGNED=aligned,
            MAXIMUM=number is not None, BLOCK_Q=triton.next_power_of_2(output_size[1]), BLOCK_C=block, ACC=_accumulator(out),
            enable_fp_fusion=False,
        )  # fmt: skip


def backward(
    grad_out,
    number,
    rois,
    image_index,
    level_index,
    scales,
    output_size,
    sampling_ratio,
    aligned,
    grads,
):
    """Fill `grads`, one tensor per level, from grad_out [R, C, P_h, P_w]; `number` as `forward` left it, None for the mean."""
    rois, image_index, level_index = (
        rois.contiguous(),
        image_index.contiguous(),
        level_index.contiguous(),
    )
    count, channels, block = (
        len(rois),
        grad_out.shape[1],
        min(BACKWARD_CHANNELS, triton.next_power_of_2(max(1, grad_out.shape[1]))),
    )
    words = triton.cdiv(count, WORD)
    tiles, location = _tiles_of(grads, TILE)
    if tiles * channels == 0:
        return
    marks = torch.empty((tiles, words), dtype=torch.int64, device=rois.device)
    sizes = _levels_of(grads)
    constants = {
        "SCALES": tuple(scales),
        "LEVELS": len(scales),
        "P_H": output_size[0],
        "P_W": output_size[1],
        "ALIGNED": aligned,
    }
    constants |= {"TILE": TILE, "WORD": WORD, "enable_fp_fusion": False}
    with torch.cuda.device_of(rois):
        if words:
            _mark_kernel[(tiles, triton.cdiv(words, WORDS_AT_ONCE))](
                rois, image_index, level_index, marks, count=count, words=words,
                heights=sizes["heights"], widths=sizes["widths"], **location, **constants, BLOCK=WORDS_AT_ONCE,
            )  # fmt: skip
        _backward_kernel[(tiles, triton.cdiv(channels, block))](
            tuple(grads), marks, grad_out, number, rois, image_index, level_index,
            count=count, words=words, channels=channels, **sizes, **location,
            **_strides_of(grad_out, "out"), **_strides_of(number, "number"), **constants,
            SAMPLING=sampling_ratio, MAXIMUM=number is not None, BLOCK_C=block, ACC=_accumulator(grad_out),
        )  # fmt: skip
