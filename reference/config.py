"""Every switch of the algorithm, one explicit field each, and the named sets of them (presets).

Two implementations of Mask R-CNN that people compare disagree in some thirty details. Nothing below is decided inside
an operator: a preset (presets.py) names a full set of choices, `dataclasses.replace` changes one.

Standard library only; both implementations read this file.
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Literal

from reference.presets import PRESETS, merged


@dataclass(frozen=True)
class Transform:
    """From the image that comes in ([H, W, 3] RGB, 0..255) to the array the network sees."""

    min_size: tuple[int, ...] = (
        800,
    )  # wanted short side in pixels: training draws one, inference takes the last; () keeps the size
    max_size: int = 1333  # the long side never exceeds this
    # "truncate": int(side * scale), in one step; "nearest": short side first, then long side, then int(x + 0.5)
    size_rounding: Literal["truncate", "nearest"] = "truncate"
    # "bilinear": two taps, no antialiasing; "pillow": Pillow's antialiased filter on uint8
    interpolation: Literal["bilinear", "pillow"] = "bilinear"
    channel_order: Literal["rgb", "bgr"] = "rgb"  # what the first convolution was trained with
    pixel_scale: float = 1 / 255  # multiplies the pixels before mean and std
    mean: tuple[float, float, float] = (
        0.485,
        0.456,
        0.406,
    )  # in `channel_order`, after `pixel_scale`
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    normalize_first: bool = True  # normalise before resizing (after, if False)
    ratio_dtype: Literal["float32", "float64"] = (
        "float32"  # of new side / old side, by which boxes are scaled
    )
    size_divisor: int = 32  # pad right and bottom with zeros to a multiple of this; 0: only to the largest of the batch


@dataclass(frozen=True)
class Backbone:
    kind: Literal["resnet", "vgg"] = (
        "resnet"  # "vgg": VGG-16, of which only width, frozen_stages and out_stage are asked
    )
    depth: int = 50  # 18, 34 (basic blocks), 50, 101 (bottlenecks)
    width: int = 64  # channels of the stem; the stages have 1, 2, 4, 8 times as many (bottlenecks put out 4 times that)
    groups: int = 1  # of a bottleneck's 3x3 convolution; more than 1: ResNeXt
    group_width: int = (
        64  # channels of such a group in the first stage, doubled from stage to stage
    )
    # "frozen": affine from stored statistics; "batch"; "sync_batch": over the batches of all processes; "group"
    norm: Literal["frozen", "batch", "sync_batch", "group"] = "frozen"
    norm_eps: float = 1e-5
    stride_in_1x1: bool = (
        False  # where a bottleneck strides: its first 1x1 convolution, or (False) its 3x3
    )
    frozen_stages: int = (
        2  # this many of (stem, layer1, .., layer4), or of VGG's blocks, receive no gradient
    )
    out_stage: int = 5  # the last stage that runs on the whole image: 5, or 4 in a C4 model
    dilation: int = 1  # of stage 5; 2: its convolutions are dilated instead of strided (DC5)


@dataclass(frozen=True)
class FPN:
    channels: int = 256
    # "none": convolutions with bias; the others: without bias, normalised
    norm: Literal["none", "batch", "sync_batch", "group"] = "none"


@dataclass(frozen=True)
class Anchors:
    sizes: tuple[tuple[float, ...], ...] = (
        (32,),
        (64,),
        (128,),
        (256,),
        (512,),
    )  # per level, P2..P6 or a single one; sqrt(area) in pixels
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width
    rounding: bool = True  # cell anchors rounded to whole pixels, half to even
    order: Literal["ratio_major", "size_major"] = "ratio_major"  # inside a cell
    # "image_over_feature": padded image side // feature side; "constant": 2**level
    stride: Literal["image_over_feature", "constant"] = "image_over_feature"
    offset: float = 0.0  # of the grid, in strides


@dataclass(frozen=True)
class RPN:
    conv_depth: int = 1  # 3x3 convolutions before logits and deltas
    foreground_iou: float = 0.7
    background_iou: float = 0.3
    low_quality_matches: bool = (
        True  # the best anchors of each ground truth become positive whatever their IoU
    )
    zero_iou_matches: bool = True  # ... even where that best IoU is 0, so that every anchor overlapping nothing turns positive
    batch_size: int = 256  # anchors sampled per image
    positive_fraction: float = 0.5
    box_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    smooth_l1_beta: float = 1 / 9  # 0: plain L1
    loss_normalizer: Literal["sampled", "batch_size"] = (
        "sampled"  # divide by the anchors sampled, or by batch_size * images
    )
    pre_nms_top_n_train: int = 2000  # per level
    pre_nms_top_n_test: int = 1000
    post_nms_top_n_train: int = 2000  # per image
    post_nms_top_n_test: int = 1000
    nms_iou: float = 0.7
    nms_score: Literal["probability", "logit"] = (
        "probability"  # rank by "probability" or "logit" in NMS and after it
    )
    min_size: float = 1e-3  # proposals with a shorter side are dropped
    min_size_inclusive: bool = True  # a side of exactly min_size stays


@dataclass(frozen=True)
class Pooler:
    output_size: int = 7
    operator: Literal["roi_align", "roi_pool", "roi_warp"] = "roi_align"
    sampling_ratio: int = 2  # samples per bin and axis; 0: adaptive, ceil(bin side)
    aligned: bool = False  # shift by half a pixel, and no minimum RoI size
    aggregate: Literal["mean", "max"] = "mean"  # "mean" or "max" over the samples of a bin
    canonical_size: float = 224.0  # a RoI of this sqrt(area) pools from canonical_level
    canonical_level: int = 4
    min_level: int = 2
    max_level: int = 5
    level_epsilon: Literal["outside", "inside"] = (
        "outside"  # log2(s / size) + 1e-6, or log2(s / size + 1e-8)
    )


@dataclass(frozen=True)
class BoxHead:
    # "two_fc"; "four_conv_fc": four 3x3 convolutions and one fully connected layer; "mean" over the pixels, behind a shared stage
    kind: Literal["two_fc", "four_conv_fc", "mean"] = "two_fc"
    channels: int = 1024  # of the fully connected layers
    conv_channels: int = 256  # of "four_conv_fc"
    norm: Literal["none", "batch", "sync_batch", "group"] = "none"  # of the convolutions
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
    min_size: float | None = (
        1e-2  # detections with a shorter side are dropped; None: no such filter
    )
    max_detections: int = 100  # per image
    drop_empty: bool = False  # drop detections that are empty after scaling to the original image


@dataclass(frozen=True)
class MaskHead:
    kind: Literal["fcn", "mlp", "none"] = (
        "fcn"  # convolutions; fully connected layers; no mask branch: Faster R-CNN
    )
    # "sigmoid": each class for itself; "softmax": classes and background compete for each pixel
    loss: Literal["sigmoid", "softmax"] = "sigmoid"
    class_agnostic: bool = False  # one mask for all classes
    mlp_channels: int = 1024  # of the two hidden layers of "mlp"
    convs: int = 4  # of "fcn"
    channels: int = 256
    norm: Literal["none", "batch", "sync_batch", "group"] = "none"
    pooler: Pooler = field(default_factory=lambda: Pooler(output_size=14))
    target: Literal["soft", "binary"] = (
        "soft"  # "soft": mean of mask samples, in [0, 1]; "binary": that, >= 0.5
    )
    target_aligned: bool = False  # RoIAlign convention used to sample the target
    paste: Literal["torchvision", "detectron2"] = (
        "torchvision"  # convention of `masks.paste`: "torchvision" or "detectron2"
    )
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
    schedule: Literal["step", "cosine"] = (
        "step"  # "step": times `gamma` at each of `steps`; "cosine": down to 0
    )
    steps: tuple[float, ...] = (2 / 3, 8 / 9)  # as fractions of all iterations
    gamma: float = 0.1
    clip_gradient_norm: float = 0.0  # 0: no clipping


@dataclass(frozen=True)
class Config:
    num_classes: int = 80  # K, without background
    # Where the K + 1 class logits put it. "first": with box deltas and masks of its own, which nobody reads; "last": without.
    background: Literal["first", "last"] = "first"
    norm_groups: int = 32  # of every "group" norm
    neck: Literal["fpn", "single"] = (
        "fpn"  # the feature pyramid; "single": the last stage's map alone
    )
    # "res5": both heads read stage 5 of the ResNet, run on each RoI (C4); "res5_unstrided": with stride 1, on RoIs of half the side
    shared_head: Literal["none", "res5", "res5_unstrided"] = "none"
    transform: Transform = field(default_factory=Transform)
    backbone: Backbone = field(default_factory=Backbone)
    fpn: FPN = field(default_factory=FPN)
    anchors: Anchors = field(default_factory=Anchors)
    rpn: RPN = field(default_factory=RPN)
    box_head: BoxHead = field(default_factory=BoxHead)
    mask_head: MaskHead = field(default_factory=MaskHead)
    optimizer: Optimizer = field(default_factory=Optimizer)


def preset(name: str) -> Config:
    """The configuration called `name`; ValueError lists the names there are."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; there are: {', '.join(PRESETS)}")
    return from_dict(merged(to_dict(Config()), PRESETS[name]))


def check(config: Config):
    """One ValueError for all the fields that do not go together, naming them."""
    problems = [*_backbone_problems(config), *_wiring_problems(config), *_group_problems(config)]
    if problems:
        raise ValueError(f"the configuration contradicts itself: {'; '.join(problems)}")


def _backbone_problems(config):
    backbone, resnet = config.backbone, config.backbone.kind == "resnet"
    first, depths = 2 if resnet else 1, (18, 34, 50, 101)
    if not first <= backbone.out_stage <= 5:
        yield f"backbone.out_stage = {backbone.out_stage}: the stages of a {backbone.kind} are {first} to 5"
    if resnet and backbone.depth not in depths:
        yield f"backbone.depth = {backbone.depth}: there are {', '.join(map(str, depths))}"
    if resnet and backbone.groups > 1 and backbone.depth < 50:
        yield f"backbone.groups = {backbone.groups} needs bottlenecks, backbone.depth = 50 or more"
    if backbone.dilation != 1 and (backbone.dilation, backbone.out_stage, resnet) != (2, 5, True):
        yield f"backbone.dilation = {backbone.dilation}: it is 1, or 2 in a ResNet with backbone.out_stage = 5"


def _wiring_problems(config):
    backbone, resnet, pyramid, shared = (
        config.backbone,
        config.backbone.kind == "resnet",
        config.neck == "fpn",
        config.shared_head != "none",
    )
    heads = {
        "box_head": config.box_head,
        **({} if config.mask_head.kind == "none" else {"mask_head": config.mask_head}),
    }
    if pyramid and (backbone.out_stage, backbone.dilation, resnet) != (5, 1, True):
        yield "neck = fpn takes all four stages of a ResNet: backbone.kind = resnet, out_stage = 5, dilation = 1"
    if shared and (backbone.out_stage, config.neck, resnet) != (4, "single", True):
        yield f"shared_head = {config.shared_head} takes a ResNet up to stage 4: backbone.kind = resnet, out_stage = 4, neck = single"
    if shared and any(head.pooler != config.box_head.pooler for head in heads.values()):
        yield f"shared_head = {config.shared_head}: box_head.pooler and mask_head.pooler must be the same"
    last = backbone.out_stage - (
        backbone.dilation == 2 or not resnet
    )  # the only map without a pyramid: its stride is 2^last
    low, high, maps = (2, 5, 5) if pyramid else (last, last, 1)
    for name, head in heads.items():
        if not low <= head.pooler.min_level <= head.pooler.max_level <= high:
            yield (
                f"{name}.pooler.min_level = {head.pooler.min_level}, max_level = {head.pooler.max_level}: "
                f"neck = {config.neck} has levels {low} to {high}"
            )
    if len(config.anchors.sizes) != maps or len(set(map(len, config.anchors.sizes))) != 1:
        yield f"anchors.sizes has {len(config.anchors.sizes)} levels: neck = {config.neck} has {maps}, all with as many sizes"


def _group_problems(config):
    backbone, box, mask = config.backbone, config.box_head, config.mask_head
    resnet, inner = backbone.kind == "resnet", backbone.groups * backbone.group_width
    for name, norm, channels, used in (
        ("backbone.width", backbone.norm, backbone.width, resnet),
        (
            "backbone.groups * backbone.group_width",
            backbone.norm,
            inner,
            resnet and backbone.groups > 1,
        ),
        ("fpn.channels", config.fpn.norm, config.fpn.channels, config.neck == "fpn"),
        ("box_head.conv_channels", box.norm, box.conv_channels, box.kind == "four_conv_fc"),
        ("mask_head.channels", mask.norm, mask.channels, mask.kind == "fcn" and mask.convs > 0),
    ):
        if used and norm == "group" and channels % config.norm_groups:
            yield f"norm_groups = {config.norm_groups} does not divide {name} = {channels}"


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
    return cls(
        **{
            name: _typed(value, fields[name].type, f"{path}.{name}")
            for name, value in values.items()
        }
    )


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
        if not isinstance(value, list | tuple) or (
            arguments[-1] is not Ellipsis and len(value) != len(arguments)
        ):
            raise ValueError(
                f"{path}: expected a list {'' if arguments[-1] is Ellipsis else f'of {len(arguments)} '}but got {value!r}"
            )
        return tuple(_typed(item, arguments[0], path) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{path}: expected {kind.__name__}, got {value!r}")
    return value
