"""torchvision's `maskrcnn_resnet50_fpn` and `_v2`: their tensor names against ours, and back.

Pyramid levels count from 2 with us and from 0 there; convolutions in a row count from 1 with us and from 0 there.
"""

import re

# Files from before torchvision 0.15 (COCO_V1 among them) name three layers otherwise.
OLD_NAMES = (
    (r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(weight|bias)", r"backbone.fpn.\1_blocks.\2.0.\3"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)", lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.{m[2]}"),
)

TO_OURS = (
    (r"backbone\.body\.(.+)", r"backbone.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.([01])\.(\w+)", lambda m: f"fpn.lateral{int(m[1]) + 2}{_norm(m[2])}.{m[3]}"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.([01])\.(\w+)", lambda m: f"fpn.output{int(m[1]) + 2}{_norm(m[2])}.{m[3]}"),
    (r"rpn\.head\.conv\.(\d)\.0\.(\w+)", lambda m: f"rpn.conv{int(m[1]) + 1}.{m[2]}"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"rpn.logits.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"rpn.deltas.\1"),
    (r"roi_heads\.box_head\.(fc[67])\.(\w+)", r"box_head.\1.\2"),
    (r"roi_heads\.box_head\.5\.(\w+)", r"box_head.fc6.\1"),
    (r"roi_heads\.box_head\.([0-3])\.([01])\.(\w+)", lambda m: f"box_head.conv{int(m[1]) + 1}{_norm(m[2])}.{m[3]}"),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"box_head.class_logits.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"box_head.box_deltas.\1"),
    (r"roi_heads\.mask_head\.(\d)\.([01])\.(\w+)", lambda m: f"mask_head.conv{int(m[1]) + 1}{_norm(m[2])}.{m[3]}"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", r"mask_head.deconv.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", r"mask_head.logits.\1"),
)

FROM_OURS = (
    (r"backbone\.(.+)", r"backbone.body.\1"),
    (r"fpn\.lateral(\d)(_norm)?\.(\w+)", lambda m: f"backbone.fpn.inner_blocks.{int(m[1]) - 2}.{int(bool(m[2]))}.{m[3]}"),
    (r"fpn\.output(\d)(_norm)?\.(\w+)", lambda m: f"backbone.fpn.layer_blocks.{int(m[1]) - 2}.{int(bool(m[2]))}.{m[3]}"),
    (r"rpn\.conv(\d)\.(\w+)", lambda m: f"rpn.head.conv.{int(m[1]) - 1}.0.{m[2]}"),
    (r"rpn\.logits\.(\w+)", r"rpn.head.cls_logits.\1"),
    (r"rpn\.deltas\.(\w+)", r"rpn.head.bbox_pred.\1"),
    (r"box_head\.conv(\d)(_norm)?\.(\w+)", lambda m: f"roi_heads.box_head.{int(m[1]) - 1}.{int(bool(m[2]))}.{m[3]}"),
    (r"box_head\.(fc[67])\.(\w+)", r"roi_heads.box_head.\1.\2"),
    (r"box_head\.class_logits\.(\w+)", r"roi_heads.box_predictor.cls_score.\1"),
    (r"box_head\.box_deltas\.(\w+)", r"roi_heads.box_predictor.bbox_pred.\1"),
    (r"mask_head\.conv(\d)(_norm)?\.(\w+)", lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.{int(bool(m[2]))}.{m[3]}"),
    (r"mask_head\.deconv\.(\w+)", r"roi_heads.mask_predictor.conv5_mask.\1"),
    (r"mask_head\.logits\.(\w+)", r"roi_heads.mask_predictor.mask_fcn_logits.\1"),
)


def recognises(names):
    """Whether these are the tensor names of one of torchvision's two-stage detectors with a pyramid."""
    return any(name.startswith("roi_heads.") for name in names) and any(name.startswith("backbone.body.") for name in names)


def our_name(name):
    """Our name of torchvision's tensor `name`, old or new; None where there is none."""
    return _translate(_translate(name, OLD_NAMES) or name, TO_OURS)


def their_name(name, config):
    """torchvision's (present) name of our tensor `name`."""
    if config.box_head.kind == "four_conv_fc" and name.startswith("box_head.fc6."):
        return name.replace("box_head.fc6", "roi_heads.box_head.5")
    return _translate(name, FROM_OURS)


def state_dict(model):
    """The tensors of our `model` under torchvision's names. ValueError where torchvision has no such model."""
    config = model.config
    norms = (config.backbone.norm, config.fpn.norm, config.box_head.norm, config.mask_head.norm)
    if config.background != "first" or "group" in norms:
        raise ValueError(
            "torchvision's Mask R-CNN puts the background first and has no group normalisation; this model cannot be written as one"
        )
    return {their_name(name, config): tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _translate(name, table):
    for pattern, replacement in table:
        match = re.fullmatch(pattern, name)
        if match:
            return replacement(match) if callable(replacement) else match.expand(replacement)
    return None


def _norm(index):
    return "_norm" if index == "1" else ""
