"""Checkpoints: one folder each, safetensors and JSON, never pickle; complete or not there at all.

RUN/checkpoints/00001000/model.safetensors      weights and buffers by state_dict name
                         optimizer.safetensors  "<state>/<parameter>", such as "momentum_buffer/fpn.lateral2.weight"
                         config.json            reference.config.to_dict(config)
                         state.json             format, iteration, categories, settings of the run
RUN/last -> checkpoints/00001000
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

from reference.config import Config, from_dict, to_dict

FORMAT = 1
FILES = ("model.safetensors", "optimizer.safetensors", "config.json", "state.json")
PREDICTORS = (
    "box_head.class_logits",
    "box_head.box_deltas",
    "mask_head.logits",
)  # the layers whose width is the number of classes


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says about itself, without its tensors."""

    path: Path
    config: Config
    categories: list[dict]  # {"id", "name"}; label k is categories[k - 1]
    iteration: int  # steps taken
    settings: dict  # of the run, as given to `save`


def save(
    run,
    model: nn.Module,
    config: Config,
    categories: list[dict],
    optimizer,
    iteration: int,
    *,
    settings=None,
    keep=3,
) -> Path:
    """Write RUN/checkpoints/<iteration>, point RUN/last at it and delete all but the `keep` newest; returns its path.

    The folder appears under its name only once every byte of it is on the disk: a killed process leaves the last one good.
    ValueError, and nothing is written, if a weight or buffer is not finite.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"{name} is not finite at iteration {iteration}: no checkpoint written"
            )
    run, folder = Path(run), Path(run) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".*"):  # of a process that was killed
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
    if path.exists():  # resumed from an older one
        path.rename(folder / f".{iteration:08d}.old")
    partial.rename(path)
    _sync(folder)
    link = run / ".last"
    link.unlink(missing_ok=True)
    link.symlink_to(path.relative_to(run), target_is_directory=True)
    link.replace(run / "last")
    shutil.rmtree(folder / f".{iteration:08d}.old", ignore_errors=True)
    older = [p for p in sorted(folder.glob("[0-9]*"), reverse=True) if p != path]
    for p in older[max(keep, 1) - 1 :]:
        shutil.rmtree(p)
    return path


def find(path) -> Path:
    """The checkpoint folder meant by `path`: itself, or the last one of a run's folder; ValueError if it is neither."""
    path = Path(path)
    for candidate in (path, path / "last"):
        if (candidate / "state.json").is_file():
            return candidate.resolve()
    raise ValueError(f"{path}: {'holds no checkpoint' if path.is_dir() else 'no such checkpoint'}")


def read(path) -> Checkpoint:
    """The JSON half of a checkpoint; ValueError in one line for anything missing, damaged or of another format."""
    path = find(path)
    for name in FILES:
        if not (path / name).is_file():
            raise ValueError(f"{path}: incomplete checkpoint, no {name}")
    config, state = from_dict(_json(path / "config.json")), _json(path / "state.json")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path / 'state.json'}: not a checkpoint of format {FORMAT}")
    for name, kind in (("iteration", int), ("categories", list), ("settings", dict)):
        if not isinstance(state.get(name), kind):
            raise ValueError(f"{path / 'state.json'}: {name!r} is missing or no {kind.__name__}")
    if len(state["categories"]) != config.num_classes:
        raise ValueError(
            f"{path}: {len(state['categories'])} categories, but the configuration has {config.num_classes} classes"
        )
    return Checkpoint(path, config, state["categories"], state["iteration"], state["settings"])


@torch.no_grad()
def restore(path, model: nn.Module, optimizer=None) -> Checkpoint:
    """Copy a checkpoint's tensors into `model` and `optimizer`; ValueError in one line, and nothing changed, if they do not fit."""
    checkpoint = read(path)
    weights = _tensors(checkpoint.path / "model.safetensors")
    state = model.state_dict()
    _check_fit(checkpoint.path / "model.safetensors", weights, state)
    if optimizer is not None:
        tensors = _tensors(checkpoint.path / "optimizer.safetensors")
        parameters = _named(optimizer)
        trained = {key.partition("/")[2] for key in tensors}
        if tensors:
            _check_fit(
                checkpoint.path / "optimizer.safetensors",
                dict.fromkeys(trained),
                dict.fromkeys(parameters),
            )
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            parameter = parameters[name]
            if (
                tensor.shape == parameter.shape
            ):  # in its memory layout: fused updates go through both in storage order
                tensor = torch.empty_like(parameter).copy_(tensor)
            optimizer.state[parameter][kind] = tensor.to(parameter.device)
    for name, tensor in weights.items():
        state[name].copy_(tensor)
    return checkpoint


def _named(optimizer) -> dict:
    return {
        name: p
        for group in optimizer.param_groups
        for name, p in zip(group["param_names"], group["params"], strict=True)
    }


def _optimizer_tensors(optimizer) -> dict:
    names = {p: name for name, p in _named(optimizer).items()}
    return {
        f"{kind}/{names[p]}": t.cpu().contiguous()
        for p, state in optimizer.state.items()
        for kind, t in state.items()
    }


def _check_fit(path, found, expected):
    """Same names, same shapes."""
    for title, names in (
        ("lacks", sorted(expected.keys() - found.keys())),
        ("has unknown", sorted(found.keys() - expected.keys())),
    ):
        if names:
            raise ValueError(
                f"{path} {title} {names[0]}"
                + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            )
    for name, tensor in found.items():
        if tensor is not None and tensor.shape != expected[name].shape:
            classes = (
                " (another number of classes?)" if name.rpartition(".")[0] in PREDICTORS else ""
            )
            raise ValueError(
                f"{path}: {name} is {list(tensor.shape)}, the model's {list(expected[name].shape)}{classes}"
            )


def _tensors(path) -> dict:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged ({error})") from None


def _json(path):
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from None


def _sync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
