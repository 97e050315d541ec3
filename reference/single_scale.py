"""No pyramid: the last map of the backbone alone [Faster R-CNN §3; Deep Residual Learning §A]."""

from reference import backbone
from reference.config import Config, single_map_level


def forward(parameters: dict, stages: dict, config: Config, statistics: dict | None = None) -> dict:
    """Select {stage: map} -> {level: the map of the last stage}; it has stride 2^level."""
    return {single_map_level(config): stages[config.backbone.out_stage]}


def channels(config: Config) -> int:
    """Return the number of channels of that map."""
    return backbone.of(config).channels(config)[config.backbone.out_stage]


def parameter_shapes(config: Config) -> dict:
    """Return {}: there is nothing to learn."""
    return {}
