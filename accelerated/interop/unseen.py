"""What the shapes of tensors do not reveal about a model: which fields, and what was assumed.

Every field of `Config` stands in one of three tables. SEEN: names and shapes of tensors show it.
UNSEEN: weights are wrong without the value that they were trained with. FREE: it decides how to
train or what to report, and any value goes with any weights.
"""

import json
from collections.abc import Collection, Iterator
from typing import Any

from reference.config import Config, flat

POOLERS = ("box_head.pooler", "mask_head.pooler")
SEEN = (
    "num_classes",
    # The number of box deltas tells whether the background is the first class or the last.
    "background",
    "neck",
    "backbone.kind",
    "backbone.depth",
    "backbone.width",
    "backbone.groups",
    "backbone.group_width",
    "backbone.out_stage",
    "fpn.channels",
    "rpn.conv_depth",
    "box_head.kind",
    "box_head.channels",
    "box_head.conv_channels",
    "mask_head.kind",
    "mask_head.class_agnostic",
    "mask_head.mlp_channels",
    "mask_head.convs",
    "mask_head.channels",
)
UNSEEN = (
    "transform.channel_order",
    "transform.pixel_scale",
    "transform.mean",
    "transform.std",
    "transform.interpolation",
    "norm_groups",
    "shared_head",
    "backbone.norm",
    "backbone.norm_eps",
    "backbone.stride_in_1x1",
    "backbone.dilation",
    "fpn.norm",
    "anchors.sizes",
    "anchors.ratios",
    "anchors.rounding",
    "anchors.order",
    "anchors.stride",
    "anchors.offset",
    "rpn.box_weights",
    "box_head.norm",
    "box_head.box_weights",
    "mask_head.norm",
    "mask_head.loss",
    "mask_head.target_aligned",
    "mask_head.paste",
    *(
        f"{pooler}.{field}"
        for pooler in POOLERS
        for field in (
            "output_size",
            "operator",
            "sampling_ratio",
            "aligned",
            "aggregate",
            "canonical_size",
            "canonical_level",
            "min_level",
            "max_level",
        )
    ),
)
FREE = (
    # Sizes of images, and roundings of them by less than a pixel.
    "transform.min_size",
    "transform.max_size",
    "transform.size_rounding",
    "transform.normalize_first",
    "transform.ratio_dtype",
    "transform.size_divisor",
    "backbone.frozen_stages",
    # A RoI whose size is a boundary between two levels, to 1e-6.
    *(f"{pooler}.level_epsilon" for pooler in POOLERS),
    *(
        f"rpn.{field}"
        for field in (
            "foreground_iou",
            "background_iou",
            "low_quality_matches",
            "zero_iou_matches",
            "batch_size",
            "positive_fraction",
            "smooth_l1_beta",
            "loss_normalizer",
            "pre_nms_top_n_train",
            "pre_nms_top_n_test",
            "post_nms_top_n_train",
            "post_nms_top_n_test",
            "nms_iou",
            "nms_score",
            "min_size",
            "min_size_inclusive",
        )
    ),
    *(
        f"box_head.{field}"
        for field in (
            "foreground_iou",
            "background_iou",
            "append_ground_truth",
            "batch_size",
            "positive_fraction",
            "smooth_l1_beta",
            "score_threshold",
            "nms_iou",
            "min_size",
            "max_detections",
            "drop_empty",
        )
    ),
    "mask_head.target",
    "mask_head.threshold",
    *(
        f"optimizer.{field}"
        for field in (
            "kind",
            "learning_rate",
            "batch_size",
            "momentum",
            "weight_decay",
            "norm_weight_decay",
            "warmup_iterations",
            "warmup_factor",
            "schedule",
            "steps",
            "gamma",
            "clip_gradient_norm",
        )
    ),
    *(
        f"augment.{field}"
        for field in (
            "flip",
            "flip_vertical",
            "quarter_turns",
            "scale",
            "brightness",
            "contrast",
            "saturation",
            "hue",
            "mosaic",
            "copy_paste",
            "function",
        )
    ),
)
# Fields whose assumed values are printed, by line, for a file without a configuration.
NOTED = (
    ("transform.min_size", "transform.max_size"),
    ("transform.channel_order", "transform.mean", "transform.std"),
    ("anchors.sizes", "anchors.ratios"),
    (
        "box_head.pooler.sampling_ratio",
        "box_head.pooler.aligned",
        "mask_head.pooler.output_size",
        "mask_head.pooler.sampling_ratio",
    ),
    ("backbone.stride_in_1x1", "backbone.norm_eps"),
)


def differences(theirs: Config, ours: Config) -> Iterator[tuple[str, Any, Any]]:
    """Yield (path, their value, our value) of the UNSEEN fields that differ where both use them.

    Norms that differ in where their statistics come from are the same.
    """
    values, others = flat(theirs), flat(ours)
    for path in UNSEEN:
        a, b = values[path], others[path]
        same = _statistics(a) == _statistics(b) if path.endswith(".norm") else a == b
        if not same and is_used(path, theirs) and is_used(path, ours):
            yield path, a, b


def is_used(path: str, config: Config) -> bool:
    """Tell whether a model of `config` depends on a field of UNSEEN or NOTED at all."""
    backbone, box, mask = config.backbone, config.box_head, config.mask_head
    norms = (backbone.norm, config.fpn.norm, box.norm, mask.norm)
    unused = {
        "norm_groups": "group" not in norms,
        "backbone.norm": backbone.kind == "vgg",
        "backbone.norm_eps": backbone.kind == "vgg" and set(norms[1:]) == {"none"},
        "backbone.stride_in_1x1": backbone.kind == "vgg" or backbone.depth < 50,
        "fpn.norm": config.neck != "fpn",
        "box_head.norm": box.kind != "four_conv_fc",
        "mask_head.norm": mask.kind != "fcn" or not mask.convs,
    }
    # Layers that choose a level have no choice without a pyramid.
    level = path.endswith((".canonical_size", ".canonical_level"))
    without_masks = mask.kind == "none" and path.startswith("mask_head.")
    return not (unused.get(path) or without_masks or (level and config.neck != "fpn"))


def _statistics(norm):
    return "batch" if norm in ("frozen", "sync_batch") else norm


def assumptions(config: Config, preset: str, stated: Collection[str]) -> list[str]:
    """Say in a few lines what was assumed about a model whose file holds tensors alone.

    preset  that the values are from
    stated  fields that are not assumed
    """
    values = flat(config)
    lines = [
        f"settings that its tensors do not show are assumed as in {preset}; --set FIELD=VALUE (in"
        " Python: changes=[...]) changes them:"
    ]
    for row in NOTED:
        assumed = [path for path in row if path not in stated and is_used(path, config)]
        if assumed:
            lines.append("  " + " ".join(f"{path}={text(values[path])}" for path in assumed))
    frozen = preset == "torchvision_r50_fpn" and config.backbone.norm == "frozen"
    if frozen and "backbone.norm_eps" not in stated:
        lines.append(
            "  a model that torchvision fine-tuned from its COCO weights has an eps of 0: add"
            " --set backbone.norm_eps=0"
        )
    return lines


def text(value: Any) -> str:
    """Write the value of a field as --set reads it, without spaces."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
