"""The format of detectron2's Mask R-CNN and Faster R-CNN on ResNet and ResNeXt, FPN, C4 and DC5.

The background comes last and C4 anchors are size-major, as in our presets, so nothing is permuted.
The tensors do not reveal whether a model strides in 1x1 convolutions, how many points of a bin it
samples, or whether stage 5 is dilated: the preset does.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import torch

from accelerated.anchors import cell_anchors
from accelerated.interop.infer import is_grouped, norms
from accelerated.interop.templates import Names
from accelerated.mask_rcnn import MaskRCNN
from reference.config import Config, preset

# The backbone, without the prefixes "backbone." (ours) and ROOTS (theirs).
BACKBONE_ROWS = (
    ("conv1.{part}", "stem.conv1.{part}"),
    ("bn1.{part}", "stem.conv1.norm.{part}"),
    ("layer{s}.{b}.conv{c}.{part}", "res{s+1}.{b}.conv{c}.{part}"),
    ("layer{s}.{b}.bn{c}.{part}", "res{s+1}.{b}.conv{c}.norm.{part}"),
    ("layer{s}.{b}.downsample.0.{part}", "res{s+1}.{b}.shortcut.{part}"),
    ("layer{s}.{b}.downsample.1.{part}", "res{s+1}.{b}.shortcut.norm.{part}"),
)
BACKBONE = Names(*BACKBONE_ROWS)
# With a pyramid; for a stage that the heads share; otherwise.
ROOTS = ("backbone.bottom_up.", "roi_heads.", "backbone.")
NAMES = Names(
    ("fpn.lateral{l}.{part}", "backbone.fpn_lateral{l}.{part}"),
    ("fpn.lateral{l}_norm.{part}", "backbone.fpn_lateral{l}.norm.{part}"),
    ("fpn.output{l}.{part}", "backbone.fpn_output{l}.{part}"),
    ("fpn.output{l}_norm.{part}", "backbone.fpn_output{l}.norm.{part}"),
    ("rpn.logits.{part}", "proposal_generator.rpn_head.objectness_logits.{part}"),
    ("rpn.deltas.{part}", "proposal_generator.rpn_head.anchor_deltas.{part}"),
    ("box_head.fc{i}.{part}", "roi_heads.box_head.fc{i-5}.{part}"),
    ("box_head.conv{i}.{part}", "roi_heads.box_head.conv{i}.{part}"),
    ("box_head.conv{i}_norm.{part}", "roi_heads.box_head.conv{i}.norm.{part}"),
    ("box_head.class_logits.{part}", "roi_heads.box_predictor.cls_score.{part}"),
    ("box_head.box_deltas.{part}", "roi_heads.box_predictor.bbox_pred.{part}"),
    ("mask_head.conv{i}.{part}", "roi_heads.mask_head.mask_fcn{i}.{part}"),
    ("mask_head.conv{i}_norm.{part}", "roi_heads.mask_head.mask_fcn{i}.norm.{part}"),
    ("mask_head.deconv.{part}", "roi_heads.mask_head.deconv.{part}"),
    ("mask_head.logits.{part}", "roi_heads.mask_head.predictor.{part}"),
)
# An RPN with one convolution, and with several.
RPN_CONV = Names(("rpn.conv1.{part}", "proposal_generator.rpn_head.conv.{part}"))
RPN_CONVS = Names(("rpn.conv{i}.{part}", "proposal_generator.rpn_head.conv.conv{i-1}.{part}"))
# In files of 2020 and before, like pixel_mean and pixel_std.
CELL_ANCHORS = "proposal_generator.anchor_generator.cell_anchors."


def recognises(names: Collection[str]) -> bool:
    """Return whether these are tensor names of detectron2's two-stage detectors."""
    return any(name.startswith(("proposal_generator.", "backbone.bottom_up.")) for name in names)


def our_name(name: str) -> str | None:
    """Translate a detectron2 name to ours; None if there is none."""
    for root in ROOTS:
        in_backbone = BACKBONE.ours(name.removeprefix(root)) if name.startswith(root) else None
        if in_backbone:
            return f"backbone.{in_backbone}"
    return NAMES.ours(name) or RPN_CONV.ours(name) or RPN_CONVS.ours(name)


def their_name(name: str, config: Config) -> str | None:
    """Translate our name to detectron2's; None if there is none."""
    if name.startswith("backbone."):
        in_backbone = BACKBONE.theirs(name.removeprefix("backbone."))
        return f"{_root(name, config)}{in_backbone}" if in_backbone else None
    rpn_conv = RPN_CONVS if config.rpn.conv_depth > 1 else RPN_CONV
    return NAMES.theirs(name) or rpn_conv.theirs(name)


def _root(name, config):
    pyramid, heads, otherwise = ROOTS
    if config.shared_head != "none" and name.startswith("backbone.layer4."):
        return heads
    return pyramid if config.neck == "fpn" else otherwise


def ignored(name: str) -> bool:
    """Return whether a tensor is a constant of older files; `base_config` reads them."""
    return name in ("pixel_mean", "pixel_std") or name.startswith(CELL_ANCHORS)


def nearest_preset(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Name the preset that tensors with our names look like."""
    if any(name.startswith("fpn.") for name in tensors):
        return "detectron2_x101_fpn" if is_grouped(tensors) else "detectron2_r50_fpn"
    return "detectron2_r50_dc5" if "box_head.fc6.weight" in tensors else "detectron2_r50_c4"


def base_config(tensors: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> Config:
    """Return the preset with the norms and the constants that the tensors reveal.

    pixel_mean and pixel_std replace the preset's; in reverse order they mean RGB images.
    Raises ValueError if the file has other cell anchors than the preset.
    """
    name = nearest_preset(tensors) or ""
    config = norms(preset(name), tensors)
    # detectron2's models with group normalisation stride as torchvision's do.
    if config.backbone.norm == "group":
        config = replace(config, backbone=replace(config.backbone, stride_in_1x1=False))
    _check_anchors(theirs, config, name)
    transform = config.transform
    if "pixel_mean" in theirs:
        mean = _three(theirs, "pixel_mean")
        if np.allclose(mean, config.transform.mean[::-1]):
            transform = replace(transform, channel_order="rgb")
        if not np.allclose(mean, config.transform.mean):
            transform = replace(transform, mean=tuple(mean))
    if "pixel_std" in theirs:
        std = _three(theirs, "pixel_std")
        if not np.allclose(std, config.transform.std):
            transform = replace(transform, std=tuple(std))
    return replace(config, transform=transform)


def _three(theirs, name):
    """Return the values of three channels."""
    values = theirs[name]
    if values.numel() != 3 or not (values.is_floating_point() and values.isfinite().all()):
        raise ValueError(f"{name}: expected 3 finite numbers, got {list(values.shape)} of them")
    return values.flatten().tolist()


def _check_anchors(theirs, config, name):
    stored = [theirs[key] for key in sorted(theirs) if key.startswith(CELL_ANCHORS)]
    settings = config.anchors
    expected = [cell_anchors(sizes, settings.ratios, settings) for sizes in settings.sizes]
    pairs = zip(stored, expected, strict=False)
    same = len(stored) == len(expected) and all(
        a.shape == b.shape and np.allclose(a.double(), b, atol=1e-3) for a, b in pairs
    )
    if stored and not same:
        raise ValueError(
            f"{CELL_ANCHORS}*: not the anchors of {name};"
            " pass a Config with their sizes and ratios as preset"
        )


def state_dict(model: MaskRCNN) -> dict[str, torch.Tensor]:
    """Return the tensors of `model` by detectron2's names.

    Raises ValueError if detectron2 has no such model.
    """
    config = model.config
    mask_head = config.mask_head
    requirements = {
        "the background last": config.background == "last",
        "a ResNet": config.backbone.kind == "resnet",
        "stride 2 in a stage 5 that the heads share": config.shared_head != "res5_unstrided",
        "a convolutional mask branch with sigmoids": mask_head.kind == "none"
        or (mask_head.kind, mask_head.loss) == ("fcn", "sigmoid"),
    }
    missing = [requirement for requirement, met in requirements.items() if not met]
    if missing:
        raise ValueError(
            f"cannot export this model to detectron2's format, which requires {', '.join(missing)}"
        )
    return {
        their_name(name, config) or name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
