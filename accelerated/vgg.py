"""VGG-16 [Simonyan & Zisserman 2014, arXiv 1409.1556, configuration D]: 3x3 convolutions with bias, no norm.

Shapes: N images, C channels. Stage k is the output of block k before its pooling and has stride 2^(k - 1): conv5_3 has 16.
"""

import torch.nn.functional as F
from torch import nn

CONVOLUTIONS = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}  # per block


class Backbone(nn.Module):
    """images [N, 3, H, W] -> {1: conv1_2 [N, C, H, W], 2: conv2_2, .., `out_stage`}.

    The first `frozen_stages` blocks receive no gradient.
    """

    def __init__(self, config):
        super().__init__()
        self.blocks, before = tuple(channels(config)), 3
        for block, after in channels(config).items():
            for i in range(1, CONVOLUTIONS[block] + 1):
                convolution = nn.Conv2d(before, after, 3, padding=1)
                nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(convolution.bias)
                convolution.requires_grad_(block > config.backbone.frozen_stages)
                self.add_module(f"conv{block}_{i}", convolution)
                before = after

    def forward(self, images):
        x, stages = images, {}
        for block in self.blocks:
            if block > 1:
                x = F.max_pool2d(x, 2, 2)
            for i in range(1, CONVOLUTIONS[block] + 1):
                x = F.relu_(getattr(self, f"conv{block}_{i}")(x))
            stages[block] = x
        return stages


def channels(config):
    """{stage: channels}: 1, 2, 4, 8, 8 times the width."""
    return {
        block: config.backbone.width * min(2 ** (block - 1), 8)
        for block in range(1, config.backbone.out_stage + 1)
    }


def strides(config):
    """{stage: image pixels per feature pixel}."""
    return {block: 2 ** (block - 1) for block in range(1, config.backbone.out_stage + 1)}
