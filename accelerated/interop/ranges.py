"""The range of every number in a configuration, for files and commands, which may hold any.

A number outside is absurd, not merely unusual: a width of 0, a probability of 2, or a width whose
model no machine holds.
"""

from pathlib import Path

from accelerated.data.text_files import parse_json
from accelerated.data.values import short
from reference.config import Config, flat, from_dict

# Widths of layers, and the depth of stacks of equal ones.
WIDEST, DEEPEST = 65_536, 64
# The least number that a scale may be.
TINY = 1e-9
LISTED = 1000

# (least, greatest, fields of the configuration)
TABLE: tuple[tuple[float, float, str], ...] = (
    (
        1,
        WIDEST,
        "num_classes norm_groups backbone.width backbone.groups backbone.group_width fpn.channels"
        " box_head.channels box_head.conv_channels mask_head.mlp_channels mask_head.channels",
    ),
    (1, DEEPEST, "rpn.conv_depth"),
    (0, DEEPEST, "mask_head.convs"),
    # Which of these exist depends on others: `reference.config.check`.
    (
        0,
        1000,
        "backbone.depth backbone.frozen_stages backbone.out_stage backbone.dilation"
        " box_head.pooler.min_level box_head.pooler.max_level"
        " mask_head.pooler.min_level mask_head.pooler.max_level",
    ),
    (1, 100_000, "transform.min_size transform.max_size"),
    (0, 4096, "transform.size_divisor"),
    (TINY, 1e9, "transform.pixel_scale transform.std"),
    (-1e9, 1e9, "transform.mean"),
    (TINY, 1e9, "anchors.sizes anchors.ratios"),
    (-1000, 1000, "anchors.offset"),
    (
        0,
        1,
        "backbone.norm_eps rpn.foreground_iou rpn.background_iou rpn.positive_fraction rpn.nms_iou"
        " box_head.foreground_iou box_head.background_iou box_head.positive_fraction"
        " box_head.score_threshold box_head.nms_iou mask_head.threshold"
        " optimizer.momentum optimizer.warmup_factor optimizer.steps augment.flip"
        " augment.flip_vertical augment.quarter_turns augment.mosaic augment.copy_paste"
        " augment.brightness augment.contrast augment.saturation",
    ),
    (0, 0.5, "augment.hue"),
    (0.01, 100, "augment.scale"),
    (
        1,
        1_000_000,
        "rpn.batch_size rpn.pre_nms_top_n_train rpn.pre_nms_top_n_test rpn.post_nms_top_n_train"
        " rpn.post_nms_top_n_test box_head.batch_size box_head.max_detections optimizer.batch_size",
    ),
    (TINY, 1e9, "rpn.box_weights box_head.box_weights"),
    (
        0,
        1e9,
        "rpn.smooth_l1_beta box_head.smooth_l1_beta rpn.min_size box_head.min_size"
        " optimizer.learning_rate optimizer.weight_decay optimizer.norm_weight_decay"
        " optimizer.gamma optimizer.clip_gradient_norm optimizer.warmup_iterations",
    ),
    (1, 1024, "box_head.pooler.output_size mask_head.pooler.output_size"),
    (0, 64, "box_head.pooler.sampling_ratio mask_head.pooler.sampling_ratio"),
    (TINY, 1e9, "box_head.pooler.canonical_size mask_head.pooler.canonical_size"),
    (0, 16, "box_head.pooler.canonical_level mask_head.pooler.canonical_level"),
)
RANGES = {name: (low, high) for low, high, names in TABLE for name in names.split()}


def check(config: Config) -> Config:
    """Return the configuration. Raises ValueError that names a field outside of its range."""
    for path, value in flat(config).items():
        if path in RANGES:
            _check(path, value, *RANGES[path])
    return config


def _check(path, value, low, high):
    if isinstance(value, tuple):
        if len(value) > LISTED:
            raise ValueError(f"{path}: expected at most {LISTED} values, got {len(value)}")
        for item in value:
            _check(path, item, low, high)
    # None is a switch, and NaN is in no range.
    elif value is not None and not low <= value <= high:
        raise ValueError(f"{path}: expected {low:,} to {high:,}, got {short(value)}")


def read(path: Path) -> Config:
    """Read a configuration from a JSON file.

    Raises ValueError, in one line, for a field that is missing, unknown, of another type or outside
    of its range.
    """
    try:
        return check(from_dict(parse_json(path)))
    except RecursionError:
        raise ValueError(f"{path}: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())[:400]}") from None
