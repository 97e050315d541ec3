"""Checkpoints: folders of safetensors and JSON, nothing pickled; either complete or absent.

RUN/checkpoints/00001000/model.safetensors      weights and buffers by state_dict name
                         optimizer.safetensors  "<state>/<parameter>", such as
                                                "momentum_buffer/fpn.lateral2.weight"
                         config.json            reference.config.to_dict(config)
                         state.json             format, iteration, categories, settings of the run
RUN/last -> checkpoints/00001000                 the newest
RUN/best -> checkpoints/00000800                 the one with the highest average precision
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from accelerated.data.text_files import parse_json
from accelerated.data.values import objects
from accelerated.interop import ranges
from reference.config import Config, to_dict

FORMAT = 1
FILES = ("model.safetensors", "optimizer.safetensors", "config.json", "state.json")
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


def save(
    run: str | Path,
    model: nn.Module,
    config: Config,
    categories: list[dict],
    optimizer: torch.optim.Optimizer,
    iteration: int,
    *,
    settings: dict | None = None,
    keep: int = 3,
) -> Path:
    """Write RUN/checkpoints/<iteration>, point RUN/last at it and delete all but the `keep` newest.

    The one that RUN/best points at is never deleted. The folder gets its name only once all its
    bytes are on the disk, so that a killed process leaves the previous checkpoint intact.
    Returns the path of the checkpoint.
    Raises ValueError, and writes nothing, if a weight or buffer is not finite.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"{name} is not finite at iteration {iteration}: no checkpoint written"
            )
    run, folder = Path(run), Path(run) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    # Left by a process that was killed.
    for stale in folder.glob(".*"):
        shutil.rmtree(stale)
    partial, path = folder / f".{iteration:08d}", folder / f"{iteration:08d}"
    partial.mkdir()
    save_file(tensors, partial / "model.safetensors")
    save_file(_optimizer_tensors(optimizer), partial / "optimizer.safetensors")
    state = {
        "format": FORMAT,
        "iteration": iteration,
        "categories": categories,
        "settings": settings or {},
    }
    (partial / "config.json").write_text(json.dumps(to_dict(config), indent=1) + "\n")
    (partial / "state.json").write_text(json.dumps(state, indent=1) + "\n")
    for name in FILES:
        _sync(partial / name)
    _sync(partial)
    # A run that was resumed from an older checkpoint writes this one again.
    if path.exists():
        path.rename(folder / f".{iteration:08d}.old")
    partial.rename(path)
    _sync(folder)
    _point(run, "last", path)
    shutil.rmtree(folder / f".{iteration:08d}.old", ignore_errors=True)
    older = [p for p in sorted(folder.glob("[0-9]*"), reverse=True) if p != path]
    for p in older[max(keep, 1) - 1 :]:
        if p.name != best(run):
            shutil.rmtree(p)
    return path


def mark_best(run: str | Path, iteration: int) -> None:
    """Point RUN/best at the checkpoint of `iteration`; the one before goes with the next save."""
    _point(Path(run), "best", Path(run) / "checkpoints" / f"{iteration:08d}")


def best(run: str | Path) -> str | None:
    """Return the name of the checkpoint that RUN/best points at; None if there is none."""
    link = Path(run) / "best"
    return os.readlink(link).rpartition("/")[2] if link.is_symlink() and link.exists() else None


def _point(run, name, path):
    """Make RUN/<name> a link to a checkpoint at once, so that a killed process leaves the old."""
    link = run / f".{name}"
    link.unlink(missing_ok=True)
    link.symlink_to(path.relative_to(run), target_is_directory=True)
    link.replace(run / name)


def exists(run: str | Path) -> bool:
    """Tell whether RUN has a last checkpoint, be it damaged."""
    return os.path.lexists(Path(run) / "last")


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

    Raises ValueError, in one line, for a file that is missing, damaged or of another format.
    """
    path = find(path)
    for name in FILES:
        if not (path / name).is_file():
            raise ValueError(f"{path}: incomplete checkpoint, no {name}")
    config, state = ranges.read(path / "config.json"), _json(path / "state.json")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path / 'state.json'}: not a checkpoint of format {FORMAT}")
    for name, expected in (("iteration", int), ("categories", list), ("settings", dict)):
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
    return Checkpoint(path, config, state["categories"], state["iteration"], state["settings"])


@torch.no_grad()
def restore(
    path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> Checkpoint:
    """Copy the tensors of a checkpoint into `model` and `optimizer`.

    Raises ValueError, in one line, and changes nothing if they do not fit.
    """
    checkpoint = read(path)
    weights = _tensors(checkpoint.path / "model.safetensors")
    state = model.state_dict()
    _check_names(checkpoint.path / "model.safetensors", weights.keys(), state.keys())
    _check_shapes(checkpoint.path / "model.safetensors", weights, state)
    if optimizer is not None:
        _restore_optimizer(checkpoint.path / "optimizer.safetensors", optimizer)
    for name, tensor in weights.items():
        state[name].copy_(tensor)
    return checkpoint


def _restore_optimizer(path, optimizer):
    tensors, parameters = _tensors(path), _parameters(optimizer)
    if tensors:
        _check_names(path, {key.partition("/")[2] for key in tensors}, parameters.keys())
    for key, tensor in tensors.items():
        state_name, _, name = key.partition("/")
        parameter = parameters[name]
        # In the parameter's memory layout: fused updates read both in storage order.
        if tensor.shape == parameter.shape:
            tensor = torch.empty_like(parameter).copy_(tensor)
        optimizer.state[parameter][state_name] = tensor.to(parameter.device)


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


def _json(path):
    try:
        return parse_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _sync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
