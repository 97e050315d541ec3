"""Max pooling."""

import functools

import numpy as np

from reference.conv import pad


def max_pool2d(x, kernel, stride, padding=0):
    """The largest pixel under each kernel x kernel window, windows `stride` apart; x [N, C, H, W] -> [N, C, H', W'], H' as in `conv2d`."""
    x = pad(x, padding, -np.inf)
    height, width = ((side - kernel) // stride + 1 for side in x.shape[2:])
    if min(height, width) < 1:
        raise ValueError(f"max_pool2d: a window of {kernel} pixels is larger than the padded image, {x.shape[2]} x {x.shape[3]}")
    rows = [x[:, :, i : i + stride * (height - 1) + 1 : stride] for i in range(kernel)]
    x = functools.reduce(np.maximum, rows)  # down the columns first: the maximum is separable
    columns = [x[:, :, :, j : j + stride * (width - 1) + 1 : stride] for j in range(kernel)]
    return functools.reduce(np.maximum, columns)
