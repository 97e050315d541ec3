"""Check one annotation of a COCO json file: its category, box and mask."""

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import numpy as np

from accelerated.data import bbox, rle
from accelerated.data.images import MAX_PIXELS
from accelerated.data.reading import DEFAULT, Reading
from accelerated.data.values import Invalid, Remark, finite, is_number, short, whole

# Polygon coordinates further outside the image than this many times its longer side are errors.
FAR = 10
# Of all polygons of an annotation, in pixels: the memory for rasterising grows with it.
MAX_PERIMETER = 4e6


@dataclass(slots=True)
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


def read_instance(
    annotation: dict, image: Any, categories: Container, reading: Reading = DEFAULT
) -> tuple[Instance, list[Remark]]:
    """Check an annotation; return it and the remarks that do not invalidate it.

    image       its ImageRecord
    categories  the valid category ids
    reading     what the file leaves open

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
    crowd = bool(crowd) and reading.crowd == "ignore"
    segmentation = annotation.get("segmentation")
    if is_blank(segmentation):
        box, counts, polygons = _rectangle(annotation.get("bbox"), image, reading, remarks)
        runs = rle.decompress(counts)
    else:
        counts, runs, polygons = _segmentation(segmentation, image, remarks)
        if crowd and polygons:
            message = "a crowd region is drawn as a polygon; it is used as a crowd region"
            remarks.append(("crowd_polygon", "note", message))
        outline = rle.bounds(runs, image.height)
        if outline is None:
            raise Invalid(
                "mask_empty",
                "the mask covers no pixel of the image; draw it again or delete the annotation",
                "skip",
            )
        box = bbox.check(annotation.get("bbox"), outline, image, remarks)
    area = annotation.get("area")
    if not finite(area) or area < 0:
        message = "area is missing or not a number; the pixels of the mask are counted"
        remarks.append(("area_missing", "note", message))
        area = rle.area(runs)
    return Instance(category, box, float(area), crowd, counts, polygons), remarks


def is_blank(segmentation: Any) -> bool:
    """Tell whether there is nothing in place of a mask: no key, null, [] or [[]]."""
    return segmentation is None or (
        isinstance(segmentation, list) and all(part == [] for part in segmentation)
    )


def _rectangle(value, image, reading, remarks):
    """Return the box of an annotation without a mask, and itself as run lengths and as polygon."""
    if value is None:
        raise Invalid("segmentation_missing", "there is neither a mask nor a box; draw a mask")
    x1, y1, x2, y2 = bbox.inside(value, image, remarks)
    if _are_fractions(np.array(value, dtype=float), image):
        raise _fractions(f"bbox {value}")
    if reading.masks and not reading.boxes_as_masks:
        raise Invalid(
            "mask_missing",
            "a rectangle without a mask; draw a mask, or use the box as one with --boxes-as-masks",
            "skip",
        )
    if reading.masks:
        remarks.append(("box_as_mask", "note", "a rectangle without a mask; the box is its mask"))
    polygon = np.array([x1, y1, x2, y1, x2, y2, x1, y2])
    counts = rle.of_polygons([polygon], image.height, image.width)
    if reading.masks and rle.area(rle.decompress(counts)) == 0:
        raise Invalid("mask_empty", f"bbox {value} covers no pixel of the image", "skip")
    return (x1, y1, x2, y2), counts, [polygon.reshape(-1, 2)]


def _are_fractions(numbers, image):
    """Tell whether coordinates seem to be fractions of the image's sides."""
    within = numbers.min() >= 0 and numbers.max() <= 1
    return within and min(image.width, image.height) > 2 and (numbers % 1 > 0).any()


def _fractions(what):
    message = f"{what} lies within 0..1, as if in fractions of the image's sides; write pixels"
    return Invalid("coordinates_fractions", message)


def _segmentation(value, image, remarks):
    """Convert polygons or RLE to valid run lengths: compressed, and as counts [n].

    Also returns the polygons, [V, 2] each, or None for RLE.
    """
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
    if _are_fractions(np.concatenate(kept), image):
        raise _fractions("the outline")
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
    # The types first, as large files have millions of coordinates.
    if not isinstance(part, list) or not (
        {*map(type, part)} <= {int, float} or all(map(is_number, part))
    ):
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


def _is_count(value):
    return type(value) is int and abs(value) <= MAX_PIXELS
