"""The ResNet backbone [Deep Residual Learning, He et al.], SPEC §13.

Legend: N images, C channels. Levels 2..5 are the outputs of the four stages, with strides 4, 8, 16, 32.
"""

from reference import norm
from reference.activations import relu
from reference.max_pool import max_pool2d

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # per stage
BASIC = (18, 34)  # the depths made of two 3x3 convolutions a block
EXPANSION = 4  # a bottleneck puts out this many times its inner channels


def resnet(parameters, images, config, training=False):
    """images [N, 3, H, W] -> {2: C2 [N, C, H/4, W/4], 3: C3, 4: C4, 5: C5}."""
    x = relu(conv_norm(parameters, "backbone.conv1", "backbone.bn1", images, config, training, stride=2, padding=3))
    x = max_pool2d(x, kernel=3, stride=2, padding=1)
    block = basic_block if config.backbone.depth in BASIC else bottleneck
    features = {}
    for stage, blocks in enumerate(BLOCKS[config.backbone.depth], start=1):
        for i in range(blocks):
            stride = 2 if stage > 1 and i == 0 else 1
            x = block(parameters, f"backbone.layer{stage}.{i}", x, stride, config, training)
        features[stage + 1] = x
    return features


def bottleneck(parameters, name, x, stride, config, training):
    """1x1, 3x3, 1x1 convolutions, each normalised, plus the shortcut; `stride_in_1x1` says which of the first two strides (SPEC §13)."""
    first, second = (stride, 1) if config.backbone.stride_in_1x1 else (1, stride)
    y = relu(conv_norm(parameters, f"{name}.conv1", f"{name}.bn1", x, config, training, stride=first))
    y = relu(conv_norm(parameters, f"{name}.conv2", f"{name}.bn2", y, config, training, stride=second, padding=1))
    y = conv_norm(parameters, f"{name}.conv3", f"{name}.bn3", y, config, training)
    return relu(y + shortcut(parameters, name, x, stride, config, training))


def basic_block(parameters, name, x, stride, config, training):
    """Two 3x3 convolutions, each normalised, plus the shortcut."""
    y = relu(conv_norm(parameters, f"{name}.conv1", f"{name}.bn1", x, config, training, stride=stride, padding=1))
    y = conv_norm(parameters, f"{name}.conv2", f"{name}.bn2", y, config, training, padding=1)
    return relu(y + shortcut(parameters, name, x, stride, config, training))


def shortcut(parameters, name, x, stride, config, training):
    """x itself, or its strided 1x1 projection where the block changes the shape."""
    if f"{name}.downsample.0.weight" not in parameters:
        return x
    return conv_norm(parameters, f"{name}.downsample.0", f"{name}.downsample.1", x, config, training, stride=stride)


def conv_norm(parameters, conv, bn, x, config, training, **keywords):
    return norm.conv_norm(parameters, conv, bn, x, config.backbone.norm, config, training, **keywords)


def channels(config):
    """{level: channels of C2..C5}."""
    expansion = 1 if config.backbone.depth in BASIC else EXPANSION
    return {level: config.backbone.width * 2 ** (level - 2) * expansion for level in (2, 3, 4, 5)}


def parameter_shapes(config):
    """{parameter: shape}, in the order of the network."""
    kind, width = config.backbone.norm, config.backbone.width
    shapes = norm.parameter_shapes("backbone.conv1", "backbone.bn1", (width, 3, 7, 7), kind)
    before = width
    for stage, blocks in enumerate(BLOCKS[config.backbone.depth], start=1):
        inner, after = width * 2 ** (stage - 1), channels(config)[stage + 1]
        for i in range(blocks):
            name = f"backbone.layer{stage}.{i}"
            if config.backbone.depth in BASIC:
                convs = [(after, before, 3, 3), (after, after, 3, 3)]
            else:
                convs = [(inner, before, 1, 1), (inner, inner, 3, 3), (after, inner, 1, 1)]
            for j, shape in enumerate(convs, start=1):
                shapes |= norm.parameter_shapes(f"{name}.conv{j}", f"{name}.bn{j}", shape, kind)
            if i == 0 and (stage > 1 or before != after):
                shapes |= norm.parameter_shapes(f"{name}.downsample.0", f"{name}.downsample.1", (after, before, 1, 1), kind)
            before = after
    return shapes
