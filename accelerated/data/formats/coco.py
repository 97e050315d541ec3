"""COCO's json file: where its images are, and which file of a folder it is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerated.data.annotations import PARTS, Problem
from accelerated.data.file_names import exists
from accelerated.data.formats.draft import Source
from accelerated.data.formats.place import Place
from accelerated.data.text_files import parse_json

NAME = "COCO"
LOOKED_FOR = "COCO (.json)"
# File names that are looked up to find the folder of the images.
TRIED = 20
# Folders that are looked into.
LOOKED_INTO = 100


def is_file(content: Any) -> bool:
    """Tell whether parsed JSON is in COCO's format."""
    return isinstance(content, dict) and content.keys() >= {*PARTS}


def recognises(place: Place) -> bool:
    """Tell whether a folder holds such a file. A single file is one if it is nothing else."""
    return any(is_file(content) for _, content in place.samples)


def read(place: Place, image_root: Path | None) -> Source:
    """Find the file, if this is a folder, and the folder of its images, unless it is given.

    Raises ValueError if there are several files, or no such folder.
    """
    path, problems, root = place.path, [], image_root
    if place.folder is not None:
        path = place.only([name for name, content in place.samples if is_file(content)], NAME)
    if root is None:
        root, message = _image_folder(path)
        if message:
            where = "file", path.name, None, None
            problems.append(Problem("image_folder_assumed", "note", *where, message))
    return Source(path, NAME, root, None, tuple(problems))


def with_annotations(source: Source) -> Source:
    """Give a file without annotations, such as that of COCO's test-dev, an empty list of them."""
    path = source.path
    if source.format != NAME or source.content is not None or not path.is_file():
        return source
    # Quicker than to parse the file.
    if b'"annotations"' in path.read_bytes():
        return source
    try:
        content = parse_json(path)
    # The reader says what is wrong.
    except ValueError:
        return source
    whole = isinstance(content, dict) and content.keys() >= {"images", "categories"}
    return replace(source, content=content | {"annotations": []}) if whole else source


def _image_folder(path):
    """Return the folder in which the first images of the file exist, and a remark on it."""
    try:
        content = parse_json(path)
    except ValueError:
        content = None
    listed = content.get("images") if isinstance(content, dict) else None
    images = listed if isinstance(listed, list) else []
    names = [image.get("file_name") for image in images[:TRIED] if isinstance(image, dict)]
    names = [name for name in names if isinstance(name, str) and "\0" not in name]
    if not names:
        # What is wrong with the file is the linter's to report.
        return path.parent, None
    above = path.parent.parent
    # COCO keeps its files in a folder of their own, beside those of the images.
    candidates = [path.parent, path.parent / "images", above / "images"]
    candidates += [path.with_suffix(""), above / path.stem, above]
    found = {folder: sum(exists(folder, name) for name in names) for folder in candidates}
    best = max(candidates, key=lambda folder: found[folder])
    if not found[best]:
        # Those of each part in a folder of its own, where a name can mean several files.
        inside = [folder for base in candidates[:3] for folder in _folders(base)]
        inside += _folders(above)
        found |= {folder: sum(exists(folder, name) for name in names) for folder in inside}
        holding = [folder for folder in dict.fromkeys(inside) if found[folder]]
        named = [folder for folder in holding if folder.name in path.stem]
        if len(named or holding) != 1:
            looked = ", ".join(str(folder) for folder in candidates[:3])
            state = f"may be in {holding[0]} or {holding[1]}" if holding else f"is not in {looked}"
            raise ValueError(
                f"{path}: name the folder of its images with --images; {names[0]} {state}"
            )
        best = (named or holding)[0]
    return best, f"the images are read from {best}, where {found[best]} of {len(names)} exist"


def _folders(path):
    """Return the first folders in a folder."""
    try:
        return sorted(folder for folder in path.iterdir() if folder.is_dir())[:LOOKED_INTO]
    except OSError:
        return []
