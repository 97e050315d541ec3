"""No pyramid: the last map of the backbone alone [Faster R-CNN §3; Deep Residual Learning §A]."""

from torch import nn

from accelerated import backbone
from reference.config import Config, single_map_level


class Neck(nn.Module):
    """Select {stage: map} -> {level: the map of the last stage}; it has stride 2^level."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.stage, self.level = config.backbone.out_stage, single_map_level(config)

    def forward(self, stages: dict) -> dict:
        return {self.level: stages[self.stage]}


def channels(config: Config) -> int:
    """Return the number of channels of that map."""
    return backbone.of(config).channels(config)[config.backbone.out_stage]
