"""Find the picture files that a user names, and choose names for what is drawn on them."""

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from accelerated.data.images import SUFFIXES

# A drawing keeps these and is a PNG otherwise.
KEPT = {".jpeg", ".jpg", ".png"}
# What `predict` can write.
SAVED = ("json", "png", "labelme", "yolo")


@dataclass
class Found:
    """The pictures, and what was passed over in folders.

    pictures  {path: its name, with the folders below the one that was named}
    hidden    hidden files, and hidden folders where folders are searched
    others    files that are no pictures by their ending
    folders   folders inside folders that were not searched
    """

    pictures: dict[Path, Path] = field(default_factory=dict)
    hidden: int = 0
    others: int = 0
    folders: int = 0

    def add(self, path: Path, name: Path) -> None:
        """Add a picture, unless it is there already."""
        self.pictures.setdefault(path, name)


def find(
    inputs: Iterable[str | Path], recursive: bool = False, exclude: str | Path | None = None
) -> Found:
    """Expand files, folders and globs to files, each once, in the given order.

    recursive  search the folders in folders too
    exclude    a folder that this does not search: that of the drawings

    A path that does not exist is kept, to fail when it is read. Raises ValueError without any file.
    """
    found, inputs = Found(), list(map(str, inputs))
    without = None if exclude is None else Path(exclude).resolve()
    for path in (path for item in inputs for path in _matches(item)):
        if path.is_dir():
            _search(path, found, recursive, without)
        else:
            found.add(path, Path(path.name))
    if not found.pictures:
        hint = "; folders inside were not searched: --recursive" if found.folders else ""
        raise ValueError(f"no picture in {', '.join(inputs) or 'an empty list'}{hint}")
    return found


def drawings(pictures: dict[Path, Path], output: Path) -> dict[Path, Path]:
    """Return {path: that of its drawing below `output`}, all different.

    pictures  as in `Found`

    A picture keeps its name, and its ending if that is .jpg or .png. Where a name is taken, later
    pictures get an index that no other name has; letters count as equal in upper and lower case.
    Raises ValueError if a drawing would replace an input picture.
    """
    chosen, taken, late = {}, set(), []
    for path, name in pictures.items():
        name = name if name.suffix.lower() in KEPT else name.with_suffix(".png")
        if str(name).lower() in taken:
            late.append((path, name))
            continue
        taken.add(str(name).lower())
        chosen[path] = output / name
    for path, name in late:
        indexed = (name.with_stem(f"{name.stem}_{index}") for index in count(2))
        name = next(name for name in indexed if str(name).lower() not in taken)
        taken.add(str(name).lower())
        chosen[path] = output / name
    inputs = {path.resolve() for path in pictures}
    for path in chosen.values():
        if path.resolve() in inputs:
            raise ValueError(
                f"{path} is an input picture and would be overwritten: choose another folder"
            )
    return chosen


def _matches(item):
    path = Path(item)
    if path.exists():
        return [path]
    matches = sorted(map(Path, glob.glob(item, recursive=True)))
    return matches if matches or glob.has_magic(item) else [path]


def _search(root, found, recursive, without):
    """Add the pictures of a folder by name."""
    pictures = []
    for parent, folders, files in os.walk(root, onerror=_stop):
        folder = Path(parent)
        hidden = [name for name in folders if name.startswith(".")]
        inside = [name for name in folders if (folder / name).resolve() != without]
        folders[:] = [name for name in inside if recursive and name not in hidden]
        found.folders += 0 if recursive else len(set(inside) - set(hidden))
        found.hidden += len(hidden) if recursive else 0
        for name in files:
            if name.startswith("."):
                found.hidden += 1
            elif Path(name).suffix.lower() in SUFFIXES:
                pictures.append(folder / name)
            else:
                found.others += 1
    for path in sorted(pictures):
        found.add(path, path.relative_to(root))


def _stop(error):
    raise error
