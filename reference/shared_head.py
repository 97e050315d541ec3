"""What the heads read of a RoI: pooled features, or a stage of a C4 model on them (SPEC §14).

Legend: R RoIs, C channels, P pooled size.
"""

from reference import neck, resnet
from reference.autodiff import Array
from reference.config import Config, Pooler

# Stride of the shared stage, None without one; "res5_unstrided" is [Mask R-CNN, figure 4, left].
SHARED = {"none": None, "res5": 2, "res5_unstrided": 1}


def forward(
    parameters: dict, pooled: Array, config: Config, statistics: dict | None = None
) -> Array:
    """Compute what the heads read: pooled [R, C, P, P] -> [R, C', P', P'], P' = ceil(P/stride)."""
    stride = SHARED[config.shared_head]
    if stride is None:
        return pooled
    return resnet.stage(parameters, pooled, 5, config, statistics, stride)


def shape(config: Config, pooler: Pooler) -> tuple[int, int]:
    """Return (C', P') for RoIs pooled by `pooler`."""
    stride = SHARED[config.shared_head]
    if stride is None:
        return neck.of(config).channels(config), pooler.output_size
    return resnet.channels(config)[5], -(-pooler.output_size // stride)
