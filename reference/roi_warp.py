"""RoIWarp, forward and backward: rounded like RoIPool, then sampled like RoIAlign.

The operator of [MNC, Dai et al. 2016] as [Mask R-CNN §4.2] compares it: bilinear but misaligned.
"""

from typing import Any

from reference.autodiff import Array, primitive
from reference.roi_align import roi_align, roi_align_backward
from reference.rois import Size, check, whole_pixels


@primitive
def roi_warp(
    features: Array,
    rois: Array,
    image_index: Array,
    *,
    output_size: Size,
    spatial_scale: float,
    sampling_ratio: int,
    aggregate: str = "mean",
) -> Array:
    """Average (or take the largest of) bilinear samples in each bin of each rounded RoI [SPEC §15].

    Arguments, result and errors are as in `roi_align.roi_align`, without `aligned`. Coordinates
    round half away from zero and the end is inclusive, so an RoI is at least one pixel wide; bins
    are not rounded.
    """
    rois, image_index = check(features, rois, image_index)
    return roi_align(
        features,
        whole_pixels(rois, spatial_scale),
        image_index,
        output_size=output_size,
        spatial_scale=1.0,
        sampling_ratio=sampling_ratio,
        aligned=False,
        aggregate=aggregate,
    )


def roi_warp_backward(
    grad_out: Array, features: Array, rois: Array, image_index: Array, **keywords: Any
) -> Array:
    """Return the gradient of `roi_warp`, whose arguments it takes, with respect to `features`."""
    rois, image_index = check(features, rois, image_index)
    rois = whole_pixels(rois, keywords["spatial_scale"])
    keywords |= {"spatial_scale": 1.0, "aligned": False}
    return roi_align_backward(grad_out, features, rois, image_index, **keywords)
