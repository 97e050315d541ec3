"""RoIWarp, forward and backward: the RoI rounded to whole feature pixels as RoIPool rounds it, then sampled as RoIAlign samples.

MNC's operator [Dai et al. 2016, arXiv 1512.04412] as Mask R-CNN's table 2c compares it: bilinear, but misaligned by the rounding.
"""

import numpy as np

from reference.autodiff import primitive
from reference.roi_align import check, roi_align, roi_align_backward
from reference.roi_pool import whole_pixels


@primitive
def roi_warp(
    features, rois, image_index, *, output_size, spatial_scale, sampling_ratio, aggregate="mean"
):
    """Average (or largest) bilinear sample in each bin of each rounded RoI [Mask R-CNN §4.2; SPEC §15].

    features       [N, C, H, W]
    rois           [R, 4]   xyxy, input-image pixels; may leave the image. Coordinates are computed in their dtype
    image_index    [R]      int, row of `features`; -1: a padding RoI, whose output is 0
    output_size    P or (P_h, P_w)
    spatial_scale, sampling_ratio, aggregate   as in `roi_align`
    Returns        [R, C, P_h, P_w], in the dtype of `features`.

    Coordinates round half away from zero and the end is inclusive, so that a RoI is at least one pixel wide; bins are not rounded.
    Raises ValueError for a non-finite RoI or an image index out of range, naming its row.
    """
    rois, keywords = _rounded(
        features, rois, image_index, spatial_scale, output_size, sampling_ratio, aggregate
    )
    return roi_align(features, rois, image_index, **keywords)


def roi_warp_backward(
    grad_out,
    features,
    rois,
    image_index,
    *,
    output_size,
    spatial_scale,
    sampling_ratio,
    aggregate="mean",
):
    """Gradient of `roi_warp` with respect to `features` [N, C, H, W]: that of `roi_align` at the rounded RoIs."""
    rois, keywords = _rounded(
        features, rois, image_index, spatial_scale, output_size, sampling_ratio, aggregate
    )
    return roi_align_backward(grad_out, features, rois, image_index, **keywords)


def _rounded(features, rois, image_index, spatial_scale, output_size, sampling_ratio, aggregate):
    """The RoIs in whole feature pixels, and what else `roi_align` needs to know."""
    rois, image_index = check(features, rois, image_index)
    rois = whole_pixels(
        np.where((image_index >= 0)[:, None], rois, 0), spatial_scale
    )  # a padding RoI may be anything, even NaN
    keywords = {
        "output_size": output_size,
        "sampling_ratio": sampling_ratio,
        "aggregate": aggregate,
    }
    return rois, keywords | {"spatial_scale": 1.0, "aligned": False}
