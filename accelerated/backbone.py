"""The kinds of backbone.

Each is a module with

Backbone(config)                   nn.Module: images [N, 3, H, W] -> {stage: [N, C, h, w]}
channels(config), strides(config)  {stage: int}
"""

from types import ModuleType

from accelerated import resnet, vgg
from reference.config import Config

KINDS = {"resnet": resnet, "vgg": vgg}


def of(config: Config) -> ModuleType:
    """Return the module of the configured kind."""
    return KINDS[config.backbone.kind]
