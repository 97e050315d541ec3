"""Load and save models in the formats of other projects and in this project's.

Widths, depths and the class count are inferred from the tensors' shapes (infer.py); settings that
shapes do not reveal come from a preset. A format is a module (peers.py) with a table of names and
the preset that is nearest to its models. No code in a file is executed.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accelerated.interop import backbones, detectron2, files, infer, native, peers, torchvision
from accelerated.interop.peers import Peer
from accelerated.mask_rcnn import MaskRCNN
from reference.config import Config
from reference.config import preset as named_preset

EXPORTERS = {"torchvision": torchvision, "detectron2": detectron2}


class BareBackboneError(ValueError):
    """The tensors are those of a classifier, which `load_backbone` reads."""


def load(
    path_or_state_dict: files.Source,
    preset: str | Config | None = None,
    *,
    norm_eps: float | None = None,
) -> MaskRCNN:
    """Load a model, in evaluation mode, on the CPU, in float32 (float64 if the tensors are).

    path_or_state_dict   file (.pth, .pt, .safetensors, or .pkl of arrays) in the format of
                         torchvision, detectron2, maskrcnn-benchmark or this project; folder of a
                         run or of one of its checkpoints; or {name: tensor}
    preset               name of a preset, or a Config, for settings that shapes do not reveal.
                         Default: a folder's config.json; for other formats the nearest preset (see
                         `base_config` of the format)
    norm_eps             eps of the backbone's norms. Default: the preset's 1e-5, but 0 for
                         maskrcnn-benchmark and for torchvision's published COCO_V1 models,
                         recognised by a frozen norm and 91 classes, because torchvision runs them
                         so (SPEC §13)

    Raises ValueError if the file is not a checkpoint of a supported model, and for missing,
    unexpected or mis-shaped tensors, naming them.
    """
    with files.naming(path_or_state_dict):
        theirs = files.read(path_or_state_dict)
        peer = peers.find(theirs)
        if peer is None:
            raise _not_a_detector(theirs)
        tensors, original = _translate(theirs, peer)
        config = None
        if peer is native and preset is None:
            config = files.read_config(path_or_state_dict)
        if config is None:
            config = _configuration(tensors, theirs, peer, preset)
        if norm_eps is not None:
            config = replace(config, backbone=replace(config.backbone, norm_eps=norm_eps))
        return _fill(config, tensors, original, peer)


def load_backbone(path_or_state_dict: files.Source, model: MaskRCNN) -> list[str]:
    """Copy a backbone trained for classification (backbones.py) into `model`; skip its classifier.

    VGG's first two fully connected layers are copied to the box head if their shapes match. The
    file does not reveal how images must be normalised: backbones.py lists the presets that match.

    Returns the names of the copied tensors. Raises ValueError if names or shapes do not match.
    """
    with files.naming(path_or_state_dict):
        settings = model.config.backbone
        tensors, original = backbones.translate(files.read(path_or_state_dict), settings.norm_eps)
        state = model.state_dict()
        for name in [name for name in tensors if name.startswith("box_head.")]:
            if name not in state or state[name].shape != tensors[name].shape:
                del tensors[name]
        expected = {
            name: tensor
            for name, tensor in state.items()
            if name.startswith("backbone.") or name in tensors
        }
        names = {name: name.removeprefix("backbone.") for name in expected} | original
        depth = f" of depth {settings.depth}" if settings.kind == "resnet" else ""
        target = f"this model's backbone, a {settings.kind}{depth} with {settings.norm} norm"
        _check(expected, tensors, names, target)
        copied = [name for name in tensors if name in expected]
        model.load_state_dict({name: tensors[name] for name in copied}, strict=False)
        return copied


def save(model: MaskRCNN, path: str | Path, format: str | None = None) -> None:
    """Export a model to a file, NAME.safetensors or NAME.pth.

    format   "torchvision" or "detectron2", whose .pth has the tensors under the key "model".
             Default: detectron2 if the background is the last class, else torchvision

    Raises ValueError if the format has no such model. `torchvision.state_dict` and
    `detectron2.state_dict` return the tensors.
    """
    if format is None:
        format = "detectron2" if model.config.background == "last" else "torchvision"
    if format not in EXPORTERS:
        raise ValueError(f"format {format!r}: expected {' or '.join(EXPORTERS)}")
    tensors = EXPORTERS[format].state_dict(model)
    if Path(path).suffix == ".safetensors":
        # Here, because `use_our_operators` needs only PyTorch and torchvision.
        import safetensors.torch

        safetensors.torch.save_file(tensors, path)
    elif Path(path).suffix == ".pth":
        torch.save({"model": tensors} if format == "detectron2" else tensors, path)
    else:
        raise ValueError(f"{path}: expected NAME.safetensors or NAME.pth")


def parameters(model: MaskRCNN, dtype: Any = np.float64) -> dict[str, np.ndarray]:
    """Return {name: array} of a model, as `reference.mask_rcnn.MaskRCNN` takes it."""
    return {
        name: tensor.detach().cpu().to(torch.float64).numpy().astype(dtype)
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def _not_a_detector(tensors):
    if backbones.find(tensors):
        return BareBackboneError(
            "a backbone without neck and heads; start a training from it (train --weights) or copy"
            " it into a model (interop.load_backbone)"
        )
    first = ", ".join(list(tensors)[:3])
    return ValueError(f"not a Mask R-CNN checkpoint: its tensors begin with {first}")


def _translate(
    tensors: Mapping[str, torch.Tensor], peer: Peer
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Rename tensors; those without a name of ours keep theirs.

    Returns {our name: tensor}, {our name: name in the file}.
    """
    original: dict[str, str] = {}
    for name in tensors:
        ours = peer.our_name(name) or name
        if ours in original:
            raise ValueError(f"{original[ours]} and {name} are the same tensor ({ours})")
        if not peer.ignored(name):
            original[ours] = name
    return {ours: tensors[name] for ours, name in original.items()}, original


def _configuration(tensors, theirs, peer: Peer, preset) -> Config:
    """Complete the given or the nearest preset with what the tensors reveal."""
    try:
        if isinstance(preset, str):
            config = named_preset(preset)
        else:
            config = preset or peer.base_config(tensors, theirs)
        return infer.widths(config, tensors)
    except infer.MissingTensorError as error:
        nearest = named_preset(peer.nearest_preset(tensors) or "torchvision_r50_fpn")
        name = peer.their_name(error.name, nearest) or error.name
        raise ValueError(f"not a complete Mask R-CNN or Faster R-CNN: no tensor {name}") from None


def _fill(config, tensors, original, peer: Peer) -> MaskRCNN:
    with torch.device("meta"):
        model = MaskRCNN(config)
    names = {name: peer.their_name(name, config) or name for name in model.state_dict()}
    nearest = peer.nearest_preset(tensors)
    target = f"{nearest}, the nearest preset" if nearest else "a model of this configuration"
    _check(model.state_dict(), tensors, names | original, target)
    double = any(tensor.dtype == torch.float64 for tensor in tensors.values())
    model = model.to_empty(device="cpu").to(torch.float64 if double else torch.float32).eval()
    # Some files lack the counters of batches, others have too many.
    counters = {name: torch.zeros(()) for name in names if name.endswith("num_batches_tracked")}
    model.load_state_dict({name: (counters | tensors)[name] for name in names})
    return model


def _check(expected, tensors, original, target):
    """Raise ValueError listing missing, unexpected and mis-shaped tensors, by their file names."""
    optional = {name for name in [*expected, *tensors] if name.endswith("num_batches_tracked")}
    problems = {
        "missing": [
            original.get(name, name)
            for name in expected
            if name not in tensors and name not in optional
        ],
        "unexpected": [
            original[name] for name in tensors if name not in expected and name not in optional
        ],
        "wrong shape": [
            f"{original[name]} {list(tensors[name].shape)} instead of {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ],
    }
    texts = []
    for problem, names in problems.items():
        if names:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            texts.append(f"{problem}: {', '.join(names[:8])}{more}")
    if texts:
        raise ValueError(f"the tensors do not match {target}. {'; '.join(texts)}")
