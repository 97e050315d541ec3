# Triton compiles these functions: blocks of numbers and constants, not the types that Python sees.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false
"""What the Triton kernels share: division, levels, bit masks, tiles, and RoIAlign's samples."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from accelerated.kernels.arguments import Sampling


@triton.jit
def divide(a, b):
    """IEEE division; in float32 the operator `/` is approximate, and ceil(56 / 28) must be 2."""
    return a / b if a.dtype == tl.float64 else tl.div_rn(a, b)


@triton.jit
def choose(values, level):
    """values[level] of a tuple."""
    chosen = values[0]
    for l in tl.static_range(1, len(values)):
        chosen = tl.where(level == l, values[l], chosen)
    return chosen


@triton.jit
def map_of(maps, level):
    """Height, width, and the strides of N, C, H and W of a level's tensor."""
    heights, widths, strides_n, strides_c, strides_h, strides_w = maps
    height, width = choose(heights, level), choose(widths, level)
    stride_n, stride_c = choose(strides_n, level), choose(strides_c, level)
    return height, width, stride_n, stride_c, choose(strides_h, level), choose(strides_w, level)


@triton.jit
def lowest_bit(word):
    """The index of the lowest bit set among the lower 32 of a 64-bit word."""
    return ((word & -word).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def load_roi(rois, r, count, SCALES: tl.constexpr):
    """x1, y1, x2, y2 in feature pixels, image, level, and whether RoI r (or a block) is valid.

    A padding RoI and one that is not finite are invalid.
    """
    rois_ptr, image_index_ptr, level_index_ptr = rois
    exists = r < count
    x1 = tl.load(rois_ptr + r * 4, exists, 0.0)
    y1 = tl.load(rois_ptr + r * 4 + 1, exists, 0.0)
    x2 = tl.load(rois_ptr + r * 4 + 2, exists, 0.0)
    y2 = tl.load(rois_ptr + r * 4 + 3, exists, 0.0)
    image = tl.load(image_index_ptr + r, exists, -1).to(tl.int64)
    level = tl.load(level_index_ptr + r, exists, 0).to(tl.int32)
    # x - x is 0 where x is finite.
    finite = (x1 - x1 == 0) & (y1 - y1 == 0) & (x2 - x2 == 0) & (y2 - y2 == 0)
    scale = tl.full([], SCALES[0], x1.dtype)
    for l in tl.static_range(1, len(SCALES)):
        scale = tl.where(level == l, tl.full([], SCALES[l], x1.dtype), scale)
    return x1 * scale, y1 * scale, x2 * scale, y2 * scale, image, level, (image >= 0) & finite


@triton.jit
def axis(low, high, valid, BINS: tl.constexpr, SAMPLING: tl.constexpr, ALIGNED: tl.constexpr):
    """Start and side of an RoI's bins along one axis, samples per bin, and length (SPEC §1).

    An invalid RoI lies outside every map.
    """
    if ALIGNED:
        start = low - 0.5
        length = (high - 0.5) - start
        valid = valid & (high >= low)
    else:
        start = low
        length = tl.maximum(high - start, 1.0)
    start, length = tl.where(valid, start, -9.0), tl.where(valid, length, 0.0)
    side = divide(length, tl.full([], BINS, length.dtype))
    if SAMPLING > 0:
        grid = tl.full([], SAMPLING, tl.int32)
    else:
        grid = tl.minimum(tl.ceil(side), 1048576.0).to(tl.int32)
    return start, side, grid, length


@triton.jit
def sample(start, side, grid, p, i, size):
    """Sample i of bin p on one axis: its lower and upper pixel, and the weight of each.

    Both weights are 0 more than one pixel outside the map; exactly -1 and `size` are inside.
    """
    half = tl.full([], 0.5, side.dtype)
    inside_bin = divide((i + half) * side, tl.maximum(grid, 1).to(side.dtype))
    position = (start + p * side) + inside_bin
    on_map = (position >= -1.0) & (position <= size)
    position = tl.minimum(tl.maximum(position, 0.0), (size - 1).to(side.dtype))
    lower = position.to(tl.int32)
    upper = tl.minimum(lower + 1, size - 1)
    fraction = position - lower.to(side.dtype)
    return lower, upper, tl.where(on_map, 1.0 - fraction, 0.0), tl.where(on_map, fraction, 0.0)


@triton.jit
def store_tile(ptr, total, ys, xs, c, height, width, channels, stride_h, stride_w, stride_c):
    """Write `total` [Y, X, C], in the dtype of the gradients, to the features at ys, xs and c."""
    offset = (ys * stride_h)[:, None, None] + (xs * stride_w)[None, :, None]
    offset = offset + (c.to(tl.int64) * stride_c)[None, None, :]
    mask = (ys < height)[:, None, None] & (xs < width)[None, :, None]
    mask = mask & (c < channels)[None, None, :]
    tl.store(ptr + offset, total.to(ptr.dtype.element_ty), mask)


def maps_of(tensors: Sequence[torch.Tensor]) -> tuple:
    """Return heights, widths and the four strides of the levels, L ints each, as `map_of` reads."""
    return tuple(zip(*((*x.shape[2:], *x.stride()) for x in tensors), strict=True))


def constants_of(sampling: Sampling) -> dict:
    """Return the compile-time arguments that all kernels take."""
    height, width = sampling.output_size
    return {
        "SCALES": tuple(sampling.scales),
        "P_H": height,
        "P_W": width,
        "ALIGNED": sampling.aligned,
        "enable_fp_fusion": False,
    }


def accumulator(tensor: torch.Tensor) -> tl.dtype:
    """Return the dtype in which the kernels sum."""
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32
