"""The ResNet backbone [ResNet, He et al. 2015]; grouped, a ResNeXt [Xie et al. 2017]; SPEC §13.

Legend: N images, C channels. Stages 2..5 have strides 4, 8, 16, 32; a dilated stage 5 keeps the
stride of stage 4.
"""

from reference import norm
from reference.activations import relu
from reference.config import Config
from reference.max_pool import max_pool2d
from reference.structures import Array

# Blocks per stage, by depth.
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def forward(
    parameters: dict, images: Array, config: Config, statistics: dict | None = None
) -> dict:
    """Compute images [N, 3, H, W] -> {2: C2 [N, C, H/4, W/4], 3: C3, ..., `out_stage`}."""
    stem = {"stride": 2, "padding": 3}
    x = conv_norm(parameters, "backbone.conv1", "backbone.bn1", images, config, statistics, **stem)
    x = max_pool2d(relu(x), kernel=3, stride=2, padding=1)
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

    The first block strides: by `stride` if given, otherwise as in the backbone.
    """
    block = bottleneck if is_bottleneck(config) else basic_block
    if stride is None:
        stride = strides(config)[index] // strides(config).get(index - 1, 4)
    dilation = config.backbone.dilation if index == 5 else 1
    for i in range(BLOCKS[config.backbone.depth][index - 2]):
        name = f"backbone.layer{index - 1}.{i}"
        x = block(parameters, name, x, stride if i == 0 else 1, dilation, config, statistics)
    return x


def basic_block(parameters, name, x, stride, dilation, config, statistics):
    """Apply two 3x3 convolutions, each normalised, and add the shortcut."""
    second = {"padding": dilation, "dilation": dilation}
    first = {"stride": stride, **second}
    y = conv_norm(parameters, f"{name}.conv1", f"{name}.bn1", x, config, statistics, **first)
    y = conv_norm(parameters, f"{name}.conv2", f"{name}.bn2", relu(y), config, statistics, **second)
    return relu(y + shortcut(parameters, name, x, stride, config, statistics))


def bottleneck(parameters, name, x, stride, dilation, config, statistics):
    """Apply 1x1, 3x3 and 1x1 convolutions, each normalised, and add the shortcut.

    `stride_in_1x1` says which of the first two strides (SPEC §13).
    """
    first, second = {"stride": 1}, {"padding": dilation, "dilation": dilation}
    second |= {"groups": config.backbone.groups, "stride": stride}
    if config.backbone.stride_in_1x1:
        first["stride"], second["stride"] = stride, 1
    y = conv_norm(parameters, f"{name}.conv1", f"{name}.bn1", x, config, statistics, **first)
    y = conv_norm(parameters, f"{name}.conv2", f"{name}.bn2", relu(y), config, statistics, **second)
    y = conv_norm(parameters, f"{name}.conv3", f"{name}.bn3", relu(y), config, statistics)
    return relu(y + shortcut(parameters, name, x, stride, config, statistics))


def shortcut(parameters, name, x, stride, config, statistics):
    """Return x itself, or its strided 1x1 projection if the block changes the shape."""
    conv, bn = f"{name}.downsample.0", f"{name}.downsample.1"
    if f"{conv}.weight" not in parameters:
        return x
    return conv_norm(parameters, conv, bn, x, config, statistics, stride=stride)


def conv_norm(parameters, conv, bn, x, config, statistics, **keywords):
    kind = config.backbone.norm
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
    """Return prefixes of the fixed parameters: `frozen_stages` of (stem, layer1, ..., layer4)."""
    layers = [f"backbone.layer{i}." for i in range(1, config.backbone.frozen_stages)]
    stem = ["backbone.conv1.", "backbone.bn1."] if config.backbone.frozen_stages else []
    return tuple(stem + layers)


def parameter_shapes(config: Config) -> dict:
    """Return {parameter: shape}, in order; of stage 5 only if the backbone or the heads use it."""
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
