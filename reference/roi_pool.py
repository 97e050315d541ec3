"""RoIPool, forward and backward: RoI and bins rounded to whole feature pixels, the largest value of each bin."""

import numpy as np

from reference.autodiff import primitive
from reference.roi_align import check, pair


@primitive
def roi_pool(features, rois, image_index, *, output_size, spatial_scale):
    """Largest feature in each bin of each RoI [Fast R-CNN §2.1; SPEC §2].

    features       [N, C, H, W]
    rois           [R, 4]   xyxy, input-image pixels; may leave the image. Coordinates are computed in their dtype
    image_index    [R]      int, row of `features`; -1: a padding RoI, whose output is 0
    output_size    P or (P_h, P_w)
    spatial_scale  feature pixels per image pixel
    Returns        [R, C, P_h, P_w], in the dtype of `features`; an empty bin is 0.

    Coordinates round half away from zero, the end is inclusive, bins may overlap by a pixel. NaN reaches the bins it lies in.
    Raises ValueError for a non-finite RoI or an image index out of range, naming its row.
    """
    return roi_pool_argmax(
        features, rois, image_index, output_size=output_size, spatial_scale=spatial_scale
    )[0]


def roi_pool_argmax(features, rois, image_index, *, output_size, spatial_scale):
    """`roi_pool` and where its values come from: argmax [R, C, P_h, P_w] int64, y * W + x; -1 in an empty bin."""
    rois, image_index = check(features, rois, image_index)
    width = features.shape[3]
    rows, columns = _edges(rois, features.shape, output_size, spatial_scale)
    out = np.zeros((len(rois), features.shape[1], *pair(output_size)), dtype=features.dtype)
    argmax = np.full(out.shape, -1, dtype=np.int64)
    for r in np.flatnonzero(image_index >= 0):
        image = features[image_index[r]]
        for p, q in np.ndindex(out.shape[2:]):
            (y1, y2), (x1, x2) = rows[:, r, p], columns[:, r, q]
            if y1 < y2 and x1 < x2:
                values = image[:, y1:y2, x1:x2].reshape(len(image), -1)
                first = values.argmax(axis=1)  # the first in row-major order
                out[r, :, p, q] = np.take_along_axis(values, first[:, None], axis=1)[:, 0]
                argmax[r, :, p, q] = (y1 + first // (x2 - x1)) * width + x1 + first % (x2 - x1)
    return out, argmax


def roi_pool_backward(grad_out, features, rois, image_index, *, output_size, spatial_scale):
    """Gradient of `roi_pool` with respect to `features` [N, C, H, W]: all of it to the first maximum of each bin."""
    argmax = roi_pool_argmax(
        features, rois, image_index, output_size=output_size, spatial_scale=spatial_scale
    )[1]
    _, channels, height, width = features.shape
    grad = np.zeros(features.shape, dtype=features.dtype)
    plane = np.asarray(image_index)[:, None] * channels + np.arange(channels)  # [R, C]
    index = plane[:, :, None, None] * (height * width) + argmax
    kept = argmax >= 0
    np.add.at(grad.reshape(-1), index[kept], np.asarray(grad_out, dtype=features.dtype)[kept])
    return grad


def whole_pixels(rois, spatial_scale):
    """The RoIs [R, 4] in whole feature pixels, xyxy: ends rounded and inclusive, hence one more, and at least one pixel wide."""
    rounded = _round(rois * rois.dtype.type(spatial_scale))
    return np.concatenate(
        [rounded[:, :2], np.maximum(rounded[:, 2:] + 1, rounded[:, :2] + 1)], axis=1
    )


def _edges(rois, shape, output_size, spatial_scale):
    """First and one-past-last feature pixel of the bins, per axis [2, R, P] int64; empty where they do not ascend."""
    edges = []
    whole = whole_pixels(rois, spatial_scale)
    for axis, bins, size in zip((1, 0), pair(output_size), shape[2:], strict=True):
        number, start = np.arange(bins + 1, dtype=rois.dtype), whole[:, axis]
        bin_side = (whole[:, axis + 2] - start) / rois.dtype.type(bins)
        first = np.floor(number[:-1] * bin_side[:, None]) + start[:, None]
        last = np.ceil(number[1:] * bin_side[:, None]) + start[:, None]
        edges.append(np.clip(np.stack([first, last]), 0, size).astype(np.int64))
    return edges


def _round(x):
    """Half away from zero, as C rounds (NumPy rounds half to even)."""
    whole = np.trunc(x)
    return whole + np.sign(x) * (np.abs(x - whole) >= 0.5)
