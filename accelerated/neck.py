"""The kinds of neck: from the stages of the backbone to the maps that the RPN and the heads read.

Each is a module with

Neck(config)      nn.Module: {stage: map} -> {level: map}
channels(config)  number of channels of each of these maps

Level l has stride 2^l.
"""

from types import ModuleType

from accelerated import fpn, single_scale
from reference.config import Config

KINDS = {"fpn": fpn, "single": single_scale}


def of(config: Config) -> ModuleType:
    """Return the module of the configured kind."""
    return KINDS[config.neck]
