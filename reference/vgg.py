"""The VGG-16 backbone: 3x3 convolutions with bias, no norm [VGG, Simonyan & Zisserman 2014, D].

Legend: N images, C channels. Stage k is the output of block k before its pooling and has stride
2^(k - 1): conv5_3 has 16.
"""

from reference.activations import relu
from reference.autodiff import Array
from reference.config import Config
from reference.conv import conv2d
from reference.max_pool import max_pool2d

# Convolutions per block.
CONVOLUTIONS = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}


def forward(
    parameters: dict, images: Array, config: Config, statistics: dict | None = None
) -> dict:
    """Compute images [N, 3, H, W] -> {1: conv1_2 [N, C, H, W], 2: conv2_2, ..., `out_stage`}."""
    x, stages = images, {}
    for block in range(1, config.backbone.out_stage + 1):
        x = x if block == 1 else max_pool2d(x, kernel=2, stride=2)
        for i in range(1, CONVOLUTIONS[block] + 1):
            name = f"backbone.conv{block}_{i}"
            x = relu(conv2d(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"], padding=1))
        stages[block] = x
    return stages


def channels(config: Config) -> dict:
    """Return {stage: channels}: 1, 2, 4, 8, 8 times the width."""
    return {block: config.backbone.width * min(s, 8) for block, s in strides(config).items()}


def strides(config: Config) -> dict:
    """Return {stage: image pixels per feature pixel}."""
    return {block: 2 ** (block - 1) for block in range(1, config.backbone.out_stage + 1)}


def frozen(config: Config) -> tuple:
    """Return prefixes of what stays fixed: the first `frozen_stages` blocks."""
    return tuple(f"backbone.conv{block}_" for block in range(1, config.backbone.frozen_stages + 1))


def parameter_shapes(config: Config) -> dict:
    """Return {parameter: shape}, in the order of the network."""
    shapes, before = {}, 3
    for block, after in channels(config).items():
        for i in range(1, CONVOLUTIONS[block] + 1):
            shapes[f"backbone.conv{block}_{i}.weight"] = (after, before, 3, 3)
            shapes[f"backbone.conv{block}_{i}.bias"] = (after,)
            before = after
    return shapes
