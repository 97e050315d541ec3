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


class Bins(NamedTuple):
    """The bins of RoIPool in whole pixels: arguments of both its implementations.

    image_index     [R]       int; -1: a padding RoI
    level_index     [R]       int, 0..L-1
    tops, rows      [R, P_h]  int64, first row and how many; no rows in RoIs that pool nothing
    lefts, columns  [R, P_w]  int64
    """

    image_index: torch.Tensor
    level_index: torch.Tensor
    tops: torch.Tensor
    rows: torch.Tensor
    lefts: torch.Tensor
    columns: torch.Tensor
