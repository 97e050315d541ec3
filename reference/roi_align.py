"""RoIAlign, forward and backward: bilinear samples on the RoI's exact bins [Mask R-CNN §3].

The samples of an RoI form a grid, and the rule for samples outside the map, the clamp at its
border and the divisor treat rows and columns separately. Hence for each RoI and channel

    out = A_y X A_xᵀ,        grad_X = A_yᵀ G A_x,

with an interpolation matrix per axis, A_y [P_h, H] and A_x [P_w, W]. An RoI that covers a map of
4 x 4 pixels, two bins per axis, one sample in the middle of each:

    >>> X = np.arange(16.0).reshape(4, 4)
    >>> A = interpolation_matrix(0.0, 4.0, bins=2, size=4, sampling_ratio=1, aligned=True)
    >>> A
    array([[0.5, 0.5, 0. , 0. ],
           [0. , 0. , 0.5, 0.5]])
    >>> A @ X @ A.T
    array([[ 2.5,  4.5],
           [10.5, 12.5]])

Each bin is the mean of its four pixels, and the backward gives each of them a quarter:

    >>> (A.T @ np.array([[4.0, 8.0], [12.0, 16.0]]) @ A)[0]
    array([1., 1., 2., 2.])

`aligned` says where a pixel's value lies. Pixel i covers [i, i + 1), so its value belongs to the
centre i + 0.5: the point 1.3 lies between the centres 0.5 and 1.5, at index 1.3 - 0.5 = 0.8, and
reads 0.2 X[0] + 0.8 X[1]. That is aligned=True. The first RoIAlign, aligned=False, omits the half
and reads 0.7 X[1] + 0.3 X[2], half a pixel too far.

Legend: N images, R rois, C channels, P pooled size, g samples per bin and axis.
"""

from typing import Any

import numpy as np

from reference.autodiff import Array, primitive
from reference.rois import Size, check, pair


def sample_positions(
    low: float, high: float, bins: int, sampling_ratio: int, aligned: bool
) -> Array:
    """Return where the samples of each bin lie along one axis [bins, g], as float64.

    The RoI runs from `low` to `high` feature pixels. Position i is the centre of pixel i, which a
    drawing in which pixel i covers [i, i + 1) shows at i + 0.5. g is `sampling_ratio`, or
    ceil(bin side) if that is 0. Positions are computed in the dtype of `low` and `high`.
    """
    start = low - 0.5 if aligned else low
    length = (high - 0.5 if aligned else high) - start
    if not aligned:
        length = np.maximum(length, 1)
    side = length / bins
    grid = sampling_ratio if sampling_ratio > 0 else int(np.ceil(side))
    if aligned and high < low:
        grid = 0
    p, i = (np.arange(count, dtype=np.result_type(side)) for count in (bins, grid))
    corner = start + p * side
    return (corner[:, None] + (i + 0.5) * side / grid).astype(np.float64)


def neighbours(positions: Array, size: int) -> tuple[Array, Array, Array, Array]:
    """Return the two pixels that each sample of one axis reads, and the weights it gives them.

    positions  index coordinates on an axis of `size` pixels, such as those of `sample_positions`
    Returns (lower, upper, weight_lower, weight_upper), each of the shape of `positions`; pixels are
    integers in 0..size - 1. A sample beyond the first or last centre reads that pixel alone. One
    below -1 or above `size` is outside the map: both its weights are 0 (SPEC §1).
    """
    inside = (positions >= -1) & (positions <= size)
    nearest = np.minimum(np.maximum(positions, 0), size - 1)
    lower = nearest.astype(int)
    upper = np.minimum(lower + 1, size - 1)
    weight_upper = inside * (nearest - lower)
    return lower, upper, inside - weight_upper, weight_upper


def sample_matrix(
    low: float, high: float, bins: int, size: int, sampling_ratio: int, aligned: bool
) -> Array:
    """Return the bilinear weights [bins, g, size] that each sample of one axis gives to the pixels.

    See `sample_positions` and `neighbours`.
    """
    positions = sample_positions(low, high, bins, sampling_ratio, aligned)
    lower, upper, weight_lower, weight_upper = neighbours(positions, size)
    weights = np.zeros((*positions.shape, size))
    p, i = np.arange(bins)[:, None], np.arange(positions.shape[1])
    weights[p, i, lower] = weight_lower
    # At the border `upper` may be `lower`.
    weights[p, i, upper] += weight_upper
    return weights


def interpolation_matrix(
    low: float, high: float, bins: int, size: int, sampling_ratio: int, aligned: bool
) -> Array:
    """Return A [bins, size], whose row p averages the samples of bin p; see `sample_matrix`."""
    weights = sample_matrix(low, high, bins, size, sampling_ratio, aligned)
    return weights.sum(axis=1) / max(weights.shape[1], 1)


@primitive
def roi_align(
    features: Array,
    rois: Array,
    image_index: Array,
    *,
    output_size: Size,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    aggregate: str = "mean",
) -> Array:
    """Average (or take the largest of) bilinear samples in each bin of each RoI [Mask R-CNN §3].

    features        [N, C, H, W]
    rois            [R, 4]   xyxy, input-image pixels; may leave the image. Coordinates are
                             computed in their dtype
    image_index     [R]      int, row of `features`; -1: a padding RoI, whose output is 0
    output_size     P or (P_h, P_w)
    spatial_scale   feature pixels per image pixel
    sampling_ratio  samples per bin and axis; 0: ceil(bin side)
    aligned         True: shift by half a pixel; RoIs with x2 < x1 or y2 < y1 give 0.
                    False: RoIs are at least one feature pixel wide
    aggregate       "mean", or "max": the first largest sample in row-major order
    Returns         [R, C, P_h, P_w], in the dtype of `features`.

    A sample more than one pixel outside the map is 0 but still counts in the average (SPEC §1).
    NaN in a feature reaches exactly the bins that give it a weight. No gradient reaches `rois`.
    Raises ValueError for a non-finite RoI or an image index out of range, naming its row.
    """
    rois, image_index = check(features, rois, image_index)
    out = np.zeros((len(rois), features.shape[1], *pair(output_size)), features.dtype)
    for r, window, a_y, a_x in _windows(
        features, rois, image_index, output_size, spatial_scale, sampling_ratio, aligned, aggregate
    ):
        if aggregate == "max":
            out[r] = _samples(a_y, features[window], a_x).max(axis=-1)
        else:
            out[r] = _product(a_y, features[window], a_x)
    return out


def roi_align_backward(
    grad_out: Array, features: Array, rois: Array, image_index: Array, **keywords: Any
) -> Array:
    """Return the gradient of `roi_align` with respect to `features` [N, C, H, W].

    grad_out is [R, C, P_h, P_w]; the other arguments are those of `roi_align`. The mean reads only
    the shape of `features`; the maximum passes its gradient to its first largest sample's pixels.
    """
    rois, image_index = check(features, rois, image_index)
    grad = np.zeros(features.shape, features.dtype)
    grad_out = np.asarray(grad_out, features.dtype)
    for r, window, a_y, a_x in _windows(features, rois, image_index, **keywords):
        if keywords.get("aggregate") == "max":
            grad[window] += _to_largest(grad_out[r], a_y, features[window], a_x)
        else:
            grad[window] += _product(a_y.T, grad_out[r], a_x.T)
    return grad


def _windows(
    features, rois, images, output_size, spatial_scale, sampling_ratio, aligned, aggregate="mean"
):
    """Yield (r, window, matrix of y, matrix of x) for every RoI that reads a feature.

    features[window] is [C, h, w], the part of the map to which RoI r gives a weight; the matrices
    are cut to it. So the products stay too small for a BLAS to start threads, which wait for each
    other on busy cores. Padding RoIs and RoIs outside the map are skipped: their output is 0.
    """
    matrices = {"mean": interpolation_matrix, "max": sample_matrix}
    if aggregate not in matrices:
        raise ValueError(f"aggregate: expected 'mean' or 'max', got {aggregate!r}")
    (bins_y, bins_x), (height, width) = pair(output_size), features.shape[2:]
    for r in np.flatnonzero(images >= 0):
        x1, y1, x2, y2 = rois[r] * rois.dtype.type(spatial_scale)
        ys, a_y = _cut(matrices[aggregate](y1, y2, bins_y, height, sampling_ratio, aligned))
        xs, a_x = _cut(matrices[aggregate](x1, x2, bins_x, width, sampling_ratio, aligned))
        if a_y.size and a_x.size:
            window = images[r], slice(None), ys, xs
            yield r, window, a_y.astype(features.dtype), a_x.astype(features.dtype)


def _cut(matrix):
    """Return the slice from the first to the last pixel with a weight, and the matrix cut to it."""
    pixels = np.flatnonzero(matrix.any(axis=tuple(range(matrix.ndim - 1))))
    touched = slice(pixels[0], pixels[-1] + 1) if len(pixels) else slice(0, 0)
    return touched, matrix[..., touched]


def _product(a_y, window, a_x):
    """Return a_y X a_xᵀ for each channel X of `window`: [p, h], [C, h, w], [q, w] -> [C, p, q].

    0 * NaN is NaN, so where the plain product is not finite, only entries with a weight are summed.
    """
    with np.errstate(invalid="ignore"):
        out = a_y @ window @ a_x.T
    if not np.isfinite(out).all():
        for p, q in np.ndindex(out.shape[1:]):
            y, x = np.flatnonzero(a_y[p]), np.flatnonzero(a_x[q])
            out[:, p, q] = np.einsum("y,x,cyx->c", a_y[p, y], a_x[q, x], window[:, y[:, None], x])
    return out


def _samples(s_y, window, s_x):
    """Return the samples of every bin in row-major order [C, P_h, P_w, g_y * g_x].

    s_y [P_h, g_y, h] and s_x [P_w, g_x, w] are sample matrices, `window` is [C, h, w].
    """
    (p, g_y, h), (q, g_x, w) = s_y.shape, s_x.shape
    values = _product(s_y.reshape(p * g_y, h), window, s_x.reshape(q * g_x, w))
    values = values.reshape(len(window), p, g_y, q, g_x).swapaxes(2, 3)
    return values.reshape(len(window), p, q, g_y * g_x)


def _to_largest(grad, s_y, window, s_x):
    """Spread grad [C, P_h, P_w] from each bin's first largest sample to the window [C, h, w]."""
    (p, g_y, h), (q, g_x, w) = s_y.shape, s_x.shape
    first = _samples(s_y, window, s_x).argmax(axis=-1)[..., None, None]
    spread = np.where(np.arange(g_y * g_x).reshape(g_y, g_x) == first, grad[..., None, None], 0)
    spread = spread.swapaxes(2, 3).reshape(len(grad), p * g_y, q * g_x)
    return _product(s_y.reshape(p * g_y, h).T, spread, s_x.reshape(q * g_x, w).T)
