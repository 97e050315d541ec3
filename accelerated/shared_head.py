"""What the heads read of a RoI: its pooled features, or these after a stage of the backbone that both heads share [ResNet-C4; SPEC §14].

Shapes: R rois, C channels, P pooled size.
"""

from accelerated import neck, resnet

RES5 = 5  # the stage that a C4 model keeps for its RoIs


def pooled_as_they_are(backbone, pooled, valid):
    return pooled


def res5(backbone, pooled, valid):
    return backbone.stage(pooled, RES5, valid)


SHARED = {"none": pooled_as_they_are, "res5": res5, "res5_unstrided": res5}


def forward(backbone, pooled, valid, config):
    """pooled [R, C, P, P] -> what the heads read, [R, C', P', P']; with "res5" P' = P / 2, rounded up.

    `valid` [R] keeps padded RoIs out of batch statistics.
    """
    return SHARED[config.shared_head](backbone, pooled, valid)


def shape(config, pooler):
    """(C', P') for RoIs pooled by `pooler`."""
    if config.shared_head == "none":
        return neck.of(config).channels(config), pooler.output_size
    return resnet.channels(config)[RES5], -(
        -pooler.output_size // (2 if config.shared_head == "res5" else 1)
    )
