"""Weights in and out: detectors of torchvision, detectron2 and maskrcnn-benchmark, backbones of these and of Caffe2, our own checkpoints.

`load` reads every width, depth and the class count from the tensors; what shapes cannot say comes from a preset. A peer is a module
(peers.py) that knows its names and the preset it is nearest to. Nothing that a file might run is run.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from accelerated.interop import (
    backbones,
    deduce,
    detectron2,
    files,
    maskrcnn_benchmark,
    own,
    peers,
    torchvision,
)
from accelerated.mask_rcnn import MaskRCNN
from reference import config as configuration

__all__ = [
    "BareBackboneError",
    "detectron2",
    "load",
    "load_backbone",
    "maskrcnn_benchmark",
    "parameters",
    "save",
    "torchvision",
]

WRITABLE = {"torchvision": torchvision, "detectron2": detectron2}


class BareBackboneError(ValueError):
    """The tensors are those of a classifier; `load_backbone` takes them."""


def load(path_or_state_dict, preset=None, *, norm_eps=None):
    """The model that a checkpoint holds, in evaluation mode, on the CPU, float32 (float64 where the tensors are).

    path_or_state_dict   a .pth, .pt or .safetensors file, or a .pkl of plain arrays, with the names of torchvision, detectron2,
                         maskrcnn-benchmark or ours; a checkpoint folder of ours (model.safetensors, config.json), or of its run; or the
                         {name: tensor} itself
    preset               name of a preset, or a Config: the switches that shapes do not show. Without it: a folder's own config.json; for
                         foreign names the preset that their layout belongs to, see `described` of the peer (peers.py)
    norm_eps             of the backbone's norms. Without it the preset's 1e-5, except for maskrcnn-benchmark's, which has none, and for
                         torchvision's published COCO_V1 models: the file does not say so, but torchvision runs them with 0.0 (SPEC §13).
                         A frozen norm and 91 classes is taken for them

    Raises ValueError for what is no checkpoint of a model that is here, and for missing, unexpected or mis-shaped tensors, naming them.
    """
    with files.about(path_or_state_dict):
        theirs = files.read(path_or_state_dict)
        peer = peers.of(theirs)
        if peer is None:
            raise _no_detector(theirs)
        tensors, original = _translate(theirs, peer)
        config = files.config_beside(path_or_state_dict) if peer is own and preset is None else None
        if config is None:
            config = _configuration(tensors, theirs, peer, preset)
        if norm_eps is not None:
            config = replace(config, backbone=replace(config.backbone, norm_eps=norm_eps))
        return _fill(config, tensors, original, peer)


def load_backbone(path_or_state_dict, model):
    """Copy a bare backbone (backbones.py) into `model`, without its classifier; returns the names of the tensors copied.

    VGG's first two fully connected layers go into the box head, where they have its shape. Raises ValueError where names or shapes do
    not fit. It cannot be seen whether the image is normalised as the backbone expects: see backbones.py for the presets that do.
    """
    with files.about(path_or_state_dict):
        tensors, original = backbones.translate(
            files.read(path_or_state_dict), model.config.backbone.norm_eps
        )
        state = model.state_dict()
        for name in [name for name in tensors if name.startswith("box_head.")]:
            if name not in state or state[name].shape != tensors[name].shape:
                del tensors[name]
        expected = {
            name: state[name] for name in state if name.startswith("backbone.") or name in tensors
        }
        kind = model.config.backbone
        what = f"the backbone of this model (a {kind.kind}{f' of depth {kind.depth}' if kind.kind == 'resnet' else ''}, {kind.norm} norm)"
        _check(
            expected,
            tensors,
            {name: name.removeprefix("backbone.") for name in expected} | original,
            what,
        )
        copied = [name for name in tensors if name in expected]
        model.load_state_dict({name: tensors[name] for name in copied}, strict=False)
        return copied


def save(model, path, names=None):
    """Write `model` for others: FILE.safetensors, or FILE.pth by torch.save.

    names   "torchvision" or "detectron2", whose .pth has its tensors under "model"; None: detectron2 where the background comes last

    Raises ValueError where they have no such model. `torchvision.state_dict` and `detectron2.state_dict` give the tensors themselves.
    """
    names = names or ("detectron2" if model.config.background == "last" else "torchvision")
    if names not in WRITABLE:
        raise ValueError(f"names of {names!r}: expected {' or '.join(WRITABLE)}")
    tensors = WRITABLE[names].state_dict(model)
    if Path(path).suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    elif Path(path).suffix == ".pth":
        torch.save({"model": tensors} if names == "detectron2" else tensors, path)
    else:
        raise ValueError(f"{path}: expected FILE.safetensors or FILE.pth")


def parameters(model, dtype=np.float64):
    """{name: array} of a model, as `reference.mask_rcnn.MaskRCNN` takes it."""
    return {
        name: tensor.detach().cpu().to(torch.float64).numpy().astype(dtype)
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def _no_detector(tensors):
    if backbones.of(tensors):
        return BareBackboneError(
            "a bare backbone, without neck and heads: train --weights starts from it, interop.load_backbone puts it into a model"
        )
    return ValueError(
        f"not a Mask R-CNN checkpoint: its tensors begin with {', '.join(list(tensors)[:3])}"
    )


def _translate(tensors, peer):
    """({our name: tensor}, {our name: name in the file}); tensors without a name of ours keep theirs."""
    original = {}
    for name in tensors:
        ours = peer.our_name(name) or name
        if ours in original:
            raise ValueError(f"{original[ours]} and {name} are one and the same tensor ({ours})")
        if not peer.ignored(name):
            original[ours] = name
    return {ours: tensors[name] for ours, name in original.items()}, original


def _configuration(tensors, theirs, peer, preset):
    """The preset given, or what the names tell of, with all that the tensors (our names, and theirs) show."""
    try:
        config = (
            configuration.preset(preset)
            if isinstance(preset, str)
            else preset or peer.described(tensors, theirs)
        )
        return deduce.widths(config, tensors)
    except deduce.LackingError as error:
        name = peer.their_name(
            error.name, configuration.preset(peer.nearest(tensors) or "torchvision_r50_fpn")
        )
        raise ValueError(f"not a whole Mask R-CNN or Faster R-CNN: no tensor {name}") from None


def _fill(config, tensors, original, peer):
    with torch.device("meta"):
        model = MaskRCNN(config)
    names = {name: peer.their_name(name, config) for name in model.state_dict()}
    preset = peer.nearest(tensors)
    what = f"{preset}, which they are nearest to" if preset else "a model of this configuration"
    _check(model.state_dict(), tensors, names | original, what)
    double = any(tensor.dtype == torch.float64 for tensor in tensors.values())
    model = model.to_empty(device="cpu").to(torch.float64 if double else torch.float32).eval()
    counters = {
        name: torch.zeros(()) for name in names if name.endswith("num_batches_tracked")
    }  # some files lack them, or have too many
    model.load_state_dict({name: (counters | tensors)[name] for name in names})
    return model


def _check(expected, tensors, original, what):
    """ValueError listing every tensor that is missing, unexpected or of another shape than `expected`, by its name in the file."""
    optional = {name for name in expected if name.endswith("num_batches_tracked")}
    problems = {
        "missing": [
            original.get(name, name)
            for name in expected
            if name not in tensors and name not in optional
        ],
        "unexpected": [
            original[name]
            for name in tensors
            if name not in expected and not name.endswith("num_batches_tracked")
        ],
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
