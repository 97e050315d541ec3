"""Read a checkpoint that training wrote (engine/checkpoint.py) without PyTorch.

A safetensors file begins with 8 bytes, the length of the header. The header is JSON, {tensor name:
Entry}. The numbers of all tensors follow without gaps. Everything is little-endian and row-major.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from reference import typed
from reference.autodiff import Array
from reference.config import from_dict
from reference.mask_rcnn import MaskRCNN


@dataclass(frozen=True)
class Entry:
    """A tensor in the header: first and last byte (exclusive), counted from the header's end."""

    # Letter and bits. NumPy has no bfloat16.
    dtype: Literal["F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8"]
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def load(folder: str | Path, dtype: type = np.float64) -> MaskRCNN:
    """Return the model of a checkpoint, which computes in `dtype`, whatever the file's dtype is.

    folder holds config.json and model.safetensors, as RUN/last does. Raises ValueError, naming
    folder, file and tensor, for whatever is missing, damaged, of a dtype without a place in Entry,
    or does not fit the configuration.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: no {name}")
    try:
        config = from_dict(_json((folder / "config.json").read_bytes(), "config.json"))
        tensors = read_tensors(folder / "model.safetensors")
        floats = {name: x.astype(dtype) for name, x in tensors.items() if x.dtype.kind == "f"}
        return MaskRCNN(config, tensors | floats)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def read_tensors(path: Path) -> dict[str, Array]:
    """Return {name: array} of a safetensors file. Raises ValueError as `load` does."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = _json(data[8:start], f"{path.name}: header")
    header.pop("__metadata__", None)
    entries = {n: typed.build(Entry, x, f"{path.name}: {n}") for n, x in header.items()}
    length = start + max((entry.data_offsets[1] for entry in entries.values()), default=0)
    if len(data) != length:
        raise ValueError(f"{path.name}: {len(data)} bytes, but its header describes {length}")
    tensors, end = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        dtype = np.dtype(f"<{entry.dtype[0].lower()}{int(entry.dtype[1:]) // 8}")
        count, begin = math.prod(entry.shape), end
        end = begin + count * dtype.itemsize
        if entry.data_offsets != (begin, end):
            offsets = f"{list(entry.data_offsets)}, expected {[begin, end]}"
            raise ValueError(f"{path.name}: {name}.data_offsets: {offsets}")
        tensors[name] = np.frombuffer(data, dtype, count, start + begin).reshape(entry.shape)
    return tensors


def _json(text, name) -> dict:
    try:
        return typed.build(dict, json.loads(text), name)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: no JSON ({error})") from error
