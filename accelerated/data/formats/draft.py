"""A data set on its way from another format to COCO's dictionary."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from accelerated.data import images, rle
from accelerated.data.annotations import Problem
from accelerated.data.formats.place import Listing
from accelerated.data.values import finite, short, whole


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


class Shape(NamedTuple):
    """A part of an object, or a whole one.

    group  parts of one kind, label and group are one object; None: it is one by itself
    value  (x1, y1, x2, y2) of a "box", [x1, y1, x2, y2, ..] of an "outline", and (left, top,
           pixels [h, w]) of a "mask"
    """

    kind: Literal["box", "outline", "mask"]
    label: Any
    group: Any
    value: Any


@dataclass
class Draft:
    """Collects images, objects and problems.

    path        the file or folder that is read
    format      the format's name
    pictures    the folder of the images
    categories  names of the classes in their order; None: those of the objects, sorted
    """

    path: Path
    format: str
    pictures: Listing
    categories: Sequence[str] | None = None
    images: list[dict] = field(default_factory=list)
    annotations: list[dict] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    skipped: Counter = field(default_factory=Counter)

    def report(self, code: str, severity: str, message: str, file: str | Path = "") -> None:
        """Add a problem: of one file of annotations, or of the data set as a whole.

        "note" and "warn" say what was assumed; "skip" stops a training run unless --skip-invalid.
        """
        scope = "image" if severity in ("skip", "reject") else "file"
        name = str(file) or self.path.name
        self.problems.append(Problem(code, severity, scope, name, None, None, message))

    def skip(self, what: str) -> None:
        """Count something that is left out, such as "points"; the total is reported once."""
        self.skipped[what] += 1

    def report_missing(self, what: str, file: str | Path) -> None:
        """Report a picture that a file of annotations names and that is not in the folder."""
        message = f"{what} is not in {self.pictures.path}; add it, or name its folder with --images"
        self.report("file_missing", "skip", message, file)

    def report_part(self, part: str) -> None:
        """Report which part of a data set is read."""
        message = f"the part {part} is read; {self.path}:PART names another"
        self.report("part_chosen", "note", message)

    def report_left_out(self, label: str) -> None:
        """Report how many pictures of the folder have no `label`, such as "LabelMe file"."""
        used = {entry["file_name"] for entry in self.images}
        count = len(set(self.pictures.pictures) - used)
        if count:
            message = f"pictures without a {label}: {count} left out"
            self.report("picture_unlabelled", "note", message)

    def report_unused(self, names: set[str], reason: str) -> None:
        """Report files that belong to nothing, and why."""
        for name in sorted(names):
            self.report("file_unused", "warn", f"it is not used: {reason}", name)

    def image(self, file_name: str, size: tuple[int, int] | None = None) -> dict | None:
        """Add an image and return its entry; None, after a report, if its size is unknown.

        size  (width, height); None: that of the file as displayed, where programs let people draw
        """
        if size is None:
            try:
                path = images.locate(self.pictures.path, file_name)
                size = images.probe(path, decode=False).size("apply")
            except images.ImageError as error:
                self.report(error.code, "reject", str(error), file_name)
                return None
        width, height = size
        entry = {"id": len(self.images) + 1, "file_name": file_name}
        self.images.append(entry | {"width": width, "height": height})
        return self.images[-1]

    def add(self, image: dict, name: Any, values: dict | None) -> None:
        """Add an object to an image, or report that its class has no name.

        values  its segmentation, bbox, area, and iscrowd if that is not 0; None: it has no pixel
        """
        if values is None:
            message = f"an object of {short(name)} covers no pixel of the image and is skipped"
            self.report("mask_empty", "skip", message, image["file_name"])
            return
        if not isinstance(name, str) or not name.strip():
            message = f"the class of an object is {short(name)}; it is left out: name the class"
            self.report("class_missing", "skip", message, image["file_name"])
            return
        ids = {"id": len(self.annotations) + 1, "image_id": image["id"], "category": name.strip()}
        self.annotations.append(ids | {"iscrowd": 0} | values)

    def add_shapes(
        self, image: dict, items: Iterable, read: Callable[[Any], Shape | None], file: str
    ) -> None:
        """Add the objects that the shapes of a file are, or are parts of.

        read  converts an item to a shape, or to None if it outlines nothing; raises ValueError,
              with the reason, if it is wrong
        file  the name of the file, for problems
        """
        groups: dict[Any, list[Shape]] = {}
        for number, item in enumerate(items, start=1):
            try:
                shape = read(item)
            except ValueError as error:
                message = f"shape {number} is skipped: {error}; correct it or delete it"
                self.report("shape_invalid", "skip", message, file)
                continue
            if shape is not None:
                alone = shape.group is None or shape.kind == "box"
                key = number if alone else (shape.kind, str(shape.label), str(shape.group))
                groups.setdefault(key, []).append(shape)
        for parts in groups.values():
            kind, label, _, value = parts[0]
            values = [part.value for part in parts]
            if kind == "box":
                self.add(image, label, boxed(*value))
            elif kind == "outline":
                self.add(image, label, outlined(values, image))
            else:
                self.add(image, label, united(values, image))

    def source(self) -> Source:
        """Finish: number the categories from 1, and report what was left out."""
        for what, count in self.skipped.most_common():
            message = f"{count} left out: {what}"
            self.report("shape_skipped", "warn", message)
        used = {annotation["category"] for annotation in self.annotations}
        names = list(self.categories if self.categories is not None else sorted(used))
        names += sorted(used.difference(names))
        number = {name: k for k, name in enumerate(names, start=1)}
        for annotation in self.annotations:
            annotation["category_id"] = number[annotation.pop("category")]
        content = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": k, "name": name} for name, k in number.items()],
        }
        root, problems = self.pictures.path, tuple(self.problems)
        return Source(self.path, self.format, root, content, problems)


def stated_size(width: Any, height: Any) -> tuple[int, int] | None:
    """Return (width, height) as integers if both are whole numbers above 0, else None."""
    sides = whole(width), whole(height)
    if sides[0] is None or sides[1] is None or min(sides[0], sides[1]) < 1:
        return None
    return sides[0], sides[1]


def outlined(parts: Sequence[Any], image: dict) -> dict:
    """Describe an object by polygons [x1, y1, x2, y2, ..].

    Parts that are no lists of numbers stay as they are: the linter reports them.
    """
    values = {"segmentation": list(parts)}
    if not all(isinstance(part, list) and all(map(finite, part)) for part in parts):
        return values
    polygons = [np.array(part, dtype=float) for part in parts if len(part) >= 6]
    if not polygons or any(polygon.size % 2 for polygon in polygons):
        return values
    points = np.concatenate([polygon.reshape(-1, 2) for polygon in polygons])
    (x1, y1), (x2, y2) = points.min(axis=0), points.max(axis=0)
    inside = x2 > 0 and y2 > 0 and x1 < image["width"] and y1 < image["height"]
    if inside:
        x1, y1 = max(x1, 0.0), max(y1, 0.0)
        x2, y2 = min(x2, float(image["width"])), min(y2, float(image["height"]))
    # Coordinates beyond all measure are the linter's to report.
    with np.errstate(over="ignore", invalid="ignore"):
        area = sum(_area(polygon.reshape(-1, 2)) for polygon in polygons)
    return values | {"bbox": [float(v) for v in (x1, y1, x2 - x1, y2 - y1)], "area": float(area)}


def boxed(x1: float, y1: float, x2: float, y2: float) -> dict:
    """Describe an object by two opposite corners of its box: a rectangle without a mask."""
    x, y, w, h = min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1)
    return {"segmentation": [], "bbox": [x, y, w, h], "area": w * h}


def masked(counts: np.ndarray, image: dict, crowd: bool = False) -> dict | None:
    """Describe an object by run lengths [n] of the whole image; None if they hold no pixel."""
    box = rle.bounds(counts, image["height"])
    if box is None:
        return None
    x1, y1, x2, y2 = box
    runs = {"size": [image["height"], image["width"]], "counts": rle.compress(counts).decode()}
    bbox = [float(side) for side in (x1, y1, x2 - x1, y2 - y1)]
    area = float(rle.area(counts))
    return {"segmentation": runs, "bbox": bbox, "area": area, "iscrowd": int(crowd)}


def united(windows: Sequence[tuple[int, int, np.ndarray]], image: dict) -> dict | None:
    """Describe an object that is the union of windows (left, top, [h, w]); None: no pixel."""
    height, width = image["height"], image["width"]
    if height * width > images.MAX_PIXELS:
        return None
    canvas = np.zeros((height, width), dtype=bool)
    for left, top, pixels in windows:
        rows, columns = max(0, -top), max(0, -left)
        window = canvas[max(0, top) :, max(0, left) :]
        visible = pixels[rows : rows + window.shape[0], columns : columns + window.shape[1]]
        window[: visible.shape[0], : visible.shape[1]] |= visible
    return masked(rle.of_mask(canvas), image)


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> list[float]:
    """Return a polygon of 64 points, turned by `angle`, see `turned`."""
    turns = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    points = np.stack([x + rx * np.cos(turns), y + ry * np.sin(turns)], axis=1)
    return turned(points, np.array([x, y]), angle)


def rectangle(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    """Return the corners [4, 2] of a box."""
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])


def turned(points: np.ndarray, centre: np.ndarray, angle: float) -> list[float]:
    """Turn points [V, 2] about a centre by radians, the first axis towards the second: flat."""
    cos, sin = np.cos(angle), np.sin(angle)
    return ((points - centre) @ np.array([[cos, sin], [-sin, cos]]) + centre).ravel().tolist()


def _area(points):
    """Compute the area inside a polygon [V, 2]."""
    x, y = (points - points[0]).T
    return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
