"""Every switch of the algorithm as one explicit field, and the named presets.

Implementations of Mask R-CNN that people compare disagree in some thirty details. No operator
decides any of them: a preset (presets.py) names a full set of choices, `override` changes one.
"""

from dataclasses import asdict, dataclass, field
from operator import attrgetter
from typing import Any, Literal

from reference import typed
from reference.augmentation import Augment, augment_problems
from reference.presets import PRESETS, merged

Norm = Literal["none", "batch", "sync_batch", "group"]


@dataclass(frozen=True)
class Transform:
    """From the input image, [H, W, 3] RGB in 0..255, to the array that the network sees.

    min_size         short side in pixels: training draws one, inference takes the last; () keeps it
    max_size         maximum of the long side
    size_rounding    "truncate": int(side * scale); "nearest": short side, long side, int(x + 0.5)
    interpolation    "bilinear": two taps, no antialiasing; "pillow": Pillow's filter, on uint8
    channel_order, pixel_scale, mean, std  (pixels in channel_order * pixel_scale - mean) / std
    normalize_first  normalise before resizing instead of after
    ratio_dtype      precision of new side / old side, by which boxes are scaled
    size_divisor     pad right and bottom to a multiple; 0: to the largest image of the batch
    """

    min_size: tuple[int, ...] = (800,)
    max_size: int = 1333
    size_rounding: Literal["truncate", "nearest"] = "truncate"
    interpolation: Literal["bilinear", "pillow"] = "bilinear"
    channel_order: Literal["rgb", "bgr"] = "rgb"
    pixel_scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    normalize_first: bool = True
    ratio_dtype: Literal["float32", "float64"] = "float32"
    size_divisor: int = 32


@dataclass(frozen=True)
class Backbone:
    """The network that runs on the whole image.

    kind           "vgg": VGG-16, which reads width, frozen_stages and out_stage only
    depth          18 or 34 (basic blocks), 50 or 101 (bottlenecks)
    width          channels of the stem; stages have 1, 2, 4, 8 times as many (bottlenecks: 4 times)
    groups, group_width  of a bottleneck's 3x3 convolution (ResNeXt); channels of one in layer1
    norm           statistics: "frozen": stored; "batch"; "sync_batch": of all processes; "group"
    norm_eps       added to every variance, also in the norms of the pyramid and of the heads
    stride_in_1x1  a bottleneck strides in its first 1x1 convolution instead of its 3x3
    frozen_stages  so many of (stem, layer1, ..., layer4), or of VGG's blocks, are not trained
    out_stage      the last stage that runs on the whole image: 5, or 4 in a C4 model
    dilation       of stage 5; 2: its convolutions are dilated instead of strided (DC5)
    """

    kind: Literal["resnet", "vgg"] = "resnet"
    depth: int = 50
    width: int = 64
    groups: int = 1
    group_width: int = 64
    norm: Literal["frozen", "batch", "sync_batch", "group"] = "frozen"
    norm_eps: float = 1e-5
    stride_in_1x1: bool = False
    frozen_stages: int = 2
    out_stage: int = 5
    dilation: int = 1


@dataclass(frozen=True)
class FPN:
    """The feature pyramid.

    channels, norm  of the convolutions at every level; "none": with bias, and not normalised
    """

    channels: int = 256
    norm: Norm = "none"


@dataclass(frozen=True)
class Anchors:
    """The boxes that the region proposal network starts from.

    sizes, ratios  per level (P2..P6, or a single one) sqrt(area) in pixels, height / width
    rounding       cell anchors are rounded to whole pixels, half to even
    order          which varies slowest within a cell
    stride         "image_over_feature": padded image side // feature side; "constant": 2**level
    offset         of the grid, in strides
    """

    sizes: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rounding: bool = True
    order: Literal["ratio_major", "size_major"] = "ratio_major"
    stride: Literal["image_over_feature", "constant"] = "image_over_feature"
    offset: float = 0.0


@dataclass(frozen=True)
class RPN:
    """The region proposal network: head, targets, losses and proposals.

    conv_depth                      3x3 convolutions before logits and deltas
    foreground_iou, background_iou  anchors are positive from the first on, negative below the 2nd
    low_quality_matches             the best anchors of each ground truth are positive at any IoU
    zero_iou_matches                also at IoU 0, where every anchor that overlaps nothing is best
    batch_size, positive_fraction   anchors sampled per image; maximum fraction of positive ones
    box_weights, smooth_l1_beta     factors on (dx, dy, dw, dh); end of the quadratic part, 0: L1
    loss_normalizer                 divide by the count of sampled anchors or batch_size * images
    pre_nms_top_n_train, pre_nms_top_n_test    candidates per level
    post_nms_top_n_train, post_nms_top_n_test  proposals per image
    nms_iou, nms_score              threshold; rank by this score, in NMS and after it
    min_size, min_size_inclusive    shorter sides are dropped; a side of exactly min_size is kept
    """

    conv_depth: int = 1
    foreground_iou: float = 0.7
    background_iou: float = 0.3
    low_quality_matches: bool = True
    zero_iou_matches: bool = True
    batch_size: int = 256
    positive_fraction: float = 0.5
    box_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    smooth_l1_beta: float = 1 / 9
    loss_normalizer: Literal["sampled", "batch_size"] = "sampled"
    pre_nms_top_n_train: int = 2000
    pre_nms_top_n_test: int = 1000
    post_nms_top_n_train: int = 2000
    post_nms_top_n_test: int = 1000
    nms_iou: float = 0.7
    nms_score: Literal["probability", "logit"] = "probability"
    min_size: float = 1e-3
    min_size_inclusive: bool = True


@dataclass(frozen=True)
class Pooler:
    """How the features of RoIs are pooled from the levels.

    output_size, operator  side of the result, in bins; the RoI operator
    sampling_ratio         samples per bin and axis; 0: adaptive, ceil(bin side)
    aggregate              mean or maximum over the samples of a bin
    aligned                shift by half a pixel, and no minimum RoI size
    canonical_size, canonical_level  a RoI of this sqrt(area) pools from this level
    min_level, max_level   range of levels
    level_epsilon          "outside": log2(s / size) + 1e-6; "inside": log2(s / size + 1e-8)
    """

    output_size: int = 7
    operator: Literal["roi_align", "roi_pool", "roi_warp"] = "roi_align"
    sampling_ratio: int = 2
    aligned: bool = False
    aggregate: Literal["mean", "max"] = "mean"
    canonical_size: float = 224.0
    canonical_level: int = 4
    min_level: int = 2
    max_level: int = 5
    level_epsilon: Literal["outside", "inside"] = "outside"


@dataclass(frozen=True)
class BoxHead:
    """The box branch: layers, targets, losses and detections.

    kind                           "mean": over the pixels, after a shared stage
    channels, conv_channels, norm  of fully connected layers; of the convolutions of "four_conv_fc"
    pooler, box_weights, smooth_l1_beta, foreground_iou, background_iou, nms_iou  as in Pooler, RPN
    append_ground_truth            to the proposals, before matching
    batch_size, positive_fraction  RoIs sampled per image; maximum fraction of objects
    score_threshold, max_detections  detections score strictly more; at most so many per image
    min_size                       detections with a shorter side are dropped; None: no such filter
    drop_empty                     drop detections that are empty in the original image
    """

    kind: Literal["two_fc", "four_conv_fc", "mean"] = "two_fc"
    channels: int = 1024
    conv_channels: int = 256
    norm: Norm = "none"
    pooler: Pooler = field(default_factory=Pooler)
    foreground_iou: float = 0.5
    background_iou: float = 0.5
    append_ground_truth: bool = True
    batch_size: int = 512
    positive_fraction: float = 0.25
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    smooth_l1_beta: float = 1 / 9
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    min_size: float | None = 1e-2
    max_detections: int = 100
    drop_empty: bool = False


@dataclass(frozen=True)
class MaskHead:
    """The mask branch: layers, targets, loss and pasting.

    kind            "fcn": convolutions; "mlp": fully connected; "none": no masks, a Faster R-CNN
    loss            "sigmoid": per class; "softmax": classes and background compete per pixel
    class_agnostic, mlp_channels  one mask for all classes; of the two hidden layers of "mlp"
    convs           number of 3x3 convolutions of "fcn"
    channels, norm, pooler  of these convolutions; of the features that both read
    target          "soft": mean of mask samples, in [0, 1]; "binary": whether that is >= 0.5;
                    "polygon": drawn from the outlines, "binary" for an object without outlines
    target_aligned, paste  conventions: of RoIAlign that samples the target, of `masks.paste`
    threshold       a pixel belongs to the object from this probability on
    """

    kind: Literal["fcn", "mlp", "none"] = "fcn"
    loss: Literal["sigmoid", "softmax"] = "sigmoid"
    class_agnostic: bool = False
    mlp_channels: int = 1024
    convs: int = 4
    channels: int = 256
    norm: Norm = "none"
    pooler: Pooler = field(default_factory=lambda: Pooler(output_size=14))
    target: Literal["soft", "binary", "polygon"] = "soft"
    target_aligned: bool = False
    paste: Literal["torchvision", "detectron2"] = "torchvision"
    threshold: float = 0.5


@dataclass(frozen=True)
class Optimizer:
    """The optimizer and its learning rate.

    kind, momentum               SGD, or AdamW, for which the momentum is beta 1
    learning_rate, batch_size    the rate for so many images, otherwise in proportion
    weight_decay                 of all parameters but those of normalisations
    norm_weight_decay            of the weights and biases of normalisations
    warmup_iterations, warmup_factor  the rate rises linearly from rate * warmup_factor
    schedule                     "step": times `gamma` at each of `steps`; "cosine": down to 0
    steps, gamma                 of "step"; steps are fractions of all iterations
    clip_gradient_norm           maximum of the gradients' joint norm; 0: no clipping
    """

    kind: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.02
    batch_size: int = 16
    momentum: float = 0.9
    weight_decay: float = 1e-4
    norm_weight_decay: float = 1e-4
    warmup_iterations: int = 1000
    warmup_factor: float = 0.001
    schedule: Literal["step", "cosine"] = "step"
    steps: tuple[float, ...] = (2 / 3, 8 / 9)
    gamma: float = 0.1
    clip_gradient_norm: float = 0.0


@dataclass(frozen=True)
class DeepMask:
    """DeepMask and SharpMask, which are no part of `Config` (SPEC §18).

    window, channels, hidden  side in pixels, a multiple of 8; widths of the trunk and of the heads
    refinement, score_weight  widths of SharpMask's code and steps, (): DeepMask; of the score loss
    """

    window: int = 32
    channels: tuple[int, int, int] = (8, 16, 64)
    hidden: int = 128
    refinement: tuple[()] | tuple[int, int, int] = ()
    score_weight: float = 1 / 32


@dataclass(frozen=True)
class Config:
    """All switches: a few that concern the whole model, and its parts.

    num_classes, norm_groups  K, without background; of every "group" norm
    background   index among the K + 1 logits; "first": it also has unused box deltas and a mask
    neck         "fpn": the feature pyramid; "single": the map of the last stage alone
    shared_head  "res5": the heads read stage 5, run on each RoI (C4); "res5_unstrided": stride 1
    transform, backbone, fpn, anchors, rpn, box_head, mask_head, optimizer, augment
    """

    num_classes: int = 80
    background: Literal["first", "last"] = "first"
    norm_groups: int = 32
    neck: Literal["fpn", "single"] = "fpn"
    shared_head: Literal["none", "res5", "res5_unstrided"] = "none"
    transform: Transform = field(default_factory=Transform)
    backbone: Backbone = field(default_factory=Backbone)
    fpn: FPN = field(default_factory=FPN)
    anchors: Anchors = field(default_factory=Anchors)
    rpn: RPN = field(default_factory=RPN)
    box_head: BoxHead = field(default_factory=BoxHead)
    mask_head: MaskHead = field(default_factory=MaskHead)
    optimizer: Optimizer = field(default_factory=Optimizer)
    augment: Augment = field(default_factory=Augment)


def preset(name: str) -> Config:
    """Return the configuration called `name`. ValueError lists the names that exist."""
    if name not in PRESETS:
        hint = typed.did_you_mean(name, PRESETS)
        raise ValueError(f"unknown preset {name!r}{hint}; choose one of {', '.join(PRESETS)}")
    return from_dict(merged(to_dict(Config()), PRESETS[name]))


def single_map_level(config: Config) -> int:
    """Return the level of the only map of a model without pyramid; its stride is 2**level."""
    backbone = config.backbone
    every_stage_strides = backbone.kind == "resnet" and backbone.dilation == 1
    return backbone.out_stage if every_stage_strides else backbone.out_stage - 1


def check(config: Config) -> None:
    """Raise one ValueError that names all fields that contradict each other."""
    # A problem is (the field to change, what it demands).
    problems = [*_backbone_problems(config.backbone), *_wiring_problems(config)]
    problems += [*_level_problems(config), *_group_problems(config)]
    problems += augment_problems(config.augment)
    texts = [f"{name} = {attrgetter(name)(config)}: {text}" for name, text in problems]
    if texts:
        raise ValueError(f"the configuration contradicts itself: {'; '.join(texts)}")


def _backbone_problems(backbone):
    resnet, first = backbone.kind == "resnet", 2 if backbone.kind == "resnet" else 1
    wiring = (backbone.kind, backbone.out_stage, backbone.dilation)
    if not first <= backbone.out_stage <= 5:
        yield "backbone.out_stage", f"{backbone.kind} has stages {first} to 5"
    if resnet and backbone.depth not in (18, 34, 50, 101):
        yield "backbone.depth", "use 18, 34, 50 or 101"
    if resnet and backbone.groups > 1 and backbone.depth < 50:
        yield "backbone.groups", "needs backbone.depth = 50 or 101"
    if backbone.dilation != 1 and wiring != ("resnet", 5, 2):
        yield "backbone.dilation", "use 1, or 2 in a ResNet with backbone.out_stage = 5"


def _wiring_problems(config):
    backbone, box, mask = config.backbone, config.box_head, config.mask_head
    shared, stage = config.shared_head != "none", backbone.out_stage
    if config.neck == "fpn" and (backbone.kind, stage, backbone.dilation) != ("resnet", 5, 1):
        yield "neck", "needs backbone.kind = resnet, out_stage = 5, dilation = 1"
    if shared and (backbone.kind, stage, config.neck) != ("resnet", 4, "single"):
        yield "shared_head", "needs backbone.kind = resnet, out_stage = 4, neck = single"
    if shared and mask.kind != "none" and box.pooler != mask.pooler:
        yield "shared_head", "box_head.pooler and mask_head.pooler must be the same"


def _level_problems(config):
    only, sizes, neck = single_map_level(config), config.anchors.sizes, f"neck = {config.neck}"
    low, high, maps = (2, 5, 5) if config.neck == "fpn" else (only, only, 1)
    if len(sizes) != maps or len(set(map(len, sizes))) != 1:
        yield "anchors.sizes", f"{neck} needs {maps} tuples of the same length"
    for name, head in (("box_head", config.box_head), ("mask_head", config.mask_head)):
        for bound, lowest in (("min_level", low), ("max_level", head.pooler.min_level)):
            if head.kind != "none" and not lowest <= getattr(head.pooler, bound) <= high:
                yield f"{name}.pooler.{bound}", f"{neck} has levels {low} to {high}"


def _group_problems(config):
    backbone, box, mask = config.backbone, config.box_head, config.mask_head
    resnet, inner = backbone.kind == "resnet", backbone.groups * backbone.group_width
    layers = (
        ("backbone.width", backbone.norm, backbone.width, resnet),
        ("backbone.groups * group_width", backbone.norm, inner, resnet and backbone.groups > 1),
        ("fpn.channels", config.fpn.norm, config.fpn.channels, config.neck == "fpn"),
        ("box_head.conv_channels", box.norm, box.conv_channels, box.kind == "four_conv_fc"),
        ("mask_head.channels", mask.norm, mask.channels, mask.kind == "fcn" and mask.convs > 0),
    )
    for name, norm, channels, used in layers:
        if used and norm == "group" and channels % config.norm_groups:
            yield "norm_groups", f"must divide {name} = {channels}"


def to_dict(config: Config) -> dict:
    """Turn a configuration into plain dictionaries, lists, numbers and strings, fit for JSON."""
    return asdict(config)


def flat(config: Config) -> dict[str, Any]:
    """Return {path: value} of every field, with paths such as "rpn.nms_iou"."""
    return dict(typed.leaves(to_dict(config)))


def from_dict(values: dict) -> Config:
    """Invert `to_dict`. ValueError names a field that is unknown, missing or of the wrong type."""
    # Older files lack `augment`: its defaults are what they were trained with.
    values = {"augment": asdict(Augment())} | values if isinstance(values, dict) else values
    return typed.build(Config, values, "config")


def override(config: Config, *assignments: str) -> Config:
    """Change fields by texts such as "rpn.nms_iou=0.6". ValueError names one that does not fit."""
    for assignment in assignments:
        change, present = typed.change(to_dict(config), assignment)
        try:
            config = from_dict(merged(to_dict(config), change))
        except ValueError as error:
            raise ValueError(f"{error}{present}") from None
    return config
