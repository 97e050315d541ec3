"""Formats that cannot be read: what they are, and what to do."""

from pathlib import Path
from typing import Any

from accelerated.data.formats.place import Place

EXPORT = "export the data as COCO"
# (suffixes of a file, what it is and what to do)
SUFFIXES = (
    ((".tfrecord", ".tfrecords", ".record"), f"a TFRecord; {EXPORT}"),
    ((".zip", ".tar", ".gz", ".tgz", ".7z"), "an archive; unpack it and name the folder"),
    ((".parquet", ".arrow"), f"a table of a data set hub; {EXPORT}"),
    ((".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"), "a picture; name the annotations"),
    ((".ndjson", ".jsonl"), f"an export of Labelbox or a similar tool; {EXPORT}"),
)
# (bytes near the start of an XML file, what it is and what to do); the first that fits.
XML = (
    (b"<track", "CVAT's xml for video; export it from CVAT for images 1.1, or as COCO"),
    (b"<bndbox", "Pascal VOC xml of boxes without masks; draw masks, or train a box detector"),
)
# How much of an XML file is looked at.
HEAD = 200_000


def refuse(place: Place) -> None:
    """Raise ValueError for a file or folder that is in a known format without a reader here."""
    if place.folder is None:
        if place.path.is_file():
            _refuse_file(place.path, place.content)
        return
    for name, content in place.samples:
        kind = _json_kind(content)
        if kind:
            raise ValueError(f"{place.path}: {name} is {kind}")
    known = [*(suffix for suffixes, _ in SUFFIXES[:3] for suffix in suffixes), ".xml"]
    for name in place.folder.having(*known)[:5]:
        try:
            _refuse_file(place.path / name, None)
        except ValueError as error:
            raise ValueError(f"{place.path}: holds {error}") from None


def _refuse_file(path: Path, content: Any) -> None:
    suffix = path.suffix.lower()
    for suffixes, kind in SUFFIXES:
        if suffix in suffixes:
            raise ValueError(f"{path}: this is {kind}")
    if suffix == ".xml":
        with path.open("rb") as file:
            head = file.read(HEAD)
        for mark, kind in XML:
            if mark in head:
                raise ValueError(f"{path}: this is {kind}")
        raise ValueError(f"{path}: XML is not read; {EXPORT}")
    kind = _json_kind(content)
    if kind:
        raise ValueError(f"{path}: this is {kind}")


def _json_kind(content: Any) -> str | None:
    """Say what parsed JSON is, and what to do; None for anything unknown."""
    first = content[0] if isinstance(content, list) and content else content
    if not isinstance(first, dict):
        return None
    if isinstance(content, list):
        if "image" in first and "annotations" in first:
            return f"CreateML's json of boxes without masks; {EXPORT}"
        if "image" in first and "annotation_id" in first:
            return "Label Studio's short export, JSON-MIN; export the data as JSON or as COCO"
        return None
    if "assets" in first and "tags" in first:
        return f"a VoTT project; {EXPORT}"
    if "items" in first and "categories" in first:
        return f"Datumaro's json; {EXPORT}"
    if "objects" in first and "size" in first:
        return f"Supervisely's json; {EXPORT}"
    if "classes" in first and "tags" in first:
        return f"the meta.json of a Supervisely project; {EXPORT}"
    if "item" in first and "annotations" in first:
        return f"V7 Darwin's json; {EXPORT}"
    return None
