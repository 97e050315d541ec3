"""The ResNet backbone [ResNet, He et al. 2015]; grouped, a ResNeXt [Xie et al. 2017]; SPEC §13.

Legend: N images, C channels. Stages 2..5 have strides 4, 8, 16, 32; a dilated stage 5 keeps the
stride of stage 4.
"""

import torch
import torch.nn.functional as F
from torch import nn

from accelerated import norm
from accelerated.parameters import initialise
from reference.config import Config

# Blocks per stage, by depth.
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Backbone(nn.Module):
    """Compute images [N, 3, H, W] -> {2: C2 [N, C, H/4, W/4], 3: C3, ..., `out_stage`}.

    Stage 5 exists only if it is used, here or by the heads. The first `frozen_stages` of stem,
    layer1, ..., layer4 receive no gradient. Parameter names are torchvision's: layer1 is stage 2.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        block = Bottleneck if is_bottleneck(config) else BasicBlock
        self.out_stage, before = config.backbone.out_stage, config.backbone.width
        self.conv1 = nn.Conv2d(3, before, 7, 2, padding=3, bias=False)
        self.bn1 = norm.make(config.backbone.norm, before, config)
        stages: list[list[nn.Module]] = [[self.conv1, self.bn1]]
        last = self.out_stage if config.shared_head == "none" else 5
        for index in range(2, last + 1):
            blocks, stride = [], stride_of(index, config)
            for _ in range(BLOCKS[config.backbone.depth][index - 2]):
                blocks.append(block(before, index, stride, config))
                before, stride = channels(config)[index], 1
            self.add_module(f"layer{index - 1}", nn.Sequential(*blocks))
            stages.append(blocks)
        for module in self.modules():
            initialise(module)
        for stage in stages[: config.backbone.frozen_stages]:
            for module in stage:
                module.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> dict:
        x = norm.conv_norm(self.conv1, self.bn1, images, relu=True)
        x = F.max_pool2d(x, 3, 2, padding=1)
        stages = {}
        for index in range(2, self.out_stage + 1):
            stages[index] = x = self.stage(x, index)
        return stages

    def stage(self, x: torch.Tensor, index: int, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Apply the blocks of stage `index` (2..5).

        `valid` [N] excludes padded rows from batch statistics.
        """
        for block in getattr(self, f"layer{index - 1}"):
            x = block(x, valid)
        return x


class BasicBlock(nn.Module):
    """Apply two 3x3 convolutions, each normalised, and add the shortcut."""

    def __init__(self, before: int, index: int, stride: int, config: Config) -> None:
        super().__init__()
        after, kind = channels(config)[index], config.backbone.norm
        dilation = dilation_of(index, config)
        self.conv1 = _conv3x3(before, after, stride, dilation)
        self.bn1 = norm.make(kind, after, config)
        self.conv2 = _conv3x3(after, after, 1, dilation)
        self.bn2 = norm.make(kind, after, config)
        self.downsample = _projection(before, after, stride, config)

    def forward(self, x: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        y = norm.conv_norm(self.conv1, self.bn1, x, valid, relu=True)
        shortcut = _shortcut(self.downsample, x, valid)
        return norm.conv_norm(self.conv2, self.bn2, y, valid, shortcut=shortcut, relu=True)


class Bottleneck(nn.Module):
    """Apply 1x1, 3x3 and 1x1 convolutions, each normalised, and add the shortcut.

    `stride_in_1x1` says which of the first two strides (SPEC §13).
    """

    def __init__(self, before: int, index: int, stride: int, config: Config) -> None:
        super().__init__()
        after, kind, groups = channels(config)[index], config.backbone.norm, config.backbone.groups
        width = config.backbone.width if groups == 1 else groups * config.backbone.group_width
        inner = width * 2 ** (index - 2)
        first, second = (stride, 1) if config.backbone.stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(before, inner, 1, first, bias=False)
        self.bn1 = norm.make(kind, inner, config)
        self.conv2 = _conv3x3(inner, inner, second, dilation_of(index, config), groups)
        self.bn2 = norm.make(kind, inner, config)
        self.conv3 = nn.Conv2d(inner, after, 1, bias=False)
        self.bn3 = norm.make(kind, after, config)
        self.downsample = _projection(before, after, stride, config)

    def forward(self, x: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        y = norm.conv_norm(self.conv1, self.bn1, x, valid, relu=True)
        y = norm.conv_norm(self.conv2, self.bn2, y, valid, relu=True)
        shortcut = _shortcut(self.downsample, x, valid)
        return norm.conv_norm(self.conv3, self.bn3, y, valid, shortcut=shortcut, relu=True)


def _shortcut(downsample, x, valid):
    if downsample is None:
        return x
    conv, bn = downsample
    return norm.conv_norm(conv, bn, x, valid)


def _conv3x3(before, after, stride, dilation, groups=1):
    return nn.Conv2d(before, after, 3, stride, dilation, dilation, groups, bias=False)


def _projection(before, after, stride, config):
    """Make the strided 1x1 projection of the shortcut, or None if the shape does not change."""
    if stride == 1 and before == after:
        return None
    conv = nn.Conv2d(before, after, 1, stride, bias=False)
    return nn.Sequential(conv, norm.make(config.backbone.norm, after, config))


def is_bottleneck(config: Config) -> bool:
    """Test whether the blocks of a network of this depth are bottlenecks."""
    return config.backbone.depth >= 50


def channels(config: Config) -> dict:
    """Return {stage: channels of C2..C5}; a bottleneck outputs 4 times its inner channels."""
    width = config.backbone.width * (4 if is_bottleneck(config) else 1)
    return {2: width, 3: 2 * width, 4: 4 * width, 5: 8 * width}


def strides(config: Config) -> dict:
    """Return {stage: image pixels per feature pixel of C2..C5}."""
    return {2: 4, 3: 8, 4: 16, 5: 32 // config.backbone.dilation}


def stride_of(index: int, config: Config) -> int:
    """Return the stride of the first block of stage `index`."""
    if index == 5 and config.shared_head == "res5_unstrided":
        return 1
    return strides(config)[index] // strides(config).get(index - 1, 4)


def dilation_of(index: int, config: Config) -> int:
    """Return the dilation of stage `index`."""
    return config.backbone.dilation if index == 5 else 1
