"""Text, JSON and YAML files: one error for whatever is wrong with them, and none half written."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def parse_json(path: Path) -> Any:
    """Parse a JSON file. Raises ValueError, with the reason, whatever is wrong with it."""
    raw = _read(path)
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("the file is not JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"the file is not JSON: {error}") from None


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises ValueError that begins with its path, whatever is wrong with it."""
    try:
        return parse_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_yaml(path: Path) -> Any:
    """Parse a YAML file. Raises ValueError, with the reason, whatever is wrong with it."""
    # Here, because `interop.use_our_operators` needs only PyTorch and torchvision.
    import yaml

    raw = _read(path)
    try:
        return yaml.safe_load(raw)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"the file is not YAML: {' '.join(str(error).split())}") from None


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file. Raises ValueError, with the reason, if that is not possible.

    Bytes that are no UTF-8 are replaced.
    """
    return _read(path).decode("utf-8-sig", errors="replace").splitlines()


def _read(path):
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror}") from None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in errors of the system that do not, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Create a folder and those above it, and wait until they are on the disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


@contextmanager
def written_whole(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Open a file for writing that gets its name when all of it is on the disk.

    A killed process or a full disk leaves the file that was there before. The folder is created.
    """
    path = Path(path)
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}")
    try:
        with naming(path), partial.open(mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: str | Path, content: Any) -> None:
    """Write a whole JSON file or none of it, and create its folder."""
    with written_whole(path) as file:
        json.dump(content, file)
