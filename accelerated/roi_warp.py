"""RoIWarp: the RoI rounded to whole feature pixels as RoIPool rounds it, then sampled by RoIAlign, with its kernels and its backward.

MNC's operator [Dai et al. 2016, arXiv 1512.04412] as Mask R-CNN's table 2c compares it: bilinear, but misaligned by the rounding.
"""

import torch

from accelerated import roi_align
from accelerated.roi_pool import whole_pixels


def roi_warp(
    features,
    rois,
    image_index,
    *,
    output_size,
    spatial_scale,
    sampling_ratio,
    aggregate="mean",
    backend="auto",
):
    """Average (or largest) bilinear sample in each bin of each rounded RoI [Mask R-CNN §4.2; SPEC §15].

    features       [N, C, H, W]  float64, float32, float16 or bfloat16; contiguous, channels-last or strided
    rois           [R, 4]        float32 or float64; xyxy, input-image pixels; may leave the image. Coordinates are computed in their dtype
    image_index    [R]           int, row of `features`; -1: a padding RoI, whose output is 0
    output_size    P or (P_h, P_w)
    spatial_scale, sampling_ratio, aggregate   as in `roi_align`
    Returns        [R, C, P_h, P_w], in the dtype and memory format of `features`.

    Coordinates round half away from zero and the end is inclusive, so that a RoI is at least one pixel wide; bins are not rounded.
    A non-finite RoI is a ValueError on a CPU, naming its row; on a GPU its output is 0.
    """
    return multilevel(
        [features],
        rois,
        image_index,
        torch.zeros_like(image_index),
        scales=[spatial_scale],
        output_size=output_size,
        sampling_ratio=sampling_ratio,
        aggregate=aggregate,
        backend=backend,
    )


def multilevel(
    features,
    rois,
    image_index,
    level_index,
    *,
    scales,
    output_size,
    sampling_ratio,
    aggregate="mean",
    backend="auto",
):
    """`roi_warp` where RoI r reads features[level_index[r]]; arguments as in `roi_align.multilevel`. Returns [R, C, P_h, P_w]."""
    if rois.dtype not in (torch.float32, torch.float64):
        rois = rois.float()
    whole = whole_pixels(
        rois.detach(), roi_align.choose(level_index.long(), list(scales), rois.dtype)
    )
    return roi_align.multilevel(
        features,
        whole,
        image_index,
        level_index,
        scales=[1.0] * len(scales),
        output_size=output_size,
        sampling_ratio=sampling_ratio,
        aligned=False,
        aggregate=aggregate,
        backend=backend,
    )
