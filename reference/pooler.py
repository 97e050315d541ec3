"""Which pyramid level an RoI pools from, and pooling over all levels [FPN §4.2]."""

import numpy as np

from reference.autodiff import primitive
from reference.roi_align import check, roi_align, roi_align_backward
from reference.roi_pool import roi_pool, roi_pool_backward
from reference.roi_warp import roi_warp, roi_warp_backward

# Each operator, its backward, and the fields of config.Pooler that it takes.
OPERATORS = {
    "roi_pool": (roi_pool, roi_pool_backward, ()),
    "roi_warp": (roi_warp, roi_warp_backward, ("sampling_ratio", "aggregate")),
    "roi_align": (roi_align, roi_align_backward, ("sampling_ratio", "aligned", "aggregate")),
}


def assign(rois, pooler):
    """The level number of each RoI: floor(4 + log2(sqrt(area) / 224)) kept within the pyramid [FPN (1)].

    rois     [R, 4]  xyxy, input-image pixels
    pooler   config.Pooler: canonical size and level, epsilon, lowest and highest level
    Returns  [R] int64. An RoI without area goes to the lowest level.
    """
    dtype = rois.dtype.type
    area = (rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1])
    size = np.sqrt(np.where(area > 0, area, dtype(0))) / dtype(pooler.canonical_size)
    if pooler.level_epsilon == "inside":
        power = pooler.canonical_level + np.log2(size + dtype(1e-8))
    else:
        with np.errstate(divide="ignore"):
            power = pooler.canonical_level + np.log2(size) + dtype(1e-6)
    return np.clip(np.floor(power), pooler.min_level, pooler.max_level).astype(np.int64)


@primitive
def pool(features, rois, image_index, pooler):
    """Each RoI pooled from its level by the configured operator.

    features     {level: [N, C, H_l, W_l]}, strides 2**level
    rois         [R, 4]  xyxy, input-image pixels
    image_index  [R]     int; -1: a padding RoI, whose output is 0
    Returns      [R, C, P, P].
    """
    some = features[pooler.min_level]
    rois, image_index = check(some, rois, image_index)
    out = np.zeros(
        (len(rois), some.shape[1], pooler.output_size, pooler.output_size), dtype=some.dtype
    )
    operator, _, _ = OPERATORS[pooler.operator]
    for level, here, keywords in _by_level(rois, pooler):
        out[here] = operator(features[level], rois[here], image_index[here], **keywords)
    return out


def pool_backward(grad_out, features, rois, image_index, pooler):
    """Gradient of `pool` with respect to `features`: {level: [N, C, H_l, W_l]}, for the levels the pooler reads."""
    rois, image_index = check(features[pooler.min_level], rois, image_index)
    _, operator, _ = OPERATORS[pooler.operator]
    return {
        level: operator(grad_out[here], features[level], rois[here], image_index[here], **keywords)
        for level, here, keywords in _by_level(rois, pooler)
    }


def _by_level(rois, pooler):
    levels = assign(rois, pooler)
    keywords = {
        name: getattr(pooler, name) for name in ("output_size", *OPERATORS[pooler.operator][2])
    }
    for level in range(pooler.min_level, pooler.max_level + 1):
        yield level, levels == level, keywords | {"spatial_scale": 1 / 2**level}
