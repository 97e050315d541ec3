"""The kinds of backbone. Each is a module with

Backbone(config)                    nn.Module: images [N, 3, H, W] -> {stage: [N, C, h, w]}
channels(config), strides(config)   {stage: number}
"""

from accelerated import resnet, vgg

KINDS = {"resnet": resnet, "vgg": vgg}


def of(config):
    """The module of the configured kind."""
    return KINDS[config.backbone.kind]
