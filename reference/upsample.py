"""Nearest-neighbour resizing, the top-down step of the pyramid."""

import numpy as np


def nearest(x, height, width):
    """out[n, c, y, x] = x[n, c, floor(y H / height), floor(x W / width)]; [N, C, H, W] -> [N, C, height, width]."""
    rows = np.arange(height) * x.shape[2] // height
    columns = np.arange(width) * x.shape[3] // width
    return x.take(rows, axis=2).take(columns, axis=3)
