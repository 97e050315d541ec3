"""Settings that tensors reveal about their model: widths, depths, counts and norms."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from accelerated import shared_head
from accelerated.labels import Layout, mask_layout
from accelerated.resnet import BLOCKS
from reference.config import Config

Tensors = Mapping[str, torch.Tensor]


class MissingTensorError(ValueError):
    """A tensor that every detector has is missing; `name` is ours."""

    def __init__(self, name: str):
        super().__init__(f"no tensor {name}")
        self.name = name


def count_classes(tensors: Tensors) -> int:
    """Return K, the number of classes without the background."""
    return _shape(tensors, "box_head.class_logits.weight")[0] - 1


def is_grouped(tensors: Tensors) -> bool:
    """Return whether the backbone is a ResNeXt."""
    name = "backbone.layer1.0.conv2.weight"
    return name in tensors and tensors[name].shape[0] != tensors[name].shape[1]


def norms(config: Config, tensors: Tensors) -> Config:
    """Return `config` with the norms that the tensor names reveal.

    Counted batches mean a batch norm, stored statistics alone a frozen one, neither a group norm.
    """
    counted = "backbone.bn1.num_batches_tracked" in tensors
    stored = any(name.startswith("backbone.") and name.endswith("running_mean") for name in tensors)
    if counted or not stored:
        backbone = replace(config.backbone, norm="batch" if counted else "group", frozen_stages=0)
        config = replace(config, backbone=backbone)

    def norm(layer: str, expected: str) -> Any:
        if f"{layer}_norm.weight" not in tensors:
            return "none"
        if f"{layer}_norm.running_mean" not in tensors:
            return "group"
        return expected if expected in ("batch", "sync_batch") else "batch"

    return replace(
        config,
        fpn=replace(config.fpn, norm=norm("fpn.lateral2", config.fpn.norm)),
        box_head=replace(config.box_head, norm=norm("box_head.conv1", config.box_head.norm)),
        mask_head=replace(config.mask_head, norm=norm("mask_head.conv1", config.mask_head.norm)),
    )


def widths(config: Config, tensors: Tensors) -> Config:
    """Return `config` with every width, depth and count as in `tensors`.

    Raises ValueError, naming it, if the tensors have another part than `config`.
    """
    classes = count_classes(tensors)
    deltas = _shape(tensors, "box_head.box_deltas.weight")[0] // 4
    if deltas == 1 < classes:
        raise ValueError("class-agnostic box regression is not supported")
    first = deltas == Layout.background_first(classes).columns
    pyramid = "fpn.lateral2.weight" in tensors
    vgg = "backbone.conv1_1.weight" in tensors
    layers = "box_head.fc6.weight" in tensors
    _check("background", "first" if first else "last", config.background)
    _check("neck", "fpn" if pyramid else "single", config.neck)
    _check("backbone", "vgg" if vgg else "resnet", config.backbone.kind)
    expected = "mean" if config.box_head.kind == "mean" else "fully connected layers"
    _check("box head", "fully connected layers" if layers else "mean", expected)
    if vgg:
        backbone = replace(config.backbone, width=_shape(tensors, "backbone.conv1_1.weight")[0])
    else:
        backbone = replace(config.backbone, **resnet(tensors))
    config = replace(config, num_classes=classes, backbone=backbone)
    if pyramid:
        channels = _shape(tensors, "fpn.lateral2.weight")[0]
        config = replace(config, fpn=replace(config.fpn, channels=channels))
    return replace(
        config,
        rpn=replace(config.rpn, conv_depth=_count(tensors, "rpn.conv{}.weight", start=1)),
        box_head=replace(config.box_head, **_box_head(tensors, config)),
        mask_head=replace(config.mask_head, **_mask_head(tensors, config)),
    )


def _check(part, inferred, expected):
    if inferred != expected:
        raise ValueError(
            f"{part}: the tensors have {inferred!r}, the preset {expected!r}; choose another preset"
        )


def resnet(tensors: Tensors) -> dict[str, Any]:
    """Return the fields of `config.Backbone` that the tensors of a ResNet reveal.

    Raises ValueError for another depth than ours.
    """
    bottleneck = any(re.fullmatch(r"backbone\.layer\d\.\d+\.conv3\.weight", n) for n in tensors)
    blocks = tuple(
        _count(tensors, f"backbone.layer{stage}.{{}}.conv1.weight", start=0)
        for stage in (1, 2, 3, 4)
    )
    # A model on stage 4 has no stage 5.
    blocks = blocks if blocks[3] else blocks[:3]
    depths = [
        depth
        for depth, counts in BLOCKS.items()
        if counts[: len(blocks)] == blocks and (depth >= 50) == bottleneck
    ]
    if not depths:
        block = "bottlenecks" if bottleneck else "basic blocks"
        raise ValueError(
            f"backbone with {blocks} {block}: expected a ResNet of depth"
            f" {', '.join(map(str, BLOCKS))}"
        )
    fields: dict[str, Any] = {
        "depth": depths[0],
        "width": _shape(tensors, "backbone.conv1.weight")[0],
        "groups": 1,
    }
    if is_grouped(tensors):
        channels, group_width = _shape(tensors, "backbone.layer1.0.conv2.weight")[:2]
        fields |= {"groups": channels // group_width, "group_width": group_width}
    return fields


def _box_head(tensors, config):
    head = config.box_head
    if head.kind == "mean":
        return {}
    fields = {"channels": _shape(tensors, "box_head.class_logits.weight")[1]}
    if "box_head.conv1.weight" in tensors:
        channels = _shape(tensors, "box_head.conv1.weight")[0]
        fields |= {"kind": "four_conv_fc", "conv_channels": channels}
    else:
        channels = shared_head.shape(config, head.pooler)[0]
        fields |= {"kind": "two_fc"}
    # A shared stage changes the size of what the layer reads.
    if config.shared_head == "none":
        area = _shape(tensors, "box_head.fc6.weight")[1] / channels
        fields["pooler"] = replace(head.pooler, output_size=round(area**0.5))
    return fields


def _mask_head(tensors, config):
    head = config.mask_head
    if not any(name.startswith("mask_head.") for name in tensors):
        return {"kind": "none"}
    columns = _shape(tensors, "mask_head.logits.weight")[0]
    if "mask_head.fc1.weight" in tensors:
        fields = {"kind": "mlp", "mlp_channels": _shape(tensors, "mask_head.fc1.weight")[0]}
        columns //= (2 * shared_head.shape(config, head.pooler)[1]) ** 2
    else:
        fields = {
            "kind": "fcn",
            "convs": _count(tensors, "mask_head.conv{}.weight", start=1),
            "channels": _shape(tensors, "mask_head.deconv.weight")[1],
        }
    # With one class, a mask for all classes is a mask per class.
    if config.num_classes > 1:
        agnostic = replace(config, mask_head=replace(head, class_agnostic=True))
        fields["class_agnostic"] = columns == mask_layout(agnostic).columns
    return fields


def _shape(tensors, name):
    if name not in tensors:
        raise MissingTensorError(name)
    return tensors[name].shape


def _count(tensors, pattern, start):
    """Count consecutive layers, from index `start`, that have the tensor `pattern`.

    Raises MissingTensorError if a layer has other tensors but not this one.
    """
    before = pattern.partition("{}")[0]
    layer = re.compile(re.escape(before) + r"(\d+)\..+")
    layers = {int(match[1]) for match in map(layer.fullmatch, tensors) if match}
    for index in range(start, max(layers, default=start - 1) + 1):
        if pattern.format(index) not in tensors:
            raise MissingTensorError(pattern.format(index))
    return max(layers, default=start - 1) - start + 1
