"""Checkpoints: folders of safetensors and JSON, nothing pickled; either complete or absent.

RUN/checkpoints/00001000/model.safetensors      weights and buffers by state_dict name; of a run
                                                that averages its weights, the averages
                         optimizer.safetensors  "<state>/<parameter>", such as
                                                "momentum_buffer/fpn.lateral2.weight"; with
                                                averages also "weights/<parameter>", the weights
                                                that training goes on with
                         config.json            reference.config.to_dict(config)
                         state.json             format, iteration, categories, settings of the run,
                                                the machine, SHA-256 digests of all this
RUN/last -> checkpoints/00001000                 the newest
RUN/best -> checkpoints/00000800                 the one with the highest average precision
"""

import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from accelerated.data.text_files import make_folder, naming, read_json, sync
from accelerated.data.values import objects
from accelerated.engine import digests
from accelerated.engine.average import Average
from accelerated.interop import ranges
from reference.config import Config, to_dict

# The first had no digests.
FORMATS = (1, 2)
FILES = ("model.safetensors", "optimizer.safetensors", "config.json", "state.json")
# In state.json, besides the format and the digests.
TYPES = {"categories": list, "iteration": int, "settings": dict, "machine": dict}
# In optimizer.safetensors: what the averages in model.safetensors are of.
WEIGHTS = "weights"
# The layers whose width depends on the number of classes.
PREDICTORS = ("box_head.class_logits", "box_head.box_deltas", "mask_head.logits")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint without its tensors."""

    path: Path
    config: Config
    # {"id", "name"}; label k is categories[k - 1].
    categories: list[dict]
    # Steps taken.
    iteration: int
    # Of the run, as given to `save`.
    settings: dict
    # On which it was written, see `settings.machine`; empty in older ones.
    machine: dict = field(default_factory=dict)


def save(
    run: str | Path,
    model: nn.Module,
    config: Config,
    categories: list[dict],
    optimizer: torch.optim.Optimizer,
    iteration: int,
    *,
    average: Average | None = None,
    settings: dict | None = None,
    machine: dict | None = None,
    keep: int = 3,
) -> Path:
    """Write RUN/checkpoints/<iteration>, point RUN/last at it and delete all but the `keep` newest.

    The one that RUN/best points at is never deleted. The folder gets its name only once all its
    bytes are on the disk, and the older ones go once RUN/last on the disk is another, so that a
    killed process, a power cut or a full disk leaves the previous checkpoint intact.
    Returns the path of the checkpoint.
    Raises ValueError if a weight or buffer is not finite, OSError, which names the file, if it
    cannot be written; then nothing is left of it.
    """
    tensors, own = _on_cpu(model.state_dict()), _optimizer_tensors(optimizer)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"{name} is not finite at iteration {iteration}: no checkpoint written"
            )
    if average is not None:
        own |= {f"{WEIGHTS}/{name}": tensors[name] for name in average.tensors}
        tensors |= _on_cpu(average.tensors)
    run, folder = Path(run), Path(run) / "checkpoints"
    make_folder(folder)
    clear(run)
    partial, path = folder / f".{iteration:08d}", folder / f"{iteration:08d}"
    partial.mkdir()
    try:
        _save_tensors(tensors, partial / "model.safetensors")
        _save_tensors(own, partial / "optimizer.safetensors")
        _write_json(partial / "config.json", to_dict(config))
        state = {
            "format": FORMATS[-1],
            "iteration": iteration,
            "categories": categories,
            "settings": settings or {},
            "machine": machine or {},
        }
        _write_json(partial / "state.json", digests.seal(state, partial, FILES[:-1]))
        for name in FILES:
            sync(partial / name)
        sync(partial)
        # A run that was resumed from an older checkpoint writes this one again.
        if path.exists():
            path.rename(folder / f".{iteration:08d}.old")
        partial.rename(path)
        sync(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    point(run, "last", path)
    shutil.rmtree(folder / f".{iteration:08d}.old", ignore_errors=True)
    older = [p for p in reversed(stored(run)) if p != path]
    for p in older[max(keep, 1) - 1 :]:
        if p.name != best(run):
            # Under its own name it is complete or absent.
            shutil.rmtree(p.rename(folder / f".{p.name}.old"))
    return path


def clear(run: str | Path) -> None:
    """Delete what a killed process has left of checkpoints and links."""
    for name in (".last", ".best"):
        (Path(run) / name).unlink(missing_ok=True)
    for stale in (Path(run) / "checkpoints").glob(".*/"):
        shutil.rmtree(stale)


def stored(run: str | Path) -> list[Path]:
    """List the folders of a run's checkpoints, oldest first."""
    return sorted((Path(run) / "checkpoints").glob("[0-9]*"))


def mark_best(run: str | Path, iteration: int) -> None:
    """Point RUN/best at the checkpoint of `iteration`; the one before goes with the next save."""
    point(Path(run), "best", Path(run) / "checkpoints" / f"{iteration:08d}")


def best(run: str | Path) -> str | None:
    """Return the name of the checkpoint that RUN/best points at; None if there is none."""
    link = Path(run) / "best"
    return os.readlink(link).rpartition("/")[2] if link.is_symlink() and link.exists() else None


def point(run: Path, name: str, path: Path) -> None:
    """Make RUN/<name> a link to a checkpoint at once, so that a killed process leaves the old."""
    link = run / f".{name}"
    link.unlink(missing_ok=True)
    link.symlink_to(Path("checkpoints", path.name), target_is_directory=True)
    link.replace(run / name)
    sync(run)


def exists(run: str | Path) -> bool:
    """Tell whether RUN has a checkpoint, be it damaged, or a link to one."""
    return os.path.lexists(Path(run) / "last") or bool(stored(run))


def find(path: str | Path) -> Path:
    """Return the checkpoint at `path`, or the last one if `path` is the folder of a run.

    Raises ValueError if it is neither.
    """
    path = Path(path)
    for candidate in (path, path / "last"):
        if (candidate / "state.json").is_file():
            return candidate.resolve()
    problem = "holds no checkpoint" if path.is_dir() else "no such checkpoint"
    raise ValueError(f"{path}: {problem}")


def read(path: str | Path) -> Checkpoint:
    """Read the JSON files of a checkpoint.

    Raises ValueError, in one line, for a file that is missing, damaged, edited or of another
    format. Only `verify` and `restore` look at the tensors.
    """
    path = find(path)
    for name in FILES:
        if not (path / name).is_file():
            raise ValueError(f"{path}: incomplete checkpoint, no {name}")
    state = _state(path, "config.json")
    config = ranges.read(path / "config.json")
    state: Any = {"machine": {}} | state
    for name, expected in TYPES.items():
        if not isinstance(state.get(name), expected):
            problem = f"{name!r} is missing or no {expected.__name__}"
            raise ValueError(f"{path / 'state.json'}: {problem}")
    try:
        objects(state["categories"], {"id": int, "name": str})
    except ValueError as error:
        raise ValueError(f"{path / 'state.json'}: 'categories': {error}") from None
    if len(state["categories"]) != config.num_classes:
        raise ValueError(
            f"{path}: {len(state['categories'])} categories,"
            f" but the configuration has {config.num_classes} classes"
        )
    return Checkpoint(path, config, *(state[name] for name in TYPES))


def verify(path: str | Path) -> Checkpoint:
    """Read a checkpoint and compare its tensors with their digests, if it is not older than these.

    Raises ValueError, in one line, for what is missing, damaged or edited.
    """
    checkpoint = read(path)
    _state(checkpoint.path, *FILES[:-1])
    return checkpoint


def check_weights(path: Path) -> None:
    """Raise ValueError if a file of weights, or what lies beside it in a checkpoint, was changed.

    Files without a state.json beside them, or with one that is older than digests, pass.
    """
    folder = path.parent
    if path.name == FILES[0] and (folder / "state.json").is_file():
        state = read_json(folder / "state.json")
        if isinstance(state, dict) and state.get("format") in FORMATS:
            beside = (name for name in ("config.json",) if (folder / name).is_file())
            _state(folder, path.name, *beside)


def _state(path, *names):
    """Read state.json; raise ValueError if it or one of the files `names` beside it was changed."""
    file = path / "state.json"
    state = read_json(file)
    if not isinstance(state, dict) or state.get("format") not in FORMATS:
        raise ValueError(f"{file}: not a checkpoint of format {' or '.join(map(str, FORMATS))}")
    if state["format"] > 1:
        digests.check(file, state, names)
    return state


@torch.no_grad()
def restore(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    average: Average | None = None,
) -> Checkpoint:
    """Copy the tensors of a checkpoint into `model`, `optimizer` and `average`.

    With an average, the model gets the weights that training goes on with.
    Raises ValueError, in one line, and changes nothing if they are damaged or do not fit.
    """
    checkpoint = verify(path)
    weights = _tensors(checkpoint.path / "model.safetensors")
    state = model.state_dict()
    _check_names(checkpoint.path / "model.safetensors", weights.keys(), state.keys())
    _check_shapes(checkpoint.path / "model.safetensors", weights, state)
    own = {}
    if optimizer is not None:
        averages = {} if average is None else average.tensors
        path = checkpoint.path / "optimizer.safetensors"
        own = _restore_optimizer(path, optimizer, averages)
        for name, tensor in averages.items():
            tensor.copy_(weights[name])
    for name, tensor in (weights | own).items():
        state[name].copy_(tensor)
    return checkpoint


def _restore_optimizer(path, optimizer, averages):
    """Restore the state of the optimizer; return the weights beside it, of a run with averages."""
    tensors, parameters = _tensors(path), _parameters(optimizer)
    own = {key: tensors.pop(key) for key in list(tensors) if key.startswith(f"{WEIGHTS}/")}
    own = {key.partition("/")[2]: tensor for key, tensor in own.items()}
    _check_names(path, own.keys(), averages.keys())
    _check_shapes(path, own, averages)
    if tensors:
        _check_names(path, {key.partition("/")[2] for key in tensors}, parameters.keys())
    for key, tensor in tensors.items():
        state_name, _, name = key.partition("/")
        parameter = parameters[name]
        # In the parameter's memory layout: fused updates read both in storage order.
        if tensor.shape == parameter.shape:
            tensor = torch.empty_like(parameter).copy_(tensor)
        optimizer.state[parameter][state_name] = tensor.to(parameter.device)
    return own


def _parameters(optimizer) -> dict:
    """Return {name: parameter}."""
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }


def _optimizer_tensors(optimizer) -> dict:
    names = {parameter: name for name, parameter in _parameters(optimizer).items()}
    return {
        f"{state_name}/{names[parameter]}": tensor.cpu().contiguous()
        for parameter, state in optimizer.state.items()
        for state_name, tensor in state.items()
    }


def _on_cpu(tensors) -> dict:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _check_names(path, names, expected):
    differences = {"lacks": sorted(expected - names), "has unknown": sorted(names - expected)}
    for problem, differing in differences.items():
        if differing:
            more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
            raise ValueError(f"{path} {problem} {differing[0]}{more}")


def _check_shapes(path, tensors, expected):
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{list(tensor.shape)}, the model's {list(expected[name].shape)}"
            predicts = name.rpartition(".")[0] in PREDICTORS
            hint = " (another number of classes?)" if predicts else ""
            raise ValueError(f"{path}: {name} is {shapes}{hint}")


def _tensors(path) -> dict:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged ({error})") from None


def _save_tensors(tensors, path):
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def _write_json(path, content):
    with naming(path):
        path.write_text(json.dumps(content, indent=1) + "\n")
