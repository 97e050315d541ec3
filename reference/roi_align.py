"""RoIAlign, forward and backward, as two small matrix products per RoI.

The samples of a RoI are the product of a row grid and a column grid, and so are the rule for samples outside the map,
the clamp at its border and the divisor. Hence for each RoI and channel

    out = A_y X A_xᵀ,        grad_X = A_yᵀ G A_x,

with sparse interpolation matrices A_y [P_h, H] and A_x [P_w, W]. A maximum over the samples of a bin is not separable,
but the samples themselves are.

R rois, P pooled size, g samples per bin and axis, C channels.
"""

import numpy as np

from reference.autodiff import primitive


@primitive
def roi_align(
    features,
    rois,
    image_index,
    *,
    output_size,
    spatial_scale,
    sampling_ratio,
    aligned,
    aggregate="mean",
):
    """Average (or largest) bilinear sample in each bin of each RoI, rounding nothing [Mask R-CNN §3].

    features        [N, C, H, W]
    rois            [R, 4]   xyxy, input-image pixels; may leave the image. Coordinates are computed in their dtype
    image_index     [R]      int, row of `features`; -1: a padding RoI, whose output is 0
    output_size     P or (P_h, P_w)
    spatial_scale   feature pixels per image pixel
    sampling_ratio  samples per bin and axis; 0: ceil(bin side)
    aligned         True: shift by half a pixel; RoIs with x2 < x1 or y2 < y1 give 0. False: RoIs are at least one feature pixel wide
    aggregate       "mean", or "max": the first largest sample in row-major order
    Returns         [R, C, P_h, P_w], in the dtype of `features`.

    A sample more than one pixel outside the map is 0 but still counts in the average (SPEC §1).
    NaN in a feature reaches exactly the bins that give it a weight. No gradient reaches `rois`.
    Raises ValueError for a non-finite RoI or an image index out of range, naming its row.
    """
    rois, image_index = check(features, rois, image_index)
    samplings = _samplings(
        rois, features.shape, output_size, spatial_scale, sampling_ratio, aligned
    )
    images = np.ascontiguousarray(np.moveaxis(features, 1, -1))
    out = np.zeros((len(rois), *pair(output_size), features.shape[1]), dtype=features.dtype)
    for r in np.flatnonzero(image_index >= 0):
        rows, columns = (_window(sampling, r, features.dtype, aggregate) for sampling in samplings)
        if not (len(rows.touched) and len(columns.touched)):
            continue
        window = images[image_index[r], rows.touched[:, None], columns.touched]
        values = _interpolate(rows.matrix, window, columns.matrix)
        out[r] = values if aggregate == "mean" else _largest(values, rows, columns)[0]
    return np.ascontiguousarray(np.moveaxis(out, -1, 1))


def roi_align_backward(
    grad_out,
    features,
    rois,
    image_index,
    *,
    output_size,
    spatial_scale,
    sampling_ratio,
    aligned,
    aggregate="mean",
):
    """Gradient of `roi_align` with respect to `features`: [N, C, H, W] from grad_out [R, C, P_h, P_w].

    Only the shape of `features` matters to the mean. A maximum hands its gradient to the first largest sample, which
    spreads it over its four neighbours by their bilinear weights.
    """
    rois, image_index = check(features, rois, image_index)
    samplings = _samplings(
        rois, features.shape, output_size, spatial_scale, sampling_ratio, aligned
    )
    channels_last = np.moveaxis(features, 1, -1)
    grad = np.zeros(channels_last.shape, dtype=features.dtype)
    grad_out = np.ascontiguousarray(np.moveaxis(grad_out, 1, -1), dtype=features.dtype)
    for r in np.flatnonzero(image_index >= 0):
        rows, columns = (_window(sampling, r, features.dtype, aggregate) for sampling in samplings)
        if not (len(rows.touched) and len(columns.touched)):
            continue
        index = (image_index[r], rows.touched[:, None], columns.touched)
        grad_values = grad_out[r]
        if aggregate == "max":
            values = _interpolate(rows.matrix, channels_last[index], columns.matrix)
            grad_values = _to_largest(
                grad_values, _largest(values, rows, columns)[1], rows, columns
            )
        grad[index] += _interpolate(
            rows.matrix.T, grad_values, columns.matrix.T
        )  # the indices of one RoI are distinct
    return np.ascontiguousarray(np.moveaxis(grad, -1, 1))


def check(features, rois, image_index):
    """`rois` as floats and `image_index` as integers, or a ValueError that names the first bad row."""
    rois, image_index = np.asarray(rois), np.asarray(image_index)
    if rois.dtype.kind != "f":
        rois = rois.astype(np.float64)
    if rois.ndim != 2 or rois.shape[1] != 4 or image_index.shape != rois.shape[:1]:
        raise ValueError(
            f"expected rois [R, 4] and image_index [R], got {rois.shape} and {image_index.shape}"
        )
    bad = ~np.isfinite(rois).all(axis=1) & (image_index >= 0)
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"rois[{row}] is not finite: {rois[row].tolist()}")
    bad = (image_index < -1) | (image_index >= len(features))
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"image_index[{row}] is {image_index[row]}, of {len(features)} images")
    return rois, image_index


def pair(output_size):
    """(P_h, P_w) from P or a pair."""
    return (output_size, output_size) if np.ndim(output_size) == 0 else tuple(output_size)


class _Sampling:
    """The samples of all RoIs along one axis: `start` and `bin` side in feature pixels, `grid` samples per bin, each [R]."""

    def __init__(self, low, high, bins, size, spatial_scale, sampling_ratio, aligned):
        scale = low.dtype.type(spatial_scale)
        offset = low.dtype.type(0.5 if aligned else 0.0)
        self.start = low * scale - offset
        length = (high * scale - offset) - self.start
        if not aligned:
            length = np.maximum(length, 1)
        self.bin = length / low.dtype.type(bins)
        self.grid = (
            np.full(len(low), sampling_ratio)
            if sampling_ratio > 0
            else np.ceil(self.bin).astype(np.int64)
        )
        if aligned:
            self.grid[high < low] = 0
        self.bins, self.size = bins, size

    def taps(self, r):
        """Of each sample of RoI `r`, in order: its two neighbours on the axis and their weights, each [bins * g]."""
        dtype, grid = self.bin.dtype, self.grid[r]
        inside = (
            (np.arange(grid, dtype=dtype) + dtype.type(0.5))
            * self.bin[r]
            / dtype.type(max(grid, 1))
        )
        position = (
            (self.start[r] + np.arange(self.bins, dtype=dtype) * self.bin[r])[:, None] + inside
        ).ravel()
        valid = (position >= -1) & (
            position <= self.size
        )  # exactly -1 and exactly `size` are still valid
        position = np.clip(position, 0, self.size - 1)
        lower = position.astype(np.int64)
        fraction = position - lower
        return lower, np.minimum(lower + 1, self.size - 1), (1 - fraction) * valid, fraction * valid


class _Window:
    """What one RoI sees of an axis: the `touched` indices [n], and `matrix` [bins, n] (mean) or [bins * grid, n] (max)."""

    def __init__(self, touched, matrix, bins, grid):
        self.touched, self.matrix, self.bins, self.grid = touched, matrix, bins, grid


def _samplings(rois, shape, output_size, spatial_scale, sampling_ratio, aligned):
    return [
        _Sampling(
            rois[:, axis], rois[:, axis + 2], bins, size, spatial_scale, sampling_ratio, aligned
        )
        for axis, bins, size in zip((1, 0), pair(output_size), shape[2:], strict=True)
    ]


def _window(sampling, r, dtype, aggregate):
    lower, upper, weight_lower, weight_upper = sampling.taps(r)
    grid = sampling.grid[r]
    touched = np.unique(np.concatenate([lower[weight_lower > 0], upper[weight_upper > 0]]))
    samples = (touched == lower[:, None]) * weight_lower[:, None] + (
        touched == upper[:, None]
    ) * weight_upper[:, None]
    if aggregate == "mean":
        samples = samples.reshape(sampling.bins, grid, len(touched)).sum(
            axis=1
        ) / samples.dtype.type(max(grid, 1))
    elif aggregate != "max":
        raise ValueError(f"aggregate: expected 'mean' or 'max', got {aggregate!r}")
    return _Window(touched, samples.astype(dtype, copy=False), sampling.bins, grid)


def _interpolate(a_y, window, a_x):
    """a_y [p, h], window [h, w, C], a_x [q, w] -> [p, q, C]. A weight of 0 hides even a NaN."""
    h, w, channels = window.shape
    with np.errstate(invalid="ignore"):
        out = np.matmul(a_x, (a_y @ window.reshape(h, w * channels)).reshape(len(a_y), w, channels))
    if not np.isfinite(out).all():
        for p, q in np.ndindex(out.shape[:2]):
            y, x = np.flatnonzero(a_y[p]), np.flatnonzero(a_x[q])
            out[p, q] = np.einsum("y,x,yxc->c", a_y[p, y], a_x[q, x], window[np.ix_(y, x)])
    return out


def _by_bin(values, rows, columns):
    """[P_h * g_y, P_w * g_x, C] -> [P_h, P_w, g_y * g_x, C]."""
    values = values.reshape(rows.bins, rows.grid, columns.bins, columns.grid, -1).swapaxes(1, 2)
    return values.reshape(rows.bins, columns.bins, rows.grid * columns.grid, -1)


def _largest(values, rows, columns):
    """The largest sample of each bin and its number in the bin, both [P_h, P_w, C]."""
    values = _by_bin(values, rows, columns)
    number = values.argmax(axis=2)
    return np.take_along_axis(values, number[:, :, None], axis=2)[:, :, 0], number


def _to_largest(grad, number, rows, columns):
    """The transpose of `_largest`: grad [P_h, P_w, C] -> [P_h * g_y, P_w * g_x, C], 0 except at the largest samples."""
    grids = rows.grid * columns.grid
    spread = np.where(np.arange(grids)[:, None] == number[:, :, None], grad[:, :, None], 0)
    spread = spread.reshape(rows.bins, columns.bins, rows.grid, columns.grid, -1).swapaxes(1, 2)
    return spread.reshape(rows.bins * rows.grid, columns.bins * columns.grid, grad.shape[-1])
