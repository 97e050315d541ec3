"""Every switch of the algorithm, one explicit field each, and the named sets of them (presets).

Two implementations of Mask R-CNN that people compare disagree in some thirty details. Nothing below is decided inside
an operator: a preset names a full set of choices, `dataclasses.replace` changes one.

Standard library only; both implementations read this file.
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True)
class Transform:
    """From the image that comes in ([H, W, 3] RGB, 0..255) to the array the network sees."""

    min_size: tuple[int, ...] = (800,)  # wanted short side in pixels: training draws one, inference takes the last; () keeps the size
    max_size: int = 1333  # the long side never exceeds this
    # "truncate": int(side * scale), in one step; "nearest": short side first, then long side, then int(x + 0.5)
    size_rounding: Literal["truncate", "nearest"] = "truncate"
    # "bilinear": two taps, no antialiasing; "pillow": Pillow's antialiased filter on uint8
    interpolation: Literal["bilinear", "pillow"] = "bilinear"
    channel_order: Literal["rgb", "bgr"] = "rgb"  # what the first convolution was trained with
    pixel_scale: float = 1 / 255  # multiplies the pixels before mean and std
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # in `channel_order`, after `pixel_scale`
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    normalize_first: bool = True  # normalise before resizing (after, if False)
    ratio_dtype: Literal["float32", "float64"] = "float32"  # of new side / old side, by which boxes are scaled
    size_divisor: int = 32  # pad right and bottom with zeros to a multiple of this; 0: only to the largest of the batch


@dataclass(frozen=True)
class Backbone:
    """ResNet."""

    depth: int = 50  # 18, 34 (basic blocks), 50, 101 (bottlenecks)
    width: int = 64  # channels of the stem; the stages have 1, 2, 4, 8 times as many (bottlenecks put out 4 times that)
    norm: Literal["frozen", "batch", "group"] = "frozen"  # "frozen": affine from stored statistics; "batch"; "group"
    norm_eps: float = 1e-5
    stride_in_1x1: bool = False  # where a bottleneck strides: its first 1x1 convolution, or (False) its 3x3
    frozen_stages: int = 2  # this many of (stem, layer1, .., layer4) receive no gradient


@dataclass(frozen=True)
class FPN:
    channels: int = 256
    norm: Literal["none", "batch", "group"] = "none"  # "none": convolutions with bias; "batch" or "group": without bias, normalised


@dataclass(frozen=True)
class Anchors:
    sizes: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,))  # per level P2..P6, sqrt(area) in pixels
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width
    rounding: bool = True  # cell anchors rounded to whole pixels, half to even
    order: Literal["ratio_major", "size_major"] = "ratio_major"  # inside a cell
    # "image_over_feature": padded image side // feature side; "constant": 4, 8, 16, 32, 64
    stride: Literal["image_over_feature", "constant"] = "image_over_feature"
    offset: float = 0.0  # of the grid, in strides


@dataclass(frozen=True)
class RPN:
    conv_depth: int = 1  # 3x3 convolutions before logits and deltas
    foreground_iou: float = 0.7
    background_iou: float = 0.3
    low_quality_matches: bool = True  # the best anchors of each ground truth become positive whatever their IoU
    zero_iou_matches: bool = True  # ... even where that best IoU is 0, so that every anchor overlapping nothing turns positive
    batch_size: int = 256  # anchors sampled per image
    positive_fraction: float = 0.5
    box_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    smooth_l1_beta: float = 1 / 9  # 0: plain L1
    loss_normalizer: Literal["sampled", "batch_size"] = "sampled"  # divide by the anchors sampled, or by batch_size * images
    pre_nms_top_n_train: int = 2000  # per level
    pre_nms_top_n_test: int = 1000
    post_nms_top_n_train: int = 2000  # per image
    post_nms_top_n_test: int = 1000
    nms_iou: float = 0.7
    nms_score: Literal["probability", "logit"] = "probability"  # rank by "probability" or "logit" in NMS and after it
    min_size: float = 1e-3  # proposals with a shorter side are dropped
    min_size_inclusive: bool = True  # a side of exactly min_size stays


@dataclass(frozen=True)
class Pooler:
    output_size: int = 7
    operator: Literal["roi_align", "roi_pool"] = "roi_align"
    sampling_ratio: int = 2  # samples per bin and axis; 0: adaptive, ceil(bin side)
    aligned: bool = False  # shift by half a pixel, and no minimum RoI size
    aggregate: Literal["mean", "max"] = "mean"  # "mean" or "max" over the samples of a bin
    canonical_size: float = 224.0  # a RoI of this sqrt(area) pools from canonical_level
    canonical_level: int = 4
    min_level: int = 2
    max_level: int = 5
    level_epsilon: Literal["outside", "inside"] = "outside"  # log2(s / size) + 1e-6, or log2(s / size + 1e-8)


@dataclass(frozen=True)
class BoxHead:
    kind: Literal["two_fc", "four_conv_fc"] = "two_fc"  # "two_fc", or "four_conv_fc": four 3x3 convolutions and one fully connected layer
    channels: int = 1024  # of the fully connected layers
    conv_channels: int = 256  # of "four_conv_fc"
    norm: Literal["none", "batch", "group"] = "none"  # of the convolutions
    pooler: Pooler = field(default_factory=Pooler)
    foreground_iou: float = 0.5
    background_iou: float = 0.5
    append_ground_truth: bool = True  # to the proposals, before matching
    batch_size: int = 512  # RoIs sampled per image
    positive_fraction: float = 0.25
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    smooth_l1_beta: float = 1 / 9
    score_threshold: float = 0.05  # detections score strictly more
    nms_iou: float = 0.5
    min_size: float | None = 1e-2  # detections with a shorter side are dropped; None: no such filter
    max_detections: int = 100  # per image
    drop_empty: bool = False  # drop detections that are empty after scaling to the original image


@dataclass(frozen=True)
class MaskHead:
    convs: int = 4
    channels: int = 256
    norm: Literal["none", "batch", "group"] = "none"
    pooler: Pooler = field(default_factory=lambda: Pooler(output_size=14))
    target: Literal["soft", "binary"] = "soft"  # "soft": mean of mask samples, in [0, 1]; "binary": that, >= 0.5
    target_aligned: bool = False  # RoIAlign convention used to sample the target
    paste: Literal["torchvision", "detectron2"] = "torchvision"  # convention of `masks.paste`: "torchvision" or "detectron2"
    threshold: float = 0.5  # a pixel belongs to the object from this probability on


@dataclass(frozen=True)
class Optimizer:
    kind: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.02  # for `batch_size` images
    batch_size: int = 16
    momentum: float = 0.9
    weight_decay: float = 1e-4
    norm_weight_decay: float = 1e-4  # for the weights and biases of normalisations
    warmup_iterations: int = 1000
    warmup_factor: float = 0.001  # of the learning rate, at iteration 0
    schedule: Literal["step", "cosine"] = "step"  # "step": times `gamma` at each of `steps`; "cosine": down to 0
    steps: tuple[float, ...] = (2 / 3, 8 / 9)  # as fractions of all iterations
    gamma: float = 0.1
    clip_gradient_norm: float = 0.0  # 0: no clipping


@dataclass(frozen=True)
class Config:
    num_classes: int = 80  # K, without background
    # Where the class logits put it. "first": K + 1 logits, box deltas and masks; "last": K + 1 logits, K box deltas and masks.
    background: Literal["first", "last"] = "first"
    norm_groups: int = 32  # of every "group" norm
    transform: Transform = field(default_factory=Transform)
    backbone: Backbone = field(default_factory=Backbone)
    fpn: FPN = field(default_factory=FPN)
    anchors: Anchors = field(default_factory=Anchors)
    rpn: RPN = field(default_factory=RPN)
    box_head: BoxHead = field(default_factory=BoxHead)
    mask_head: MaskHead = field(default_factory=MaskHead)
    optimizer: Optimizer = field(default_factory=Optimizer)


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


def _detectron2_r50_fpn():
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
        backbone=Backbone(stride_in_1x1=True),
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
    "detectron2_r50_fpn": _detectron2_r50_fpn,
    "tiny": _tiny,
}


def preset(name: str) -> Config:
    """The configuration called `name`; ValueError lists the names there are."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]()


def to_dict(config: Config) -> dict:
    """Plain dictionaries, lists, numbers and strings, fit for JSON."""
    return dataclasses.asdict(config)


def from_dict(values: dict, cls=Config, path="config"):
    """The inverse of `to_dict`; an unknown or missing field or a wrong type is a ValueError naming it."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected an object, got {values!r}")
    for name in values.keys() ^ fields.keys():
        raise ValueError(f"{path}.{name}: {'no such field' if name in values else 'missing'}")
    return cls(**{name: _typed(value, fields[name].type, f"{path}.{name}") for name, value in values.items()})


def override(config: Config, assignment: str) -> Config:
    """One field changed by a text such as "rpn.nms_iou=0.6" or "transform.min_size=[256, 320]" (the value is JSON, or a bare word)."""
    path, _, text = assignment.partition("=")
    if not text:
        raise ValueError(f"{assignment!r}: expected FIELD=VALUE")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    values = node = to_dict(config)
    *parents, leaf = path.strip().split(".")
    for name in parents:
        node = node.get(name) if isinstance(node, dict) else None
    if not isinstance(node, dict) or leaf not in node:
        raise ValueError(f"{path.strip()}: no such field of the configuration")
    node[leaf] = value
    return from_dict(values)


def _typed(value, kind, path):
    if dataclasses.is_dataclass(kind):
        return from_dict(value, kind, path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{path}: expected one of {', '.join(arguments)}, got {value!r}")
        return value
    if origin is types.UnionType:
        return None if value is None else _typed(value, arguments[0], path)
    if origin is tuple:
        if not isinstance(value, list | tuple) or (arguments[-1] is not Ellipsis and len(value) != len(arguments)):
            raise ValueError(f"{path}: expected a list {'' if arguments[-1] is Ellipsis else f'of {len(arguments)} '}but got {value!r}")
        return tuple(_typed(item, arguments[0], path) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{path}: expected {kind.__name__}, got {value!r}")
    return value
