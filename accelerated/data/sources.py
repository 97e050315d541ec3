"""Recognise the format of a data set, and turn it into COCO's dictionary."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerated.data.annotations import Problem


@dataclass(frozen=True)
class Source:
    """A data set before it is checked.

    path        the file or folder
    format      the format's name, "COCO" for a json file in COCO's format
    image_root  folder that its file names are relative to
    content     the data as COCO's dictionary; None for a file in COCO's format, not yet read
    problems    found while the data was converted
    """

    path: Path
    format: str
    image_root: Path
    content: dict[str, Any] | None = None
    problems: tuple[Problem, ...] = ()


def find(data: str | Path, image_root: str | Path | None = None) -> Source:
    """Recognise the format of `data` by its content and convert it.

    image_root  folder with the images; None: the one that the format implies

    Raises ValueError if there is none.
    """
    path = Path(data)
    if image_root is None:
        raise ValueError(f"{path}: name the folder of its images with --images")
    return Source(path, "COCO", Path(image_root))
