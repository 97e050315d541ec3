"""Check one annotation of a COCO json file: its category, box and mask."""

import math
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from accelerated.data import rle
from accelerated.data.images import MAX_PIXELS

# Polygon coordinates further outside the image than this many times its longer side are errors.
FAR = 10
# Of a box, in pixels: shorter sides vanish in float32.
MIN_SIDE = 0.01
# Of all polygons of an annotation, in pixels: the memory for rasterising grows with it.
MAX_PERIMETER = 4e6

# Code, severity and message.
Remark = tuple[str, str, str]


@dataclass
class Instance:
    """A checked annotation.

    box     (x1, y1, x2, y2) inside the image
    area    in pixels
    crowd   whether it is a region of many objects
    counts  compressed run lengths of the mask, far smaller than polygons as Python lists
    polygons  [[V, 2]] x, y of the outlines, or None for a mask that came as run lengths
    """

    category_id: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool
    counts: bytes
    polygons: list[np.ndarray] | None


class Invalid(Exception):
    """Ends the reading of an item; `problem` holds (code, severity, message)."""

    def __init__(self, code: str, message: str, severity: str = "reject"):
        self.problem: Remark = code, severity, message


def read_instance(
    annotation: dict, image: Any, categories: Container
) -> tuple[Instance, list[Remark]]:
    """Check an annotation; return it and the remarks that do not invalidate it.

    image       its ImageRecord
    categories  the valid category ids

    Raises Invalid.
    """
    remarks = []
    category = whole(annotation.get("category_id"))
    if category is None or category not in categories:
        value = short(annotation.get("category_id"))
        raise Invalid(
            "unknown_category", f"category_id {value} is not in categories; add it or correct it"
        )
    crowd = annotation.get("iscrowd")
    if crowd not in (0, 1, None):
        raise Invalid(
            "iscrowd_invalid",
            f"iscrowd is {short(crowd)}; write 0, or 1 for a region of many objects",
        )
    if crowd is None:
        remarks.append(("iscrowd_missing", "note", "iscrowd is missing; 0 is assumed"))
    counts, runs, polygons = _segmentation(annotation.get("segmentation"), image, remarks)
    if crowd and isinstance(annotation["segmentation"], list):
        message = "a crowd region is drawn as a polygon; it is used as a crowd region"
        remarks.append(("crowd_polygon", "note", message))
    outline = rle.bounds(runs, image.height)
    if outline is None:
        raise Invalid(
            "mask_empty",
            "the mask covers no pixel of the image; draw it again or delete the annotation",
            "skip",
        )
    box = _box(annotation.get("bbox"), outline, image, remarks)
    area = annotation.get("area")
    if not finite(area) or area < 0:
        message = "area is missing or not a number; the pixels of the mask are counted"
        remarks.append(("area_missing", "note", message))
        area = rle.area(runs)
    return Instance(category, box, float(area), bool(crowd), counts, polygons), remarks


def _segmentation(value, image, remarks):
    """Convert polygons or RLE to valid run lengths: compressed, and as counts [n].

    Also returns the polygons, [V, 2] each, or None for RLE.
    """
    if value is None:
        raise Invalid("segmentation_missing", "segmentation is missing; draw a mask")
    if isinstance(value, dict):
        return *_run_lengths(value, image), None
    if not isinstance(value, list):
        raise Invalid(
            "segmentation_invalid",
            f"segmentation is {short(value)}; write a list of polygons or an RLE object",
        )
    if value and not any(isinstance(part, list) for part in value):
        raise Invalid(
            "segmentation_invalid",
            "segmentation is a flat list; write a list of polygons, [[x1, y1, x2, y2, ..]]",
        )
    polygons = [_polygon(part, image) for part in value]
    kept = [polygon for polygon in polygons if polygon.size >= 6]
    if not kept:
        raise Invalid(
            "polygon_too_short",
            "no polygon has three points; draw it again or delete the annotation",
            "skip",
        )
    if len(kept) < len(polygons):
        count = f"{len(polygons) - len(kept)} of {len(polygons)} polygons"
        message = f"{count} have fewer than three points and are skipped"
        remarks.append(("polygon_part_too_short", "warn", message))
    perimeter = sum(map(_perimeter, kept))
    if perimeter > MAX_PERIMETER:
        raise Invalid(
            "polygon_too_long", f"the polygons are {perimeter:.3g} pixels long; simplify them"
        )
    text = rle.of_polygons(kept, image.height, image.width)
    return text, rle.decompress(text), [polygon.reshape(-1, 2) for polygon in kept]


def _polygon(part, image):
    """Convert a list of numbers to an array [2n], where n may be below 3."""
    if not isinstance(part, list) or not all(map(_is_number, part)):
        raise Invalid(
            "polygon_invalid",
            f"a polygon is {short(part)}; write a list of numbers x1, y1, x2, y2, ..",
        )
    if len(part) % 2:
        raise Invalid("polygon_odd", f"a polygon has {len(part)} numbers; x and y come in pairs")
    try:
        polygon = np.array(part, dtype=np.float64)
    except OverflowError:
        polygon = np.array([np.inf])
    if not np.isfinite(polygon).all():
        raise Invalid(
            "polygon_not_finite", "a polygon contains NaN or infinity; correct its coordinates"
        )
    farthest = np.abs(polygon).max(initial=0.0)
    if farthest > (FAR + 1) * max(image.width, image.height):
        raise Invalid(
            "polygon_far_outside",
            f"a polygon reaches {farthest:.3g} pixels, far outside the image of"
            f" {image.width}x{image.height}; correct its coordinates",
        )
    return polygon


def _perimeter(polygon):
    """Sum the longer of the horizontal and vertical extent of each edge."""
    edges = np.diff(polygon.reshape(-1, 2), axis=0, append=polygon[None, :2])
    return np.abs(edges).max(axis=1).sum()


def _run_lengths(value, image):
    """Check an RLE object; return its counts compressed and as [n]."""
    _check_rle_size(value.get("size"), image)
    counts, text = value.get("counts"), None
    if isinstance(counts, str):
        try:
            text, runs = counts.encode(), rle.decompress(counts)
        except ValueError as error:
            raise Invalid("rle_invalid", f"{error}; encode the mask again") from None
    elif isinstance(counts, list) and all(map(_is_count, counts)):
        runs = np.array(counts, dtype=np.int64)
    else:
        raise Invalid(
            "rle_invalid",
            f"the RLE's counts are {short(counts)}; write a list of run lengths, or their"
            " compressed text",
        )
    if (runs < 0).any():
        raise Invalid(
            "rle_negative", "the RLE contains a negative run length; encode the mask again"
        )
    if runs.sum() != image.height * image.width:
        raise Invalid(
            "rle_sum",
            f"the RLE's run lengths sum to {runs.sum()}, not {image.height}x{image.width};"
            " encode the mask again",
        )
    return text or rle.compress(runs), runs


def _check_rle_size(size, image):
    sides = [whole(side) for side in size] if isinstance(size, list) else []
    if len(sides) != 2 or None in sides:
        raise Invalid("rle_size_missing", f"the RLE's size is {short(size)}; write [height, width]")
    if sides != [image.height, image.width]:
        hint = "encode the mask for this image"
        if sides == [image.width, image.height]:
            hint = "it is [width, height], write [height, width]"
        raise Invalid(
            "rle_size_mismatch",
            f"the RLE's size is {size}, the image's [{image.height}, {image.width}]; {hint}",
        )


def _box(bbox, outline, image, remarks):
    """Convert [x, y, width, height] to (x1, y1, x2, y2) inside the image.

    outline  the tight box of the mask
    """
    if bbox is None:
        remarks.append(("bbox_missing", "warn", "bbox is missing; the mask's box is used"))
        x1, y1, x2, y2 = map(float, outline)
        return x1, y1, x2, y2
    x, y, w, h = _box_numbers(bbox)
    if _iou((x, y, x + w, y + h), outline) < 0.5 and _iou((x, y, w, h), outline) > 0.9:
        raise Invalid(
            "bbox_corners",
            f"bbox {bbox} fits the mask when read as x1, y1, x2, y2; write [x, y, width, height]",
        )
    size = f"{image.width}x{image.height}"
    box = max(x, 0.0), max(y, 0.0), min(x + w, float(image.width)), min(y + h, float(image.height))
    if box[2] - box[0] < MIN_SIDE or box[3] - box[1] < MIN_SIDE:
        message = f"bbox {bbox} lies outside the image of {size}; correct or delete it"
        raise Invalid("bbox_outside", message, "skip")
    if max(-x, -y, x + w - image.width, y + h - image.height) > 1:
        message = f"bbox {bbox} extends beyond the image of {size}; it is clipped"
        remarks.append(("bbox_clipped", "warn", message))
    agreement = _iou(box, outline)
    if agreement < 0.5:
        rounded = [round(side, 1) for side in outline]
        message = f"bbox {bbox} and the box of the mask, {rounded} (x1, y1, x2, y2),"
        message += f" have an IoU of only {agreement:.0%}"
        remarks.append(("bbox_disagrees", "warn", message))
    return box


def _box_numbers(bbox):
    """Check that `bbox` holds four finite numbers and a width and height above 0."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        raise Invalid(
            "bbox_invalid", f"bbox is {short(bbox)}; write four numbers [x, y, width, height]"
        )
    if not all(map(finite, bbox)):
        raise Invalid("bbox_not_finite", f"bbox {bbox} contains NaN or infinity; correct it")
    x, y, w, h = map(float, bbox)
    if w < 0 or h < 0:
        raise Invalid(
            "bbox_negative",
            f"bbox {bbox} has a negative width or height; write [x, y, width, height] from the"
            " top left corner",
        )
    if w < MIN_SIDE or h < MIN_SIDE:
        raise Invalid(
            "bbox_empty",
            f"bbox {bbox} has no width or no height; draw it again or delete the annotation",
            "skip",
        )
    return x, y, w, h


def _iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    overlap = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    return overlap / union if union > 0 else 0.0


def whole(value: Any) -> int | None:
    """Convert an int, or a float without fraction, to int; return None for anything else."""
    if not finite(value) or value != int(value):
        return None
    return int(value)


def plain(value: Any) -> int | str | float | None:
    """Convert an id to something that can be a key and be printed."""
    number = whole(value)
    if number is not None:
        return number
    return value if isinstance(value, str | float | None) else short(value)


def finite(value: Any) -> TypeGuard[float]:
    """Tell whether a value is a finite number, not a bool."""
    try:
        return _is_number(value) and math.isfinite(value)
    except OverflowError:
        # An int beyond 1e308.
        return False


def short(value: Any) -> str:
    """Return the value as text for messages, cut to 60 characters."""
    try:
        text = repr(value)
    except RecursionError:
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value):
    return type(value) is int and abs(value) <= MAX_PIXELS
