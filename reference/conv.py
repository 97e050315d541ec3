"""Convolution and transposed convolution as matrix products over image patches, forward and backward.

Legend: N images, C channels in, O channels out, k_h x k_w the kernel, H' x W' the output. As in every deep learning library, "convolution"
means cross-correlation with zero padding.
"""

import numpy as np

from reference.autodiff import primitive

CHUNK_BYTES = 8 << 20  # of patches copied out at a time: stays in the cache and bounds the memory


@primitive
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
        raise ValueError(
            f"conv2d: {channels} channels in {groups} groups do not fit a weight of shape {weight.shape}"
        )
    window = patches(pad(x, padding), kernel, stride, dilation)
    height, width = window.shape[-2:]
    weight = weight.reshape(groups, out_channels // groups, -1)
    row_bytes = weight.shape[2] * width * x.itemsize
    rows = height if kernel == [1, 1] else max(1, CHUNK_BYTES // max(row_bytes, 1))
    out = np.empty(
        (images, groups, out_channels // groups, height * width), np.result_type(x, weight)
    )
    for n in range(images):
        for g in range(groups):
            group = window[
                n, g * group_channels : (g + 1) * group_channels
            ]  # [C / groups, k_h, k_w, H', W']
            for top in range(0, height, rows):
                columns = group[..., top : top + rows, :].reshape(weight.shape[2], -1)
                np.matmul(
                    weight[g],
                    columns,
                    out=out[n, g, :, top * width : top * width + columns.shape[1]],
                )
    return _add_bias(out.reshape(images, out_channels, height, width), bias)


def conv2d_backward(grad_out, x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1):
    """Gradients with respect to x, weight and bias, from grad_out [N, O, H', W'].

    conv2d is linear in x and in weight, so each gradient is the same sum read the other way round. Where

        out[n, o, y, x] = sum over c, i, j of weight[o, c, i, j] * x[n, c, p],    p = y stride - padding + i dilation, likewise in x,

    grad_x[n, c, p] collects weight[o, c, i, j] * grad_out[n, o, y, x] from all outputs that read pixel p (`spread`), and
    grad_weight[o, c, i, j] sums grad_out[n, o, y, x] * x[n, c, p] over images and positions (`correlate`).
    """
    grad_x = spread(grad_out, weight, x.shape, stride, padding, dilation, groups)
    grad_weight = correlate(grad_out, x, weight.shape, stride, padding, dilation, groups)
    return grad_x, grad_weight, None if bias is None else grad_out.sum(axis=(0, 2, 3))


@primitive
def conv_transpose2d(x, weight, bias=None, *, stride):
    """The adjoint of an unpadded `conv2d`: each input pixel spreads its kernel over the output.

    x       [N, C, H, W]
    weight  [C, O, k_h, k_w]
    bias    [O] or None
    Returns [N, O, (H - 1) stride + k_h, (W - 1) stride + k_w].
    """
    images, channels, height, width = x.shape
    if channels != weight.shape[0]:
        raise ValueError(
            f"conv_transpose2d: {channels} channels do not fit a weight of shape {weight.shape}"
        )
    sides = [
        (side - 1) * stride + k for side, k in zip((height, width), weight.shape[2:], strict=True)
    ]
    return _add_bias(spread(x, weight, (images, weight.shape[1], *sides), stride), bias)


def conv_transpose2d_backward(grad_out, x, weight, bias=None, *, stride):
    """Gradients with respect to x, weight and bias: the adjoint of the adjoint is `conv2d` itself, so x and grad_out change places."""
    grad_weight = correlate(x, grad_out, weight.shape, stride)
    return (
        conv2d(grad_out, weight, stride=stride),
        grad_weight,
        None if bias is None else grad_out.sum(axis=(0, 2, 3)),
    )


def spread(grad_out, weight, shape, stride, padding=0, dilation=1, groups=1):
    """The adjoint of `conv2d` in x: grad_out [N, O, H', W'] -> [N, C, H, W] = shape."""
    images, channels, *sides = shape
    grad_out = _grouped(grad_out, groups)
    taps = np.ascontiguousarray(
        weight.reshape(groups, -1, *weight.shape[1:]).transpose(3, 4, 0, 2, 1)
    )  # [k_h, k_w, groups, C, O]
    padded = np.zeros(
        (images, channels, *(side + 2 * padding for side in sides)),
        np.result_type(grad_out, weight),
    )
    window = patches(padded, weight.shape[2:], stride, dilation)
    for i, j in np.ndindex(
        weight.shape[2:]
    ):  # one tap of the kernel at a time: its pixels do not overlap
        window[:, :, i, j] += (taps[i, j] @ grad_out).reshape(images, channels, *window.shape[4:])
    return padded[:, :, padding : padding + sides[0], padding : padding + sides[1]]


def correlate(grad_out, x, shape, stride, padding=0, dilation=1, groups=1):
    """The adjoint of `conv2d` in its weight: grad_out [N, O, H', W'], x [N, C, H, W] -> [O, C / groups, k_h, k_w] = shape."""
    window = patches(pad(x, padding), shape[2:], stride, dilation)
    grad_out = _grouped(grad_out, groups)
    grad = np.zeros((groups, shape[0] // groups, *shape[1:]), np.result_type(grad_out, x))
    for n, i, j in np.ndindex(len(x), *shape[2:]):
        pixels = window[n, :, i, j].reshape(groups, shape[1], -1)
        grad[..., i, j] += grad_out[n] @ pixels.swapaxes(1, 2)
    return grad.reshape(shape)


def pad(x, padding, value=0.0):
    """[N, C, H, W] with `padding` more pixels of `value` on all four sides; a single number, the same for all."""
    return (
        np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)), constant_values=value)
        if padding
        else x
    )


def patches(x, kernel, stride, dilation=1):
    """The pixels under the kernel at every output position: a view [N, C, k_h, k_w, H', W'] of x [N, C, H, W], nothing copied."""
    sides = [
        (side - dilation * (k - 1) - 1) // stride + 1
        for side, k in zip(x.shape[2:], kernel, strict=True)
    ]
    if min(sides) < 1:
        raise ValueError(
            f"a kernel of {kernel[0]} x {kernel[1]} (dilation {dilation}) is larger than {x.shape[2]} x {x.shape[3]}"
        )
    n, c, y, x_ = x.strides
    strides = (n, c, y * dilation, x_ * dilation, y * stride, x_ * stride)
    return np.lib.stride_tricks.as_strided(x, (*x.shape[:2], *kernel, *sides), strides)


def _grouped(x, groups):
    """[N, O, H, W] -> [N, groups, O / groups, H W]; N may be 0."""
    return x.reshape(len(x), groups, x.shape[1] // groups, x.shape[2] * x.shape[3])


def _add_bias(out, bias):
    if bias is not None:
        out += bias[:, None, None]
    return out
