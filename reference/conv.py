"""Convolution and transposed convolution as matrix products over image patches.

Legend: N images, C channels in, O channels out, k_h x k_w the kernel, H' x W' the output. As in every deep learning library, "convolution"
means cross-correlation with zero padding.
"""

import numpy as np

CHUNK_BYTES = 8 << 20  # of patches copied out at a time: stays in the cache and bounds the memory


def conv2d(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1):
    """out[n, o, y, x] = bias[o] + the sum over c, i, j of weight[o, c, i, j] * x[n, c, y stride - padding + i dilation, ...].

    x       [N, C, H, W]
    weight  [O, C / groups, k_h, k_w]
    bias    [O] or None
    Returns [N, O, H', W'] with H' = (H + 2 padding - dilation (k_h - 1) - 1) // stride + 1; float32 stays float32.
    Raises ValueError where channels do not fit, or the kernel is larger than the padded image.
    """
    images, channels = x.shape[:2]
    out_channels, group_channels, *kernel = weight.shape
    if channels != group_channels * groups or out_channels % groups:
        raise ValueError(f"conv2d: {channels} channels in {groups} groups do not fit a weight of shape {weight.shape}")
    window = patches(pad(x, padding), kernel, stride, dilation)
    height, width = window.shape[-2:]
    weight = weight.reshape(groups, out_channels // groups, -1)
    row_bytes = weight.shape[2] * width * x.itemsize
    rows = height if kernel == [1, 1] else max(1, CHUNK_BYTES // max(row_bytes, 1))
    out = np.empty((images, groups, out_channels // groups, height * width), np.result_type(x, weight))
    for n in range(images):
        for g in range(groups):
            group = window[n, g * group_channels : (g + 1) * group_channels]  # [C / groups, k_h, k_w, H', W']
            for top in range(0, height, rows):
                columns = group[..., top : top + rows, :].reshape(weight.shape[2], -1)
                np.matmul(weight[g], columns, out=out[n, g, :, top * width : top * width + columns.shape[1]])
    return _add_bias(out.reshape(images, out_channels, height, width), bias)


def conv_transpose2d(x, weight, bias=None, *, stride):
    """The adjoint of an unpadded `conv2d`: each input pixel spreads its kernel over the output.

    x       [N, C, H, W]
    weight  [C, O, k_h, k_w]
    bias    [O] or None
    Returns [N, O, (H - 1) stride + k_h, (W - 1) stride + k_w].
    """
    images, channels, height, width = x.shape
    if channels != weight.shape[0]:
        raise ValueError(f"conv_transpose2d: {channels} channels do not fit a weight of shape {weight.shape}")
    _, out_channels, *kernel = weight.shape
    columns = weight.reshape(channels, -1).T @ x.reshape(images, channels, height * width)
    columns = columns.reshape(images, out_channels, *kernel, height, width)
    sides = [(side - 1) * stride + k for side, k in zip((height, width), kernel, strict=True)]
    out = np.zeros((images, out_channels, *sides), columns.dtype)
    window = patches(out, kernel, stride)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            window[:, :, i, j] += columns[:, :, i, j]  # one (i, j) at a time: its pixels do not overlap
    return _add_bias(out, bias)


def pad(x, padding, value=0.0):
    """[N, C, H, W] with `padding` more pixels of `value` on all four sides; a single number, the same for all."""
    return np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)), constant_values=value) if padding else x


def patches(x, kernel, stride, dilation=1):
    """The pixels under the kernel at every output position: a view [N, C, k_h, k_w, H', W'] of x [N, C, H, W], nothing copied."""
    sides = [(side - dilation * (k - 1) - 1) // stride + 1 for side, k in zip(x.shape[2:], kernel, strict=True)]
    if min(sides) < 1:
        raise ValueError(f"a kernel of {kernel[0]} x {kernel[1]} (dilation {dilation}) is larger than {x.shape[2]} x {x.shape[3]}")
    n, c, y, x_ = x.strides
    strides = (n, c, y * dilation, x_ * dilation, y * stride, x_ * stride)
    return np.lib.stride_tricks.as_strided(x, (*x.shape[:2], *kernel, *sides), strides)


def _add_bias(out, bias):
    if bias is not None:
        out += bias[:, None, None]
    return out
