"""The kinds of neck: from the stages of the backbone to the maps that the RPN and the heads read. Each is a module with

forward(parameters, stages, config, statistics=None)   {stage: map} -> {level: map}; level l has stride 2^l
channels(config)                                      of each of these maps
parameter_shapes(config)                              {parameter: shape}
"""

from reference import fpn, single_scale

KINDS = {"fpn": fpn, "single": single_scale}


def of(config):
    """The module of the configured kind."""
    return KINDS[config.neck]
