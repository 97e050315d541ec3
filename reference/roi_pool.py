"""RoIPool, forward and backward: RoI and bins rounded to whole pixels [Fast R-CNN §2.1].

Legend: N images, R rois, C channels, P pooled size.
"""

from typing import Any

import numpy as np

from reference.autodiff import Array, primitive
from reference.rois import Size, check, pair, whole_pixels


@primitive
def roi_pool(
    features: Array, rois: Array, image_index: Array, *, output_size: Size, spatial_scale: float
) -> Array:
    """Take the largest feature in each bin of each RoI [Fast R-CNN §2.1; SPEC §2].

    Arguments, result and errors are as in `roi_align.roi_align`. Coordinates round half away from
    zero, the end is inclusive, bins may overlap by a pixel. An empty bin is 0, and NaN reaches the
    bins it lies in.
    """
    return roi_pool_with_argmax(
        features, rois, image_index, output_size=output_size, spatial_scale=spatial_scale
    )[0]


def roi_pool_backward(
    grad_out: Array, features: Array, rois: Array, image_index: Array, **keywords: Any
) -> Array:
    """Pass each bin's gradient to its maximum: [R, C, P_h, P_w] -> [N, C, H, W]; see `roi_pool`."""
    _, argmax = roi_pool_with_argmax(features, rois, image_index, **keywords)
    _, channels, height, width = features.shape
    grad = np.zeros(features.shape, features.dtype)
    plane = np.asarray(image_index)[:, None] * channels + np.arange(channels)
    index = plane[:, :, None, None] * (height * width) + argmax
    kept = argmax >= 0
    np.add.at(grad.reshape(-1), index[kept], np.asarray(grad_out, features.dtype)[kept])
    return grad


def roi_pool_with_argmax(
    features: Array, rois: Array, image_index: Array, *, output_size: Size, spatial_scale: float
) -> tuple[Array, Array]:
    """Return `roi_pool` and the pixel that each output was taken from, both [R, C, P_h, P_w].

    The pixel is y * W + x, of equal values the first, and -1 in empty bins.
    """
    rois, image_index = check(features, rois, image_index)
    (channels, _, width), (bins_y, bins_x) = features.shape[1:], pair(output_size)
    rows, columns = bins(rois, features.shape[2:], output_size, spatial_scale)
    out = np.zeros((len(rois), channels, bins_y, bins_x), features.dtype)
    argmax = np.full(out.shape, -1)
    for r in np.flatnonzero(image_index >= 0):
        for p, q in np.ndindex(bins_y, bins_x):
            (y1, y2), (x1, x2) = rows[r, p], columns[r, q]
            if y1 < y2 and x1 < x2:
                values = features[image_index[r], :, y1:y2, x1:x2].reshape(channels, -1)
                first = values.argmax(axis=1)
                out[r, :, p, q] = values[np.arange(channels), first]
                argmax[r, :, p, q] = (y1 + first // (x2 - x1)) * width + x1 + first % (x2 - x1)
    return out, argmax


def bins(
    rois: Array, shape: tuple[int, ...], output_size: Size, spatial_scale: float
) -> tuple[Array, Array]:
    """Return the rows [R, P_h, 2] and the columns [R, P_w, 2] of pixels in each bin of the RoIs.

    rois   [R, 4]  xyxy, input-image pixels
    shape  (H, W)  of the features
    Bin (p, q) of RoI r holds the pixels from rows[r, p, 0] to rows[r, p, 1] - 1, and likewise the
    columns. The bins divide the RoI of `rois.whole_pixels`, each rounded outwards to whole pixels
    and cut at the border of the map. A bin whose end is not beyond its start is empty.
    """
    (height, width), (bins_y, bins_x) = shape, pair(output_size)
    left, top, right, bottom = whole_pixels(rois, spatial_scale).T
    return _edges(top, bottom, bins_y, height), _edges(left, right, bins_x, width)


def _edges(start, end, bins, size):
    """Return the first and one-past-last pixel [R, bins, 2] of each bin of RoIs along one axis."""
    start, corner = start[:, None], np.arange(bins + 1, dtype=start.dtype)
    side = (end[:, None] - start) / start.dtype.type(bins)
    edges = np.stack([np.floor(corner[:-1] * side), np.ceil(corner[1:] * side)], axis=-1)
    return np.clip(edges + start[..., None], 0, size).astype(np.int64)
