"""Settings that tensors reveal about their model: widths, depths, counts and norms."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from accelerated import shared_head
from accelerated.data.values import short
from accelerated.interop.ranges import WIDEST
from accelerated.labels import Layout, mask_layout
from accelerated.resnet import BLOCKS
from reference.config import Config

Tensors = Mapping[str, torch.Tensor]

MISSING = "missing"


class TensorError(ValueError):
    """A tensor that every detector has is missing, or has an impossible shape; `name` is ours."""

    def __init__(self, name: str, problem: str):
        super().__init__(f"{name}: {problem}")
        self.name, self.problem = name, problem

    def renamed(self, original: Mapping[str, str]) -> ValueError:
        """Return the error with the file's name of the tensor; `original` is {ours: the file's}."""
        return ValueError(f"{original.get(self.name, self.name)}: {self.problem}")


def count_classes(tensors: Tensors) -> int:
    """Return K, the number of classes without the background."""
    return shape(tensors, "box_head.class_logits.weight", 2, least=2)[0] - 1


def is_grouped(tensors: Tensors) -> bool:
    """Return whether the backbone is a ResNeXt."""
    name = "backbone.layer1.0.conv2.weight"
    # Another number of sides is found when the widths are.
    sides = tensors[name].shape if name in tensors else ()
    return len(sides) == 4 and sides[0] != sides[1]


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
    deltas, rest = divmod(shape(tensors, "box_head.box_deltas.weight", 2)[0], 4)
    if rest:
        raise TensorError("box_head.box_deltas.weight", f"{4 * deltas + rest} rows are no boxes")
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
        backbone = replace(config.backbone, width=shape(tensors, "backbone.conv1_1.weight", 4)[0])
    else:
        backbone = replace(config.backbone, **resnet(tensors))
    config = replace(config, num_classes=classes, backbone=backbone)
    if pyramid:
        channels = shape(tensors, "fpn.lateral2.weight", 4)[0]
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
        "width": shape(tensors, "backbone.conv1.weight", 4)[0],
        "groups": 1,
    }
    if is_grouped(tensors):
        name = "backbone.layer1.0.conv2.weight"
        channels, group_width = shape(tensors, name, 4)[:2]
        if channels % group_width:
            raise TensorError(name, f"{channels} channels are no groups of {group_width}")
        fields |= {"groups": channels // group_width, "group_width": group_width}
    return fields


def _box_head(tensors, config):
    head = config.box_head
    if head.kind == "mean":
        return {}
    fields = {"channels": shape(tensors, "box_head.class_logits.weight", 2)[1]}
    if "box_head.conv1.weight" in tensors:
        channels = shape(tensors, "box_head.conv1.weight", 4)[0]
        fields |= {"kind": "four_conv_fc", "conv_channels": channels}
    else:
        channels = shared_head.shape(config, head.pooler)[0]
        fields |= {"kind": "two_fc"}
    # A shared stage changes the size of what the layer reads.
    if config.shared_head == "none":
        columns = shape(tensors, "box_head.fc6.weight", 2, widest=WIDEST * 1024)[1]
        size = round((columns / channels) ** 0.5)
        if size * size * channels != columns:
            raise TensorError(
                "box_head.fc6.weight", f"{columns} columns are no square of {channels} channels"
            )
        fields["pooler"] = replace(head.pooler, output_size=size)
    return fields


def _mask_head(tensors, config):
    head = config.mask_head
    if not any(name.startswith("mask_head.") for name in tensors):
        return {"kind": "none"}
    mlp = "mask_head.fc1.weight" in tensors
    name = "mask_head.logits.weight"
    columns = shape(tensors, name, 2 if mlp else 4, widest=WIDEST * 1024)[0]
    if mlp:
        width = shape(tensors, "mask_head.fc1.weight", 2, widest=WIDEST * 1024)[0]
        fields = {"kind": "mlp", "mlp_channels": width}
        columns //= (2 * shared_head.shape(config, head.pooler)[1]) ** 2
    else:
        fields = {
            "kind": "fcn",
            "convs": _count(tensors, "mask_head.conv{}.weight", start=1),
            "channels": shape(tensors, "mask_head.deconv.weight", 4)[1],
        }
    # With one class, a mask for all classes is a mask per class.
    if config.num_classes > 1:
        agnostic = replace(config, mask_head=replace(head, class_agnostic=True))
        fields["class_agnostic"] = columns == mask_layout(agnostic).columns
    return fields


def shape(
    tensors: Tensors, name: str, rank: int, least: int = 1, widest: int = WIDEST
) -> torch.Size:
    """Return the shape of a tensor.

    Raises TensorError if there is none, or if it has not `rank` sides from `least` to `widest`.
    """
    if name not in tensors:
        raise TensorError(name, MISSING)
    sides = tensors[name].shape
    if len(sides) != rank or sides[0] < least or not all(1 <= side <= widest for side in sides):
        expected = f"expected {rank} sides from 1 to {widest:,}"
        rows = f", at least {least} rows" if least > 1 else ""
        raise TensorError(name, f"its shape is {short(list(sides))}, {expected}{rows}")
    return sides


def _count(tensors, pattern, start):
    """Count consecutive layers, from index `start`, that have the tensor `pattern`.

    Raises TensorError if a layer has other tensors but not this one.
    """
    before = pattern.partition("{}")[0]
    layer = re.compile(re.escape(before) + r"(\d+)\..+")
    layers = {int(match[1]) for match in map(layer.fullmatch, tensors) if match}
    for index in range(start, max(layers, default=start - 1) + 1):
        if pattern.format(index) not in tensors:
            raise TensorError(pattern.format(index), MISSING)
    return max(layers, default=start - 1) - start + 1
