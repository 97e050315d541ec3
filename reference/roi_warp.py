"""RoIWarp, forward and backward: rounded like RoIPool, then sampled like RoIAlign.

The operator of [MNC, Dai et al. 2016] as [Mask R-CNN §4.2] compares it: bilinear but misaligned.

Legend: N images, R rois, C channels, P pooled size.
"""

from typing import Any

import numpy as np

from reference.autodiff import primitive
from reference.roi_align import roi_align, roi_align_backward
from reference.rois import check, whole_pixels


@primitive
def roi_warp(
    features: np.ndarray,
    rois: np.ndarray,
    image_index: np.ndarray,
    *,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aggregate: str = "mean",
) -> np.ndarray:
    """Average (or take the largest of) bilinear samples in each bin of each rounded RoI [SPEC §15].

    The arguments are those of `roi_align`: features [N, C, H, W], rois [R, 4], image_index [R].
    Returns [R, C, P_h, P_w], in the dtype of `features`.

    Coordinates round half away from zero and the end is inclusive, so an RoI is at least one pixel
    wide; bins are not rounded. Raises ValueError for a non-finite RoI or an image index out of
    range, naming its row.
    """
    return roi_align(
        features,
        _rounded(features, rois, image_index, spatial_scale),
        image_index,
        output_size=output_size,
        spatial_scale=1.0,
        sampling_ratio=sampling_ratio,
        aligned=False,
        aggregate=aggregate,
    )


def roi_warp_backward(
    grad_out: np.ndarray,
    features: np.ndarray,
    rois: np.ndarray,
    image_index: np.ndarray,
    *,
    spatial_scale: float,
    **keywords: Any,
) -> np.ndarray:
    """Return the gradient of `roi_warp` with respect to `features` [N, C, H, W]."""
    rois = _rounded(features, rois, image_index, spatial_scale)
    keywords |= {"spatial_scale": 1.0, "aligned": False}
    return roi_align_backward(grad_out, features, rois, image_index, **keywords)


def _rounded(features, rois, image_index, spatial_scale):
    """Return the RoIs in whole feature pixels. A padding RoI may hold anything, even NaN."""
    rois, image_index = check(features, rois, image_index)
    return whole_pixels(np.where((image_index >= 0)[:, None], rois, 0), spatial_scale)
