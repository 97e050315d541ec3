"""RoIPool, forward and backward: RoI and bins rounded to whole pixels [Fast R-CNN §2.1].

Legend: N images, R rois, C channels, P pooled size.
"""

import numpy as np

from reference.autodiff import primitive
from reference.rois import check, pair, whole_pixels


@primitive
def roi_pool(
    features: np.ndarray,
    rois: np.ndarray,
    image_index: np.ndarray,
    *,
    output_size: int | tuple[int, int],
    spatial_scale: float,
) -> np.ndarray:
    """Take the largest feature in each bin of each RoI [Fast R-CNN §2.1; SPEC §2].

    features       [N, C, H, W]
    rois           [R, 4]   xyxy, input-image pixels; may leave the image. Coordinates are computed
                            in their dtype
    image_index    [R]      int, row of `features`; -1: a padding RoI, whose output is 0
    output_size    P or (P_h, P_w)
    spatial_scale  feature pixels per image pixel
    Returns        [R, C, P_h, P_w], in the dtype of `features`; an empty bin is 0.

    Coordinates round half away from zero, the end is inclusive, bins may overlap by a pixel. NaN
    reaches the bins it lies in. Raises ValueError for a non-finite RoI or an image index out of
    range, naming its row.
    """
    return _with_argmax(features, rois, image_index, output_size, spatial_scale)[0]


def roi_pool_backward(
    grad_out: np.ndarray,
    features: np.ndarray,
    rois: np.ndarray,
    image_index: np.ndarray,
    *,
    output_size: int | tuple[int, int],
    spatial_scale: float,
) -> np.ndarray:
    """Return the gradient of `roi_pool` with respect to `features`: each bin's to its maximum."""
    _, argmax = _with_argmax(features, rois, image_index, output_size, spatial_scale)
    _, channels, height, width = features.shape
    grad = np.zeros(features.shape, features.dtype)
    plane = np.asarray(image_index)[:, None] * channels + np.arange(channels)
    index = plane[:, :, None, None] * (height * width) + argmax
    kept = argmax >= 0
    np.add.at(grad.reshape(-1), index[kept], np.asarray(grad_out, features.dtype)[kept])
    return grad


def _with_argmax(features, rois, image_index, output_size, spatial_scale):
    """Return `roi_pool` and argmax [R, C, P_h, P_w]: y * W + x of the first, -1 in empty bins."""
    rois, image_index = check(features, rois, image_index)
    width = features.shape[3]
    rows, columns = _edges(rois, features.shape, output_size, spatial_scale)
    out = np.zeros((len(rois), features.shape[1], *pair(output_size)), features.dtype)
    argmax = np.full(out.shape, -1)
    for r in np.flatnonzero(image_index >= 0):
        image = features[image_index[r]]
        for p, q in np.ndindex(out.shape[2:]):
            (y1, y2), (x1, x2) = rows[:, r, p], columns[:, r, q]
            if y1 < y2 and x1 < x2:
                values = image[:, y1:y2, x1:x2].reshape(len(image), -1)
                first = values.argmax(axis=1)
                out[r, :, p, q] = values[np.arange(len(image)), first]
                argmax[r, :, p, q] = (y1 + first // (x2 - x1)) * width + x1 + first % (x2 - x1)
    return out, argmax


def _edges(rois, shape, output_size, spatial_scale):
    """Return first and one-past-last feature pixel of the bins, for y and x: [2, R, P] int64."""
    edges = []
    whole = whole_pixels(rois, spatial_scale)
    for axis, bins, size in zip((1, 0), pair(output_size), shape[2:], strict=True):
        corner, start = np.arange(bins + 1, dtype=rois.dtype), whole[:, axis]
        bin_side = (whole[:, axis + 2] - start) / rois.dtype.type(bins)
        first = np.floor(corner[:-1] * bin_side[:, None]) + start[:, None]
        last = np.ceil(corner[1:] * bin_side[:, None]) + start[:, None]
        edges.append(np.clip(np.stack([first, last]), 0, size).astype(np.int64))
    return edges
