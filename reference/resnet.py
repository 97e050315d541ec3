"""The ResNet backbone [Deep Residual Learning, He et al.] and ResNeXt, its form with grouped convolutions [Xie et al. 2017], SPEC §13.

Legend: N images, C channels. Stages 2..5 have strides 4, 8, 16, 32; a dilated stage 5 keeps the stride of stage 4.
"""

from reference import norm
from reference.activations import relu
from reference.max_pool import max_pool2d

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # per stage
BASIC = (18, 34)  # the depths made of two 3x3 convolutions a block
EXPANSION = 4  # a bottleneck puts out this many times its inner channels


def forward(parameters, images, config, statistics=None):
    """images [N, 3, H, W] -> {2: C2 [N, C, H/4, W/4], 3: C3, .., `out_stage`}."""
    x = relu(
        conv_norm(
            parameters,
            "backbone.conv1",
            "backbone.bn1",
            images,
            config,
            statistics,
            stride=2,
            padding=3,
        )
    )
    x = max_pool2d(x, kernel=3, stride=2, padding=1)
    stages = {}
    for number in range(2, config.backbone.out_stage + 1):
        stages[number] = x = stage(parameters, x, number, config, statistics)
    return stages


def stage(parameters, x, number, config, statistics=None, stride=None):
    """The blocks of stage `number` (2..5), which are called layer 1..4; the first of them strides, by `stride` if it is given."""
    block = basic_block if config.backbone.depth in BASIC else bottleneck
    if stride is None:
        stride = strides(config)[number] // strides(config).get(number - 1, 4)
    dilation = config.backbone.dilation if number == 5 else 1
    for i in range(BLOCKS[config.backbone.depth][number - 2]):
        x = block(
            parameters,
            f"backbone.layer{number - 1}.{i}",
            x,
            stride if i == 0 else 1,
            dilation,
            config,
            statistics,
        )
    return x


def bottleneck(parameters, name, x, stride, dilation, config, statistics):
    """1x1, 3x3, 1x1 convolutions, each normalised, plus the shortcut; `stride_in_1x1` says which of the first two strides (SPEC §13)."""
    first, second = (stride, 1) if config.backbone.stride_in_1x1 else (1, stride)
    middle = {
        "stride": second,
        "padding": dilation,
        "dilation": dilation,
        "groups": config.backbone.groups,
    }
    y = relu(
        conv_norm(parameters, f"{name}.conv1", f"{name}.bn1", x, config, statistics, stride=first)
    )
    y = relu(conv_norm(parameters, f"{name}.conv2", f"{name}.bn2", y, config, statistics, **middle))
    y = conv_norm(parameters, f"{name}.conv3", f"{name}.bn3", y, config, statistics)
    return relu(y + shortcut(parameters, name, x, stride, config, statistics))


def basic_block(parameters, name, x, stride, dilation, config, statistics):
    """Two 3x3 convolutions, each normalised, plus the shortcut."""
    first, second = (
        {"stride": stride, "padding": dilation, "dilation": dilation},
        {"padding": dilation, "dilation": dilation},
    )
    y = relu(conv_norm(parameters, f"{name}.conv1", f"{name}.bn1", x, config, statistics, **first))
    y = conv_norm(parameters, f"{name}.conv2", f"{name}.bn2", y, config, statistics, **second)
    return relu(y + shortcut(parameters, name, x, stride, config, statistics))


def shortcut(parameters, name, x, stride, config, statistics):
    """x itself, or its strided 1x1 projection where the block changes the shape."""
    if f"{name}.downsample.0.weight" not in parameters:
        return x
    return conv_norm(
        parameters,
        f"{name}.downsample.0",
        f"{name}.downsample.1",
        x,
        config,
        statistics,
        stride=stride,
    )


def conv_norm(parameters, conv, bn, x, config, statistics, **keywords):
    return norm.conv_norm(
        parameters, conv, bn, x, config.backbone.norm, config, statistics, **keywords
    )


def channels(config):
    """{stage: channels of C2..C5}."""
    expansion = 1 if config.backbone.depth in BASIC else EXPANSION
    return {
        number: config.backbone.width * 2 ** (number - 2) * expansion for number in (2, 3, 4, 5)
    }


def strides(config):
    """{stage: image pixels per feature pixel of C2..C5}."""
    return {2: 4, 3: 8, 4: 16, 5: 32 // config.backbone.dilation}


def frozen(config):
    """Prefixes of the parameters that receive no gradient: the first `frozen_stages` of stem, layer1, .., layer4."""
    stages = [
        ("backbone.conv1.", "backbone.bn1."),
        *((f"backbone.layer{i}.",) for i in (1, 2, 3, 4)),
    ]
    return tuple(prefix for stage in stages[: config.backbone.frozen_stages] for prefix in stage)


def parameter_shapes(config):
    """{parameter: shape}, in the order of the network; stage 5 only where it is used, by the backbone or by the heads."""
    kind, width, groups = config.backbone.norm, config.backbone.width, config.backbone.groups
    shapes = norm.parameter_shapes("backbone.conv1", "backbone.bn1", (width, 3, 7, 7), kind)
    before = width
    last = 5 if config.shared_head != "none" else config.backbone.out_stage
    for layer, blocks in enumerate(BLOCKS[config.backbone.depth][: last - 1], start=1):
        inner = (width if groups == 1 else groups * config.backbone.group_width) * 2 ** (layer - 1)
        after = channels(config)[layer + 1]
        for i in range(blocks):
            name = f"backbone.layer{layer}.{i}"
            if config.backbone.depth in BASIC:
                convs = [(after, before, 3, 3), (after, after, 3, 3)]
            else:
                convs = [
                    (inner, before, 1, 1),
                    (inner, inner // groups, 3, 3),
                    (after, inner, 1, 1),
                ]
            for j, shape in enumerate(convs, start=1):
                shapes |= norm.parameter_shapes(f"{name}.conv{j}", f"{name}.bn{j}", shape, kind)
            if i == 0 and (layer > 1 or before != after):
                shapes |= norm.parameter_shapes(
                    f"{name}.downsample.0", f"{name}.downsample.1", (after, before, 1, 1), kind
                )
            before = after
    return shapes
