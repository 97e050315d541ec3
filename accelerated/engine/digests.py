"""SHA-256 digests, by which a checkpoint notices that it is not what was written."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path


def seal(state: dict, folder: Path, names: Iterable[str]) -> dict:
    """Return `state` with the digests of files in `folder`, and one of all this."""
    state = state | {"files": {name: _of_file(folder / name) for name in names}}
    return state | {"sha256": _of_values(state)}


def check(path: Path, state: dict, names: Iterable[str]) -> None:
    """Raise ValueError if `state`, read from the file `path`, or files beside it were changed."""
    if _of_values({key: x for key, x in state.items() if key != "sha256"}) != state.get("sha256"):
        raise ValueError(f"{path}: damaged or edited, its SHA-256 is another")
    files = state.get("files")
    for name in names:
        if not isinstance(files, dict) or _of_file(path.with_name(name)) != files.get(name):
            raise ValueError(f"{path.with_name(name)}: damaged, its SHA-256 is another")


def _of_file(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_values(values):
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
