"""Convolution: cross-correlation with zero padding, as in every deep learning library.

It and the transposed one are matrix products over image patches, with their backwards.

Legend: N images, C input channels, O output channels, k_h x k_w the kernel, H' x W' the output.
"""

import numpy as np

from reference.autodiff import Array, primitive

# Bytes of patches copied at a time: they stay in the cache, and memory is bounded.
CHUNK_BYTES = 8 << 20


@primitive
def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Array:
    """Convolve: out[n, o, i, j] = bias[o] + sum over c, a, b of weight[o, c, a, b] * x[n, c, p, q].

    p = i stride - padding + a dilation, and q likewise from j and b.

    x [N, C, H, W], weight [O, C / groups, k_h, k_w], bias [O] or None -> [N, O, H', W'], where
    H' = (H + 2 padding - dilation (k_h - 1) - 1) // stride + 1. float32 stays float32.
    Raises ValueError if the channels do not fit or the kernel is larger than the padded image.
    """
    images, channels = x.shape[:2]
    out_channels, group_channels, k_h, k_w = weight.shape
    if channels != group_channels * groups or out_channels % groups:
        text = f"{channels} channels in {groups} groups do not fit a weight of shape {weight.shape}"
        raise ValueError(f"conv2d: {text}")
    window = patches(pad(x, padding), (k_h, k_w), stride, dilation)
    height, width = window.shape[-2:]
    weight = weight.reshape(groups, out_channels // groups, -1)
    row_bytes = weight.shape[2] * width * x.itemsize
    rows = height if k_h == k_w == 1 else max(1, CHUNK_BYTES // max(row_bytes, 1))
    shape = (images, groups, out_channels // groups, height * width)
    out = np.empty(shape, np.result_type(x, weight))
    for n, g in np.ndindex(images, groups):
        # [C / groups, k_h, k_w, H', W']
        group = window[n, g * group_channels : (g + 1) * group_channels]
        for top in range(0, height, rows):
            columns = group[..., top : top + rows, :].reshape(weight.shape[2], -1)
            pixels = slice(top * width, top * width + columns.shape[1])
            np.matmul(weight[g], columns, out=out[n, g, :, pixels])
    return _add_bias(out.reshape(images, out_channels, height, width), bias)


def conv2d_backward(
    grad_out: Array, x: Array, weight: Array, bias: Array | None = None, **geometry: int
) -> tuple:
    """Compute the gradients with respect to x, weight and bias, from grad_out [N, O, H', W'].

    conv2d is linear in x and in weight, so each gradient is the same sum, read the other way round:
    grad_x[n, c, p, q] collects weight[o, c, a, b] * grad_out[n, o, i, j] from all outputs that read
    pixel (p, q) (`_spread`), and grad_weight[o, c, a, b] sums grad_out[n, o, i, j] * x[n, c, p, q]
    over images and positions (`_correlate`). `geometry` is stride, padding, dilation and groups.
    """
    grad_x = _spread(grad_out, weight, x.shape, **geometry)
    grad_weight = _correlate(grad_out, x, weight.shape, **geometry)
    return grad_x, grad_weight, None if bias is None else grad_out.sum(axis=(0, 2, 3))


@primitive
def conv_transpose2d(x: Array, weight: Array, bias: Array | None = None, *, stride: int) -> Array:
    """Apply the adjoint of an unpadded `conv2d`: each pixel spreads its kernel over the output.

    x [N, C, H, W], weight [C, O, k_h, k_w], bias [O] or None ->
    [N, O, (H - 1) stride + k_h, (W - 1) stride + k_w].
    """
    images, channels, height, width = x.shape
    if channels != weight.shape[0]:
        text = f"{channels} channels do not fit a weight of shape {weight.shape}"
        raise ValueError(f"conv_transpose2d: {text}")
    k_h, k_w = weight.shape[2:]
    shape = (images, weight.shape[1], (height - 1) * stride + k_h, (width - 1) * stride + k_w)
    return _add_bias(_spread(x, weight, shape, stride), bias)


def conv_transpose2d_backward(
    grad_out: Array, x: Array, weight: Array, bias: Array | None = None, *, stride: int
) -> tuple:
    """Compute the gradients; the adjoint's adjoint is `conv2d`, so x and grad_out swap roles."""
    grad_x = conv2d(grad_out, weight, stride=stride)
    grad_weight = _correlate(x, grad_out, weight.shape, stride)
    return grad_x, grad_weight, None if bias is None else grad_out.sum(axis=(0, 2, 3))


def _spread(grad_out, weight, shape, stride=1, padding=0, dilation=1, groups=1):
    """Apply the adjoint of `conv2d` in x: grad_out [N, O, H', W'] -> `shape` [N, C, H, W]."""
    images, channels, height, width = shape
    grad_out = _grouped(grad_out, groups)
    # [k_h, k_w, groups, C / groups, O / groups]
    taps = weight.reshape(groups, -1, *weight.shape[1:]).transpose(3, 4, 0, 2, 1).copy()
    shape = (images, channels, height + 2 * padding, width + 2 * padding)
    padded = np.zeros(shape, np.result_type(grad_out, weight))
    window = patches(padded, weight.shape[2:], stride, dilation)
    # The pixels of one tap do not overlap, so that each tap can be added at once.
    for i, j in np.ndindex(weight.shape[2:]):
        window[:, :, i, j] += (taps[i, j] @ grad_out).reshape(images, channels, *window.shape[4:])
    return padded[:, :, padding : padding + height, padding : padding + width]


def _correlate(grad_out, x, shape, stride=1, padding=0, dilation=1, groups=1):
    """Apply the adjoint of `conv2d` in its weight: -> `shape` [O, C / groups, k_h, k_w]."""
    window = patches(pad(x, padding), shape[2:], stride, dilation)
    grad_out = _grouped(grad_out, groups)
    grad = np.zeros((groups, shape[0] // groups, *shape[1:]), np.result_type(grad_out, x))
    for n, i, j in np.ndindex(len(x), *shape[2:]):
        pixels = window[n, :, i, j].reshape(groups, shape[1], -1)
        grad[..., i, j] += grad_out[n] @ pixels.swapaxes(1, 2)
    return grad.reshape(shape)


def pad(x: Array, padding: int, value: float = 0.0) -> Array:
    """Add `padding` pixels of `value` on all four sides of x [N, C, H, W]."""
    sides = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    return np.pad(x, sides, constant_values=value) if padding else x


def patches(x: Array, kernel: tuple, stride: int, dilation: int = 1) -> Array:
    """View x [N, C, H, W] as the pixels under the kernel: [N, C, k_h, k_w, H', W'], no copy."""
    (height, width), (k_h, k_w) = x.shape[2:], kernel
    extent = dilation * (k_h - 1) + 1, dilation * (k_w - 1) + 1
    if extent[0] > height or extent[1] > width:
        size = f"{k_h} x {k_w} (dilation {dilation})"
        raise ValueError(f"a kernel of {size} is larger than {height} x {width}")
    window = np.lib.stride_tricks.sliding_window_view(x, extent, (2, 3), writeable=True)
    return window[:, :, ::stride, ::stride, ::dilation, ::dilation].transpose(0, 1, 4, 5, 2, 3)


def _grouped(x, groups):
    """Reshape [N, O, H, W] -> [N, groups, O / groups, H W]; N may be 0."""
    return x.reshape(len(x), groups, x.shape[1] // groups, x.shape[2] * x.shape[3])


def _add_bias(out, bias):
    if bias is not None:
        out += bias[:, None, None]
    return out
