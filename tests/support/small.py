"""A detector and a data set small enough to train in a test."""

from dataclasses import replace

from accelerated.data.synthetic import ShapesDataset
from reference.config import Optimizer, preset

# A narrow model as options of a command.
NARROW = (
    "transform.min_size=[64]",
    "transform.max_size=64",
    "norm_groups=4",
    "backbone.width=8",
    "fpn.channels=8",
    "rpn.pre_nms_top_n_test=16",
    "box_head.channels=16",
    "mask_head.convs=1",
    "mask_head.channels=8",
)
CHANGES = tuple(word for change in NARROW for word in ("--set", change))


def config(**optimizer):
    """Shrink the preset `tiny`: 64-pixel images, few proposals and samples."""
    tiny = preset("tiny")
    return replace(
        tiny,
        norm_groups=4,
        transform=replace(tiny.transform, min_size=(64,), max_size=64),
        backbone=replace(tiny.backbone, width=8),
        fpn=replace(tiny.fpn, channels=8),
        rpn=replace(
            tiny.rpn,
            batch_size=16,
            pre_nms_top_n_train=32,
            pre_nms_top_n_test=32,
            post_nms_top_n_train=32,
            post_nms_top_n_test=16,
        ),
        box_head=replace(
            tiny.box_head, channels=16, conv_channels=8, batch_size=16, max_detections=20
        ),
        mask_head=replace(tiny.mask_head, convs=1, channels=8),
        optimizer=Optimizer(
            batch_size=2, warmup_iterations=2, clip_gradient_norm=10.0, **optimizer
        ),
    )


def shapes(count, seed=0):
    return ShapesDataset(count, seed=seed, size=64)
