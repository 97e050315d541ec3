"""What the heads read of a RoI: pooled features, or a stage of a C4 model on them (SPEC §14).

Legend: R RoIs, C channels, P pooled size.
"""

import torch

from accelerated import neck, resnet
from accelerated.rois import on_filled
from reference.config import Config, Pooler

# The stage that a C4 model runs on its RoIs.
RES5 = 5


def identity(backbone: resnet.Backbone, pooled: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return pooled


def res5(backbone: resnet.Backbone, pooled: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return on_filled(lambda x, valid: backbone.stage(x, RES5, valid), pooled, valid)


SHARED = {"none": identity, "res5": res5, "res5_unstrided": res5}


def forward(
    backbone: resnet.Backbone, pooled: torch.Tensor, valid: torch.Tensor, config: Config
) -> torch.Tensor:
    """Compute what the heads read: pooled [R, C, P, P] -> [R, C', P', P'].

    With "res5", P' = P / 2, rounded up. `valid` [R] excludes padded RoIs from batch statistics.
    """
    return SHARED[config.shared_head](backbone, pooled, valid)


def shape(config: Config, pooler: Pooler) -> tuple[int, int]:
    """Return (C', P') for RoIs pooled by `pooler`."""
    if config.shared_head == "none":
        return neck.of(config).channels(config), pooler.output_size
    stride = 2 if config.shared_head == "res5" else 1
    return resnet.channels(config)[RES5], -(-pooler.output_size // stride)
