"""The start of a training run: from somebody's weights, or from its own last checkpoint."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from accelerated import interop
from accelerated.engine import checkpoint
from accelerated.engine.checkpoint import PREDICTORS
from accelerated.mask_rcnn import MaskRCNN
from reference.config import to_dict

# Settings that pretrained weights assume but tensor shapes do not reveal.
UNSEEN = (
    "transform.channel_order",
    "transform.pixel_scale",
    "transform.mean",
    "transform.std",
    "backbone.stride_in_1x1",
)


@torch.no_grad()
def initialize(model: MaskRCNN, weights: str | Path) -> list[str]:
    """Copy the weights of a detector or of a bare backbone into `model`, see `interop`.

    The class predictors of a detector with other classes are not copied.
    Returns the names of the tensors that were not copied.
    Raises ValueError if names or shapes do not fit, or if the detector was made for other pixels or
    strides, which shapes do not reveal.
    """
    try:
        source = interop.load(weights)
    except interop.BareBackboneError:
        copied = set(interop.load_backbone(weights, model))
        return [name for name in model.state_dict() if name not in copied]
    for path, theirs, ours in _differences(to_dict(source.config), to_dict(model.config)):
        if path in UNSEEN:
            theirs, ours = json.dumps(theirs), json.dumps(ours)
            raise ValueError(
                f"{weights} was made for {path} = {theirs}, not {ours}: --set {path}={theirs}"
            )
    same_classes = (
        source.config.num_classes == model.config.num_classes
        and source.config.background == model.config.background
    )
    tensors, state, missing = source.state_dict(), model.state_dict(), []
    for name, tensor in state.items():
        if name not in tensors or (not same_classes and name.startswith(PREDICTORS)):
            missing.append(name)
        elif tensors[name].shape != tensor.shape:
            shapes = f"{list(tensors[name].shape)}, the model's {list(tensor.shape)}"
            raise ValueError(f"{weights}: {name} is {shapes}")
        else:
            tensor.copy_(tensors[name])
    return missing


def resume(
    folder: Path, model: MaskRCNN, optimizer: torch.optim.Optimizer, settings: dict[str, Any]
) -> int:
    """Restore the last checkpoint of the run in `folder` and return the number of steps taken.

    Raises ValueError if it was made with another configuration or other settings.
    """
    last = checkpoint.read(folder)
    # Older checkpoints do not name the shapes: there was no choice.
    before = to_dict(last.config) | {"fixed_shapes": False} | last.settings
    for path, then, now in _differences(before, to_dict(model.config) | settings):
        # A longer run may continue a shorter one.
        if path != "iterations":
            raise ValueError(
                f"{folder} was started with {path} = {then!r}, not {now!r}:"
                " resume it with that, or choose another folder"
            )
    if last.iteration > settings["iterations"]:
        raise ValueError(
            f"{folder} has taken {last.iteration} steps already, more than {settings['iterations']}"
        )
    return checkpoint.restore(folder, model, optimizer).iteration


def _differences(a: dict, b: dict, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (path, value in a, value in b) of the fields of nested dictionaries that differ."""
    for name in a:
        if isinstance(a[name], dict):
            yield from _differences(a[name], b[name], f"{path}{name}.")
        elif a[name] != b.get(name):
            yield f"{path}{name}", a[name], b.get(name)
