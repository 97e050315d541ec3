"""Nearest-neighbour resizing, the top-down step of the pyramid."""

import numpy as np

from reference.autodiff import primitive


@primitive
def nearest(x, height, width):
    """out[n, c, y, x] = x[n, c, floor(y H / height), floor(x W / width)]; [N, C, H, W] -> [N, C, height, width]."""
    rows = np.arange(height) * x.shape[2] // height
    columns = np.arange(width) * x.shape[3] // width
    return x.take(rows, axis=2).take(columns, axis=3)


def nearest_backward(grad_out, x, height, width):
    """Each pixel of x gets the sum over its copies, a block of rows and columns; grad_out [N, C, height, width] -> [N, C, H, W].

    With S_y [H, height], S_y[i, j] = 1 where row j is a copy of row i, and S_x likewise, the forward is S_yᵀ x S_x, its adjoint S_y G S_xᵀ.
    """
    rows, columns = (
        (np.arange(side)[:, None] == np.arange(size) * side // size).astype(x.dtype)
        for side, size in zip(x.shape[2:], (height, width), strict=True)
    )
    return rows @ grad_out @ columns.T
