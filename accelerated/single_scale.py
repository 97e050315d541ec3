"""No pyramid: the last map of the backbone alone, as in the C4 and C5 models [Ren et al. 2015; He et al. 2015 §A]."""

from torch import nn

from accelerated import backbone


class Neck(nn.Module):
    """{stage: map} -> {level: the map of the last stage}. There is nothing to learn."""

    def __init__(self, config):
        super().__init__()
        self.stage, self.level = config.backbone.out_stage, level(config)

    def forward(self, stages):
        return {self.level: stages[self.stage]}


def level(config):
    """The level of that map: it has stride 2^level."""
    return backbone.of(config).strides(config)[config.backbone.out_stage].bit_length() - 1


def channels(config):
    return backbone.of(config).channels(config)[config.backbone.out_stage]
