"""Files of tensors: safetensors, torch.save, pickles of arrays, checkpoint folders of ours. Nothing in them is run."""

import json
import re
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch

from accelerated.interop import unpickle
from reference import config as configuration

WRAPPERS = (
    "model",
    "state_dict",
    "blobs",
)  # what training scripts, and Caffe2, keep the weights under
NO_WEIGHTS = re.compile(r".*_momentum|weight_order")  # beside Caffe2's weights


@contextmanager
def about(source):
    """Errors from within begin with the file's name, where `source` is one."""
    try:
        yield
    except ValueError as error:
        if isinstance(source, Mapping) or str(error).startswith(str(source)):
            raise
        raise type(error)(f"{source}: {error}") from error


def read(source):
    """{name: tensor} of a file, of a checkpoint folder of ours or of its run, or of a mapping; ValueError for anything else."""
    if isinstance(source, Mapping):
        return _tensors(source)
    path = _weights(source)
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"not a safetensors file, or damaged ({error})") from error
    return _tensors(unpickle.load(path) if path.suffix == ".pkl" else _torch(path))


def config_beside(source):
    """The Config that lies beside weights of ours as config.json, or None."""
    if isinstance(source, Mapping):
        return None
    path = _weights(source).with_name("config.json")
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from error
    return configuration.from_dict(values)


def _weights(source):
    path = Path(source)
    if path.is_dir():
        path = (
            path if (path / "model.safetensors").is_file() else path / "last"
        ) / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return path


def _torch(path):
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the archive, the unpickler or the file system objects to
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted:
            raise ValueError(
                f"refused, for beside plain tensors it holds {wanted[1]}. Nothing was run. If you trust its origin, read it there and"
                " torch.save its state dict alone"
            ) from error
        first = " ".join(str(error).split(". ")[0].split())
        raise ValueError(
            f"not a file of plain tensors, or damaged ({type(error).__name__}: {first})"
        ) from error


def _tensors(content):
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"expected named tensors, got {type(content).__name__}")
    content = {
        str(name): value for name, value in content.items() if not NO_WEIGHTS.fullmatch(str(name))
    }
    wrong = [
        name
        for name, value in content.items()
        if not isinstance(value, torch.Tensor | np.ndarray | np.generic)
    ]
    if wrong:
        raise ValueError(
            f"expected named tensors, but {wrong[0]!r} is a {type(content[wrong[0]]).__name__}"
        )
    return {name.removeprefix("module."): torch.as_tensor(value) for name, value in content.items()}
