"""Reader of files that torch.save wrote: zip archives, and the older format. Nothing is executed.

`torch.load` reserves what a file announces, expands archives, and hashes what its pickle names as a
key, be they a thousand times as large as the file. Here a storage is as long as the bytes that the
file has for it, and a tensor lies within its storage.
"""

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from accelerated.interop.pickle_machine import (
    FACTOR,
    Machine,
    NotAdmittedError,
    fill,
    reading,
    said,
)
from accelerated.interop.unpickle import ADMITTED

# Of an archive; those of large models have a thousand.
MEMBERS = 100_000
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def load(path: str | Path) -> Any:
    """Read what `torch.save` wrote, if that is tensors, arrays, numbers, texts and containers.

    Tensors are on the CPU. Raises ValueError for anything else, naming it, and for a damaged file.
    """
    with reading("a file of tensors"):
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        return _archive(path) if zipped else _older(Path(path).read_bytes())


def _archive(path):
    """Read a zip archive: NAME/data.pkl, and the bytes of a storage in each NAME/data/KEY."""
    limit = FACTOR * Path(path).stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        # Archives may be compressed, as tensors may overlap.
        if len(members) > MEMBERS or sum(member.file_size for member in members) > limit:
            raise NotAdmittedError(
                f"refused: an archive of more than {FACTOR} times its size or {MEMBERS:,} members"
            )
        roots = [m.filename.partition("/")[0] for m in members if m.filename.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError("an archive without data.pkl, or with several")

        def content(name):
            member = archive.getinfo(f"{roots[0]}/{name}")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{name} is compressed in a way that torch.save never uses")
            raw = archive.read(member)
            if len(raw) != member.file_size:
                raise EOFError(f"{name} ends too early")
            return raw

        if f"{roots[0]}/byteorder" in archive.namelist() and content("byteorder") != b"little":
            raise NotAdmittedError(BIG_ENDIAN)
        known: dict[str, torch.Tensor] = {}

        def storage(kind, key, numel, view=None):
            if key not in known:
                known[key] = _of_bytes(content(f"data/{key}"))
            return _typed(known[key], kind, numel)

        return Machine(content("data.pkl"), _functions(limit), _persistent(storage)).run()


def _older(data):
    """Read four pickles, the keys of the storages, and their bytes, each after a length."""
    if data[257:262] == b"ustar":
        raise NotAdmittedError("refused: an archive of PyTorch 0.1; save it again with a newer one")
    known: dict[str, torch.Tensor] = {}
    left = len(data)

    def storage(kind, key, numel, view=None):
        nonlocal left
        if key not in known:
            size = _whole(numel) * kind.itemsize
            left -= size
            if left < 0:
                raise EOFError("its storages are longer than the file")
            known[key] = torch.zeros(size, dtype=torch.uint8)
        typed = _typed(known[key], kind, numel)
        if view is None:
            return typed
        _, offset, count = view
        return typed[_whole(offset) : _whole(offset) + _whole(count)]

    machine = Machine(data, _functions(FACTOR * len(data)), _persistent(storage))
    magic, protocol, system = machine.run(), machine.run(), machine.run()
    if (magic, protocol) != (MAGIC, PROTOCOL):
        raise ValueError("no file of torch.save")
    if not system["little_endian"]:
        raise NotAdmittedError(BIG_ENDIAN)
    result, keys = machine.run(), machine.run()
    if not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(known):
        raise ValueError("the pickle names other storages than follow")
    position = machine.position
    for key in keys:
        start, position = position + 8, position + 8 + len(known[key])
        if position > len(data):
            raise EOFError("it ends too early")
        known[key].copy_(_of_bytes(data[start:position]))
    return result


def _of_bytes(raw):
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else NOTHING


def _whole(value):
    """Return a count."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{said(value)} is no count")
    return value


def _typed(whole, kind, numel):
    """Return the first elements of a storage."""
    size = _whole(numel) * kind.itemsize
    if size > len(whole):
        raise EOFError("a storage is shorter than it claims")
    return whole[:size].view(kind)


def _persistent(storage: Callable) -> Callable[[Any], torch.Tensor]:
    """Return what finds the storage that a pickle refers to."""

    def find(identification):
        what, kind, key, _, *rest = identification
        if what != "storage" or not isinstance(kind, torch.dtype) or not isinstance(key, str):
            raise NotAdmittedError(f"refused: it refers to a {said(what)}, which is no storage")
        return storage(kind, key, *rest)

    return find


def _functions(limit):
    """Return what a pickle of `torch.save` may name; no tensor is larger than `limit` bytes."""

    def tensor(storage, offset, size, stride, *_):
        size, stride = [_whole(n) for n in size], [_whole(n) for n in stride]
        count = math.prod(size)
        last = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if count and _whole(offset) + last >= len(storage):
            raise EOFError(f"a tensor of shape {size!s:.60} lies outside of its storage")
        if count * storage.itemsize > limit:
            raise NotAdmittedError(
                f"refused: a tensor of shape {size!s:.60} is more than {FACTOR} times as large as"
                " the file"
            )
        return storage[offset:].as_strided(size, stride) if count else storage.new_empty(size)

    functions = {
        ("torch._utils", "_rebuild_tensor"): tensor,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): _first,
        ("torch._utils", "_rebuild_parameter_with_state"): _first,
        ("torch._tensor", "_rebuild_from_type_v2"): lambda function, _, values, *__: function(
            *values
        ),
    }
    return FUNCTIONS | functions


def _first(data, *_):
    return data


BIG_ENDIAN = "refused: it was written by a big-endian machine; save it as .safetensors there"
NOTHING = torch.empty(0, dtype=torch.uint8)
FUNCTIONS = ADMITTED | {
    ("torch", "Size"): tuple,
    ("torch", "device"): lambda kind, *_: kind,
    ("torch", "Tensor"): "Tensor",
    ("torch.nn.parameter", "Parameter"): "Parameter",
    # What training stores beside the weights.
    ("collections", "Counter"): lambda counts: fill({}, counts.items()),
    ("builtins", "set"): list,
    ("__builtin__", "set"): list,
}
for _name, _dtype in STORAGES.items():
    FUNCTIONS |= {("torch", _name): _dtype, ("torch", str(_dtype).removeprefix("torch.")): _dtype}
