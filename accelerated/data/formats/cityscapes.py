"""Cityscapes: polygons in the order in which they are painted, or pictures of instance ids."""

from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageDraw

from accelerated.data.formats import draft, indexed
from accelerated.data.formats.draft import Draft, Source
from accelerated.data.formats.place import Listing, Place
from accelerated.data.images import MAX_PIXELS
from accelerated.data.instance import FAR
from accelerated.data.text_files import parse_json
from accelerated.data.values import is_point, short

NAME = "Cityscapes"
LOOKED_FOR = "Cityscapes (gtFine and leftImg8bit)"
# The classes that have instances, by the ids of Cityscapes.
CLASSES = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
# An instance's value is its class's id times this, plus its number.
INSTANCES = 1000
POLYGONS, IDS = "_polygons.json", "_instanceIds.png"
# Drawn on top of a vehicle that it belongs to.
UNPAINTED = ("license plate",)


def recognises(place: Place) -> bool:
    """Tell whether a folder has files of polygons named as in Cityscapes."""
    return place.folder is not None and any(
        "_gt" in name for name in place.folder.having(POLYGONS, IDS.lower())
    )


def read(place: Place, image_root: Path | None) -> Source:
    """Convert a part of the data set, "train" unless the place says otherwise.

    Where *_instanceIds.png exists, it is read; otherwise polygons are painted, later ones in front.
    Groups, such as "cargroup", are crowd regions.
    Raises ValueError if this is a file, or for a part that does not exist.
    """
    folder = place.folder
    if folder is None:
        raise ValueError(f"{place.path}: name the folder that holds gtFine")
    beside = place.path.parent / "leftImg8bit"
    if image_root is None and place.path.name.startswith("gt") and beside.is_dir():
        image_root = beside
    made = Draft(
        place.path,
        NAME,
        folder if image_root is None else Listing(image_root),
        list(CLASSES.values()),
    )
    # The same stem in front of either end.
    ends = {POLYGONS.lower(), IDS.lower()}
    stems = {
        name[: -len(end)]
        for name in folder.having(*ends)
        for end in ends
        if name.lower().endswith(end)
    }
    parts = {part for stem in stems for part in PurePosixPath(stem).parts[:-2]} - {"gtFine"}
    part = place.split or ("train" if "train" in parts else None)
    if part:
        stems = {stem for stem in stems if part in PurePosixPath(stem).parts}
        made.report_part(part)
    if not stems:
        listed = ", ".join(sorted(parts))
        raise ValueError(f"{place.path}: has no part {part}; its parts are {listed}")
    for stem in sorted(stems):
        _read_image(made, folder, stem)
    return made.source()


def _read_image(made, folder, stem):
    """Add an image with its objects."""
    base = PurePosixPath(stem).name.partition("_gt")[0]
    found = made.pictures.find_stem(f"{base}_leftImg8bit") or made.pictures.find_stem(base)
    if found is None:
        made.report_missing(f"{base}_leftImg8bit.png", stem)
        return
    try:
        if stem + IDS in folder.files:
            ids = indexed.numbered(indexed.read(folder.path / (stem + IDS)))
            values = {value: _label(value) for value in np.unique(ids).tolist()}
        else:
            ids, values = _painted(parse_json(folder.path / (stem + POLYGONS)))
    except ValueError as error:
        made.report("labels_unreadable", "skip", f"{error}; correct it", stem)
        return
    height, width = ids.shape
    image = made.image(found, (width, height))
    for value, counts in indexed.runs(ids).items():
        label, crowd = values.get(value, (None, False))
        if label:
            made.add(image, label, draft.masked(counts, image, crowd))


def _label(value):
    """Return (class or None, whether it is a group) of an instance id."""
    group = value < INSTANCES
    return CLASSES.get(value if group else value // INSTANCES), group


def _painted(content):
    """Paint the polygons of a file: ids [H, W], 0 for no object, and {id: (class, group)}.

    Raises ValueError for a file that is not in this format.
    """
    content = content if isinstance(content, dict) else {}
    size = draft.stated_size(content.get("imgWidth"), content.get("imgHeight"))
    objects = content.get("objects")
    if size is None or size[0] * size[1] > MAX_PIXELS or not isinstance(objects, list):
        raise ValueError("imgWidth, imgHeight or objects is missing or wrong")
    canvas = Image.new("I", size)
    brush, values = ImageDraw.Draw(canvas), {}
    for number, entry in enumerate(objects, start=1):
        if not isinstance(entry, dict) or entry.get("deleted") or entry.get("label") in UNPAINTED:
            continue
        points, label = entry.get("polygon"), str(entry.get("label"))
        if not isinstance(points, list) or not all(_is_point(point, size) for point in points):
            raise ValueError(f"polygon {number} is {short(points)}")
        if len(points) < 3:
            continue
        name = label.removesuffix("group")
        values[number] = (name if name in CLASSES.values() else None, name != label)
        brush.polygon([(float(x), float(y)) for x, y in points], fill=number)
    return np.asarray(canvas), values


def _is_point(value, size):
    return is_point(value) and max(map(abs, value)) <= (FAR + 1) * max(size)
