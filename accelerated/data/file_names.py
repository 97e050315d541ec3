"""Find the files that are meant by names which name none, as annotation programs export them.

Known of them: Windows' backslashes, absolute paths, links as in a browser, the folder of the export
or of an upload before the name, Label Studio's eight digits and Roboflow's hash in the name, and
names in other letters than those of the files.
"""

import contextlib
import difflib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from accelerated.data import images

# Files that are indexed at most, against an image folder that is a whole disk.
MOST = 1_000_000
# Names that are looked up in other folders.
TRIED = 100
# How a name was mended, in the order of the attempts.
SLASHES = "with / instead of \\"
DECODED = "with %20 and the like decoded"
SHORTER = "without {} in front"
DEEPER = "in {}"
LETTERS = "with capital and small letters, accents or blanks as in the file's name"
UPLOADED = "with or without the digits that Label Studio puts before names"
HASHED = "with or without Roboflow's .rf. hash"
SUFFIX = "with another file extension"


class Folder:
    """The files below an image folder, to look for those meant by wrong names."""

    def __init__(self, root: Path):
        self.root, self.files = root, set()
        self.named, self.looser = defaultdict(list), [defaultdict(list) for _ in _LOOSENED]
        for folder, _, names in os.walk(root):
            inside = Path(folder).relative_to(root)
            for name in names:
                file = (inside / name).as_posix()
                self.files.add(file)
                self.named[name].append(file)
                for (_, loosen), index in zip(_LOOSENED, self.looser, strict=True):
                    index[loosen(name)].append(file)
            if len(self.files) > MOST:
                break

    def mend(self, name: str) -> tuple[str, tuple[str, ...]] | None:
        """Return the one file that a name can mean, below the folder, and how the name differs."""
        mended = self._mend(name)
        # Not a link that leads outside.
        return mended if mended and exists(self.root, mended[0]) else None

    def mend_all(self, names: Iterable[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Mend the names that name no file; two that mean the same file stay as they are."""
        names = list(names)
        found = {name: self.mend(name) for name in names if name not in self.files}
        taken = Counter(name for name in names if name in self.files)
        taken.update(mended[0] for mended in found.values() if mended)
        return {name: mended for name, mended in found.items() if mended and taken[mended[0]] == 1}

    def _mend(self, name):
        how, mended = [], name
        if "\\" in mended:
            how, mended = [SLASHES], mended.replace("\\", "/")
        if re.search("%[0-9a-fA-F]{2}", mended) and mended not in self.files:
            how, mended = [*how, DECODED], unquote(mended)
        # Label Studio's link to a file of its disk, and a link's parameters.
        mended = mended.rpartition("?d=")[2]
        if "://" in mended:
            mended = mended.partition("?")[0]
        parts = mended.split("/")
        for start in range(len(parts)):
            if "/".join(parts[start:]) in self.files:
                return "/".join(parts[start:]), self._shorter(how, parts[:start])
        indices: list[tuple] = [(None, self.named, parts[-1])]
        for (kind, loosen), index in zip(_LOOSENED, self.looser, strict=True):
            indices.append((kind, index, loosen(parts[-1])))
        for kind, index, key in indices:
            found = index.get(key, [])
            if len(found) == 1:
                return found[0], self._differences(how, kind, parts, found[0])
            if found:
                return None
        return None

    def _shorter(self, how, dropped):
        return (*how, SHORTER.format("/".join(dropped) + "/")) if dropped else tuple(how)

    def _differences(self, how, kind, parts, found):
        how = [*how, kind] if kind else how
        before, _, _ = found.rpartition("/")
        if before and before != "/".join(parts[:-1]):
            return (*how, DEEPER.format(before + "/"))
        return self._shorter(how, [] if before else parts[:-1])


def _letters(name):
    return unicodedata.normalize("NFC", name).casefold().strip().replace(" ", "_")


def _uploaded(name):
    return re.sub("^[0-9a-f]{8}-", "", _letters(name))


def _hashed(name):
    """Take NAME_jpg.rf.HASH.jpg for NAME.jpg."""
    return re.sub(r"_[a-z]+\.rf\.\w+(?=\.\w+$)", "", _uploaded(name))


def _suffix(name):
    path = PurePosixPath(_hashed(name))
    return path.stem if path.suffix in images.SUFFIXES else path.name


# Ever looser keys under which names are the same.
_LOOSENED = [(LETTERS, _letters), (UPLOADED, _uploaded), (HASHED, _hashed), (SUFFIX, _suffix)]


def other_root(root: Path, data: Path, names: Iterable[Any]) -> Path | None:
    """Return the folder near `root` or the file `data` in which the first names exist, or None."""
    near = [root.parent, data.parent, data.parent / "images", data.parent.parent / "images"]
    with contextlib.suppress(OSError):
        near += sorted(path for path in root.iterdir() if path.is_dir())
    names = list(islice(names, TRIED))
    return next((folder for folder in near if all(exists(folder, name) for name in names)), None)


def exists(folder: Path, name: Any) -> bool:
    """Tell whether a name, of any type, is that of a file below the folder."""
    try:
        images.locate(folder, name)
    except images.ImageError:
        return False
    return True


def nearest(path: Path, suffix: str = "") -> str:
    """Suggest what a path that does not exist could mean: a clause of a message, maybe empty.

    suffix  of the files that are meant; empty: folders
    """
    try:
        if path.is_dir():
            inside = sorted(file.name for file in path.iterdir() if file.suffix == suffix)
            return f"; it is a folder, name a file in it: {', '.join(inside[:5])}" if inside else ""
        while not path.parent.exists():
            path = path.parent
        beside = path.parent.iterdir()
        names = [p.name for p in beside if p.suffix == suffix or (p.is_dir() and p != path)]
        close = difflib.get_close_matches(path.name, sorted(names), n=1)
    except (OSError, ValueError):
        return ""
    return f"; did you mean {str(path.parent / close[0])!r}?" if close else ""
