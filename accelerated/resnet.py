"""ResNet [He et al. 2015, arXiv 1512.03385], and ResNeXt, its form with grouped convolutions [Xie et al. 2017, arXiv 1611.05431].

Shapes: N images, C channels. Stages 2..5 have strides 4, 8, 16, 32; a dilated stage 5 keeps the stride of stage 4.
In place where nothing needs the old values: no convolution and no norm keeps its output for the backward pass.
"""

import torch.nn.functional as F
from torch import nn

from accelerated import norm

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Basic(nn.Module):
    """3x3, 3x3, plus the shortcut."""

    expansion = 1

    def __init__(self, before, number, stride, config):
        super().__init__()
        after, dilation = channels(config)[number], dilation_of(number, config)
        self.conv1 = nn.Conv2d(
            before, after, 3, stride, padding=dilation, dilation=dilation, bias=False
        )
        self.bn1 = norm.make(config.backbone.norm, after, config)
        self.conv2 = nn.Conv2d(after, after, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = norm.make(config.backbone.norm, after, config)
        self.downsample = _projection(before, after, stride, config)

    def forward(self, x, valid=None):
        y = F.relu_(norm.conv_norm(self.conv1, self.bn1, x, valid))
        y = norm.conv_norm(self.conv2, self.bn2, y, valid)
        return F.relu_(y.add_(_shortcut(self.downsample, x, valid)))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 to four times as many channels, plus the shortcut; `stride_in_1x1` says which of the first two strides (SPEC §13)."""

    expansion = 4

    def __init__(self, before, number, stride, config):
        super().__init__()
        after, dilation, groups = (
            channels(config)[number],
            dilation_of(number, config),
            config.backbone.groups,
        )
        inner = (
            config.backbone.width if groups == 1 else groups * config.backbone.group_width
        ) * 2 ** (number - 2)
        first, second = (stride, 1) if config.backbone.stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(before, inner, 1, first, bias=False)
        self.bn1 = norm.make(config.backbone.norm, inner, config)
        self.conv2 = nn.Conv2d(
            inner, inner, 3, second, padding=dilation, dilation=dilation, groups=groups, bias=False
        )
        self.bn2 = norm.make(config.backbone.norm, inner, config)
        self.conv3 = nn.Conv2d(inner, after, 1, bias=False)
        self.bn3 = norm.make(config.backbone.norm, after, config)
        self.downsample = _projection(before, after, stride, config)

    def forward(self, x, valid=None):
        y = F.relu_(norm.conv_norm(self.conv1, self.bn1, x, valid))
        y = F.relu_(norm.conv_norm(self.conv2, self.bn2, y, valid))
        y = norm.conv_norm(self.conv3, self.bn3, y, valid)
        return F.relu_(y.add_(_shortcut(self.downsample, x, valid)))


class Backbone(nn.Module):
    """images [N, 3, H, W] -> {2: C2 [N, C, H/4, W/4], 3: C3, .., `out_stage`}.

    Stage 5 exists where it is used, here or by the heads. The first `frozen_stages` of (stem, layer1, .., layer4) receive no gradient.
    Parameter names are torchvision's: layer1 is stage 2.
    """

    def __init__(self, config):
        super().__init__()
        block = Bottleneck if is_bottleneck(config) else Basic
        self.out_stage, before = config.backbone.out_stage, config.backbone.width
        self.conv1 = nn.Conv2d(3, before, 7, 2, padding=3, bias=False)
        self.bn1 = norm.make(config.backbone.norm, before, config)
        last = self.out_stage if config.shared_head == "none" else 5
        for number in range(2, last + 1):
            blocks = []
            for i in range(BLOCKS[config.backbone.depth][number - 2]):
                blocks.append(
                    block(before, number, stride_of(number, config) if i == 0 else 1, config)
                )
                before = channels(config)[number]
            self.add_module(f"layer{number - 1}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        stages = [
            [self.conv1, self.bn1],
            *([getattr(self, f"layer{number - 1}")] for number in range(2, last + 1)),
        ]
        for stage in stages[: config.backbone.frozen_stages]:
            for module in stage:
                module.requires_grad_(False)

    def forward(self, images):
        x = F.relu_(norm.conv_norm(self.conv1, self.bn1, images))
        x = F.max_pool2d(x, 3, 2, padding=1)
        stages = {}
        for number in range(2, self.out_stage + 1):
            stages[number] = x = self.stage(x, number)
        return stages

    def stage(self, x, number, valid=None):
        """The blocks of stage `number` (2..5). `valid` [N] keeps padded rows out of batch statistics."""
        for block in getattr(self, f"layer{number - 1}"):
            x = block(x, valid)
        return x


def is_bottleneck(config):
    return config.backbone.depth >= 50


def channels(config):
    """{stage: channels of C2..C5}."""
    expansion = Bottleneck.expansion if is_bottleneck(config) else Basic.expansion
    return {
        number: config.backbone.width * 2 ** (number - 2) * expansion for number in (2, 3, 4, 5)
    }


def strides(config):
    """{stage: image pixels per feature pixel of C2..C5}."""
    return {2: 4, 3: 8, 4: 16, 5: 32 // config.backbone.dilation}


def stride_of(number, config):
    """Of the first block of stage `number`."""
    if number == 5 and config.shared_head == "res5_unstrided":
        return 1
    return strides(config)[number] // strides(config).get(number - 1, 4)


def dilation_of(number, config):
    return config.backbone.dilation if number == 5 else 1


def _projection(before, after, stride, config):
    if stride == 1 and before == after:
        return None
    convolution = nn.Conv2d(before, after, 1, stride, bias=False)
    return nn.Sequential(convolution, norm.make(config.backbone.norm, after, config))


def _shortcut(downsample, x, valid):
    return x if downsample is None else norm.conv_norm(*downsample, x, valid)
