"""The VGG-16 backbone [Very Deep Convolutional Networks, Simonyan & Zisserman, configuration D]: 3x3 convolutions with bias, no norm.

Legend: N images, C channels. Stage k is the output of block k before its pooling and has stride 2^(k - 1): conv5_3 has 16.
"""

from reference.activations import relu
from reference.conv import conv2d
from reference.max_pool import max_pool2d

CONVOLUTIONS = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}  # per block


def forward(parameters, images, config, statistics=None):
    """images [N, 3, H, W] -> {1: conv1_2 [N, C, H, W], 2: conv2_2, .., `out_stage`}."""
    x, stages = images, {}
    for block in range(1, config.backbone.out_stage + 1):
        if block > 1:
            x = max_pool2d(x, kernel=2, stride=2)
        for i in range(1, CONVOLUTIONS[block] + 1):
            name = f"backbone.conv{block}_{i}"
            x = relu(conv2d(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"], padding=1))
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


def frozen(config):
    """Prefixes of the parameters that receive no gradient: the first `frozen_stages` blocks."""
    return tuple(f"backbone.conv{block}_" for block in range(1, config.backbone.frozen_stages + 1))


def parameter_shapes(config):
    """{parameter: shape}, in the order of the network."""
    shapes, before = {}, 3
    for block, after in channels(config).items():
        for i in range(1, CONVOLUTIONS[block] + 1):
            shapes |= {
                f"backbone.conv{block}_{i}.weight": (after, before, 3, 3),
                f"backbone.conv{block}_{i}.bias": (after,),
            }
            before = after
    return shapes
