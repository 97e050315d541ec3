"""The start of a training run: what fits, somebody's weights, or its own last checkpoint."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from accelerated import interop
from accelerated.data.dataset import Dataset
from accelerated.engine import checkpoint
from accelerated.engine.checkpoint import PREDICTORS
from accelerated.engine.evaluate import categories
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
    dataset: Dataset,
    evaluation: Dataset | None,
    settings: Settings,
    resume: bool,
    keep_schedule: bool = False,
) -> Settings:
    """Return the settings with which the run in `folder` starts, or goes on if it may be resumed.

    keep_schedule  a run of another length keeps its learning rates

    Raises ValueError if configuration, data and settings do not fit each other or the run.
    """
    if len(dataset) == 0:
        raise ValueError("the data set has no images")
    if len(dataset.category_ids) != config.num_classes:
        raise ValueError(
            f"the data set has {len(dataset.category_ids)} categories,"
            f" but num_classes is {config.num_classes}"
        )
    if evaluation is not None and categories(evaluation) != categories(dataset):
        raise ValueError("the data sets for training and evaluation have different categories")
    if not checkpoint.exists(folder):
        return settings
    if not resume:
        raise ValueError(f"{folder} already holds a run: resume it, or choose another folder")
    last = checkpoint.read(folder)
    # What older checkpoints do not name, they had no choice of.
    before = to_dict(last.config) | {"fixed_shapes": False} | last.settings
    _check_categories(folder, last.categories, categories(dataset))
    for path, then, now in _differences(before, to_dict(config) | asdict(settings)):
        # A longer run may continue a shorter one.
        if path not in ("iterations", "schedule"):
            raise ValueError(
                f"{folder} was started with {path} = {then!r}, not {now!r}:"
                " resume it with that, or choose another folder"
            )
    if last.iteration > settings.iterations:
        raise ValueError(
            f"{folder} has taken {last.iteration} steps already, more than {settings.iterations}"
        )
    return replace(settings, schedule=_schedule(last, config, settings.iterations, keep_schedule))


def _check_categories(folder, before, now):
    """Raise ValueError for the first label that stood for another category."""
    for label, (old, new) in enumerate(zip_longest(before, now), start=1):
        if old != new:
            texts = [f"{c['name']!r} with id {c['id']}" if c else "no category" for c in (old, new)]
            raise ValueError(
                f"{folder} was trained on other categories: label {label} was {texts[0]}, in this"
                f" data it is {texts[1]}; resume it with the same, or choose another folder"
            )


def _schedule(last, config, iterations, keep):
    """Return the steps that the learning rate of a resumed run is laid out for."""
    laid_out, planned = _laid_out(last, iterations)
    if keep and config.optimizer.schedule == "cosine" and laid_out < iterations:
        raise ValueError(
            f"the cosine schedule of {laid_out} steps ends with a rate of 0, which cannot be kept"
            " for the steps after it"
        )
    return laid_out if keep or iterations == planned else iterations


def _laid_out(last, iterations):
    """Return the steps that a checkpoint's schedule and its run had, in older files the same."""
    planned = last.settings.get("iterations", iterations)
    return last.settings.get("schedule", planned), planned


def schedule_change(folder: Path, iterations: int, batch_size: int) -> str | None:
    """Tell what a run of other `iterations` does to the learning rate; None if nothing."""
    last = checkpoint.read(folder)
    before, planned = _laid_out(last, iterations)
    if iterations in (planned, before):
        return None
    old, new = (
        learning_rate(last.config.optimizer, last.iteration, steps, batch_size)
        for steps in (before, iterations)
    )
    return (
        f"learning rate at step {last.iteration}: {old:.3g} under the schedule of {before} steps,"
        f" {new:.3g} under that of {iterations}"
    )


def _differences(a: dict, b: dict, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (path, value in a, value in b) of the fields of nested dictionaries that differ."""
    for name in a:
        if isinstance(a[name], dict):
            yield from _differences(a[name], b[name], f"{path}{name}.")
        elif a[name] != b.get(name):
            yield f"{path}{name}", a[name], b.get(name)
