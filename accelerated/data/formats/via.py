"""VGG Image Annotator, versions 1 to 3: one file for all images, in pixels."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from accelerated.data.formats import draft
from accelerated.data.formats.draft import Draft, Source
from accelerated.data.formats.place import Listing, Place
from accelerated.data.text_files import read_lines
from accelerated.data.values import finite, short

NAME = "VIA"
LOOKED_FOR = "VIA (.json or .csv)"
# What people call the attribute that names the class, most telling first.
ATTRIBUTES = ("class", "label", "name", "category", "class_name", "type", "object")
# The class where regions have no attributes.
UNNAMED = "object"
# Version 3 numbers its shapes.
SHAPES = {2: "rect", 3: "circle", 4: "ellipse", 7: "polygon"}
OTHER_SHAPES = {1: "point", 5: "line", 6: "polyline", 8: "extreme_rect", 9: "extreme_circle"}
COLUMNS = ("filename", "region_shape_attributes", "region_attributes")


class Region(NamedTuple):
    """A region: the name of its file, its shape, as version 2 writes it, and its attributes."""

    file: str
    shape: dict
    attributes: dict


def recognises(place: Place) -> bool:
    """Tell whether this is a file of VIA, or a folder that holds one."""
    if place.folder is None:
        return _is_via(place.content) or _is_table(place.path)
    return bool(_files(place))


def read(place: Place, image_root: Path | None) -> Source:
    """Convert a project, or exported annotations.

    Polygons, circles and ellipses are outlines, rectangles are boxes without a mask, points and
    lines are left out. The class is the region attribute that is the only one, or is called class,
    label, name or category. Images without regions have no objects.
    Raises ValueError if the class attribute is not clear, or if a folder has several such files.
    """
    path, content = place.path, place.content
    if place.folder is not None:
        path = place.only(_files(place), NAME)
        content = Place(path).content
    made = Draft(place.path, NAME, Listing(path.parent if image_root is None else image_root))
    names, regions = _table(made, path) if content is None else _parsed(made, content)
    attribute = _class_attribute(place.path, regions)
    if attribute is None and regions:
        message = f"regions have no attribute that names a class: all are called {UNNAMED}"
        made.report("class_assumed", "note", message)
    images = _images(made, [*names, *(region.file for region in regions)])
    for region in regions:
        image = images.get(region.file)
        described = _describe(made, region, image) if image else None
        if image and described:
            name = UNNAMED if attribute is None else _text(region.attributes.get(attribute))
            made.add(image, name, described)
    return made.source()


def _is_via(content: Any) -> bool:
    """Tell whether parsed JSON is a project of version 2 or 3, or exported annotations."""
    if not isinstance(content, dict) or not content:
        return False
    if content.keys() >= {"metadata", "file", "view"} or "_via_img_metadata" in content:
        return True
    first = next(iter(content.values()))
    return isinstance(first, dict) and first.keys() >= {"filename", "regions"}


def _is_table(path: Path) -> bool:
    """Tell whether a file is the table that version 2 exports."""
    if path.suffix.lower() != ".csv" or not path.is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        head = file.readline(1000)
    return all(column in head for column in COLUMNS)


def _files(place):
    """Return the VIA files at the top of a folder."""
    folder = place.folder
    found = [name for name, content in place.samples if "/" not in name and _is_via(content)]
    tables = [name for name in folder.having(".csv") if "/" not in name]
    # A project and its exports hold the same.
    return found or [name for name in tables if _is_table(folder.path / name)]


def _parsed(made, content) -> tuple[list[str], list[Region]]:
    """Return the names of all images, and the regions, of a JSON file."""
    if content.keys() >= {"metadata", "file", "view"}:
        return _version_3(made, content)
    entries = content.get("_via_img_metadata", content)
    names, regions = [], []
    for entry in entries.values() if isinstance(entries, dict) else []:
        file = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(file, str):
            message = f"an image is {short(entry)}; it needs a filename, and is left out"
            made.report("image_invalid", "skip", message)
            continue
        names.append(file)
        listed = entry.get("regions")
        # Version 1 numbers the regions.
        listed = list(listed.values()) if isinstance(listed, dict) else listed
        for region in listed if isinstance(listed, list) else []:
            _append(made, regions, file, region)
    return names, regions


def _append(made, regions, file, region):
    shape = region.get("shape_attributes") if isinstance(region, dict) else None
    if not isinstance(shape, dict):
        message = f"a region is {short(region)}; it needs shape_attributes, and is left out"
        made.report("region_invalid", "skip", message, file)
        return
    attributes = region.get("region_attributes")
    regions.append(Region(file, shape, attributes if isinstance(attributes, dict) else {}))


def _table(made, path) -> tuple[list[str], list[Region]]:
    """Return the names of all images, and the regions, of a CSV file."""
    names, regions = [], []
    try:
        for row in csv.DictReader(read_lines(path)):
            file = row.get("filename")
            if not file:
                continue
            names.append(file)
            if row.get("region_count") == "0":
                continue
            keys = ("region_shape_attributes", "region_attributes")
            values = [json.loads(row.get(key) or "{}") for key in keys]
            if values[0]:
                region = {"shape_attributes": values[0], "region_attributes": values[1]}
                _append(made, regions, file, region)
    except (ValueError, csv.Error, RecursionError) as error:
        message = f"the table is read up to row {len(names)}: {error}; correct it"
        made.report("table_invalid", "skip", message)
    return names, regions


def _version_3(made, content) -> tuple[list[str], list[Region]]:
    """Return the names of all images, and the regions, of a project of version 3."""
    files, views, attributes = (_dictionary(content.get(k)) for k in ("file", "view", "attribute"))
    names = {
        key: file["fname"] for key, file in files.items() if isinstance(file.get("fname"), str)
    }
    regions = []
    for entry in _dictionary(content.get("metadata")).values():
        shown = _dictionary({"": views.get(str(entry.get("vid")), {})})[""].get("fid_list")
        file = names.get(str(shown[0])) if isinstance(shown, list) and shown else None
        numbers = entry.get("xy")
        if not isinstance(numbers, list) or not numbers:
            # It describes the whole image.
            continue
        if file is None:
            message = f"a region belongs to view {short(entry.get('vid'))}, which shows no image"
            made.report("region_invalid", "skip", f"{message}; it is left out")
            continue
        values = {}
        for key, value in _pairs(entry.get("av")):
            attribute = attributes.get(key, {})
            options = attribute.get("options")
            options = options if isinstance(options, dict) else {}
            values[str(attribute.get("aname", key))] = options.get(str(value), value)
        regions.append(Region(file, _shape_3(numbers), values))
    return list(names.values()), regions


def _shape_3(numbers):
    """Write the numbers of a shape, with its kind first, as version 2 does."""
    kind, values = numbers[0], numbers[1:]
    if kind == 7:
        return {"name": "polygon", "all_points_x": values[::2], "all_points_y": values[1::2]}
    keys = {2: ("x", "y", "width", "height"), 3: ("cx", "cy", "r"), 4: ("cx", "cy", "rx", "ry")}
    # Not every value can be a key.
    kind = kind if isinstance(kind, int) else 0
    name = SHAPES.get(kind, OTHER_SHAPES.get(kind, "unknown"))
    return {"name": name} | dict(zip(keys.get(kind, ()), values, strict=False))


def _dictionary(value) -> dict[str, dict]:
    """Keep the entries of a dictionary that are dictionaries; nothing of anything else."""
    return {str(key): entry for key, entry in _pairs(value) if isinstance(entry, dict)}


def _pairs(value) -> Iterator[tuple[str, Any]]:
    return iter(value.items() if isinstance(value, dict) else ())


def _class_attribute(path, regions) -> str | None:
    """Return the attribute that names the class; None if regions have no attributes."""
    counts = Counter(
        key for region in regions for key, value in region.attributes.items() if _text(value)
    )
    if not counts:
        return None
    if len(counts) == 1:
        return next(iter(counts))
    for wanted in ATTRIBUTES:
        for name in counts:
            if name.strip().casefold() == wanted:
                return name
    # In one line, whatever the names are.
    listed = " ".join(f"{name} ({count})," for name, count in counts.most_common()).split()
    listed = " ".join(listed).rstrip(",")
    raise ValueError(
        f"{path}: regions have the attributes {listed}; call the one that names the class"
        " class, label, name or category"
    )


def _text(value) -> str | None:
    """Return the value of an attribute; of check boxes, the one that is checked."""
    if isinstance(value, dict):
        checked = [key for key, state in value.items() if state]
        value = checked[0] if len(checked) == 1 else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value).strip() or None


def _images(made, names) -> dict[str, dict]:
    """Add the images, each once, and return {name in the file: entry}."""
    images, entries = {}, {}
    for name in dict.fromkeys(names):
        found = made.pictures.find(name)
        if found is None:
            made.report_missing(short(name), PurePosixPath(name).name)
            continue
        if found not in entries:
            entries[found] = made.image(found)
        if entries[found]:
            images[name] = entries[found]
    return images


def _describe(made, region, image) -> dict | None:
    """Describe the shape of a region; None, after a report, if it is no outline."""
    shape, name = region.shape, region.shape.get("name")
    if name == "polygon":
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys):
            return draft.outlined([[v for pair in zip(xs, ys, strict=True) for v in pair]], image)
    keys = {"rect": ("x", "y", "width", "height"), "circle": ("cx", "cy", "r")}
    keys |= {"ellipse": ("cx", "cy", "rx", "ry")}
    if not isinstance(name, str) or name not in (*keys, "polygon"):
        made.skip(f"regions of shape {short(name)}, which outline nothing")
        return None
    values = [shape.get(key) for key in keys.get(name, ())]
    if not values or not all(map(finite, values)):
        message = f"a {name} is {short(shape)}; it is left out: draw it again"
        made.report("region_invalid", "skip", message, region.file)
        return None
    if name == "rect":
        x, y, width, height = values
        return draft.boxed(x, y, x + width, y + height)
    angle = shape.get("theta") if finite(shape.get("theta")) else 0.0
    return draft.outlined(
        [draft.ellipse(values[0], values[1], values[2], values[-1], angle)], image
    )
