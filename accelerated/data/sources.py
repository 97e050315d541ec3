"""Recognise the format of a data set, and turn it into COCO's dictionary."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from accelerated.data.annotations import Problem
from accelerated.data.file_names import nearest
from accelerated.data.formats import (
    cityscapes,
    coco,
    cvat,
    instance_masks,
    label_studio,
    labelme,
    pascal,
    unsupported,
    via,
    yolo,
)
from accelerated.data.formats.draft import Source
from accelerated.data.formats.place import Place

__all__ = ["Source", "find"]


class Format(Protocol):
    """A format of annotations; each is a module with these names."""

    @property
    def NAME(self) -> str:
        """The format's name."""
        ...

    @property
    def LOOKED_FOR(self) -> str:
        """The format's name, and what it is recognised by."""
        ...

    @staticmethod
    def recognises(place: Place) -> bool:
        """Tell whether a file or folder is in this format."""
        ...

    @staticmethod
    def read(place: Place, image_root: Path | None) -> Source:
        """Convert it. Raises ValueError if the place must be named in another way."""
        ...


# Those whose data sets have parts, PATH:PART.
WITH_PARTS = (cityscapes, pascal, yolo)
# The first that recognises a place reads it.
FORMATS: tuple[Format, ...] = (
    labelme,
    via,
    label_studio,
    cvat,
    cityscapes,
    pascal,
    coco,
    yolo,
    instance_masks,
)


def find(data: str | Path, image_root: str | Path | None = None) -> Source:
    """Recognise the format of `data` by its content and convert it.

    data        a file or folder; PATH:PART is a part of it, such as data.yaml:val
    image_root  folder with the images; None: the one that the format implies

    What is wrong with the content becomes problems of the result.
    Raises ValueError if there is no such file or folder, if no format is recognised, or if it is
    one that cannot be read.
    """
    place, root = _place(Path(data)), None if image_root is None else Path(image_root)
    if not place.path.exists():
        hint = nearest(place.path, place.path.suffix)
        raise ValueError(f"{place.path}: no such file or folder{hint}")
    if place.folder is not None and root is not None and root.is_file():
        raise ValueError(f"{data} is a folder and --images {root} a file: exchange the two")
    fitting = [format for format in FORMATS if format.recognises(place)]
    if place.split is not None and fitting and fitting[0] not in WITH_PARTS:
        raise ValueError(f"{data}: {fitting[0].NAME} has no parts; name the file or folder of each")
    # What is missing of COCO's the linter compares with what is near.
    if root is not None and not root.exists() and fitting and fitting[0] is not coco:
        raise ValueError(f"the image folder {root} does not exist{nearest(root)}")
    if fitting:
        source = fitting[0].read(place, root)
        return replace(source, problems=(*_others(source, fitting[1:]), *source.problems))
    unsupported.refuse(place)
    if place.folder is not None:
        looked_for = "; ".join(format.LOOKED_FOR for format in FORMATS)
        raise ValueError(
            f"{data}: no data set is recognised in this folder, which holds {_contents(place)}."
            f" The formats are: {looked_for}. See docs/data.md"
        )
    if place.split is not None:
        raise ValueError(f"{data}: a COCO file has no parts; name the file of each")
    # A file that is nothing else: the reader of COCO says what is wrong with it.
    return coco.read(place, root)


def _others(source, formats):
    """Report the formats that a folder also has files of."""
    if formats:
        names = " and ".join(format.NAME for format in formats)
        message = f"the folder is read as {source.format}, but also has files of {names}; to read"
        message += " those, name their file or give them a folder of their own"
        yield Problem("format_chosen", "warn", "file", source.path.name, None, None, message)


def _place(path):
    """Split PATH:PART, unless a file has that name."""
    head, colon, part = str(path).rpartition(":")
    if colon and head and not path.exists() and Path(head).exists():
        return Place(Path(head), part)
    return Place(path)


def _contents(place):
    kinds = Counter(Path(name).suffix.lower() or "no suffix" for name in place.folder.files)
    counts = [f"{count} {kind}" for kind, count in kinds.most_common(5)]
    return f"{', '.join(counts)} files" if counts else "no files"
