"""What the heads read of a RoI: pooled features, or a stage of a C4 model on them (SPEC §14).

Legend: R RoIs, C channels, P pooled size.
"""

from reference import neck, resnet
from reference.config import Config, Pooler
from reference.structures import Array

# The stage that a C4 model runs on its RoIs.
RES5 = 5


def identity(parameters, pooled, config, statistics):
    return pooled


def res5(parameters, pooled, config, statistics):
    return resnet.stage(parameters, pooled, RES5, config, statistics)


def res5_unstrided(parameters, pooled, config, statistics):
    """Run stage 5 with stride 1, on RoIs of half the side [Mask R-CNN, figure 4, left]."""
    return resnet.stage(parameters, pooled, RES5, config, statistics, stride=1)


SHARED = {"none": identity, "res5": res5, "res5_unstrided": res5_unstrided}


def forward(
    parameters: dict, pooled: Array, config: Config, statistics: dict | None = None
) -> Array:
    """Compute what the heads read: pooled [R, C, P, P] -> [R, C', P', P'].

    With "res5", P' = P / 2, rounded up. `statistics` as in backbone.py.
    """
    return SHARED[config.shared_head](parameters, pooled, config, statistics)


def shape(config: Config, pooler: Pooler) -> tuple[int, int]:
    """Return (C', P') for RoIs pooled by `pooler`."""
    if config.shared_head == "none":
        return neck.of(config).channels(config), pooler.output_size
    stride = 2 if config.shared_head == "res5" else 1
    return resnet.channels(config)[RES5], -(-pooler.output_size // stride)
