"""Max pooling, forward and backward."""

import functools

import numpy as np

from reference.autodiff import Array, primitive
from reference.conv import pad, patches


@primitive
def max_pool2d(x: Array, kernel: int, stride: int, padding: int = 0) -> Array:
    """Take the maximum under each kernel x kernel window; windows are `stride` apart.

    x [N, C, H, W] -> [N, C, H', W'], H' as in `conv2d`.
    """
    x = pad(x, padding, -np.inf)
    height, width = ((side - kernel) // stride + 1 for side in x.shape[2:])
    if min(height, width) < 1:
        text = f"a window of {kernel} pixels is larger than the padded image"
        raise ValueError(f"max_pool2d: {text}, {x.shape[2]} x {x.shape[3]}")
    # The maximum is separable: first down the columns, then along the rows.
    rows = [x[:, :, i : i + stride * (height - 1) + 1 : stride] for i in range(kernel)]
    x = functools.reduce(np.maximum, rows)
    columns = [x[:, :, :, j : j + stride * (width - 1) + 1 : stride] for j in range(kernel)]
    return functools.reduce(np.maximum, columns)


def max_pool2d_backward(
    grad_out: Array, x: Array, kernel: int, stride: int, padding: int = 0
) -> Array:
    """Pass the gradient of each window to its first maximum, in row-major order, and add up."""
    height, width = x.shape[2:]
    padded = pad(x, padding, -np.inf)
    grad = np.zeros(padded.shape, x.dtype)
    pixels, grads = (patches(array, (kernel, kernel), stride) for array in (padded, grad))
    largest = max_pool2d(x, kernel, stride, padding)
    for i, j in np.ndindex(kernel, kernel):
        first = pixels[:, :, i, j] == largest
        grads[:, :, i, j] += grad_out * first
        # Ties are common: after a ReLU whole windows are 0.
        grad_out = grad_out * ~first
    return grad[:, :, padding : padding + height, padding : padding + width]
