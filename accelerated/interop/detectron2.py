"""detectron2's Mask R-CNN and Faster R-CNN on ResNet and ResNeXt, FPN, C4 and DC5: their tensor names against ours, and back.

Its background comes last and its C4 anchors are size-major, as in our presets, so that nothing is permuted.
No tensor tells whether a checkpoint strides in 1x1 convolutions, how many points of a bin it samples, or whether stage 5 is dilated:
the preset does.
"""

from dataclasses import replace

import numpy as np

from accelerated.anchors import cell_anchors
from accelerated.interop.deduce import norms
from accelerated.interop.renaming import rename
from reference import config as configuration

BODY_TO_OURS = (
    (r"stem\.conv1\.weight", r"conv1.weight"),
    (r"stem\.conv1\.norm\.(\w+)", r"bn1.\1"),
    (
        r"res([2-5])\.(\d+)\.conv([123])\.weight",
        lambda m: f"layer{int(m[1]) - 1}.{m[2]}.conv{m[3]}.weight",
    ),
    (
        r"res([2-5])\.(\d+)\.conv([123])\.norm\.(\w+)",
        lambda m: f"layer{int(m[1]) - 1}.{m[2]}.bn{m[3]}.{m[4]}",
    ),
    (
        r"res([2-5])\.(\d+)\.shortcut\.(norm\.)?(\w+)",
        lambda m: f"layer{int(m[1]) - 1}.{m[2]}.downsample.{int(bool(m[3]))}.{m[4]}",
    ),
)
BODY_FROM_OURS = (
    (r"conv1\.weight", r"stem.conv1.weight"),
    (r"bn1\.(\w+)", r"stem.conv1.norm.\1"),
    (
        r"layer(\d)\.(\d+)\.conv(\d)\.weight",
        lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}.weight",
    ),
    (
        r"layer(\d)\.(\d+)\.bn(\d)\.(\w+)",
        lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}.norm.{m[4]}",
    ),
    (
        r"layer(\d)\.(\d+)\.downsample\.(\d)\.(\w+)",
        lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut.{_dot_norm(m[3] == '1')}{m[4]}",
    ),
)
TO_OURS = (
    (
        r"(?:backbone\.bottom_up|backbone|roi_heads)\.((?:stem|res[2-5])\..+)",
        lambda m: f"backbone.{rename(m[1], BODY_TO_OURS) or m[1]}",
    ),
    (
        r"backbone\.fpn_(lateral|output)([2-5])\.(norm\.)?(\w+)",
        lambda m: f"fpn.{m[1]}{m[2]}{_norm(m[3])}.{m[4]}",
    ),
    (r"proposal_generator\.rpn_head\.conv\.(\w+)", r"rpn.conv1.\1"),
    (
        r"proposal_generator\.rpn_head\.conv\.conv(\d)\.(\w+)",
        lambda m: f"rpn.conv{int(m[1]) + 1}.{m[2]}",
    ),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", r"rpn.logits.\1"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", r"rpn.deltas.\1"),
    (r"roi_heads\.box_head\.fc([12])\.(\w+)", lambda m: f"box_head.fc{int(m[1]) + 5}.{m[2]}"),
    (
        r"roi_heads\.box_head\.conv(\d)\.(norm\.)?(\w+)",
        lambda m: f"box_head.conv{m[1]}{_norm(m[2])}.{m[3]}",
    ),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"box_head.class_logits.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"box_head.box_deltas.\1"),
    (
        r"roi_heads\.mask_head\.mask_fcn(\d)\.(norm\.)?(\w+)",
        lambda m: f"mask_head.conv{m[1]}{_norm(m[2])}.{m[3]}",
    ),
    (r"roi_heads\.mask_head\.deconv\.(\w+)", r"mask_head.deconv.\1"),
    (r"roi_heads\.mask_head\.predictor\.(\w+)", r"mask_head.logits.\1"),
)
FROM_OURS = (
    (
        r"fpn\.(lateral|output)(\d)(_norm)?\.(\w+)",
        lambda m: f"backbone.fpn_{m[1]}{m[2]}.{_dot_norm(m[3])}{m[4]}",
    ),
    (r"rpn\.logits\.(\w+)", r"proposal_generator.rpn_head.objectness_logits.\1"),
    (r"rpn\.deltas\.(\w+)", r"proposal_generator.rpn_head.anchor_deltas.\1"),
    (r"box_head\.fc([67])\.(\w+)", lambda m: f"roi_heads.box_head.fc{int(m[1]) - 5}.{m[2]}"),
    (
        r"box_head\.conv(\d)(_norm)?\.(\w+)",
        lambda m: f"roi_heads.box_head.conv{m[1]}.{_dot_norm(m[2])}{m[3]}",
    ),
    (r"box_head\.class_logits\.(\w+)", r"roi_heads.box_predictor.cls_score.\1"),
    (r"box_head\.box_deltas\.(\w+)", r"roi_heads.box_predictor.bbox_pred.\1"),
    (
        r"mask_head\.conv(\d)(_norm)?\.(\w+)",
        lambda m: f"roi_heads.mask_head.mask_fcn{m[1]}.{_dot_norm(m[2])}{m[3]}",
    ),
    (r"mask_head\.deconv\.(\w+)", r"roi_heads.mask_head.deconv.\1"),
    (r"mask_head\.logits\.(\w+)", r"roi_heads.mask_head.predictor.\1"),
)
CELL_ANCHORS = "proposal_generator.anchor_generator.cell_anchors."  # in files of 2020 and before, beside pixel_mean and pixel_std


def recognises(names):
    """Whether these are the tensor names of a two-stage detector of detectron2."""
    return any(name.startswith(("proposal_generator.", "backbone.bottom_up.")) for name in names)


def our_name(name):
    """Our name of detectron2's tensor `name`; None where there is none."""
    return rename(name, TO_OURS)


def ignored(name):
    """Constants that detectron2's newer files leave to its configuration; `described` reads them."""
    return name in ("pixel_mean", "pixel_std") or name.startswith(CELL_ANCHORS)


def their_name(name, config):
    """detectron2's name of our tensor `name`."""
    if name.startswith("backbone."):
        of_rois = config.shared_head != "none" and name.startswith("backbone.layer4.")
        prefix = (
            "roi_heads."
            if of_rois
            else "backbone.bottom_up."
            if config.neck == "fpn"
            else "backbone."
        )
        return prefix + rename(name.removeprefix("backbone."), BODY_FROM_OURS)
    if name.startswith("rpn.conv"):
        layer, _, end = name.removeprefix("rpn.conv").partition(".")
        return f"proposal_generator.rpn_head.conv.{f'conv{int(layer) - 1}.' if config.rpn.conv_depth > 1 else ''}{end}"
    return rename(name, FROM_OURS)


def nearest(tensors):
    """The preset that the tensors (our names) look like."""
    if any(name.startswith("fpn.") for name in tensors):
        return "detectron2_x101_fpn" if _is_grouped(tensors) else "detectron2_r50_fpn"
    return "detectron2_r50_dc5" if "box_head.fc6.weight" in tensors else "detectron2_r50_c4"


def described(tensors, theirs):
    """The configuration that the tensors tell of, before widths and depths.

    Where the file has pixel_mean and pixel_std, they hold; reversed, they are those of RGB images. Cell anchors that the preset
    does not have are a ValueError.
    """
    config = norms(configuration.preset(nearest(tensors)), tensors)
    if (
        config.backbone.norm == "group"
    ):  # its models with group normalisation stride as torchvision's do
        config = replace(config, backbone=replace(config.backbone, stride_in_1x1=False))
    transform = config.transform
    for field, expected in (("mean", transform.mean), ("std", transform.std)):
        if f"pixel_{field}" in theirs:
            pixel = theirs[f"pixel_{field}"].flatten().tolist()
            if not np.allclose(pixel, expected):
                transform = replace(transform, **{field: tuple(pixel)})
            if field == "mean" and np.allclose(pixel, expected[::-1]):
                transform = replace(transform, channel_order="rgb")
    stored = [theirs[name] for name in sorted(theirs) if name.startswith(CELL_ANCHORS)]
    own = [
        cell_anchors(sizes, config.anchors.ratios, config.anchors) for sizes in config.anchors.sizes
    ]
    if stored and not _close(stored, own):
        raise ValueError(
            f"{CELL_ANCHORS}*: not the anchors of {nearest(tensors)}; give as preset a Config with their sizes and ratios"
        )
    return replace(config, transform=transform)


def state_dict(model):
    """The tensors of our `model` under detectron2's names. ValueError where detectron2 has no such model."""
    config = model.config
    has = {
        "the background last": config.background == "last",
        "a ResNet": config.backbone.kind == "resnet",
        "a stage 5 of stride 2 where the heads share it": config.shared_head != "res5_unstrided",
        "a mask of sigmoids, by convolutions": (config.mask_head.kind, config.mask_head.loss)
        == ("fcn", "sigmoid")
        or config.mask_head.kind == "none",
    }
    lacking = [what for what, true in has.items() if not true]
    if lacking:
        raise ValueError(
            f"detectron2's models have {', '.join(lacking)}; this one cannot be written as one of them"
        )
    return {
        their_name(name, config): tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }


def _close(a, b):
    """Whether two lists of tensors are the same, but for rounding."""
    pairs = zip(a, b, strict=False)
    return len(a) == len(b) and all(
        x.shape == y.shape and np.allclose(x, y, atol=1e-3) for x, y in pairs
    )


def _is_grouped(tensors):
    name = "backbone.layer1.0.conv2.weight"
    return name in tensors and tensors[name].shape[0] != tensors[name].shape[1]


def _norm(found):
    return "_norm" if found else ""


def _dot_norm(found):
    return "norm." if found else ""
