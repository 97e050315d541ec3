"""The format of maskrcnn-benchmark's Mask R-CNN and Faster R-CNN with FPN; read only.

The tensors are read exactly; the model is the nearest that our settings allow. Reproduced: the
image normalisation and Pillow's filter, strides in 1x1 convolutions (3x3 for ResNeXt), a frozen
norm without eps, unaligned RoIAlign with two samples, the background first, the losses. Not
reproduced: anchors rounded as in py-faster-rcnn and centred on (stride - 1) / 2; widths of x2 - x1
+ 1 in boxes, IoU and levels; suppression at an IoU equal to the threshold. Boxes are therefore off
by about one pixel: good enough to fine-tune from, but published numbers are not reproduced.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch

from accelerated.interop.infer import is_grouped
from accelerated.interop.templates import Names
from reference.config import Config, preset

NAMES = Names(
    ("backbone.conv1.{part}", "backbone.body.stem.conv1.{part}"),
    ("backbone.bn1.{part}", "backbone.body.stem.bn1.{part}"),
    ("backbone.layer{rest}", "backbone.body.layer{rest}"),
    ("fpn.lateral{l}.{part}", "backbone.fpn.fpn_inner{l-1}.{part}"),
    ("fpn.output{l}.{part}", "backbone.fpn.fpn_layer{l-1}.{part}"),
    ("rpn.conv1.{part}", "rpn.head.conv.{part}"),
    ("rpn.logits.{part}", "rpn.head.cls_logits.{part}"),
    ("rpn.deltas.{part}", "rpn.head.bbox_pred.{part}"),
    ("box_head.fc{i}.{part}", "roi_heads.box.feature_extractor.fc{i}.{part}"),
    ("box_head.class_logits.{part}", "roi_heads.box.predictor.cls_score.{part}"),
    ("box_head.box_deltas.{part}", "roi_heads.box.predictor.bbox_pred.{part}"),
    ("mask_head.conv{i}.{part}", "roi_heads.mask.feature_extractor.mask_fcn{i}.{part}"),
    ("mask_head.deconv.{part}", "roi_heads.mask.predictor.conv5_mask.{part}"),
    ("mask_head.logits.{part}", "roi_heads.mask.predictor.mask_fcn_logits.{part}"),
)


def recognises(names: Collection[str]) -> bool:
    """Return whether these are tensor names of maskrcnn-benchmark's two-stage detectors."""
    return any(name.startswith(("backbone.body.stem.", "roi_heads.box.")) for name in names)


def our_name(name: str) -> str | None:
    """Translate a maskrcnn-benchmark name to ours; None if there is none."""
    return NAMES.ours(name)


def their_name(name: str, config: Config) -> str | None:
    """Translate our name to maskrcnn-benchmark's; None if there is none."""
    return NAMES.theirs(name)


def ignored(name: str) -> bool:
    """Return whether a tensor holds anchors, which are not used."""
    return name.startswith("rpn.anchor_generator.cell_anchors.")


def nearest_preset(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Name the preset that is nearest to these models."""
    return "paper_r50_fpn"


def base_config(tensors: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> Config:
    """Return the nearest configuration."""
    config = preset("paper_r50_fpn")
    transform = replace(
        config.transform,
        size_rounding="nearest",
        interpolation="pillow",
        normalize_first=False,
        ratio_dtype="float64",
    )
    box_pooler = replace(config.box_head.pooler, level_epsilon="inside")
    mask_pooler = replace(config.mask_head.pooler, level_epsilon="inside")
    return replace(
        config,
        background="first",
        transform=transform,
        backbone=replace(config.backbone, norm_eps=0.0, stride_in_1x1=not is_grouped(tensors)),
        rpn=replace(config.rpn, min_size=0.0, zero_iou_matches=True),
        box_head=replace(config.box_head, drop_empty=False, pooler=box_pooler),
        mask_head=replace(config.mask_head, pooler=mask_pooler),
    )
