"""Bare backbones, trained to classify: torchvision's ResNet, ResNeXt and VGG-16, detectron2's ResNet, Caffe2's ResNet and ResNeXt.

How the image was normalised and where a bottleneck strides cannot be seen in the tensors. torchvision's belong to the presets
torchvision_* (RGB in 0..1, strides in 3x3), and so do files in detectron2's names, which its converter makes of torchvision's; Caffe2's
R-50 and R-101 belong to detectron2_r* and paper_r* (BGR in 0..255, strides in 1x1), X-101-32x8d to detectron2_x101_fpn.
"""

from dataclasses import dataclass

import torch

from accelerated.interop import detectron2
from accelerated.interop.renaming import rename
from accelerated.vgg import CONVOLUTIONS

BLOB = {"w": "weight", "b": "bias", "s": "weight", "rm": "running_mean", "riv": "running_var"}
BRANCH = {"2a": "1", "2b": "2", "2c": "3"}


def _vgg_layers():
    """{index among torchvision's `features`: our layer}; a ReLU follows each convolution and a pooling each block."""
    layers, index = {}, 0
    for block, count in CONVOLUTIONS.items():
        for i in range(1, count + 1):
            layers[index] = f"conv{block}_{i}"
            index += 2
        index += 1
    return layers


VGG = _vgg_layers()


@dataclass(frozen=True)
class Kind:
    sign: str  # a tensor that all files of this kind have
    names: tuple  # patterns and our names
    classifier: str  # pattern of what is left out


KINDS = (
    Kind(
        "layer1.0.conv1.weight", ((r"((?:conv1|bn1|layer[1-4])\..+)", r"backbone.\1"),), r"fc\..+"
    ),
    Kind(
        "res2.0.conv1.weight",
        (
            (
                r"((?:stem|res[2-5])\..+)",
                lambda m: f"backbone.{rename(m[1], detectron2.BODY_TO_OURS) or m[1]}",
            ),
        ),
        r"(fc|linear|stem\.fc)\..+",
    ),
    Kind(
        "res2_0_branch2a_w",  # conv1_b, which some files have, is left out by Detectron too: its conv1 has no bias
        (
            (r"conv1_w", r"backbone.conv1.weight"),
            (r"(?:res_conv1_bn|conv1_gn)_(s|b|rm|riv)", lambda m: f"backbone.bn1.{BLOB[m[1]]}"),
            (
                r"res([2-5])_(\d+)_branch1_w",
                lambda m: f"backbone.layer{int(m[1]) - 1}.{m[2]}.downsample.0.weight",
            ),
            (
                r"res([2-5])_(\d+)_branch1_[bg]n_(s|b|rm|riv)",
                lambda m: f"backbone.layer{int(m[1]) - 1}.{m[2]}.downsample.1.{BLOB[m[3]]}",
            ),
            (
                r"res([2-5])_(\d+)_branch(2[abc])_w",
                lambda m: f"backbone.layer{int(m[1]) - 1}.{m[2]}.conv{BRANCH[m[3]]}.weight",
            ),
            (
                r"res([2-5])_(\d+)_branch(2[abc])_[bg]n_(s|b|rm|riv)",
                lambda m: f"backbone.layer{int(m[1]) - 1}.{m[2]}.bn{BRANCH[m[3]]}.{BLOB[m[4]]}",
            ),
        ),
        r"(fc1000|pred)_[wb]|conv1_b",
    ),
    Kind(
        "features.0.weight",
        (
            (r"features\.(\d+)\.(\w+)", lambda m: f"backbone.{VGG.get(int(m[1]), m[1])}.{m[2]}"),
            (r"classifier\.0\.(\w+)", r"box_head.fc6.\1"),
            (r"classifier\.3\.(\w+)", r"box_head.fc7.\1"),
        ),
        r"classifier\.6\..+",
    ),
)


def of(names):
    """The kind of backbone that has these tensor names, or None."""
    return next((kind for kind in KINDS if kind.sign in names), None)


def translate(tensors, eps):
    """({our name in the whole model: tensor}, {our name: name in the file}) of a classifier's tensors, without its last layer.

    eps   of the model's norm. Caffe2 stores batch norms as scale and bias alone: they come with mean 0 and variance 1 - eps, so that the
          layer multiplies by the scale and adds the bias, and nothing else

    The first two fully connected layers of VGG are those of a box head. ValueError for names of no kind.
    """
    kind = of(tensors)
    if kind is None:
        raise ValueError(
            f"no backbone of ResNet, ResNeXt or VGG-16: its tensors begin with {', '.join(list(tensors)[:3])}"
        )
    original = {
        rename(name, kind.names) or name: name
        for name in tensors
        if rename(name, ((kind.classifier, ""),)) is None
    }
    ours = {name: tensors[theirs] for name, theirs in original.items()}
    for name, theirs in list(original.items()):
        affine = theirs.endswith("_bn_s") and f"{theirs[:-1]}rm" not in tensors
        if affine:
            layer = name.removesuffix("weight")
            ours[f"{layer}running_mean"] = torch.zeros(len(ours[name]), dtype=torch.float64)
            ours[f"{layer}running_var"] = torch.full(
                (len(ours[name]),), 1 - eps, dtype=torch.float64
            )
            original |= {f"{layer}running_mean": theirs, f"{layer}running_var": theirs}
    return ours, original
