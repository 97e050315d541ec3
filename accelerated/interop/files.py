"""Files of tensors: safetensors, torch.save, pickles of arrays, folders. Nothing is executed."""

import difflib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from accelerated.data.text_files import read_json
from accelerated.data.values import objects, short
from accelerated.interop import download, ranges, torch_files, unpickle, zoo
from accelerated.interop.pickle_machine import FACTOR
from reference.config import Config

# A file, a folder, the name of a published file, or the tensors themselves by name.
Source = str | Path | Mapping[str, Any]

# The keys under which training scripts and Caffe2 store the weights.
WRAPPERS = ("model", "state_dict", "blobs")
# Entries of Caffe2's files that are not weights.
NOT_WEIGHTS = re.compile(r".*_momentum|weight_order")
# The longest name of a tensor.
LONGEST = 300


@contextmanager
def naming(source: Source) -> Iterator[None]:
    """Begin the message of every ValueError with the file's name, if `source` is a file."""
    try:
        yield
    except ValueError as error:
        if isinstance(source, Mapping) or str(error).startswith(str(source)):
            raise
        raise type(error)(f"{source}: {error}") from error


def read(source: Source) -> dict[str, torch.Tensor]:
    """Read {name: tensor} from a file, the folder of a run or checkpoint, a name, or a mapping.

    Raises ValueError for anything else.
    """
    if isinstance(source, Mapping):
        return _tensors(source)
    path = locate(source)
    if path.suffix == ".safetensors":
        # Here, because `interop.use_our_operators` needs only PyTorch and torchvision.
        import safetensors.torch

        from accelerated.engine import checkpoint

        checkpoint.check_weights(path)
        try:
            content = safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"not a safetensors file, or damaged ({error})") from error
    elif path.suffix == ".pkl":
        content = unpickle.load(path)
    else:
        content = torch_files.load(path)
    return _tensors(content, FACTOR * path.stat().st_size)


def read_config(source: Source) -> Config | None:
    """Read config.json from the folder of the weights; None if there is none."""
    path = _beside(source, "config.json")
    return None if path is None else ranges.read(path)


def read_categories(source: Source) -> list[dict] | None:
    """Read the categories in state.json in the folder of the weights; None if there are none."""
    path = _beside(source, "state.json")
    state = None if path is None else read_json(path)
    stored = state.get("categories") if isinstance(state, dict) else None
    try:
        return None if stored is None else objects(stored, {"id": int, "name": str})
    except ValueError as error:
        raise ValueError(f"the categories in state.json are damaged: {error}") from None


def _beside(source, name):
    """Return the path of a file in the folder of the weights; None if there is none."""
    path = None if isinstance(source, Mapping) else locate(source).with_name(name)
    return path if path is not None and path.is_file() else None


def published_name(source: Source) -> str | None:
    """Return the source if it names a published file: weights on the disk go before."""
    if isinstance(source, Mapping) or _on_disk(Path(source)).is_file():
        return None
    return str(source) if str(source) in zoo.ENTRIES else None


def locate(source: str | Path) -> Path:
    """Return the file of the weights in a run or checkpoint, of a file, or of a published name.

    What is published under a name and not here yet is downloaded. ValueError if there is no file.
    """
    name, path = published_name(source), _on_disk(Path(source))
    if name:
        return download.fetch(zoo.ENTRIES[name])
    if not path.is_file() and Path(source).is_dir():
        raise ValueError(f"{source}: neither a run nor a checkpoint, it has no model.safetensors")
    if not path.is_file():
        refuse(str(source), path)
    return path


def _on_disk(path):
    """Return the file at `path`, or of the weights in a folder; whether or not there is one."""
    if not path.is_dir():
        return path
    folder = path if (path / "model.safetensors").is_file() else path / "last"
    return folder / "model.safetensors"


def refuse(source: str, path: Path | None = None) -> NoReturn:
    """Raise ValueError: there is neither a file at `path` nor a published one called `source`."""
    near = difflib.get_close_matches(source, zoo.ENTRIES, n=1, cutoff=0.75)
    hint = f"; did you mean {near[0]}? `maskrcnn weights` lists the names" if near else ""
    raise ValueError(f"{path or source}: no such {'file' if path else 'weights'}{hint}")


def _tensors(content, limit=None):
    """Return {name: tensor} of what a file holds, together at most `limit` bytes."""
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        what = "nothing" if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"expected named tensors, got {what}")
    tensors, size = {}, 0
    for key, value in content.items():
        name = str(key)
        if NOT_WEIGHTS.fullmatch(name):
            continue
        if len(name) > LONGEST or not name.isprintable():
            raise ValueError(f"{short(name)} is no name of a tensor")
        if not isinstance(value, torch.Tensor | np.ndarray | np.generic):
            raise ValueError(f"expected named tensors, but {name!r} is a {type(value).__name__}")
        tensor = tensors[name.removeprefix("module.")] = torch.as_tensor(value)
        size += tensor.nbytes
        if limit is not None and size > limit:
            raise ValueError(
                f"{name}: up to this tensor the file claims more than {FACTOR} times its own size"
            )
    return tensors
