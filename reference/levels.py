"""Which pyramid level an RoI pools from, and pooling over all levels [FPN §4.2]."""

import numpy as np

from reference.autodiff import primitive
from reference.roi_align import check, roi_align, roi_align_backward
from reference.roi_pool import roi_pool, roi_pool_backward


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
    out = np.zeros((len(rois), some.shape[1], pooler.output_size, pooler.output_size), dtype=some.dtype)
    operator = roi_pool if pooler.operator == "roi_pool" else roi_align
    for level, here, keywords in _by_level(rois, pooler):
        out[here] = operator(features[level], rois[here], image_index[here], **keywords)
    return out


def pool_backward(grad_out, features, rois, image_index, pooler):
    """Gradient of `pool` with respect to `features`: {level: [N, C, H_l, W_l]}, for the levels the pooler reads."""
    rois, image_index = check(features[pooler.min_level], rois, image_index)
    operator = roi_pool_backward if pooler.operator == "roi_pool" else roi_align_backward
    return {
        level: operator(grad_out[here], features[level], rois[here], image_index[here], **keywords)
        for level, here, keywords in _by_level(rois, pooler)
    }


def _by_level(rois, pooler):
    levels = assign(rois, pooler)
    keywords = {"output_size": pooler.output_size}
    if pooler.operator == "roi_align":
        keywords |= {"sampling_ratio": pooler.sampling_ratio, "aligned": pooler.aligned, "aggregate": pooler.aggregate}
    for level in range(pooler.min_level, pooler.max_level + 1):
        yield level, levels == level, keywords | {"spatial_scale": 1 / 2**level}
