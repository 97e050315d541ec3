"""RoIWarp, forward and backward: rounded like RoIPool, then sampled like RoIAlign.

The operator of [MNC, Dai et al. 2016] as [Mask R-CNN §4.2] compares it: bilinear but misaligned.

Legend: N images, R rois, C channels, P pooled size, L levels.
"""

from collections.abc import Sequence

import torch

from accelerated import roi_align
from accelerated.kernels.eager.tables import choose
from accelerated.rois import prepare, whole_pixels


def roi_warp(
    features: torch.Tensor,
    rois: torch.Tensor,
    image_index: torch.Tensor,
    *,
    output_size: int | Sequence[int],
    spatial_scale: float,
    sampling_ratio: int,
    aggregate: str = "mean",
    backend: str = "auto",
) -> torch.Tensor:
    """Average (or take the largest of) bilinear samples in each bin of each rounded RoI [SPEC §15].

    The arguments are those of `roi_align`: features [N, C, H, W], rois [R, 4], image_index [R].
    Returns [R, C, P_h, P_w], in the dtype and memory format of `features`.

    Coordinates round half away from zero and the end is inclusive, so an RoI is at least one pixel
    wide; bins are not rounded. A non-finite RoI raises ValueError on a CPU, naming its row; on a
    GPU its output is 0.
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
    features: Sequence[torch.Tensor],
    rois: torch.Tensor,
    image_index: torch.Tensor,
    level_index: torch.Tensor,
    *,
    scales: Sequence[float],
    output_size: int | Sequence[int],
    sampling_ratio: int,
    aggregate: str = "mean",
    backend: str = "auto",
) -> torch.Tensor:
    """Pool each RoI r from features[level_index[r]] by `roi_warp`; see `roi_align.multilevel`."""
    maps, rois, *indices, scales = prepare(features, rois, image_index, level_index, scales)
    return roi_align.multilevel(
        maps,
        whole_pixels(rois, choose(level_index, scales, rois.dtype)),
        *indices,
        scales=[1.0] * len(scales),
        output_size=output_size,
        sampling_ratio=sampling_ratio,
        aligned=False,
        aggregate=aggregate,
        backend=backend,
    )
