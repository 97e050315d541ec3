"""What `--data` names: a file, parsed once, or a folder, listed once."""

import os
from collections import defaultdict
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from accelerated.data.images import SUFFIXES
from accelerated.data.text_files import parse_json

# Files that an error lists.
LISTED = 5


class Listing:
    """The files below a folder, by their relative paths with forward slashes, sorted.

    Hidden files and folders are left out, and links to folders are not followed.
    """

    def __init__(self, path: Path):
        self.path, self.files = path, []
        for parent, folders, files in os.walk(path):
            folders[:] = [name for name in folders if not _hidden(name)]
            relative = Path(parent).relative_to(path)
            self.files += [(relative / name).as_posix() for name in files if not _hidden(name)]
        self.files.sort()

    def having(self, *suffixes: str) -> list[str]:
        """Return the files whose name ends in one of the suffixes, such as ".json"."""
        return [name for name in self.files if name.lower().endswith(suffixes)]

    @cached_property
    def pictures(self) -> list[str]:
        """The files that look like pictures."""
        return [name for name in self.files if PurePosixPath(name).suffix.lower() in SUFFIXES]

    @cached_property
    def _known(self):
        return {name.casefold(): name for name in self.files}

    @cached_property
    def _by_name(self):
        return _grouped((PurePosixPath(name).name.casefold(), name) for name in self.pictures)

    @cached_property
    def _by_stem(self):
        return _grouped((PurePosixPath(name).stem.casefold(), name) for name in self.pictures)

    def find(self, reference: str, near: str = "", written_in: Path | None = None) -> str | None:
        """Find the picture that an annotation file names; None if there is none, or several.

        reference   as written there: a path with slashes of either kind, or a bare name
        near        folder of the annotation file, as a path in this list
        written_in  the same on the disk, where it is not a folder of this list

        Only files of this list are found, so that a name cannot lead outside the folder.
        """
        reference = reference.replace("\\", "/")
        parts = [p for p in PurePosixPath(reference).parts if p not in ("/", "..")]
        # Written on another machine, or for another folder, it may have more in front.
        ends = ["/".join(parts[start:]) for start in range(len(parts) - 1)]
        tried = [f"{near}/{reference}", reference, *ends]
        if written_in is not None:
            tried.insert(0, os.path.relpath(written_in.resolve() / reference, self.path.resolve()))
        for path in tried:
            found = self._known.get(os.path.normpath(path).lstrip("/").casefold())
            if found:
                return found
        return self._one(self._by_name, PurePosixPath(reference).name, near)

    def find_stem(self, stem: str) -> str | None:
        """Find the picture called `stem`, whatever its suffix; None if there is none, or several.

        stem  a path without suffix; the picture may stand in another folder
        """
        return self._one(self._by_stem, PurePosixPath(stem).name, str(PurePosixPath(stem).parent))

    def _one(self, index, key, near):
        found = index.get(key.casefold(), [])
        beside = [name for name in found if str(PurePosixPath(name).parent) == (near or ".")]
        if len(beside) == 1:
            return beside[0]
        return found[0] if len(found) == 1 else None


def linked_images(folder: Path) -> Path | None:
    """Return the link "images" in a folder to another folder, such as `writing.link_images` makes.

    Other links to folders are not followed.
    """
    link = folder / "images"
    return link if link.is_symlink() and link.is_dir() else None


class Place:
    """A file or folder of annotations.

    path   as given
    split  the part of the data that was asked for ("train", "val", ..), or None
    """

    def __init__(self, path: Path, split: str | None = None):
        self.path, self.split = path, split

    @cached_property
    def folder(self) -> Listing | None:
        """The list of files, if it is a folder."""
        return Listing(self.path) if self.path.is_dir() else None

    def only(self, files: list[str], format: str) -> Path:
        """Return the path of the only file. Raises ValueError if the folder has several."""
        if len(files) > 1:
            some = ", ".join([*files[:LISTED], *(["..."] if len(files) > LISTED else [])])
            raise ValueError(f"{self.path}: has several {format} files, {some}; name one")
        return self.path / files[0]

    @cached_property
    def content(self) -> Any:
        """The parsed content of a JSON file; None for anything else."""
        if self.path.suffix.lower() != ".json" or not self.path.is_file():
            return None
        try:
            return parse_json(self.path)
        except ValueError:
            return None

    @cached_property
    def samples(self) -> list[tuple[str, Any]]:
        """Some of the folder's JSON files, at most 40, from all its folders: (path, content)."""
        by_folder = _grouped(
            (PurePosixPath(name).parent, name)
            for name in (self.folder.having(".json") if self.folder else [])
        )
        names = [name for group in by_folder.values() for name in group[:3]][:40]
        samples = []
        for name in names:
            try:
                samples.append((name, parse_json(self.path / name)))
            except ValueError:
                continue
        return samples


def _hidden(name):
    return name.startswith(".") or name == "__MACOSX"


def _grouped(pairs):
    groups = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return groups
