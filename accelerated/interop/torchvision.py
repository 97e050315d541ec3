"""torchvision's `maskrcnn_resnet50_fpn` and `_v2`, `fasterrcnn_resnet50_fpn` and `_v2`: their tensor names against ours, and back.

Pyramid levels count from 2 with us and from 0 there; convolutions in a row count from 1 with us and from 0 there.
"""

from dataclasses import replace

from accelerated.interop.deduce import classes, norms
from accelerated.interop.renaming import rename
from reference import config as configuration

COCO_CLASSES = (
    90  # of torchvision's published models: category ids 1..90, ten of them without objects
)

# Files from before torchvision 0.15 (COCO_V1 among them) name three layers otherwise.
OLD_NAMES = (
    (
        r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(weight|bias)",
        r"backbone.fpn.\1_blocks.\2.0.\3",
    ),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    (
        r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)",
        lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.{m[2]}",
    ),
)

TO_OURS = (
    (r"backbone\.body\.(.+)", r"backbone.\1"),
    (
        r"backbone\.fpn\.inner_blocks\.(\d)\.([01])\.(\w+)",
        lambda m: f"fpn.lateral{int(m[1]) + 2}{_norm(m[2])}.{m[3]}",
    ),
    (
        r"backbone\.fpn\.layer_blocks\.(\d)\.([01])\.(\w+)",
        lambda m: f"fpn.output{int(m[1]) + 2}{_norm(m[2])}.{m[3]}",
    ),
    (r"rpn\.head\.conv\.(\d)\.0\.(\w+)", lambda m: f"rpn.conv{int(m[1]) + 1}.{m[2]}"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"rpn.logits.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"rpn.deltas.\1"),
    (r"roi_heads\.box_head\.(fc[67])\.(\w+)", r"box_head.\1.\2"),
    (r"roi_heads\.box_head\.5\.(\w+)", r"box_head.fc6.\1"),
    (
        r"roi_heads\.box_head\.([0-3])\.([01])\.(\w+)",
        lambda m: f"box_head.conv{int(m[1]) + 1}{_norm(m[2])}.{m[3]}",
    ),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"box_head.class_logits.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"box_head.box_deltas.\1"),
    (
        r"roi_heads\.mask_head\.(\d)\.([01])\.(\w+)",
        lambda m: f"mask_head.conv{int(m[1]) + 1}{_norm(m[2])}.{m[3]}",
    ),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", r"mask_head.deconv.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", r"mask_head.logits.\1"),
)

FROM_OURS = (
    (r"backbone\.(.+)", r"backbone.body.\1"),
    (
        r"fpn\.lateral(\d)(_norm)?\.(\w+)",
        lambda m: f"backbone.fpn.inner_blocks.{int(m[1]) - 2}.{int(bool(m[2]))}.{m[3]}",
    ),
    (
        r"fpn\.output(\d)(_norm)?\.(\w+)",
        lambda m: f"backbone.fpn.layer_blocks.{int(m[1]) - 2}.{int(bool(m[2]))}.{m[3]}",
    ),
    (r"rpn\.conv(\d)\.(\w+)", lambda m: f"rpn.head.conv.{int(m[1]) - 1}.0.{m[2]}"),
    (r"rpn\.logits\.(\w+)", r"rpn.head.cls_logits.\1"),
    (r"rpn\.deltas\.(\w+)", r"rpn.head.bbox_pred.\1"),
    (
        r"box_head\.conv(\d)(_norm)?\.(\w+)",
        lambda m: f"roi_heads.box_head.{int(m[1]) - 1}.{int(bool(m[2]))}.{m[3]}",
    ),
    (r"box_head\.(fc[67])\.(\w+)", r"roi_heads.box_head.\1.\2"),
    (r"box_head\.class_logits\.(\w+)", r"roi_heads.box_predictor.cls_score.\1"),
    (r"box_head\.box_deltas\.(\w+)", r"roi_heads.box_predictor.bbox_pred.\1"),
    (
        r"mask_head\.conv(\d)(_norm)?\.(\w+)",
        lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.{int(bool(m[2]))}.{m[3]}",
    ),
    (r"mask_head\.deconv\.(\w+)", r"roi_heads.mask_predictor.conv5_mask.\1"),
    (r"mask_head\.logits\.(\w+)", r"roi_heads.mask_predictor.mask_fcn_logits.\1"),
)


def recognises(names):
    """Whether these are the tensor names of one of torchvision's two-stage detectors with a pyramid."""
    return any(name.startswith("roi_heads.") for name in names) and any(
        name.startswith("backbone.body.") for name in names
    )


def our_name(name):
    """Our name of torchvision's tensor `name`, old or new; None where there is none."""
    return rename(rename(name, OLD_NAMES) or name, TO_OURS)


def ignored(name):
    """Nothing in such a file is without use."""
    return False


def their_name(name, config):
    """torchvision's (present) name of our tensor `name`."""
    if config.box_head.kind == "four_conv_fc" and name.startswith("box_head.fc6."):
        return name.replace("box_head.fc6", "roi_heads.box_head.5")
    return rename(name, FROM_OURS)


def nearest(tensors):
    """The preset that the tensors (our names) look like."""
    return "torchvision_r50_fpn_v2" if "box_head.conv1.weight" in tensors else "torchvision_r50_fpn"


def described(tensors, theirs):
    """The configuration that the tensors tell of, before widths and depths: plain batch norm where batches are counted, all of it training.

    A frozen norm and 91 classes: taken for a published COCO_V1 model, which torchvision runs with eps 0 (SPEC §13).
    """
    config = norms(configuration.preset(nearest(tensors)), tensors)
    if config.backbone.norm == "frozen" and classes(tensors) == COCO_CLASSES:
        return replace(config, backbone=replace(config.backbone, norm_eps=0.0))
    return config


def state_dict(model):
    """The tensors of our `model` under torchvision's names. ValueError where torchvision has no such model."""
    config = model.config
    has = {
        "the background first": config.background == "first",
        "a feature pyramid": config.neck == "fpn",
        "no group normalisation": "group"
        not in (config.backbone.norm, config.fpn.norm, config.box_head.norm, config.mask_head.norm),
        "strides in 3x3 convolutions": config.backbone.depth < 50
        or not config.backbone.stride_in_1x1,
        "RGB images": config.transform.channel_order == "rgb",
        "a mask of sigmoids per class, by convolutions": config.mask_head.kind == "none"
        or (config.mask_head.kind, config.mask_head.loss, config.mask_head.class_agnostic)
        == ("fcn", "sigmoid", False),
    }
    lacking = [what for what, true in has.items() if not true]
    if lacking:
        raise ValueError(
            f"torchvision's models have {', '.join(lacking)}; this one cannot be written as one of them"
        )
    return {
        their_name(name, config): tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }


def _norm(index):
    return "_norm" if index == "1" else ""
