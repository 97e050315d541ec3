"""maskrcnn-benchmark's Mask R-CNN and Faster R-CNN with FPN: their tensor names against ours. Read only.

The tensors are read exactly; the model around them is the nearest that our switches can make. Reproduced: the image's normalisation and
Pillow's filter, strides in 1x1 convolutions (in 3x3 for ResNeXt), a frozen norm without eps, RoIAlign unaligned with two samples, the
background first, losses. Not reproduced: anchors rounded as in py-faster-rcnn and centred on (stride - 1) / 2, widths of x2 - x1 + 1 in
boxes, IoU and levels, suppression at an IoU equal to the threshold. So boxes come out a pixel or so aside: good to fine-tune from, and
not for repeating its published numbers.
"""

from dataclasses import replace

from accelerated.interop.renaming import rename
from reference import config as configuration

TO_OURS = (
    (r"backbone\.body\.stem\.((?:conv1|bn1)\.\w+)", r"backbone.\1"),
    (r"backbone\.body\.(layer[1-4]\..+)", r"backbone.\1"),
    (r"backbone\.fpn\.fpn_inner([1-4])\.(\w+)", lambda m: f"fpn.lateral{int(m[1]) + 1}.{m[2]}"),
    (r"backbone\.fpn\.fpn_layer([1-4])\.(\w+)", lambda m: f"fpn.output{int(m[1]) + 1}.{m[2]}"),
    (r"rpn\.head\.conv\.(\w+)", r"rpn.conv1.\1"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"rpn.logits.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"rpn.deltas.\1"),
    (r"roi_heads\.box\.feature_extractor\.(fc[67])\.(\w+)", r"box_head.\1.\2"),
    (r"roi_heads\.box\.predictor\.cls_score\.(\w+)", r"box_head.class_logits.\1"),
    (r"roi_heads\.box\.predictor\.bbox_pred\.(\w+)", r"box_head.box_deltas.\1"),
    (r"roi_heads\.mask\.feature_extractor\.mask_fcn(\d)\.(\w+)", r"mask_head.conv\1.\2"),
    (r"roi_heads\.mask\.predictor\.conv5_mask\.(\w+)", r"mask_head.deconv.\1"),
    (r"roi_heads\.mask\.predictor\.mask_fcn_logits\.(\w+)", r"mask_head.logits.\1"),
)
FROM_OURS = (
    (r"backbone\.((?:conv1|bn1)\.\w+)", r"backbone.body.stem.\1"),
    (r"backbone\.(.+)", r"backbone.body.\1"),
    (r"fpn\.lateral(\d)\.(\w+)", lambda m: f"backbone.fpn.fpn_inner{int(m[1]) - 1}.{m[2]}"),
    (r"fpn\.output(\d)\.(\w+)", lambda m: f"backbone.fpn.fpn_layer{int(m[1]) - 1}.{m[2]}"),
    (r"rpn\.conv1\.(\w+)", r"rpn.head.conv.\1"),
    (r"rpn\.logits\.(\w+)", r"rpn.head.cls_logits.\1"),
    (r"rpn\.deltas\.(\w+)", r"rpn.head.bbox_pred.\1"),
    (r"box_head\.(fc[67])\.(\w+)", r"roi_heads.box.feature_extractor.\1.\2"),
    (r"box_head\.class_logits\.(\w+)", r"roi_heads.box.predictor.cls_score.\1"),
    (r"box_head\.box_deltas\.(\w+)", r"roi_heads.box.predictor.bbox_pred.\1"),
    (r"mask_head\.conv(\d)\.(\w+)", r"roi_heads.mask.feature_extractor.mask_fcn\1.\2"),
    (r"mask_head\.deconv\.(\w+)", r"roi_heads.mask.predictor.conv5_mask.\1"),
    (r"mask_head\.logits\.(\w+)", r"roi_heads.mask.predictor.mask_fcn_logits.\1"),
)


def recognises(names):
    """Whether these are the tensor names of a two-stage detector of maskrcnn-benchmark."""
    return any(name.startswith(("backbone.body.stem.", "roi_heads.box.")) for name in names)


def our_name(name):
    """Our name of maskrcnn-benchmark's tensor `name`; None where there is none."""
    return rename(name, TO_OURS)


def ignored(name):
    """Its anchors, which are not ours."""
    return name.startswith("rpn.anchor_generator.cell_anchors.")


def their_name(name, config):
    """maskrcnn-benchmark's name of our tensor `name`; ours where it has none."""
    return rename(name, FROM_OURS) or name


def nearest(tensors):
    """The preset that these models are nearest to."""
    return "paper_r50_fpn"


def described(tensors, theirs):
    """The configuration that comes nearest, before widths and depths."""
    config = configuration.preset(nearest(tensors))
    inner, of_group = (
        tensors["backbone.layer1.0.conv2.weight"].shape[:2]
        if "backbone.layer1.0.conv2.weight" in tensors
        else (1, 1)
    )
    return replace(
        config,
        background="first",
        transform=replace(
            config.transform,
            size_rounding="nearest",
            interpolation="pillow",
            normalize_first=False,
            ratio_dtype="float64",
        ),
        backbone=replace(config.backbone, norm_eps=0.0, stride_in_1x1=inner == of_group),
        rpn=replace(config.rpn, min_size=0.0, zero_iou_matches=True),
        box_head=replace(
            config.box_head,
            drop_empty=False,
            pooler=replace(config.box_head.pooler, level_epsilon="inside"),
        ),
        mask_head=replace(
            config.mask_head, pooler=replace(config.mask_head.pooler, level_epsilon="inside")
        ),
    )
