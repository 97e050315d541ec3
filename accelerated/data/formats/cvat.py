"""CVAT for images 1.1: one XML file for all images, in pixels."""

import math
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from accelerated.data.formats import draft
from accelerated.data.formats.draft import Draft, Shape, Source
from accelerated.data.formats.place import Listing, Place
from accelerated.data.images import MAX_PIXELS
from accelerated.data.values import finite, short

NAME = "CVAT"
LOOKED_FOR = "CVAT for images (.xml)"
# How much of a file is looked at to recognise it.
HEAD = 200_000


def recognises(place: Place) -> bool:
    """Tell whether this is such a file, or a folder that holds one."""
    return _is_file(place.path) if place.folder is None else bool(_files(place.folder))


def read(place: Place, image_root: Path | None) -> Source:
    """Convert a file of images; its classes are those of the task, in its order.

    Polygons, ellipses and masks are objects, those with one label and one group_id a single one. A
    box is a box without a mask, unless it is rotated: then it is an outline.
    Raises ValueError for a file that is no such XML, or if a folder has several.
    """
    path = place.path
    if place.folder is not None:
        path = place.only(_files(place.folder), NAME)
    try:
        raw = path.read_bytes()
        # Entities can be made to fill the memory; CVAT writes none.
        if b"<!DOCTYPE" in raw or b"<!ENTITY" in raw:
            raise ValueError("it has a DOCTYPE; export it again")
        root = ElementTree.fromstring(raw)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{place.path}: the XML cannot be read: {error}") from None
    labels = [label.findtext("name") or "" for label in root.iterfind(".//labels/label")]
    names = list(dict.fromkeys(name.strip() for name in labels if name.strip()))
    pictures = Listing(path.parent if image_root is None else image_root)
    made = Draft(place.path, NAME, pictures, names or None)
    for element in root.iter("image"):
        _read_image(made, element)
    return made.source()


def _is_file(path: Path) -> bool:
    if path.suffix.lower() != ".xml" or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(HEAD)
    return b"<annotations" in head and b"<image " in head


def _files(folder):
    """Return the files at the top of a folder."""
    top = [name for name in folder.having(".xml") if "/" not in name]
    # Pascal VOC has one for each image.
    return [name for name in top[:50] if _is_file(folder.path / name)]


def _read_image(made, element):
    """Add an image with its objects."""
    name = element.get("name", "")
    found = made.pictures.find(name) if name else None
    if found is None:
        made.report_missing("it", name)
        return
    size = draft.stated_size(_number(element, "width"), _number(element, "height"))
    image = made.image(found, size)
    if image is not None:
        made.add_shapes(image, element, partial(_shape, made), found)


def _shape(made, element) -> Shape | None:
    """Read a shape; None for one that is counted only. Raises ValueError, with the reason."""
    kind, label, group = element.tag, element.get("label"), element.get("group_id")
    group = None if group in (None, "", "0") else group
    if kind == "polygon":
        numbers = [_float(w) for w in element.get("points", "").replace(";", ",").split(",")]
        if not all(map(finite, numbers)):
            raise ValueError(f"its points are {short(element.get('points'))}")
        return Shape("outline", label, group, numbers)
    if kind == "mask":
        return Shape("mask", label, group, _window(element))
    if kind not in ("box", "ellipse"):
        made.skip(f"shapes of type {short(kind)}, which outline nothing")
        return None
    keys = ("cx", "cy", "rx", "ry") if kind == "ellipse" else ("xtl", "ytl", "xbr", "ybr")
    a, b, c, d = values = [_number(element, key) for key in keys]
    if not all(map(finite, values)):
        raise ValueError(f"its {', '.join(keys)} are {short(values)}")
    turn = _number(element, "rotation")
    angle = math.radians(turn) if finite(turn) else 0.0
    if kind == "ellipse":
        return Shape("outline", label, group, draft.ellipse(a, b, c, d, angle))
    if not angle:
        return Shape("box", label, None, (a, b, c, d))
    corners = draft.rectangle(a, b, c, d)
    return Shape("outline", label, group, draft.turned(corners, corners.mean(axis=0), angle))


def _window(element):
    """Return (left, top, [h, w]) of a mask: run lengths along the rows, background first."""
    left, top, width, height = (_number(element, key) for key in ("left", "top", "width", "height"))
    size = draft.stated_size(width, height)
    if size is None or not finite(left) or not finite(top) or size[0] * size[1] > MAX_PIXELS:
        raise ValueError("its left, top, width or height is missing or wrong")
    runs = [_float(word) for word in element.get("rle", "").split(",")]
    if not all(finite(run) and 0 <= run <= MAX_PIXELS for run in runs):
        raise ValueError(f"its rle is {short(element.get('rle'))}")
    counts = np.array(runs, dtype=np.int64)
    if counts.sum() != size[0] * size[1]:
        raise ValueError(f"its rle has {counts.sum()} pixels, not {size[0]}x{size[1]}")
    pixels = np.repeat(np.arange(counts.size) % 2 == 1, counts).reshape(size[1], size[0])
    return int(left), int(top), pixels


def _number(element, key):
    return _float(element.get(key, ""))


def _float(word):
    try:
        return float(word)
    except ValueError:
        return math.nan
