"""The start of a training run: from somebody's weights, or from its own last checkpoint."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from accelerated import interop
from accelerated.engine import checkpoint
from accelerated.engine.checkpoint import PREDICTORS
from accelerated.engine.settings import Settings
from accelerated.mask_rcnn import MaskRCNN
from accelerated.optimizer import learning_rate
from reference.config import Config, to_dict

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


def check(
    folder: Path,
    config: Config,
    categories: list[dict],
    settings: Settings,
    keep_schedule: bool = False,
) -> Settings:
    """Return the settings with which the run in `folder` goes on from its last checkpoint.

    keep_schedule  a run of another length keeps its learning rates

    Raises ValueError if it was made with another configuration, other categories or other settings.
    """
    last = checkpoint.read(folder)
    now = to_dict(config) | asdict(settings)
    # What older checkpoints do not name, they had no choice of.
    before = to_dict(last.config) | {"fixed_shapes": False} | last.settings
    for path, then, value in _differences(before, now):
        # A longer run may continue a shorter one.
        if path not in ("iterations", "schedule"):
            raise ValueError(
                f"{folder} was started with {path} = {then!r}, not {value!r}:"
                " resume it with that, or choose another folder"
            )
    for label, (old, new) in enumerate(zip(last.categories, categories, strict=True), start=1):
        if old != new:
            raise ValueError(
                f"{folder} was trained with label {label} for category {old['id']} ({old['name']});"
                f" in this data it is category {new['id']} ({new['name']}): resume it with the same"
                " categories, or choose another folder"
            )
    if last.iteration > settings.iterations:
        raise ValueError(
            f"{folder} has taken {last.iteration} steps already, more than {settings.iterations}"
        )
    schedule = _schedule(last, settings.iterations)
    if keep_schedule and config.optimizer.schedule == "cosine" and schedule < settings.iterations:
        raise ValueError(
            f"the cosine schedule of {folder} ends at step {schedule} with a rate of 0:"
            " there is no rate to keep for the steps after it"
        )
    longer = settings.iterations != last.settings.get("iterations", settings.iterations)
    return replace(
        settings, schedule=settings.iterations if longer and not keep_schedule else schedule
    )


def schedule_change(folder: Path, iterations: int, batch_size: int) -> str | None:
    """Tell what a run of other `iterations` does to the learning rate; None if nothing."""
    last = checkpoint.read(folder)
    before = _schedule(last, iterations)
    if iterations == last.settings.get("iterations", iterations) or before == iterations:
        return None
    old, new = (
        learning_rate(last.config.optimizer, last.iteration, steps, batch_size)
        for steps in (before, iterations)
    )
    return (
        f"learning rate at step {last.iteration}: {old:.3g} under the schedule of {before} steps,"
        f" {new:.3g} under that of {iterations}"
    )


def _schedule(last, iterations):
    """Return the steps that a checkpoint's learning rate is laid out for."""
    return last.settings.get("schedule", last.settings.get("iterations", iterations))


def _differences(a: dict, b: dict, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (path, value in a, value in b) of the fields of nested dictionaries that differ."""
    for name in a:
        if isinstance(a[name], dict):
            yield from _differences(a[name], b[name], f"{path}{name}.")
        elif a[name] != b.get(name):
            yield f"{path}{name}", a[name], b.get(name)
