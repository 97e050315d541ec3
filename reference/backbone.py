"""The kinds of backbone.

Each is a module with

forward(parameters, images, config, statistics=None)  images [N, 3, H, W] -> {stage: [N, C, h, w]}
channels(config), strides(config)                     {stage: int}
frozen(config)                                        prefixes of the parameters that stay fixed
parameter_shapes(config)                              {parameter: shape}

`statistics` is a dict that receives the updated running statistics; None in inference.
"""

from types import ModuleType

from reference import resnet, vgg
from reference.config import Config

KINDS = {"resnet": resnet, "vgg": vgg}


def of(config: Config) -> ModuleType:
    """Return the module of the configured kind."""
    return KINDS[config.backbone.kind]
