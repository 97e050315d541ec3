"""Find the pictures and videos that a user names, and choose names for what is written of them."""

import glob
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from accelerated.data.images import SUFFIXES
from accelerated.engine.video import camera, is_video

# A drawing keeps these and is a PNG otherwise.
KEPT = {".jpeg", ".jpg", ".png"}
# What `predict` can write; of a video only the first three.
SAVED = ("json", "png", "csv", "crops", "masks", "labelme", "yolo")
OF_VIDEOS = SAVED[:3]
# Bytes of a name, so that there is room for an index, a number and another ending below 255.
LONGEST = 220
# Names that Windows keeps for devices.
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass
class Found:
    """The pictures and videos, and what was passed over in folders.

    pictures  {path: its name, with the folders below the one that was named}
    videos    the same of video files that were named, and of cameras
    hidden    hidden files, and hidden folders where folders are searched
    others    files that are no pictures by their ending
    films     videos in folders
    folders   folders inside folders that were not searched
    """

    pictures: dict[Path, Path] = field(default_factory=dict)
    videos: dict[Path, Path] = field(default_factory=dict)
    hidden: int = 0
    others: int = 0
    films: int = 0
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

    A path that does not exist is kept, to fail when it is read. A video counts where it is named,
    not where it lies in a folder. Raises ValueError without any file.
    """
    found, inputs = Found(), list(map(str, inputs))
    without = None if exclude is None else Path(exclude).resolve()
    for path in (path for item in inputs for path in _matches(item)):
        if path.is_dir():
            _search(path, found, recursive, without)
        elif is_video(path):
            name = path.name.replace(":", "_") if camera(path) else path.name
            found.videos.setdefault(path, Path(name))
        else:
            found.add(path, Path(path.name))
    if not found.pictures and not found.videos:
        hint = "; folders inside were not searched: --recursive" if found.folders else ""
        hint += "; videos in a folder are read if they are named" if found.films else ""
        raise ValueError(f"no picture in {', '.join(inputs) or 'an empty list'}{hint}")
    return found


def drawings(pictures: dict[Path, Path], output: Path) -> dict[Path, Path]:
    """Return {path: that of its drawing below `output`}, all different.

    pictures  as in `Found`

    A picture keeps its name, and its ending if that is .jpg or .png. Where a name is taken, later
    pictures get an index that no other name has; letters count as equal in upper and lower case.
    Raises ValueError if a drawing would replace an input picture.
    """
    names = {
        path: name if name.suffix.lower() in KEPT else name.with_suffix(".png")
        for path, name in pictures.items()
    }
    return _below(output, distinct(names), "picture")


def films(videos: dict[Path, Path], output: Path) -> dict[Path, Path]:
    """Return {path: that of its drawn .mp4 file below `output`}, all different.

    None is called "predictions", as what is written of pictures is.
    Raises ValueError if one would replace an input video.
    """
    names = {path: name.with_suffix(".mp4") for path, name in videos.items()}
    return _below(output, distinct(names, ("predictions.mp4",)), "video")


def stems(pictures: dict[Path, Path]) -> dict[Path, Path]:
    """Return {path: its name without ending}, all different, as in `drawings`."""
    names = distinct({path: name.with_suffix(".png") for path, name in pictures.items()})
    return {path: name.with_suffix("") for path, name in names.items()}


def distinct(names: Mapping[Path, Path], taken: Iterable[str] = ()) -> dict[Path, Path]:
    """Give those keys an index whose name another key has already, and cut what is too long.

    taken  names, in lower case, that nothing gets
    """
    chosen, used, late = {}, set(taken), []
    for path, name in names.items():
        name = name.with_name(_cut(name.stem, LONGEST - len(name.suffix)) + name.suffix)
        if str(name).lower() in used:
            late.append((path, name))
            continue
        used.add(str(name).lower())
        chosen[path] = name
    for path, name in late:
        indexed = (name.with_stem(f"{name.stem}_{index}") for index in count(2))
        name = next(name for name in indexed if str(name).lower() not in used)
        used.add(str(name).lower())
        chosen[path] = name
    return chosen


def folders(names: Sequence[str]) -> list[str]:
    """Return a name of a folder for each class, all different, that every system allows."""
    safe, used = [], set()
    for label, name in enumerate(names, start=1):
        plain = unicodedata.normalize("NFC", name).encode(errors="replace").decode()
        plain = re.sub(r'[<>:"/\\|?*\x00-\x1f\x7f]', "_", plain)
        plain = _cut(plain.strip(" ."), LONGEST) or f"class {label}"
        plain = f"_{plain}" if DEVICES.fullmatch(plain) else plain
        tried = (plain if index == 1 else f"{plain}_{index}" for index in count(1))
        chosen = next(name for name in tried if name.casefold() not in used)
        used.add(chosen.casefold())
        safe.append(chosen)
    return safe


def _cut(text, most):
    """Cut a text to so many bytes."""
    return os.fsencode(text)[:most].decode(errors="ignore") if len(text) * 4 > most else text


def _below(output, names, kind):
    """Put names below the output folder, unless one of these files is an input."""
    inputs = {path.resolve() for path in names}
    for path in (output / name for name in names.values()):
        if path.resolve() in inputs:
            raise ValueError(
                f"{path} is an input {kind} and would be overwritten: choose another folder"
            )
    return {path: output / name for path, name in names.items()}


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
            elif is_video(folder / name):
                found.films += 1
            else:
                found.others += 1
    for path in sorted(pictures):
        found.add(path, path.relative_to(root))


def _stop(error):
    raise error
