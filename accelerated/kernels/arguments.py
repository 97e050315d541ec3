"""The arguments that both implementations of a RoI operator take."""

from typing import NamedTuple

import torch


class Sampling(NamedTuple):
    """The samples that RoIAlign takes: arguments of both its implementations.

    rois            [R, 4]  float32 or float64, xyxy, input-image pixels
    image_index     [R]     int; -1: a padding RoI
    level_index     [R]     int, 0..L-1
    scales          feature pixels per image pixel of each level
    output_size     [P_h, P_w]
    sampling_ratio  samples per bin and axis; 0: ceil(bin side)
    aligned         whether to shift by half a pixel
    """

    rois: torch.Tensor
    image_index: torch.Tensor
    level_index: torch.Tensor
    scales: list[float]
    output_size: list[int]
    sampling_ratio: int
    aligned: bool


class Pooling(NamedTuple):
    """The RoIs that RoIPool pools: arguments of both its implementations.

    The fields are those of `Sampling`.
    """

    rois: torch.Tensor
    image_index: torch.Tensor
    level_index: torch.Tensor
    scales: list[float]
    output_size: list[int]


class Matching(NamedTuple):
    """The rules by which candidates match ground truths: see `matcher.match`."""

    high: float
    low: float
    low_quality: bool
    zero_iou: bool
