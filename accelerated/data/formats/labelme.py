"""LabelMe: a json file per image, in pixels."""

import base64
import binascii
import json
import math
import os
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from accelerated.data.formats import draft, indexed, outlines, writing
from accelerated.data.formats.draft import Draft, Shape, Source
from accelerated.data.formats.place import Listing, Place, linked_images
from accelerated.data.text_files import parse_json, read_lines
from accelerated.data.values import is_point, short

NAME = "LabelMe"
LOOKED_FOR = "LabelMe (a .json beside each picture)"


def is_file(content: Any) -> bool:
    """Tell whether parsed JSON is a LabelMe file."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("shapes"), list)
        and not content.keys().isdisjoint(("imagePath", "imageData", "imageHeight", "version"))
    )


def recognises(place: Place) -> bool:
    """Tell whether this is a folder with LabelMe files, or one such file."""
    return is_file(place.content) or any(is_file(content) for _, content in place.samples)


def read(place: Place, image_root: Path | None) -> Source:
    """Convert a folder of LabelMe files.

    Polygons and masks with one label and one group_id are one object. A circle is a polygon, a
    rectangle a box without a mask; points and lines are left out. Classes are those of labels.txt,
    where LabelMe keeps them, or the sorted labels.
    Raises ValueError for a single file.
    """
    if place.folder is None:
        raise ValueError(f"{place.path}: this is a LabelMe file; give its folder")
    image_root = image_root or linked_images(place.path)
    pictures = place.folder if image_root is None else Listing(image_root)
    made = Draft(place.path, NAME, pictures, _listed_labels(place.folder))
    others, files = 0, place.folder.having(".json")
    for name in files:
        try:
            content = parse_json(place.path / name)
        except ValueError as error:
            made.report("json_invalid", "skip", str(error), name)
            continue
        if is_file(content):
            _read_file(made, name, content)
        else:
            others += 1
    if others:
        message = f"{others} of {len(files)} .json files are no LabelMe files and are not read"
        made.report("file_ignored", "warn", message)
    made.report_left_out("LabelMe file")
    return made.source()


def _listed_labels(folder):
    """Return the class names of labels.txt, or None without that file."""
    if "labels.txt" not in folder.files:
        return None
    try:
        names = [line.strip() for line in read_lines(folder.path / "labels.txt")]
    except ValueError:
        return None
    # LabelMe writes __ignore__ and _background_ there.
    return list(dict.fromkeys(name for name in names if name and not name.startswith("_")))


def _read_file(made, name, content):
    """Add the image of one file and its objects."""
    reference, path = content.get("imagePath"), PurePosixPath(name)
    found = None
    if isinstance(reference, str):
        written_in = made.path / path.parent
        found = made.pictures.find(reference, str(path.parent), written_in)
    found = found or made.pictures.find_stem(str(path.with_suffix("")))
    if found is None:
        embedded = " (embedded as imageData)" if content.get("imageData") else ""
        made.report_missing(f"its picture {short(reference)}{embedded}", name)
        return
    size = draft.stated_size(content.get("imageWidth"), content.get("imageHeight"))
    image = made.image(found, size)
    if image is not None:
        made.add_shapes(image, content["shapes"], partial(_shape, made), name)


def _shape(made, shape) -> Shape | None:
    """Read a shape; None for one that is counted only. Raises ValueError, with the reason."""
    if not isinstance(shape, dict):
        raise ValueError(f"it is {short(shape)}, not an object")
    form, label, group = shape.get("shape_type", "polygon"), shape.get("label"), None
    if form not in ("polygon", "rectangle", "circle", "mask", None):
        made.skip(f"shapes of type {short(form)}, which outline nothing")
        return None
    points = shape.get("points")
    if not isinstance(points, list) or not all(map(is_point, points)):
        raise ValueError(f"its points are {short(points)}")
    if form != "rectangle":
        group = shape.get("group_id")
    if form in ("polygon", None):
        return Shape("outline", label, group, [side for point in points for side in point])
    if len(points) < 2 and form != "mask":
        raise ValueError(f"a {form} needs two points")
    if form == "circle":
        (x, y), rim = points[0], points[1]
        radius = math.dist((x, y), rim)
        return Shape("outline", label, group, draft.ellipse(x, y, radius, radius))
    if form == "rectangle":
        (left, right), (top, bottom) = ((min(v), max(v)) for v in zip(*points, strict=True))
        return Shape("box", label, None, (left, top, right, bottom))
    if not points:
        raise ValueError("a mask needs the corners of its box")
    text = shape.get("mask")
    if not isinstance(text, str):
        raise ValueError("its mask is missing")
    try:
        pixels = indexed.numbered(indexed.read(base64.b64decode(text))) > 0
    except binascii.Error as error:
        raise ValueError(f"its mask is no base64 text: {error}") from None
    return Shape("mask", label, group, (int(points[0][0]), int(points[0][1]), pixels))


def write(content: dict, folder: Path, image_root: str | Path | None = None) -> None:
    """Write a COCO dictionary as a folder of LabelMe files, and its class names as labels.txt.

    content     images, annotations, categories; an annotation may have a "score"
    image_root  folder that its file names are relative to; None: the working folder

    An object of several parts is several polygons with one group_id; a hole is cut open, see
    `outlines`. An object without a mask is a rectangle. Ids, areas and crowd regions are lost.
    A link "images" leads to the pictures.
    """
    folder = Path(folder)
    names = {c["id"]: " ".join(c["name"].split()) for c in content["categories"]}
    objects, images = writing.objects_by_image(content), content["images"]
    names_of_files = [image["file_name"] for image in images]
    picture_folder, paths = writing.label_paths(names_of_files, ".json", image_root)
    folder.mkdir(parents=True, exist_ok=True)
    writing.link_images(folder, picture_folder)
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in names.values()))
    for image, relative in zip(images, paths, strict=True):
        path = folder / relative
        picture = os.path.relpath(Path(image_root or ".") / image["file_name"], path.parent)
        shapes = [
            {"label": names[annotation["category_id"]], "flags": {}, "description": ""} | shape
            for group, annotation in enumerate(objects[image["id"]], start=1)
            for shape in _shapes(annotation, group)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(
            {
                "version": "5.5.0",
                "flags": {},
                "shapes": shapes,
                "imagePath": Path(picture).as_posix(),
                "imageData": None,
                "imageHeight": image["height"],
                "imageWidth": image["width"],
            },
            indent=1,
        )
        path.write_text(text)


def _shapes(annotation, group):
    """Return the shapes of an object, without their labels."""
    score = {"score": annotation["score"]} if "score" in annotation else {}
    parts = outlines.polygons(annotation.get("segmentation") or [])
    if not parts:
        x, y, w, h = annotation["bbox"]
        corners = [[x, y], [x + w, y + h]]
        return [{"shape_type": "rectangle", "points": corners, "group_id": None} | score]
    group_id = group if len(parts) > 1 else None
    return [
        {"shape_type": "polygon", "points": part.tolist(), "group_id": group_id} | score
        for part in parts
    ]
