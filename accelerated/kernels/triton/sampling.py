# Triton compiles these functions: blocks of numbers and constants, not the types that Python sees.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false
"""What the Triton kernels share: division, levels, and RoIAlign's samples."""

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
def whole(odd):
    """The integer that `odd` encodes (see `maps_of`), never a constant of Python's."""
    return (tl.zeros([], tl.int32) + odd + 1) // 2


@triton.jit
def size_of(maps, level):
    """Height and width of a level's tensor."""
    _, heights, widths, _, _, _, _ = maps
    return whole(choose(heights, level)), whole(choose(widths, level))


@triton.jit
def strides_of(maps, level):
    """The strides of N, C, H and W of a level's tensor."""
    unit, _, _, strides_n, strides_c, strides_h, strides_w = maps
    stride_n, stride_c = whole(choose(strides_n, level)), whole(choose(strides_c, level))
    stride_h, stride_w = whole(choose(strides_h, level)), whole(choose(strides_w, level))
    return stride_n.to(tl.int64) * unit, stride_c, stride_h * unit, stride_w * unit


@triton.jit
def load_roi(rois, r, SCALES: tl.constexpr):
    """x1, y1, x2, y2 in feature pixels, image, level, and whether RoI r is valid.

    A padding RoI and one that is not finite are invalid.
    """
    rois_ptr, image_index_ptr, level_index_ptr = rois
    x1, y1 = tl.load(rois_ptr + r * 4), tl.load(rois_ptr + r * 4 + 1)
    x2, y2 = tl.load(rois_ptr + r * 4 + 2), tl.load(rois_ptr + r * 4 + 3)
    image = tl.load(image_index_ptr + r).to(tl.int64)
    level = tl.load(level_index_ptr + r).to(tl.int32)
    # x - x is 0 where x is finite.
    finite = (x1 - x1 == 0) & (y1 - y1 == 0) & (x2 - x2 == 0) & (y2 - y2 == 0)
    scale = tl.full([], SCALES[0], x1.dtype)
    for l in tl.static_range(1, len(SCALES)):
        scale = tl.where(level == l, tl.full([], SCALES[l], x1.dtype), scale)
    return x1 * scale, y1 * scale, x2 * scale, y2 * scale, image, level, (image >= 0) & finite


@triton.jit
def samples_of(side, SAMPLING: tl.constexpr):
    """Samples per bin of one axis."""
    if SAMPLING > 0:
        return tl.full([], SAMPLING, tl.int32)
    else:
        return tl.minimum(tl.ceil(side), 1048576.0).to(tl.int32)


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
    return start, side, samples_of(side, SAMPLING), length


@triton.jit
def position_of(start, side, grid, p, i, size, SAMPLING: tl.constexpr):
    """Where sample i of bin p lies on one axis, moved onto the map, and whether it counts.

    It does not more than one pixel outside the map; exactly -1 and `size` are inside.
    """
    inside_bin = (i + tl.full([], 0.5, side.dtype)) * side
    if SAMPLING == 1 or SAMPLING == 2 or SAMPLING == 4:
        # The same as the division, and shorter.
        inside_bin *= 1.0 / SAMPLING
    else:
        inside_bin = divide(inside_bin, tl.maximum(grid, 1).to(side.dtype))
    position = (start + p * side) + inside_bin
    on_map = (position >= -1.0) & (position <= size)
    return tl.minimum(tl.maximum(position, 0.0), (size - 1).to(side.dtype)), on_map


@triton.jit
def sample(start, side, grid, p, i, size, SAMPLING: tl.constexpr):
    """Sample i of bin p on one axis: its lower and upper pixel, and the weight of each."""
    position, on_map = position_of(start, side, grid, p, i, size, SAMPLING)
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
    """Return a unit, and heights, widths and the four strides of the levels, L ints each.

    Triton compiles a kernel anew for an integer that is 1 and for one that is divisible by 16.
    Sizes that differ from batch to batch are therefore passed as odd numbers: 2 x - 1, which leaves
    1 as it is. The strides are counted in units, except that of the channels; in channels-last the
    unit is the number of channels, whose divisibility lets a kernel load 16 bytes at a time.
    """
    channels = tensors[0].shape[1]
    last = all(x.stride(1) == 1 and not any(s % channels for s in x.stride()[2:]) for x in tensors)
    last = last and not any(x.stride(0) % channels for x in tensors)
    unit = channels if last else 1
    rows = []
    for x in tensors:
        n, c, h, w = x.stride()
        rows.append([2 * v - 1 for v in (*x.shape[2:], n // unit, c, h // unit, w // unit)])
    return unit, *zip(*rows, strict=True)


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
