"""Max pooling."""

import functools

import numpy as np

from reference.autodiff import primitive
from reference.conv import pad, patches


@primitive
def max_pool2d(x, kernel, stride, padding=0):
    """The largest pixel under each kernel x kernel window, windows `stride` apart; x [N, C, H, W] -> [N, C, H', W'], H' as in `conv2d`."""
    x = pad(x, padding, -np.inf)
    height, width = ((side - kernel) // stride + 1 for side in x.shape[2:])
    if min(height, width) < 1:
        raise ValueError(
            f"max_pool2d: a window of {kernel} pixels is larger than the padded image, {x.shape[2]} x {x.shape[3]}"
        )
    rows = [x[:, :, i : i + stride * (height - 1) + 1 : stride] for i in range(kernel)]
    x = functools.reduce(np.maximum, rows)  # down the columns first: the maximum is separable
    columns = [x[:, :, :, j : j + stride * (width - 1) + 1 : stride] for j in range(kernel)]
    return functools.reduce(np.maximum, columns)


def max_pool2d_backward(grad_out, x, kernel, stride, padding=0):
    """The first largest pixel of each window, in row-major order, gets the whole gradient; a pixel that wins several windows, the sum.

    Ties are common: behind a ReLU whole windows are 0.
    """
    height, width = x.shape[2:]
    grad = np.zeros((*x.shape[:2], height + 2 * padding, width + 2 * padding), x.dtype)
    pixels, grads = (
        patches(array, (kernel, kernel), stride) for array in (pad(x, padding, -np.inf), grad)
    )
    largest = max_pool2d(x, kernel, stride, padding)
    for i, j in np.ndindex(kernel, kernel):
        first = pixels[:, :, i, j] == largest
        grads[:, :, i, j] += grad_out * first
        grad_out = grad_out * ~first  # handed out: the later ones go without
    return grad[:, :, padding : padding + height, padding : padding + width]
