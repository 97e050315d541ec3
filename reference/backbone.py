"""The kinds of backbone. Each is a module with

forward(parameters, images, config, statistics=None)   images [N, 3, H, W] -> {stage: [N, C, h, w]}
channels(config), strides(config)                     {stage: number}
frozen(config)                                        prefixes of the parameters that receive no gradient
parameter_shapes(config)                              {parameter: shape}
"""

from reference import resnet, vgg

KINDS = {"resnet": resnet, "vgg": vgg}


def of(config):
    """The module of the configured kind."""
    return KINDS[config.backbone.kind]
