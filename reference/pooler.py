"""The pyramid level that an RoI pools from, and pooling from all levels [FPN §4.2].

Legend: N images, R rois, C channels, P pooled size.
"""

import numpy as np

from reference import roi_align, roi_pool, roi_warp
from reference.autodiff import Array, backward_of, primitive
from reference.config import Pooler
from reference.rois import check

# Each operator, and the fields of the pooler that it takes.
OPERATORS = {
    "roi_pool": (roi_pool.roi_pool, ()),
    "roi_warp": (roi_warp.roi_warp, ("sampling_ratio", "aggregate")),
    "roi_align": (roi_align.roi_align, ("sampling_ratio", "aligned", "aggregate")),
}


def assign(rois: Array, pooler: Pooler) -> Array:
    """Return the level of each RoI, floor(4 + log2(sqrt(area) / 224)) within the pyramid [FPN (1)].

    rois     [R, 4]  xyxy, input-image pixels
    pooler   its canonical size and level, epsilon, lowest and highest level
    Returns  [R] int64. An RoI without area goes to the lowest level.
    """
    dtype = rois.dtype.type
    area = (rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1])
    size = np.sqrt(np.where(area > 0, area, dtype(0))) / dtype(pooler.canonical_size)
    inside, outside = (1e-8, 0) if pooler.level_epsilon == "inside" else (0, 1e-6)
    with np.errstate(divide="ignore"):
        power = pooler.canonical_level + np.log2(size + dtype(inside)) + dtype(outside)
    return np.clip(np.floor(power), pooler.min_level, pooler.max_level).astype(np.int64)


@primitive
def pool(features: dict[int, Array], rois: Array, image_index: Array, pooler: Pooler) -> Array:
    """Pool each RoI from its level by the configured operator.

    features     {level: [N, C, H_l, W_l]}, strides 2**level
    rois         [R, 4]  xyxy, input-image pixels
    image_index  [R]     int; -1: a padding RoI, whose output is 0
    Returns      [R, C, P, P]. Raises ValueError as the operators do.
    """
    finest, side = features[pooler.min_level], pooler.output_size
    rois, image_index = check(finest, rois, image_index)
    out = np.zeros((len(rois), finest.shape[1], side, side), finest.dtype)
    operator, _ = OPERATORS[pooler.operator]
    for level, rows, keywords in _by_level(rois, pooler):
        out[rows] = operator(features[level], rois[rows], image_index[rows], **keywords)
    return out


def pool_backward(
    grad_out: Array, features: dict[int, Array], rois: Array, image_index: Array, pooler: Pooler
) -> dict[int, Array]:
    """Return the gradient of `pool` with respect to the levels that the pooler reads."""
    rois, image_index = check(features[pooler.min_level], rois, image_index)
    operator = backward_of(OPERATORS[pooler.operator][0])
    return {
        level: operator(grad_out[rows], features[level], rois[rows], image_index[rows], **keywords)
        for level, rows, keywords in _by_level(rois, pooler)
    }


def _by_level(rois, pooler):
    """Yield each level, the rows of its RoIs [R] bool, and the operator's keywords there."""
    levels = assign(rois, pooler)
    fields = ("output_size", *OPERATORS[pooler.operator][1])
    keywords = {name: getattr(pooler, name) for name in fields}
    for level in range(pooler.min_level, pooler.max_level + 1):
        yield level, levels == level, keywords | {"spatial_scale": 1 / 2**level}
