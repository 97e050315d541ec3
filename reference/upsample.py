"""Nearest-neighbour resizing, the top-down step of the pyramid, forward and backward."""

import numpy as np

from reference.autodiff import Array, primitive


@primitive
def nearest(x: Array, height: int, width: int) -> Array:
    """Resize x [N, C, H, W]: out[n, c, i, j] = x[n, c, floor(i H / height), floor(j W / width)]."""
    rows = np.arange(height) * x.shape[2] // height
    columns = np.arange(width) * x.shape[3] // width
    return x.take(rows, axis=2).take(columns, axis=3)


def nearest_backward(grad_out: Array, x: Array, height: int, width: int) -> Array:
    """Sum grad_out [N, C, height, width] over the copies of each pixel of x -> [N, C, H, W].

    With S_y[i, j] = 1 where row j copies row i, and S_x likewise, the forward is S_yᵀ x S_x and its
    adjoint S_y G S_xᵀ.
    """
    rows, columns = (
        (np.arange(side)[:, None] == np.arange(size) * side // size).astype(x.dtype)
        for side, size in zip(x.shape[2:], (height, width))
    )
    return rows @ grad_out @ columns.T
