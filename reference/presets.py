"""Named configurations: those of torchvision and detectron2, number for number; those of the papers; and a tiny one.

A variant is one field away: `override(preset("paper_r50_fpn"), "mask_head.loss=softmax")`, likewise "mask_head.class_agnostic=true",
"mask_head.kind=mlp" or "none" (Faster R-CNN), "box_head.pooler.operator=roi_pool".
"""

from dataclasses import replace
from functools import partial

from reference.config import FPN, RPN, Anchors, Backbone, BoxHead, Config, MaskHead, Optimizer, Pooler, Transform

ONE_MAP = Anchors(sizes=((32, 64, 128, 256, 512),), rounding=False, order="size_major", stride="constant")  # all sizes on the only map


def _torchvision_r50_fpn():
    return Config()


def _torchvision_r50_fpn_v2():
    config = Config()
    return replace(
        config,
        backbone=replace(config.backbone, norm="batch", frozen_stages=0),
        fpn=replace(config.fpn, norm="batch"),
        rpn=replace(config.rpn, conv_depth=2),
        box_head=replace(config.box_head, kind="four_conv_fc", norm="batch"),
        mask_head=replace(config.mask_head, norm="batch"),
    )


def _detectron2_fpn(depth):
    pooler = Pooler(sampling_ratio=0, aligned=True, level_epsilon="inside")
    return Config(
        background="last",
        transform=Transform(
            size_rounding="nearest",
            interpolation="pillow",
            channel_order="bgr",
            pixel_scale=1.0,
            mean=(103.53, 116.28, 123.675),
            std=(1.0, 1.0, 1.0),
            normalize_first=False,
            ratio_dtype="float64",
        ),
        backbone=Backbone(depth=depth, stride_in_1x1=True),
        anchors=Anchors(rounding=False, order="size_major", stride="constant"),
        rpn=RPN(
            smooth_l1_beta=0.0,
            loss_normalizer="batch_size",
            post_nms_top_n_train=1000,
            nms_score="logit",
            min_size=0.0,
            min_size_inclusive=False,
        ),
        box_head=BoxHead(pooler=pooler, smooth_l1_beta=0.0, min_size=None, drop_empty=True),
        mask_head=MaskHead(pooler=replace(pooler, output_size=14), target="binary", target_aligned=True, paste="detectron2"),
    )


def single_scale(config, level, stage=5, dilation=1):
    """`config` on the last map of its backbone alone, which has stride 2^level; nothing is padded to 32."""
    box, mask = (replace(head.pooler, min_level=level, max_level=level) for head in (config.box_head, config.mask_head))
    return replace(
        config,
        neck="single",
        transform=replace(config.transform, size_divisor=0),
        backbone=replace(config.backbone, out_stage=stage, dilation=dilation),
        anchors=ONE_MAP,
        rpn=replace(config.rpn, pre_nms_top_n_train=12000, pre_nms_top_n_test=6000, post_nms_top_n_train=2000),
        box_head=replace(config.box_head, pooler=box),
        mask_head=replace(config.mask_head, pooler=mask),
    )


def shared_res5(config, shared_head, output_size):
    """The heads of a C4 model on `config`: stage 5 for both, then a mean for the boxes and one transposed convolution for the masks."""
    pooler = replace(config.box_head.pooler, output_size=output_size)
    return replace(
        config,
        shared_head=shared_head,
        box_head=replace(config.box_head, kind="mean", pooler=pooler),
        mask_head=replace(config.mask_head, convs=0, pooler=pooler),
    )


def _detectron2_c4(depth):
    """SPEC §14."""
    return shared_res5(single_scale(_detectron2_fpn(depth), level=4, stage=4), "res5", output_size=14)


def _detectron2_dc5(depth):
    """SPEC §14."""
    return single_scale(_detectron2_fpn(depth), level=4, dilation=2)


def _detectron2_x101_fpn():
    """ResNeXt-101-32x8d, whose weights came from Caffe2: another normalisation of the image, strides in the 3x3 convolutions."""
    config = _detectron2_fpn(101)
    return replace(
        config,
        transform=replace(config.transform, std=(57.375, 57.12, 58.395)),
        backbone=replace(config.backbone, groups=32, group_width=8, stride_in_1x1=False),
    )


def _paper_fpn(depth):
    """Mask R-CNN §3.1 with a pyramid; what the paper leaves open as in Detectron: 4 samples a bin, RoIs of at least a pixel, Caffe's nets.

    The schedule is that of 160k iterations of 16 images.
    """
    config = Config(
        background="last",
        transform=Transform(channel_order="bgr", pixel_scale=1.0, mean=(102.9801, 115.9465, 122.7717), std=(1.0, 1.0, 1.0)),
        backbone=Backbone(depth=depth, stride_in_1x1=True),
        anchors=Anchors(rounding=False, order="size_major", stride="constant"),
        rpn=RPN(zero_iou_matches=False),
        box_head=BoxHead(smooth_l1_beta=1.0, min_size=None, drop_empty=True),
        mask_head=MaskHead(target="binary"),
    )
    return replace(config, optimizer=replace(config.optimizer, warmup_iterations=500, warmup_factor=1 / 3, steps=(0.75,)))


def _paper_single_scale(config, level, stage=5):
    """300 proposals for detection and 64 RoIs per image [Mask R-CNN §3.1]."""
    config = single_scale(config, level, stage)
    return replace(config, rpn=replace(config.rpn, post_nms_top_n_test=300), box_head=replace(config.box_head, batch_size=64))


def _paper_c4(depth):
    """Figure 4, left: stage 5 on RoIs of 7x7, without its stride."""
    return shared_res5(_paper_single_scale(_paper_fpn(depth), level=4, stage=4), "res5_unstrided", output_size=7)


def _paper_r50_c5():
    """Table 2d: everything on the map of stride 32."""
    return _paper_single_scale(_paper_fpn(50), level=5)


def _paper_vgg16():
    """The backbone and the box head of Faster R-CNN [Ren et al. 2015], without its dropout; with RoIAlign and a mask branch."""
    config = _paper_single_scale(replace(_paper_fpn(50), backbone=Backbone(kind="vgg")), level=4)
    return replace(config, box_head=replace(config.box_head, channels=4096))


def _tiny():
    """Small enough to train from scratch on two CPU cores in minutes: 128-pixel images, a narrow ResNet-18, group norm throughout."""
    pooler = Pooler(aligned=True)
    return Config(
        num_classes=3,
        norm_groups=8,
        transform=Transform(min_size=(128,), max_size=128),
        backbone=Backbone(depth=18, width=16, norm="group", frozen_stages=0),
        fpn=FPN(channels=32, norm="group"),
        anchors=Anchors(sizes=((12,), (24,), (48,), (96,), (160,)), rounding=False, stride="constant"),
        rpn=RPN(
            zero_iou_matches=False,
            batch_size=128,
            pre_nms_top_n_train=256,
            pre_nms_top_n_test=256,
            post_nms_top_n_train=256,
            post_nms_top_n_test=128,
        ),
        box_head=BoxHead(kind="four_conv_fc", channels=128, conv_channels=32, norm="group", pooler=pooler, batch_size=32),
        mask_head=MaskHead(
            convs=2, channels=32, norm="group", pooler=replace(pooler, output_size=14), target_aligned=True, paste="detectron2"
        ),
        optimizer=Optimizer(
            kind="adamw",
            learning_rate=0.002,
            batch_size=4,
            weight_decay=0.02,
            norm_weight_decay=0.0,
            warmup_iterations=50,
            steps=(0.75, 0.92),
            gamma=0.2,
            clip_gradient_norm=10.0,
        ),
    )


PRESETS = {
    "torchvision_r50_fpn": _torchvision_r50_fpn,
    "torchvision_r50_fpn_v2": _torchvision_r50_fpn_v2,
    **{
        f"detectron2_r{depth}_{neck}": partial(make, depth)
        for neck, make in (("fpn", _detectron2_fpn), ("c4", _detectron2_c4), ("dc5", _detectron2_dc5))
        for depth in (50, 101)
    },
    "detectron2_x101_fpn": _detectron2_x101_fpn,
    **{f"paper_r{depth}_{neck}": partial(make, depth) for neck, make in (("c4", _paper_c4), ("fpn", _paper_fpn)) for depth in (50, 101)},
    "paper_r50_c5": _paper_r50_c5,
    "paper_vgg16": _paper_vgg16,
    "tiny": _tiny,
}
