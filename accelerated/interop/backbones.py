"""Classification backbones of torchvision, detectron2 and Caffe2: ResNet, ResNeXt and VGG-16.

The tensors do not reveal how images were normalised nor where a bottleneck strides; the preset of
the model must match. torchvision's files belong to the presets torchvision_* (RGB in 0..1, strides
in 3x3), and so do files in detectron2's format, converted from torchvision's. Caffe2's R-50 and
R-101 belong to detectron2_r* and paper_r* (BGR in 0..255, strides in 1x1), its X-101-32x8d to
detectron2_x101_fpn.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch

from accelerated.interop import detectron2
from accelerated.interop.infer import TensorError, is_grouped, resnet, shape
from accelerated.interop.templates import Names
from accelerated.vgg import CONVOLUTIONS
from reference.config import Config, preset


@dataclass(frozen=True)
class Format:
    """A format of classifiers.

    sign         a tensor that every file in this format has
    names        our names in the whole model, and theirs
    classifier   pattern of the tensors that are skipped
    """

    sign: str
    names: Names
    classifier: re.Pattern[str]


def _vgg_rows():
    """List our names and torchvision's, which number convolutions, ReLUs and poolings alike."""
    rows, index = [], 0
    for block, count in CONVOLUTIONS.items():
        for i in range(1, count + 1):
            rows.append((f"backbone.conv{block}_{i}.{{part}}", f"features.{index}.{{part}}"))
            index += 2
        index += 1
    # VGG's first two fully connected layers are those of the box head.
    rows.append(("box_head.fc6.{part}", "classifier.0.{part}"))
    rows.append(("box_head.fc7.{part}", "classifier.3.{part}"))
    return rows


def _caffe2_rows():
    """List our names and Caffe2's, with norms by batch (bn) and by group (gn)."""
    # Prefixes of a block, and the three convolutions of a bottleneck.
    ours, theirs = "backbone.layer{s}.{b}", "res{s+1}_{b}_branch"
    branches = {"1": "2a", "2": "2b", "3": "2c"}
    rows = [("backbone.conv1.weight", "conv1_w"), (f"{ours}.downsample.0.weight", f"{theirs}1_w")]
    rows += [(f"{ours}.conv{i}.weight", f"{theirs}{branches[i]}_w") for i in branches]
    parts = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
    for part, blob in parts.items():
        rows.append((f"backbone.bn1.{part}", f"res_conv1_bn_{blob}"))
        rows.append((f"backbone.bn1.{part}", f"conv1_gn_{blob}"))
        for norm in ("bn", "gn"):
            end = f"{norm}_{blob}"
            rows.append((f"{ours}.downsample.1.{part}", f"{theirs}1_{end}"))
            rows += [(f"{ours}.bn{i}.{part}", f"{theirs}{branches[i]}_{end}") for i in branches]
    return rows


FORMATS = (
    Format(
        sign="layer1.0.conv1.weight",
        names=Names(
            ("backbone.conv1.{part}", "conv1.{part}"),
            ("backbone.bn1.{part}", "bn1.{part}"),
            ("backbone.layer{rest}", "layer{rest}"),
        ),
        classifier=re.compile(r"fc\..+"),
    ),
    Format(
        sign="res2.0.conv1.weight",
        names=Names(*((f"backbone.{ours}", theirs) for ours, theirs in detectron2.BACKBONE_ROWS)),
        classifier=re.compile(r"(fc|linear|stem\.fc)\..+"),
    ),
    Format(
        sign="res2_0_branch2a_w",
        names=Names(*_caffe2_rows()),
        # Some files have conv1_b, although conv1 has no bias; Detectron skips it too.
        classifier=re.compile(r"(fc1000|pred)_[wb]|conv1_b"),
    ),
    Format(
        sign="features.0.weight",
        names=Names(*_vgg_rows()),
        classifier=re.compile(r"classifier\.6\..+"),
    ),
)


def find(names: Collection[str]) -> Format | None:
    """Return the format of a classifier with these tensor names, or None."""
    return next((format for format in FORMATS if format.sign in names), None)


def translate(
    tensors: Mapping[str, torch.Tensor], eps: float
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Rename a classifier's tensors as parts of the whole model, without its last layer.

    eps       of the model's norm. Caffe2 stores a batch norm as scale and bias; it gets mean 0 and
              variance 1 - eps, so that the layer does nothing but multiply and add
    Returns   {our name: tensor}, {our name: name in the file}.

    Raises ValueError for tensor names in no known format.
    """
    format = find(tensors)
    if format is None:
        first = ", ".join(list(tensors)[:3])
        raise ValueError(f"not a ResNet, ResNeXt or VGG-16: its tensors begin with {first}")
    original = {
        format.names.ours(name) or name: name
        for name in tensors
        if not format.classifier.fullmatch(name)
    }
    ours = {name: tensors[theirs] for name, theirs in original.items()}
    for name, theirs in list(original.items()):
        if theirs.endswith("_bn_s") and f"{theirs[:-1]}rm" not in tensors:
            layer, count = name.removesuffix("weight"), ours[name].numel()
            ours[f"{layer}running_mean"] = torch.zeros(count, dtype=torch.float64)
            ours[f"{layer}running_var"] = torch.full((count,), 1 - eps, dtype=torch.float64)
            original |= {f"{layer}running_mean": theirs, f"{layer}running_var": theirs}
    return ours, original


def nearest(tensors: Mapping[str, torch.Tensor]) -> tuple[str, Config]:
    """Name the preset that a classifier belongs to, and return it with the file's widths.

    torchvision's VGG-16 sees torchvision's pixels; all else of the preset is as in the paper.
    """
    ours, original = translate(tensors, Config().backbone.norm_eps)
    try:
        return _nearest(tensors, ours)
    except TensorError as error:
        raise error.renamed(original) from None


def _nearest(tensors, ours):
    if "backbone.conv1_1.weight" in ours:
        config, pixels = preset("paper_vgg16"), preset("torchvision_r50_fpn").transform
        names = ("channel_order", "pixel_scale", "mean", "std")
        seen = {name: getattr(pixels, name) for name in names}
        width = shape(ours, "backbone.conv1_1.weight", 4)[0]
        return "paper_vgg16", replace(
            config,
            transform=replace(config.transform, **seen),
            backbone=replace(config.backbone, width=width),
        )
    name = "torchvision_r50_fpn"
    if "res2_0_branch2a_w" in tensors:
        name = "detectron2_x101_fpn" if is_grouped(ours) else "detectron2_r50_fpn"
    config = preset(name)
    backbone = replace(config.backbone, **resnet(ours))
    if not any(tensor.endswith("running_mean") for tensor in ours):
        backbone = replace(backbone, norm="group", stride_in_1x1=False, frozen_stages=0)
    return name, replace(config, backbone=backbone)
