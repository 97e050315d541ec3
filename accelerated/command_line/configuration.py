"""The configuration of a training: from a preset, from weights, or from the images."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from accelerated import interop
from accelerated.data.coco import CocoDataset
from accelerated.data.summary import default_preset
from accelerated.engine import checkpoint
from accelerated.interop import Loaded, ranges, unseen
from reference.config import Config, override
from reference.config import preset as named_preset

# What a preset and a file must have in common; a difference elsewhere shows in a shape.
PARTS = ("neck", "backbone.kind", "backbone.depth", "backbone.width", "fpn.channels")


class Origin(NamedTuple):
    """What a training starts from.

    text   where the configuration comes from
    lines  what was assumed
    """

    config: Config
    dataset: CocoDataset
    weights: Loaded | str | None
    text: str
    lines: list[str]


def configuration(
    preset: str | None,
    weights: str | None,
    changes: Sequence[str],
    names: Path | None,
    open_data: Callable[[bool], CocoDataset],
) -> Origin:
    """Find the configuration of a training, for the classes of its data.

    preset, changes  name or None, and FIELD=VALUE on top of all else
    weights          file, folder or name; of a detector, the configuration is the file's, and a
                     preset changes nothing that its weights depend on
    names            file with the names of the classes in the weights
    open_data        opens the data set, given whether the model has a mask branch
    """
    source, lines, origin = weights, [], f"preset {preset}"
    if weights is None:
        base = None if preset is None else named_preset(preset)
    else:
        base, source, origin, lines = _from_weights(preset, weights, changes, names)
    masks = override(base or Config(), *changes).mask_head.kind != "none"
    dataset = open_data(masks)
    if base is None:
        name = default_preset(dataset.sizes)
        base, origin = named_preset(name), f"preset {name}, which suits these images"
    config = _for_classes(override(base, *changes), changes, dataset)
    return Origin(config, dataset, source, origin, lines)


def continuation(
    run: Path,
    resumed: Path,
    preset: str | None,
    changes: Sequence[str],
    open_data: Callable[[bool], CocoDataset],
    typed: Sequence[str] = (),
) -> Origin:
    """Find the configuration with which the run in folder `run` goes on from a checkpoint.

    It is the run's, or for comparison with it that of a preset, with changes. The run's warm-up,
    which fits its length, stays unless a change names it. Nothing that its files name is executed,
    so that a function that augments must be among the `typed` changes again. Raises ValueError.
    """
    stored = checkpoint.read(resumed).config
    function = stored.augment.function
    if function is not None and not _sets("augment.function", typed):
        raise ValueError(
            f"{run} augments by a function, which is only called if it is named again: add"
            f" --set augment.function={function}"
        )
    config = override(stored if preset is None else named_preset(preset), *changes)
    if not sets_warmup(changes):
        steps = stored.optimizer.warmup_iterations
        config = replace(config, optimizer=replace(config.optimizer, warmup_iterations=steps))
    dataset = open_data(config.mask_head.kind != "none")
    config = _for_classes(config, changes, dataset)
    return Origin(config, dataset, None, f"configuration of {run}", [])


def _for_classes(config, changes, dataset):
    """Set the number of classes to the data's. Raises ValueError for a change that disagrees."""
    count = len(dataset.class_names)
    if _sets("num_classes", changes) and config.num_classes != count:
        raise ValueError(f"num_classes is {count}, as in the data, not {config.num_classes}")
    return ranges.check(replace(config, num_classes=count))


def sets_warmup(changes: Sequence[str]) -> bool:
    """Tell whether one of the changes FIELD=VALUE sets the steps of the warm-up."""
    return _sets("optimizer.warmup_iterations", changes)


def _sets(field, changes):
    return any(change.partition("=")[0].strip() == field for change in changes)


def _from_weights(preset, weights, changes, names):
    """Return the configuration that goes with weights, these, its origin, and what was assumed."""
    try:
        loaded = _load(preset, weights, changes, names)
    except interop.BareBackboneError:
        return _from_backbone(preset, weights)
    config = loaded.model.config
    function = config.augment.function
    if function is not None and preset is None and not _sets("augment.function", changes):
        # Nothing that a file names is executed.
        config = override(config, "augment.function=null")
        text = f"{loaded} was trained with augment.function={function}, which is left out"
        loaded.notes.append(text)
    if preset is None:
        origin = f"nearest preset {loaded.preset}" if loaded.preset else "its config.json"
        return config, loaded, f"architecture of {loaded} ({origin})", loaded.notes
    lines, base = list(loaded.notes), override(named_preset(preset), *changes)
    for field in PARTS:
        theirs, ours = attrgetter(field)(config), attrgetter(field)(base)
        if theirs != ours:
            raise ValueError(
                f"{loaded} has {field} = {theirs}, the preset {preset} {ours}: leave out --preset"
            )
    # A value may bring others into use.
    while difference := next(unseen.differences(config, base), None):
        path, theirs, ours = difference
        base = override(base, f"{path}={json.dumps(theirs)}")
        theirs, ours = unseen.text(theirs), unseen.text(ours)
        lines.append(f"{path}={theirs}, with which {loaded} was trained; {preset} has {ours}")
    return base, loaded, f"preset {preset}", lines


def _load(preset, weights, changes, names) -> Loaded:
    """Load a detector; what its file does not show comes from the preset and the changes."""
    # A folder of ours has its own configuration.
    preset = None if Path(weights).is_dir() else preset
    loaded = interop.read_model(weights, preset, names=names)
    if not loaded.unknown:
        return loaded
    fields = {*loaded.unknown, *(path for row in unseen.NOTED for path in row)}
    known = [change for change in changes if change.partition("=")[0].strip() in fields]
    return interop.read_model(weights, preset, changes=known, names=names) if known else loaded


def _from_backbone(preset, weights):
    name, config = interop.backbone_config(weights)
    if preset is None:
        backbone = config.backbone
        what = "vgg16" if backbone.kind == "vgg" else f"ResNet-{backbone.depth}"
        return config, weights, f"preset {name} with the {what} of {weights}", []
    base = named_preset(preset)
    lines = [
        f"{weights} was trained with {path}={unseen.text(theirs)}, as in {name}, not"
        f" {unseen.text(ours)}, as in {preset}"
        for path, theirs, ours in unseen.differences(config, base)
        if path.startswith(("transform.", "backbone."))
    ]
    return base, weights, f"preset {preset}", lines
