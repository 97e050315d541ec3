"""The ResNet backbone [ResNet, He et al. 2015]; grouped, a ResNeXt [Xie et al. 2017]; SPEC §13.

Legend: N images, C channels. Stages 2..5 have strides 4, 8, 16, 32; a dilated stage 5 keeps the
stride of stage 4.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from reference import norm
from reference.activations import relu
from reference.autodiff import Array
from reference.config import Config
from reference.max_pool import max_pool2d

# Blocks per stage, by depth.
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def forward(
    parameters: dict, images: Array, config: Config, statistics: dict | None = None
) -> dict:
    """Compute images [N, 3, H, W] -> {2: C2 [N, C, H/4, W/4], 3: C3, ..., `out_stage`}."""
    layer = partial(conv_norm, parameters, "backbone", config, statistics)
    x = relu(layer("conv1", "bn1", images, stride=2, padding=3))
    x = max_pool2d(x, kernel=3, stride=2, padding=1)
    stages = {}
    for index in range(2, config.backbone.out_stage + 1):
        stages[index] = x = stage(parameters, x, index, config, statistics)
    return stages


def stage(
    parameters: dict,
    x: Array,
    index: int,
    config: Config,
    statistics: dict | None = None,
    stride: int | None = None,
) -> Array:
    """Apply the blocks of stage `index` (2..5), which parameter names call layer1..4.

    The first block strides: by `stride` if given, otherwise as in the backbone. A block adds its
    input, projected by a strided 1x1 convolution if the shape changes.
    """
    block = bottleneck if is_bottleneck(config) else basic_block
    usual = strides(config)[index] // strides(config).get(index - 1, 4)
    step = usual if stride is None else stride
    dilation = config.backbone.dilation if index == 5 else 1
    for i in range(BLOCKS[config.backbone.depth][index - 2]):
        name = f"backbone.layer{index - 1}.{i}"
        layer = partial(conv_norm, parameters, name, config, statistics)
        y = block(layer, x, step, dilation, config)
        if f"{name}.downsample.0.weight" in parameters:
            x = layer("downsample.0", "downsample.1", x, stride=step)
        x, step = relu(y + x), 1
    return x


def basic_block(layer: Callable, x: Array, stride: int, dilation: int, config: Config) -> Array:
    """Apply two 3x3 convolutions, each normalised."""
    x = relu(layer("conv1", "bn1", x, stride=stride, padding=dilation, dilation=dilation))
    return layer("conv2", "bn2", x, padding=dilation, dilation=dilation)


def bottleneck(layer: Callable, x: Array, stride: int, dilation: int, config: Config) -> Array:
    """Apply 1x1, 3x3 and 1x1 convolutions, each normalised; one of the first two strides."""
    first, second = (stride, 1) if config.backbone.stride_in_1x1 else (1, stride)
    middle = {"padding": dilation, "dilation": dilation, "groups": config.backbone.groups}
    x = relu(layer("conv1", "bn1", x, stride=first))
    x = relu(layer("conv2", "bn2", x, stride=second, **middle))
    return layer("conv3", "bn3", x)


def conv_norm(
    parameters: dict,
    name: str,
    config: Config,
    statistics: dict | None,
    conv: str,
    bn: str,
    x: Array,
    **keywords: Any,
) -> Array:
    kind, conv, bn = config.backbone.norm, f"{name}.{conv}", f"{name}.{bn}"
    return norm.conv_norm(parameters, conv, bn, x, kind, config, statistics, **keywords)


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


def frozen(config: Config) -> tuple:
    """Return prefixes of what stays fixed: the first `frozen_stages` of stem, layer1, ..."""
    layers = [f"backbone.layer{i}." for i in range(1, config.backbone.frozen_stages)]
    stem = ["backbone.conv1.", "backbone.bn1."] if config.backbone.frozen_stages else []
    return tuple(stem + layers)


def parameter_shapes(config: Config) -> dict:
    """Return {parameter: shape} of the stages that backbone or heads use, in order."""
    kind, width, groups = config.backbone.norm, config.backbone.width, config.backbone.groups
    shapes = norm.parameter_shapes("backbone.conv1", "backbone.bn1", (width, 3, 7, 7), kind)
    before = width
    last = 5 if config.shared_head != "none" else config.backbone.out_stage
    for layer, blocks in enumerate(BLOCKS[config.backbone.depth][: last - 1], start=1):
        inner = (width if groups == 1 else groups * config.backbone.group_width) * 2 ** (layer - 1)
        after = channels(config)[layer + 1]
        for i in range(blocks):
            name = f"backbone.layer{layer}.{i}"
            convs = [(after, before, 3, 3), (after, after, 3, 3)]
            if is_bottleneck(config):
                middle = (inner, inner // groups, 3, 3)
                convs = [(inner, before, 1, 1), middle, (after, inner, 1, 1)]
            for j, shape in enumerate(convs, start=1):
                shapes |= norm.parameter_shapes(f"{name}.conv{j}", f"{name}.bn{j}", shape, kind)
            if i == 0 and (layer > 1 or before != after):
                conv, bn = f"{name}.downsample.0", f"{name}.downsample.1"
                shapes |= norm.parameter_shapes(conv, bn, (after, before, 1, 1), kind)
            before = after
    return shapes
