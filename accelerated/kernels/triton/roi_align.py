# Triton compiles these functions: blocks of numbers and constants, not the types that Python sees.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
"""RoIAlign in Triton, all levels of a pyramid in one launch.

`features` is a tuple of L tensors [N, C, H_l, W_l]; sizes and strides are tuples of L ints.
SCALES are compile-time constants, as Triton passes a Python float as float32. Launched without
contraction to fused multiply-adds, so that coordinates round as in PyTorch; sums ask for them.

Legend: N images, R rois, C channels, P pooled size, L levels.
"""

import torch
import triton
import triton.language as tl

from accelerated.kernels.arguments import Sampling
from accelerated.kernels.triton.roi_align_backward import backward
from accelerated.kernels.triton.sampling import (
    accumulator,
    axis,
    choose,
    constants_of,
    load_roi,
    maps_of,
    sample,
    size_of,
    strides_of,
)

__all__ = ["backward", "forward"]

# Channels per program. In channels-last a thread reads 16 bytes of them at a time.
CHANNELS = 256
WARPS = 4


@triton.jit
def _add_corner(total, channel_ptrs, offset, weight, mask):
    """total [Q, C] + weight * feature; a feature without weight is not read."""
    weight = weight.to(total.dtype)[:, None]
    feature = tl.load(channel_ptrs + offset[:, None], (weight != 0) & mask, 0.0)
    return tl.fma(weight, feature.to(total.dtype), total)


@triton.jit
def _add_samples(total, channel_ptrs, y, x, stride_h, stride_w, mask):
    """total [Q, C] + the samples at one `y` and a block of `x`, each as `sample` returns it."""
    top, bottom, weight_top, weight_bottom = y
    left, right, weight_left, weight_right = x
    top, bottom = top * stride_h, bottom * stride_h
    left, right = left * stride_w, right * stride_w
    total = _add_corner(total, channel_ptrs, top + left, weight_top * weight_left, mask)
    total = _add_corner(total, channel_ptrs, top + right, weight_top * weight_right, mask)
    total = _add_corner(total, channel_ptrs, bottom + left, weight_bottom * weight_left, mask)
    return _add_corner(total, channel_ptrs, bottom + right, weight_bottom * weight_right, mask)


@triton.jit
def _roi_align_forward_kernel(
    features,  # L x [N, C, H_l, W_l]
    rois,  # boxes [R, 4], image indices [R], level indices [R], contiguous
    out_ptr,  # [R, C, P_H, P_W]
    number_ptr,  # [R, C, P_H, P_W] int32 with the strides of out; None unless MAXIMUM
    channels,  # C
    maps,  # unit, heights, widths, strides of N, C, H and W: L ints each
    stride_out,  # 4 strides
    SCALES: tl.constexpr,  # L floats
    P_H: tl.constexpr,
    P_W: tl.constexpr,
    SAMPLING: tl.constexpr,
    ALIGNED: tl.constexpr,
    MAXIMUM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """One program per RoI, row of bins and block of channels: all bins of the row at once.

    Walks the samples of the bins in row-major order, each a weighted sum of four features, and
    writes their mean, or the first largest and its index.
    """
    r, p = tl.program_id(0) // P_H, tl.program_id(0) % P_H
    q = tl.arange(0, BLOCK_Q)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    x1, y1, x2, y2, image, level, valid = load_roi(rois, r, SCALES)
    height, width = size_of(maps, level)
    stride_n, stride_c, stride_h, stride_w = strides_of(maps, level)
    valid_y = valid & (x2 >= x1) if ALIGNED else valid
    start_y, side_y, grid_y, _ = axis(y1, y2, valid_y, P_H, SAMPLING, ALIGNED)
    start_x, side_x, grid_x, _ = axis(x1, x2, valid, P_W, SAMPLING, ALIGNED)
    image_ptr = choose(features, level) + tl.maximum(image, 0) * stride_n
    channel_ptrs = (image_ptr + c.to(tl.int64) * stride_c)[None, :]
    mask = (q < P_W)[:, None] & (c < channels)[None, :]
    total = tl.zeros([BLOCK_Q, BLOCK_C], ACC)
    number = tl.full([BLOCK_Q, BLOCK_C], -1, tl.int32)
    for i in range(grid_y if SAMPLING <= 0 else SAMPLING):
        y = sample(start_y, side_y, grid_y, p, i, height, SAMPLING)
        for j in range(grid_x if SAMPLING <= 0 else SAMPLING):
            x = sample(start_x, side_x, grid_x, q, j, width, SAMPLING)
            if MAXIMUM:
                nothing = tl.zeros([BLOCK_Q, BLOCK_C], ACC)
                value = _add_samples(nothing, channel_ptrs, y, x, stride_h, stride_w, mask)
                larger = (number < 0) | (value > total) | ((value != value) & (total == total))
                total = tl.where(larger, value, total)
                number = tl.where(larger, i * grid_x + j, number)
            else:
                total = _add_samples(total, channel_ptrs, y, x, stride_h, stride_w, mask)
    offset = r.to(tl.int64) * stride_out[0] + p * stride_out[2]
    offset = offset + q[:, None] * stride_out[3] + c[None, :] * stride_out[1]
    if MAXIMUM:
        tl.store(number_ptr + offset, number, mask)
    else:
        total *= 1 / tl.maximum(grid_y * grid_x, 1).to(ACC)
    tl.store(out_ptr + offset, total.to(out_ptr.dtype.element_ty), mask)


def forward(
    features: list[torch.Tensor], sampling: Sampling, out: torch.Tensor, number: torch.Tensor | None
) -> None:
    """Fill `out` [R, C, P_h, P_w] with means; given `number`, with maxima and the samples' indices.

    `number` is int32 and has the shape and strides of `out`.
    """
    if out.numel() == 0:
        return
    rois, channels, pooled_height, pooled_width = out.shape
    block = min(CHANNELS, triton.next_power_of_2(channels))
    with torch.cuda.device_of(out):
        _roi_align_forward_kernel[(rois * pooled_height, triton.cdiv(channels, block))](
            tuple(features),
            tuple(x.contiguous() for x in sampling[:3]),
            out,
            number,
            channels=channels,
            maps=maps_of(features),
            stride_out=out.stride(),
            **constants_of(sampling),
            SAMPLING=sampling.sampling_ratio,
            MAXIMUM=number is not None,
            BLOCK_Q=triton.next_power_of_2(pooled_width),
            BLOCK_C=block,
            ACC=accumulator(out),
            num_warps=WARPS,
        )
