"""Load and save models in the formats of other projects and in this project's.

Widths, depths and the class count are inferred from the tensors' shapes (infer.py); settings that
shapes do not reveal come from a preset. A format is a module (peers.py) with a table of names and
the preset that is nearest to its models. No code in a file is executed.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accelerated.data.text_files import written_whole
from accelerated.interop import (
    backbones,
    coco_classes,
    detectron2,
    files,
    infer,
    native,
    peers,
    ranges,
    torchvision,
    unseen,
    zoo,
)
from accelerated.interop import names as class_names
from accelerated.interop.peers import Peer
from accelerated.mask_rcnn import MaskRCNN
from reference.config import Config, flat, override
from reference.config import preset as named_preset

EXPORTERS = {"torchvision": torchvision, "detectron2": detectron2}


class BareBackboneError(ValueError):
    """The tensors are those of a classifier, which `load_backbone` reads."""


@dataclass(frozen=True)
class Loaded:
    """A model and what is known of its file.

    source     the file, the folder or the published name
    model      in evaluation mode, on the CPU, with its `categories`
    preset     the nearest preset, or None for a folder with a configuration
    unknown    the UNSEEN fields (unseen.py) that the file does not state
    notes      what was assumed, in lines: what neither the file nor the caller states
    """

    source: str
    model: MaskRCNN
    preset: str | None
    unknown: frozenset[str]
    notes: list[str]

    def __str__(self) -> str:
        return self.source


def load(
    path_or_state_dict: files.Source,
    preset: str | Config | None = None,
    *,
    changes: Sequence[str] = (),
    names: str | Path | None = None,
) -> MaskRCNN:
    """Load a model, in evaluation mode, on the CPU, in float32 (float64 if the tensors are).

    path_or_state_dict   file (.pth, .pt, .safetensors, or .pkl of arrays) in the format of
                         torchvision, detectron2, maskrcnn-benchmark or this project; folder of a
                         run or of one of its checkpoints; name of a published file, such as "coco",
                         which is downloaded (zoo.py); or {name: tensor}
    preset               name of a preset, or a Config, for settings that shapes do not reveal.
                         Default: a folder's config.json; for other formats the nearest preset (see
                         `base_config` of the format)
    changes              FIELD=VALUE on top of that, such as "backbone.norm_eps=0"
    names                file with the names of the classes (names.py) where the file has none

    The model's `categories` are those of the folder, COCO's for 80 and 90 classes in other formats,
    or `names`. What had to be assumed is a warning, unless `preset` or `changes` state it.
    Raises ValueError if the file is not a checkpoint of a supported model, and for missing,
    unexpected or mis-shaped tensors, naming them.
    """
    loaded = read_model(path_or_state_dict, preset, changes=changes, names=names)
    if loaded.notes:
        warnings.warn("\n".join(loaded.notes), stacklevel=2)
    return loaded.model


def read_model(
    source: files.Source,
    preset: str | Config | None = None,
    *,
    changes: Sequence[str] = (),
    names: str | Path | None = None,
) -> Loaded:
    """Load a model, as `load` does, and return it with what is known of it."""
    with files.naming(source):
        theirs = files.read(source)
        peer = peers.find(theirs)
        if peer is None:
            raise _not_a_detector(theirs)
        tensors, original = _translate(theirs, peer)
        foreign = peer is not native
        config = None if foreign or preset is not None else files.read_config(source)
        published = _published(source, tensors) if foreign else None
        nearest = peer.nearest_preset(tensors)
        if config is not None:
            config = override(config, *changes)
        else:
            # A given configuration says everything.
            known = zoo.ENTRIES[published].changes if published else ()
            known = () if isinstance(preset, Config) else known
            config = _configuration(tensors, theirs, original, peer, preset, [*known, *changes])
        model = _fill(ranges.check(config), tensors, original, peer)
        model.categories = _categories(source, config.num_classes, names, foreign)
    notes, unknown = [], set()
    if foreign and not published:
        unknown = set(unseen.UNSEEN)
        if preset is None:
            # The format, or tensors beside the weights, may show more than the preset.
            values = flat(named_preset(nearest or ""))
            stated = {path for path, value in flat(model.config).items() if value != values[path]}
            stated |= {change.partition("=")[0].strip() for change in changes}
            notes += unseen.assumptions(model.config, nearest or "", stated)
        if names is None and model.categories:
            count = config.num_classes
            notes.append(f"its {count} classes are assumed to be COCO's; --names FILE names others")
    label = "the given tensors" if isinstance(source, Mapping) else str(source)
    # Indented lines belong to the line above.
    notes = [note if note.startswith(" ") else f"{label}: {note}" for note in notes]
    return Loaded(label, model, nearest, frozenset(unknown), notes)


def backbone_config(source: files.Source) -> tuple[str, Config]:
    """Name the preset that a classifier's file belongs to, and return it with the file's widths.

    Raises ValueError if the file is no classifier.
    """
    with files.naming(source):
        return backbones.nearest(files.read(source))


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

    Raises ValueError if the format has no such model, OSError if the file cannot be written; then
    nothing is left of it. `torchvision.state_dict` and `detectron2.state_dict` return the tensors.
    """
    if format is None:
        format = "detectron2" if model.config.background == "last" else "torchvision"
    if format not in EXPORTERS:
        raise ValueError(f"format {format!r}: expected {' or '.join(EXPORTERS)}")
    tensors = EXPORTERS[format].state_dict(model)
    if Path(path).suffix == ".safetensors":
        # Here, because `use_our_operators` needs only PyTorch and torchvision.
        import safetensors.torch

        content = safetensors.torch.save(tensors)
    elif Path(path).suffix == ".pth":
        stream = io.BytesIO()
        torch.save({"model": tensors} if format == "detectron2" else tensors, stream)
        content = stream.getbuffer()
    else:
        raise ValueError(f"{path}: expected NAME.safetensors or NAME.pth")
    with written_whole(path, "wb") as file:
        file.write(content)


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


def _published(source, tensors) -> str | None:
    """Name the published file that the source is, by its name or, for a COCO model, its digest."""
    if isinstance(source, Mapping) or files.published_name(source):
        return files.published_name(source)
    outputs = tensors.get("box_head.class_logits.bias", torch.empty(0)).numel()
    return zoo.recognise(files.locate(source)) if coco_classes.of_labels(outputs - 1) else None


def _categories(source, classes: int, names, foreign: bool) -> list[dict] | None:
    """Return {"id", "name"} of a model's labels: given, stored beside it, or COCO's."""
    if names is not None:
        return class_names.read(names, classes)
    if foreign:
        return coco_classes.of_labels(classes)
    stored = files.read_categories(source)
    if stored is not None and len(stored) != classes:
        raise ValueError(f"{len(stored)} categories, but {classes} classes in the configuration")
    return stored


def _configuration(tensors, theirs, original, peer: Peer, preset, changes) -> Config:
    """Complete the given or the nearest preset with `changes` and what the tensors reveal."""
    try:
        if isinstance(preset, str):
            config = named_preset(preset)
        else:
            config = preset or peer.base_config(tensors, theirs)
        wanted = override(config, *changes)
        config = infer.widths(wanted, tensors)
        _check_changes(wanted, config, changes)
        return config
    except infer.TensorError as error:
        if error.problem != infer.MISSING:
            raise error.renamed(original) from None
        nearest = named_preset(peer.nearest_preset(tensors) or "torchvision_r50_fpn")
        name = peer.their_name(error.name, nearest) or error.name
        raise ValueError(f"not a complete Mask R-CNN or Faster R-CNN: no tensor {name}") from None


def _check_changes(wanted, config, changes):
    """Raise ValueError for a change that contradicts the tensors."""
    asked, shown = flat(wanted), flat(config)
    for path in (change.partition("=")[0].strip() for change in changes):
        if asked.get(path) != shown.get(path):
            raise ValueError(f"{path}: the tensors have {shown[path]!r}, not {asked[path]!r}")


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
    """Raise ValueError listing missing, unexpected and unfit tensors, by their file names."""
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
        "no floating-point numbers": [
            f"{original[name]} ({str(tensors[name].dtype).removeprefix('torch.')})"
            for name in expected
            if name in tensors and name not in optional and not tensors[name].is_floating_point()
        ],
    }
    texts = []
    for problem, names in problems.items():
        if names:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            texts.append(f"{problem}: {', '.join(names[:8])}{more}")
    if texts:
        raise ValueError(f"the tensors do not match {target}. {'; '.join(texts)}")
