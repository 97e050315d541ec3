"""The VGG-16 backbone: 3x3 convolutions with bias, no norm [VGG, Simonyan & Zisserman 2014, D].

Legend: N images, C channels. Stage k is the output of block k before its pooling and has stride
2^(k - 1): conv5_3 has 16.
"""

import torch
import torch.nn.functional as F
from torch import nn

from accelerated.norm import conv_norm
from accelerated.parameters import initialise
from reference.config import Config

# Convolutions per block.
CONVOLUTIONS = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}


class Backbone(nn.Module):
    """Compute images [N, 3, H, W] -> {1: conv1_2 [N, C, H, W], 2: conv2_2, ..., `out_stage`}.

    The first `frozen_stages` blocks receive no gradient.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.blocks, before = tuple(channels(config)), 3
        for block, after in channels(config).items():
            for i in range(1, CONVOLUTIONS[block] + 1):
                conv = nn.Conv2d(before, after, 3, padding=1)
                initialise(conv)
                conv.requires_grad_(block > config.backbone.frozen_stages)
                self.add_module(f"conv{block}_{i}", conv)
                before = after

    def forward(self, images: torch.Tensor) -> dict:
        x, stages = images, {}
        for block in self.blocks:
            if block > 1:
                x = F.max_pool2d(x, 2, 2)
            for i in range(1, CONVOLUTIONS[block] + 1):
                x = conv_norm(getattr(self, f"conv{block}_{i}"), None, x, relu=True)
            stages[block] = x
        return stages


def channels(config: Config) -> dict:
    """Return {stage: channels}: 1, 2, 4, 8, 8 times the width."""
    blocks, width = range(1, config.backbone.out_stage + 1), config.backbone.width
    return {block: width * min(2 ** (block - 1), 8) for block in blocks}


def strides(config: Config) -> dict:
    """Return {stage: image pixels per feature pixel}."""
    return {block: 2 ** (block - 1) for block in range(1, config.backbone.out_stage + 1)}
