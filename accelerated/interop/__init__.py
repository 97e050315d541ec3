"""Weights in and out: torchvision's detectors, bare ResNets, our own checkpoints. Nothing is unpickled but tensors.

`load` reads every width, depth and the class count from the tensors; what shapes cannot say comes from a preset.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch

from accelerated.interop import torchvision
from accelerated.mask_rcnn import MaskRCNN
from accelerated.resnet import BLOCKS
from reference import config as configuration

COCO_CLASSES = 90  # of torchvision's published models: category ids 1..90, ten of them without objects


class BareResNetError(ValueError):
    """The tensors are those of a classifier; `load_backbone` takes them."""


def load(path_or_state_dict, preset=None, *, norm_eps=None):
    """The model that a checkpoint holds, in evaluation mode, on the CPU, float32 (float64 where the tensors are).

    path_or_state_dict   a .pth, .pt or .safetensors file with torchvision's names or ours, a checkpoint folder of ours
                         (model.safetensors, config.json), or of its run, or the {name: tensor} itself
    preset               name of a preset, or a Config: the switches that shapes do not show. Without it: a folder's own config.json;
                         for torchvision's names torchvision_r50_fpn or _v2, with backbone norm "batch" where the file counts batches
    norm_eps             of the backbone's norms. Without it the preset's 1e-5, except for torchvision's published COCO_V1 model: its file
                         does not say so, but torchvision runs it with 0.0 (SPEC §13). A frozen norm and 91 classes is taken for it

    Raises ValueError for what is no checkpoint, and for missing, unexpected or mis-shaped tensors, naming them.
    """
    tensors, config = _read(path_or_state_dict)
    if preset is not None:
        config = configuration.preset(preset) if isinstance(preset, str) else preset
    ours, original = _translate(tensors)
    if config is None and not torchvision.recognises(tensors):
        raise ValueError("a model of ours without its config.json: say which configuration it has, preset=NAME or preset=Config(..)")
    config = _deduce(ours, config)
    if norm_eps is not None:
        config = replace(config, backbone=replace(config.backbone, norm_eps=norm_eps))
    return _fill(config, ours, original)


def load_backbone(path_or_state_dict, model):
    """Copy a bare ResNet (torchvision's names; `fc.*` is ignored) into `model.backbone`; ValueError where names or shapes do not fit."""
    tensors, _ = _read(path_or_state_dict)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    _check(model.backbone.state_dict(), tensors, {name: name for name in tensors}, "this backbone")
    model.backbone.load_state_dict(tensors, strict=False)
    return model


def save_torchvision(model, path):
    """Write `model` under torchvision's names to a .safetensors file; `torchvision.state_dict(model)` gives the tensors themselves."""
    safetensors.torch.save_file(torchvision.state_dict(model), path)


def parameters(model, dtype=np.float64):
    """{name: array} of a model, as `reference.mask_rcnn.MaskRCNN` takes it."""
    return {
        name: tensor.detach().cpu().to(torch.float64).numpy().astype(dtype)
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def _read(source):
    """({name: tensor}, Config or None) of a path or a mapping."""
    if isinstance(source, Mapping):
        return _tensors(source, "the state dict"), None
    path = Path(source)
    if path.is_dir():
        path = (path if (path / "model.safetensors").is_file() else path / "last") / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            tensors = safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file ({error})") from error
        description = path.with_name("config.json")
        return tensors, _config(description) if description.is_file() else None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the archive, the unpickler or the file system objects to
        raise ValueError(f"{path}: not a checkpoint that can be read as plain tensors ({type(error).__name__}: {error})") from error
    return _tensors(content, str(path)), None


def _config(path):
    values = json.loads(path.read_text())
    return configuration.from_dict(values.get("config", values))


def _tensors(content, what):
    for key in ("model", "state_dict"):  # training scripts wrap the weights
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{what}: expected named tensors, got {type(content).__name__}")
    wrong = [name for name, value in content.items() if not isinstance(value, torch.Tensor | np.ndarray)]
    if wrong:
        raise ValueError(f"{what}: expected named tensors, but {wrong[0]!r} is a {type(content[wrong[0]]).__name__}")
    return {name.removeprefix("module."): torch.as_tensor(value) for name, value in content.items()}


def _translate(tensors):
    """({our name: tensor}, {our name: name in the file}); tensors without a name of ours keep theirs."""
    if torchvision.recognises(tensors):
        original = {torchvision.our_name(name) or name: name for name in tensors}
    elif "rpn.logits.weight" in tensors and "backbone.conv1.weight" in tensors:
        original = {name: name for name in tensors}
    elif any(name.startswith(("backbone.bottom_up.", "proposal_generator.")) for name in tensors):
        raise ValueError("these are the tensor names of detectron2, which are not read yet")
    elif "layer1.0.conv1.weight" in tensors:
        raise BareResNetError("this is a bare ResNet, without pyramid and heads: interop.load_backbone puts it into a model")
    else:
        raise ValueError(f"not a Mask R-CNN checkpoint: its tensors begin with {', '.join(list(tensors)[:3])}")
    return {ours: tensors[name] for ours, name in original.items()}, original


def _deduce(tensors, config):
    """`config` (or the preset the names belong to) with every width, depth and count as in `tensors` (our names)."""

    def shape(name):
        if name not in tensors:
            hint = "; a Faster R-CNN has no mask head" if name.startswith("mask_head") else ""
            raise ValueError(f"not a whole Mask R-CNN: no tensor {name} (our name){hint}")
        return tensors[name].shape

    def count(pattern):
        return next(i for i in range(1000) if pattern.format(i, i + 1) not in tensors)

    classes = shape("box_head.class_logits.weight")[0] - 1
    if config is None:
        config = _torchvision_config(tensors, classes)
    background = "first" if shape("box_head.box_deltas.weight")[0] == 4 * (classes + 1) else "last"
    if background != config.background:
        raise ValueError(f"the tensors put the background {background}, the preset {config.background}")
    bottleneck = "backbone.layer1.0.conv3.weight" in tensors
    blocks = tuple(count(f"backbone.layer{stage}.{{0}}.conv1.weight") for stage in (1, 2, 3, 4))
    depths = [depth for depth, counts in BLOCKS.items() if counts == blocks and (depth >= 50) == bottleneck]
    if not depths:
        raise ValueError(
            f"stages of {blocks} {'bottlenecks' if bottleneck else 'basic blocks'}: no ResNet of depth {', '.join(map(str, BLOCKS))}"
        )
    channels = shape("fpn.lateral2.weight")[0]
    four_conv = "box_head.conv1.weight" in tensors
    pooled = shape("box_head.fc6.weight")[1] / (shape("box_head.conv4.weight")[0] if four_conv else channels)
    return replace(
        config,
        num_classes=classes,
        backbone=replace(config.backbone, depth=depths[0], width=shape("backbone.conv1.weight")[0]),
        fpn=replace(config.fpn, channels=channels),
        rpn=replace(config.rpn, conv_depth=count("rpn.conv{1}.weight")),
        box_head=replace(
            config.box_head,
            kind="four_conv_fc" if four_conv else "two_fc",
            channels=shape("box_head.class_logits.weight")[1],
            conv_channels=shape("box_head.conv1.weight")[0] if four_conv else config.box_head.conv_channels,
            pooler=replace(config.box_head.pooler, output_size=round(pooled**0.5)),
        ),
        mask_head=replace(config.mask_head, convs=count("mask_head.conv{1}.weight"), channels=shape("mask_head.deconv.weight")[1]),
    )


def _torchvision_config(tensors, classes):
    """The preset that the tensors' names belong to. Only torchvision's checkpoints come without a configuration of their own."""
    config = configuration.preset(_looks_like(tensors))
    if config.backbone.norm == "frozen" and "backbone.bn1.num_batches_tracked" in tensors:
        return replace(config, backbone=replace(config.backbone, norm="batch", frozen_stages=0))
    if config.backbone.norm == "frozen" and classes == COCO_CLASSES:
        return replace(config, backbone=replace(config.backbone, norm_eps=0.0))
    return config


def _looks_like(tensors):
    return "torchvision_r50_fpn_v2" if "box_head.conv1.weight" in tensors else "torchvision_r50_fpn"


def _fill(config, tensors, original):
    with torch.device("meta"):
        model = MaskRCNN(config)
    foreign = torchvision.recognises(original.values())
    names = {name: torchvision.their_name(name, config) if foreign else name for name in model.state_dict()}
    what = f"{_looks_like(tensors)}, which they are nearest to" if foreign else "a model of this configuration"
    _check(model.state_dict(), tensors, names | original, what)
    double = any(tensor.dtype == torch.float64 for tensor in tensors.values())
    model = model.to_empty(device="cpu").to(torch.float64 if double else torch.float32).eval()
    counters = {name: torch.zeros(()) for name in names if name.endswith("num_batches_tracked")}  # some files lack them, or have too many
    model.load_state_dict({name: (counters | tensors)[name] for name in names})
    return model


def _check(expected, tensors, original, what):
    """ValueError listing every tensor that is missing, unexpected or of another shape than `expected`, by its name in the file."""
    optional = {name for name in expected if name.endswith("num_batches_tracked")}
    problems = {
        "missing": [original.get(name, name) for name in expected if name not in tensors and name not in optional],
        "unexpected": [original[name] for name in tensors if name not in expected and not name.endswith("num_batches_tracked")],
        "of another shape": [
            f"{original[name]} {list(tensors[name].shape)} instead of {list(expected[name].shape)}"
            for name in expected
            if name in tensors and tensors[name].shape != expected[name].shape
        ],
    }
    text = "; ".join(
        f"{kind}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
        for kind, names in problems.items()
        if names
    )
    if text:
        raise ValueError(f"the tensors do not make up {what}. {text}")
