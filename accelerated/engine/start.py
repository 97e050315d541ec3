"""The start of a training run: from weights or its last checkpoint, and what must fit them."""

import json
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import torch

from accelerated import interop
from accelerated.data import own_function
from accelerated.data.dataset import Dataset, categories
from accelerated.engine import accumulation, average, checkpoint, classes, layers
from accelerated.engine.settings import OLDER, Settings
from accelerated.interop import Loaded, unseen
from accelerated.mask_rcnn import MaskRCNN
from accelerated.optimizer import learning_rate
from reference.config import Config, flat


@dataclass(frozen=True)
class Taken:
    """What a model took over from weights.

    fresh  names of its tensors that stay newly initialised, for some classes at least
    lines  what was copied and what was not, in words
    """

    fresh: list[str]
    lines: list[str]


@torch.no_grad()
def initialize(model: MaskRCNN, weights: str | Path | Loaded) -> Taken:
    """Copy the weights of a detector or of a bare backbone into `model`, see `interop`.

    Of the layers whose width depends on the classes, a class of `model.categories` gets the rows
    that the class of this name has in the detector.
    Raises ValueError if shapes do not fit, or if the detector was made for other pixels, strides,
    anchors, ..., which shapes do not reveal (interop/unseen.py).
    """
    notes = []
    if not isinstance(weights, Loaded):
        try:
            weights = interop.read_model(weights)
        except interop.BareBackboneError:
            copied = set(interop.load_backbone(weights, model))
            fresh = [name for name in model.state_dict() if name not in copied]
            layers = _layers(fresh, model)
            return Taken(fresh, [f"{weights} is a backbone; newly initialised: {layers}"])
        notes = weights.notes
    source = weights.model
    for path, theirs, ours in unseen.differences(source.config, model.config):
        trained = "is assumed to be trained" if path in weights.unknown else "was trained"
        theirs, ours = json.dumps(theirs), json.dumps(ours)
        raise ValueError(
            f"{weights} {trained} with {path} = {theirs}, not {ours}: add --set {path}={theirs}"
        )
    labels = classes.shared(source.categories, model.categories)
    their_layouts, our_layouts = classes.layouts(source.config), classes.layouts(model.config)
    tensors, fresh, predictors = source.state_dict(), [], []
    for name, tensor in model.state_dict().items():
        layer = name.rpartition(".")[0]
        if name not in tensors:
            fresh.append(name)
        elif layer in our_layouts:
            layouts = our_layouts[layer], their_layouts[layer]
            try:
                complete = classes.copy_rows(tensor, tensors[name], *layouts, labels)
            except ValueError as error:
                raise ValueError(f"{weights}: {name} is {error}") from None
            predictors += [] if complete else [name]
        elif tensors[name].shape != tensor.shape:
            shapes = f"{list(tensors[name].shape)}, the model's {list(tensor.shape)}"
            raise ValueError(
                f"{weights}: {name} is {shapes}; leave out --preset to use the file's architecture"
            )
        else:
            tensor.copy_(tensors[name])
    fresh = [name for name in fresh if not name.endswith("num_batches_tracked")]
    lines = [*notes, _classes_line(weights, model, [our for _, our in labels])]
    if predictors:
        lines.append(f"newly initialised for the other classes: {_layers(predictors, model)}")
    if fresh:
        lines.append(f"newly initialised, not in {weights}: {_layers(fresh, model)}")
    unused = [name for name in tensors if name not in model.state_dict()]
    if unused:
        lines.append(f"not used from {weights}: {_layers(unused, source)}")
    return Taken([*fresh, *predictors], lines)


def _classes_line(weights, model, kept):
    if weights.model.categories is None or model.categories is None:
        owner = weights if weights.model.categories is None else "the model"
        return f"{owner} has no class names: no class is kept (name them with --names)"
    names = [model.categories[label - 1]["name"] for label in kept]
    count = f"{len(names)} of {len(model.categories)} classes"
    return f"{weights} has {count}{': ' if names else ''}{_some(names)}"


def _layers(names, model):
    """Name the parts of a model that are among the tensors `names` as a whole, or their layers."""
    among, parts = set(names), {}
    for name in model.state_dict():
        parts.setdefault(name.partition(".")[0], set()).add(name)
    whole = {part for part, tensors in parts.items() if tensors <= among}
    layers = (
        name.partition(".")[0] if name.partition(".")[0] in whole else name.rpartition(".")[0]
        for name in names
    )
    return _some(list(dict.fromkeys(layers)))


def _some(words):
    return ", ".join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")


def check(
    folder: Path,
    config: Config,
    dataset: Dataset,
    evaluation: Dataset | None,
    settings: Settings,
    resumed: Path | None,
    keep_schedule: bool = False,
) -> Settings:
    """Return the settings with which the run in `folder` starts or goes on.

    resumed        the checkpoint from which it goes on, see `run_folder.origin`; None: it starts
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
    own_function.prepared(config.augment, None, config.num_classes, settings.fixed_shapes)
    average.check(settings.ema)
    accumulation.check(config, settings.accumulate, settings.batch_size)
    if settings.freeze or settings.rates:
        layers.check(config, settings.freeze, settings.rates)
    last = None if resumed is None else checkpoint.read(resumed)
    if last is not None:
        _check_size(last)
        _check_categories(folder, last.categories, categories(dataset))
    if evaluation is not None:
        difference = classes.first_difference(categories(dataset), categories(evaluation))
        if difference:
            raise ValueError(f"the evaluation data does not fit the training data: {difference}")
    if last is None:
        return settings
    before = flat(last.config) | OLDER | last.settings
    now = flat(config) | settings.stored()
    for path, value in before.items():
        # A longer run may continue a shorter one.
        if path not in ("iterations", "schedule") and value != now.get(path):
            raise ValueError(
                f"{folder} was started with {path} = {value!r}, not {now.get(path)!r}:"
                " resume it with that, or choose another folder"
            )
    if last.iteration > settings.iterations:
        raise ValueError(
            f"{folder} has taken {last.iteration} steps already, more than {settings.iterations}"
        )
    return replace(settings, schedule=_schedule(last, config, settings.iterations, keep_schedule))


def _check_size(last):
    """Raise ValueError if the model of a checkpoint is larger than the file of its weights."""
    with torch.device("meta"):
        model = MaskRCNN(last.config)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    path = last.path / "model.safetensors"
    if size > path.stat().st_size:
        raise ValueError(
            f"{path}: {path.stat().st_size:,} bytes, but the model of its config.json has {size:,}"
        )


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


def schedule_change(
    resumed: Path, iterations: int, batch_size: int, keep_schedule: bool = False
) -> str | None:
    """Tell what a run of other `iterations` does to the learning rate; None if nothing."""
    last = checkpoint.read(resumed)
    before, planned = _laid_out(last, iterations)
    if iterations in (planned, before):
        return None
    old, new = (
        learning_rate(last.config.optimizer, last.iteration, steps, batch_size)
        for steps in (before, iterations)
    )
    if old == new:
        return None
    goes_on = "the former" if keep_schedule else "the latter (--keep-schedule: the former)"
    return (
        f"learning rate at step {last.iteration}: {old:.3g} under the schedule of {before} steps,"
        f" {new:.3g} under that of {iterations}; training goes on with {goes_on}"
    )
