"""The pyramid level that an RoI pools from, and pooling from all levels [FPN §4.2].

Legend: N images, R rois, C channels, P pooled size.
"""

from collections.abc import Sequence

import torch

from accelerated import roi_align, roi_pool, roi_warp
from reference.config import Pooler

# Each operator over all levels, and the fields of the pooler that it takes.
OPERATORS = {
    "roi_pool": (roi_pool.multilevel, ()),
    "roi_warp": (roi_warp.multilevel, ("sampling_ratio", "aggregate")),
    "roi_align": (roi_align.multilevel, ("sampling_ratio", "aligned", "aggregate")),
}


def assign(rois: torch.Tensor, pooler: Pooler) -> torch.Tensor:
    """Return the level of each RoI, floor(4 + log2(sqrt(area) / 224)) within the pyramid [FPN (1)].

    rois     [..., 4]  xyxy, input-image pixels
    pooler   its canonical size and level, epsilon, lowest and highest level
    Returns  [...] int64. An RoI without area goes to the lowest level.
    """
    area = (rois[..., 2] - rois[..., 0]) * (rois[..., 3] - rois[..., 1])
    # On a GPU, dividing by a number multiplies by its rounded reciprocal.
    canonical_size = torch.full_like(area, pooler.canonical_size)
    size = torch.where(area > 0, area, 0).sqrt() / canonical_size
    if pooler.level_epsilon == "inside":
        power = pooler.canonical_level + torch.log2(size + 1e-8)
    else:
        power = pooler.canonical_level + torch.log2(size) + 1e-6
    return power.floor().clamp(pooler.min_level, pooler.max_level).long()


def pool(
    features: dict[int, torch.Tensor] | Sequence[torch.Tensor],
    rois: torch.Tensor,
    image_index: torch.Tensor,
    pooler: Pooler,
    backend: str = "auto",
) -> torch.Tensor:
    """Pool each RoI from its level by the configured operator.

    features     {level: [N, C, H_l, W_l]}, or a list from the lowest level on; strides 2**level
    rois         [R, 4]  xyxy, input-image pixels
    image_index  [R]     int; -1: a padding RoI, whose output is 0
    Returns      [R, C, P, P].
    """
    levels = range(pooler.min_level, pooler.max_level + 1)
    if isinstance(features, dict):
        features = [features[level] for level in levels]
    operator, fields = OPERATORS[pooler.operator]
    return operator(
        features[: len(levels)],
        rois,
        image_index,
        assign(rois, pooler) - pooler.min_level,
        scales=[1 / 2**level for level in levels],
        output_size=pooler.output_size,
        backend=backend,
        **{name: getattr(pooler, name) for name in fields},
    )
