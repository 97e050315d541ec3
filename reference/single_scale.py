"""No pyramid: the last map of the backbone alone, as in the C4 and C5 models [Faster R-CNN, Ren et al.; Deep Residual Learning §A]."""

from reference import backbone


def forward(parameters, stages, config, statistics=None):
    """{stage: map} -> {level: the map of the last stage}."""
    return {level(config): stages[config.backbone.out_stage]}


def level(config):
    """The level of that map: it has stride 2^level."""
    return backbone.of(config).strides(config)[config.backbone.out_stage].bit_length() - 1


def channels(config):
    return backbone.of(config).channels(config)[config.backbone.out_stage]


def parameter_shapes(config):
    """{}: there is nothing to learn."""
    return {}
