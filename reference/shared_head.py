"""What the heads read of a RoI: its pooled features, or these after a stage of the backbone that both heads share [ResNet-C4; SPEC §14].

Legend: R rois, C channels, P pooled size.
"""

from reference import neck, resnet

RES5 = 5  # the stage that a C4 model keeps for its RoIs


def pooled_as_they_are(parameters, pooled, config, statistics):
    return pooled


def res5(parameters, pooled, config, statistics):
    return resnet.stage(parameters, pooled, RES5, config, statistics)


def res5_unstrided(parameters, pooled, config, statistics):
    """On RoIs of half the side instead [Mask R-CNN, figure 4, left]."""
    return resnet.stage(parameters, pooled, RES5, config, statistics, stride=1)


SHARED = {"none": pooled_as_they_are, "res5": res5, "res5_unstrided": res5_unstrided}


def forward(parameters, pooled, config, statistics=None):
    """pooled [R, C, P, P] -> what the heads read, [R, C', P', P']; with "res5" P' = P / 2, rounded up."""
    return SHARED[config.shared_head](parameters, pooled, config, statistics)


def shape(config, pooler):
    """(C', P') for RoIs pooled by `pooler`."""
    if config.shared_head == "none":
        return neck.of(config).channels(config), pooler.output_size
    return resnet.channels(config)[RES5], -(
        -pooler.output_size // (2 if config.shared_head == "res5" else 1)
    )
