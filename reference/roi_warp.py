"""RoIWarp, forward and backward: rounded like RoIPool, then sampled like RoIAlign.

The operator of [MNC, Dai et al. 2016] as [Mask R-CNN §4.2] compares it: bilinear but misaligned.

Legend: N images, R rois, C channels, P pooled size.
"""

from typing import Any

from reference.autodiff import Array, primitive
from reference.roi_align import roi_align, roi_align_backward
from reference.rois import check, whole_pixels


@primitive
def roi_warp(
    features: Array, rois: Array, image_index: Array, *, spatial_scale: float, **keywords: Any
) -> Array:
    """Average (or take the largest of) bilinear samples in each bin of each rounded RoI [SPEC §15].

    The arguments are those of `roi_align.roi_align` without `aligned`. Returns [R, C, P_h, P_w], in
    the dtype of `features`.

    Coordinates round half away from zero and the end is inclusive, so an RoI is at least one pixel
    wide; bins are not rounded. Raises ValueError for a non-finite RoI or an image index out of
    range, naming its row.
    """
    rois, image_index = check(features, rois, image_index)
    rois = whole_pixels(rois, spatial_scale)
    return roi_align(features, rois, image_index, spatial_scale=1.0, aligned=False, **keywords)


def roi_warp_backward(
    grad_out: Array, features: Array, rois: Array, image_index: Array, **keywords: Any
) -> Array:
    """Return the gradient of `roi_warp` with respect to `features` [N, C, H, W]."""
    rois, image_index = check(features, rois, image_index)
    rois = whole_pixels(rois, keywords["spatial_scale"])
    keywords |= {"spatial_scale": 1.0, "aligned": False}
    return roi_align_backward(grad_out, features, rois, image_index, **keywords)
