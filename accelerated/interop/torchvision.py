"""The format of torchvision's two-stage detectors with a pyramid.

These are `maskrcnn_resnet50_fpn`, `fasterrcnn_resnet50_fpn` and their `_v2`. torchvision counts
pyramid levels from 0, which are ours from 2 on, and consecutive convolutions from 0 (ours: from 1).
"""

from collections.abc import Collection, Mapping

import torch

from accelerated.interop.infer import norms
from accelerated.interop.templates import Names
from accelerated.mask_rcnn import MaskRCNN
from reference.config import Config, preset

NAMES = Names(
    ("backbone.{rest}", "backbone.body.{rest}"),
    ("fpn.lateral{l}.{part}", "backbone.fpn.inner_blocks.{l-2}.0.{part}"),
    ("fpn.lateral{l}_norm.{part}", "backbone.fpn.inner_blocks.{l-2}.1.{part}"),
    ("fpn.output{l}.{part}", "backbone.fpn.layer_blocks.{l-2}.0.{part}"),
    ("fpn.output{l}_norm.{part}", "backbone.fpn.layer_blocks.{l-2}.1.{part}"),
    ("rpn.conv{i}.{part}", "rpn.head.conv.{i-1}.0.{part}"),
    ("rpn.logits.{part}", "rpn.head.cls_logits.{part}"),
    ("rpn.deltas.{part}", "rpn.head.bbox_pred.{part}"),
    ("box_head.conv{i}.{part}", "roi_heads.box_head.{i-1}.0.{part}"),
    ("box_head.conv{i}_norm.{part}", "roi_heads.box_head.{i-1}.1.{part}"),
    ("box_head.fc{i}.{part}", "roi_heads.box_head.fc{i}.{part}"),
    ("box_head.class_logits.{part}", "roi_heads.box_predictor.cls_score.{part}"),
    ("box_head.box_deltas.{part}", "roi_heads.box_predictor.bbox_pred.{part}"),
    ("mask_head.conv{i}.{part}", "roi_heads.mask_head.{i-1}.0.{part}"),
    ("mask_head.conv{i}_norm.{part}", "roi_heads.mask_head.{i-1}.1.{part}"),
    ("mask_head.deconv.{part}", "roi_heads.mask_predictor.conv5_mask.{part}"),
    ("mask_head.logits.{part}", "roi_heads.mask_predictor.mask_fcn_logits.{part}"),
)
# The fully connected layer of a box head with four convolutions.
FOUR_CONV_FC = Names(("box_head.fc6.{part}", "roi_heads.box_head.5.{part}"))
# Files from before torchvision 0.15, such as COCO_V1; they are read only.
OLD_NAMES = Names(
    ("fpn.lateral{l}.{part}", "backbone.fpn.inner_blocks.{l-2}.{part}"),
    ("fpn.output{l}.{part}", "backbone.fpn.layer_blocks.{l-2}.{part}"),
    ("rpn.conv1.{part}", "rpn.head.conv.{part}"),
    ("mask_head.conv{i}.{part}", "roi_heads.mask_head.mask_fcn{i}.{part}"),
)


def recognises(names: Collection[str]) -> bool:
    """Return whether these are tensor names of torchvision's two-stage detectors with a pyramid."""
    return all(
        any(name.startswith(prefix) for name in names)
        for prefix in ("roi_heads.", "backbone.body.")
    )


def our_name(name: str) -> str | None:
    """Translate a present or old torchvision name to ours; None if there is none."""
    return NAMES.ours(name) or FOUR_CONV_FC.ours(name) or OLD_NAMES.ours(name)


def their_name(name: str, config: Config) -> str | None:
    """Translate our name to torchvision's present name; None if there is none."""
    if config.box_head.kind == "four_conv_fc":
        return FOUR_CONV_FC.theirs(name) or NAMES.theirs(name)
    return NAMES.theirs(name)


def ignored(name: str) -> bool:
    """Return False: every tensor is a weight."""
    return False


def nearest_preset(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Name the preset that tensors with our names look like."""
    return "torchvision_r50_fpn_v2" if "box_head.conv1.weight" in tensors else "torchvision_r50_fpn"


def base_config(tensors: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> Config:
    """Return the preset with the norms that the tensors reveal.

    Counted batches mean a plain batch norm, all of it trained. They do not reveal the eps of a
    frozen norm: torchvision's is 1e-5, and 0 in its published COCO_V1 models, which are known by
    their digest (zoo.py), and in what was fine-tuned from these (SPEC §13).
    """
    return norms(preset(nearest_preset(tensors) or ""), tensors)


def state_dict(model: MaskRCNN) -> dict[str, torch.Tensor]:
    """Return the tensors of `model` by torchvision's names.

    Raises ValueError if torchvision has no such model.
    """
    config = model.config
    backbone, mask_head = config.backbone, config.mask_head
    norms_used = (backbone.norm, config.fpn.norm, config.box_head.norm, mask_head.norm)
    mask_branch = (mask_head.kind, mask_head.loss, mask_head.class_agnostic)
    requirements = {
        "the background first": config.background == "first",
        "a feature pyramid": config.neck == "fpn",
        "no group normalisation": "group" not in norms_used,
        "strides in 3x3 convolutions": backbone.depth < 50 or not backbone.stride_in_1x1,
        "RGB images": config.transform.channel_order == "rgb",
        "a convolutional mask branch with a sigmoid per class": mask_head.kind == "none"
        or mask_branch == ("fcn", "sigmoid", False),
    }
    missing = [requirement for requirement, met in requirements.items() if not met]
    if missing:
        raise ValueError(
            f"cannot export this model to torchvision's format, which requires {', '.join(missing)}"
        )
    return {
        their_name(name, config) or name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
