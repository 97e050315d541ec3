"""ResNet [He et al. 2015, arXiv 1512.03385], the maps after each of its four stages.

Shapes: N images, C channels. C2..C5 have strides 4, 8, 16, 32.
In place where nothing needs the old values: no convolution and no norm keeps its output for the backward pass.
"""

import torch.nn.functional as F
from torch import nn

from accelerated import norm

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Basic(nn.Module):
    """3x3, 3x3, plus the shortcut."""

    expansion = 1

    def __init__(self, channels_in, channels, stride, config):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = norm.make(config.backbone.norm, channels, config)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = norm.make(config.backbone.norm, channels, config)
        self.downsample = _projection(channels_in, channels, stride, config)

    def forward(self, x):
        y = F.relu_(norm.conv_norm(self.conv1, self.bn1, x))
        y = norm.conv_norm(self.conv2, self.bn2, y)
        return F.relu_(y.add_(_shortcut(self.downsample, x)))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 to four times as many channels, plus the shortcut; `stride_in_1x1` says which of the first two strides (SPEC §13)."""

    expansion = 4

    def __init__(self, channels_in, channels, stride, config):
        super().__init__()
        first, second = (stride, 1) if config.backbone.stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(channels_in, channels, 1, first, bias=False)
        self.bn1 = norm.make(config.backbone.norm, channels, config)
        self.conv2 = nn.Conv2d(channels, channels, 3, second, padding=1, bias=False)
        self.bn2 = norm.make(config.backbone.norm, channels, config)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = norm.make(config.backbone.norm, 4 * channels, config)
        self.downsample = _projection(channels_in, 4 * channels, stride, config)

    def forward(self, x):
        y = F.relu_(norm.conv_norm(self.conv1, self.bn1, x))
        y = F.relu_(norm.conv_norm(self.conv2, self.bn2, y))
        y = norm.conv_norm(self.conv3, self.bn3, y)
        return F.relu_(y.add_(_shortcut(self.downsample, x)))


class ResNet(nn.Module):
    """images [N, 3, H, W] -> {2: C2, 3: C3, 4: C4, 5: C5}.

    The first `frozen_stages` of (stem, layer1, .., layer4) receive no gradient. Parameter names are torchvision's.
    """

    def __init__(self, config):
        super().__init__()
        block = Bottleneck if is_bottleneck(config) else Basic
        width = config.backbone.width
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = norm.make(config.backbone.norm, width, config)
        channels_in = width
        for stage, count in enumerate(BLOCKS[config.backbone.depth]):
            blocks = []
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(block(channels_in, width * 2**stage, stride, config))
                channels_in = width * 2**stage * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        stages = [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]
        for stage in stages[: config.backbone.frozen_stages]:
            for module in stage:
                module.requires_grad_(False)

    def forward(self, images):
        x = F.relu_(norm.conv_norm(self.conv1, self.bn1, images))
        x = F.max_pool2d(x, 3, 2, padding=1)
        features = {}
        for level, layer in enumerate((self.layer1, self.layer2, self.layer3, self.layer4), start=2):
            x = features[level] = layer(x)
        return features


def is_bottleneck(config):
    return config.backbone.depth >= 50


def channels(config):
    """{2: channels of C2, .., 5: channels of C5}."""
    expansion = Bottleneck.expansion if is_bottleneck(config) else Basic.expansion
    return {level: config.backbone.width * 2 ** (level - 2) * expansion for level in (2, 3, 4, 5)}


def _projection(channels_in, channels_out, stride, config):
    if stride == 1 and channels_in == channels_out:
        return None
    convolution = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
    return nn.Sequential(convolution, norm.make(config.backbone.norm, channels_out, config))


def _shortcut(downsample, x):
    return x if downsample is None else norm.conv_norm(*downsample, x)
