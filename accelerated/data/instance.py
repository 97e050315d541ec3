"""One annotation of a COCO json file: category, box and mask, each checked before anything is built on it."""

import math
from dataclasses import dataclass

import numpy as np

from accelerated.data import rle
from accelerated.data.images import MAX_PIXELS

FAR = 10  # polygon coordinates further outside than this many long sides are taken for an error
MIN_SIDE = 0.01  # of a box, pixels: shorter ones vanish in float32
MAX_PERIMETER = (
    4e6  # of all polygons of an annotation, pixels: rasterising takes memory in proportion
)


@dataclass
class Instance:
    category_id: int
    box: tuple  # (x1, y1, x2, y2) inside the image
    area: float
    crowd: bool
    counts: bytes  # of the mask: compressed run lengths, far smaller than polygons as Python lists


class Invalid(Exception):
    """Ends the reading of one item; `problem` holds (code, severity, message)."""

    def __init__(self, code, message, severity="reject"):
        self.problem = code, severity, message


def read_instance(annotation, image, categories):
    """One checked annotation -> (Instance, [(code, severity, message)])."""
    remarks = []
    category = whole(annotation.get("category_id"))
    if category not in categories:
        raise Invalid(
            "unknown_category",
            f"category_id {short(annotation.get('category_id'))} is not in categories; add it there, or correct it",
        )
    crowd = annotation.get("iscrowd")
    if crowd not in (0, 1, None):
        raise Invalid(
            "iscrowd_invalid",
            f"iscrowd is {short(crowd)}; write 0, or 1 for a region of many objects",
        )
    if crowd is None:
        remarks.append(("iscrowd_missing", "note", "there is no iscrowd; taken as 0"))
    text, runs = _segmentation(annotation.get("segmentation"), image, remarks)
    if crowd and isinstance(annotation["segmentation"], list):
        remarks.append(
            (
                "crowd_polygon",
                "note",
                "a crowd region drawn as a polygon; taken as a crowd region all the same",
            )
        )
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
        remarks.append(
            ("area_missing", "note", "area is missing or no number; it is counted from the mask")
        )
        area = rle.area(runs)
    return Instance(category, box, float(area), bool(crowd), text), remarks


def _segmentation(value, image, remarks):
    """Polygons or RLE -> run lengths known to be sound: compressed, and as counts [n]."""
    if value is None:
        raise Invalid("segmentation_missing", "there is no segmentation; draw a mask")
    if isinstance(value, dict):
        return _run_lengths(value, image)
    if not isinstance(value, list):
        raise Invalid(
            "segmentation_invalid",
            f"segmentation is {short(value)}; write a list of polygons or an RLE object",
        )
    if value and not any(isinstance(part, list) for part in value):
        raise Invalid(
            "segmentation_invalid",
            "segmentation is one flat list; write a list of polygons, [[x1, y1, x2, y2, ..]]",
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
        remarks.append(
            (
                "polygon_part_too_short",
                "warn",
                f"{len(polygons) - len(kept)} of {len(polygons)} polygons have fewer than three points and are left out",
            )
        )
    perimeter = sum(
        np.abs(np.diff(polygon.reshape(-1, 2), axis=0, append=polygon[None, :2])).max(axis=1).sum()
        for polygon in kept
    )
    if perimeter > MAX_PERIMETER:
        raise Invalid(
            "polygon_too_long", f"the polygons are {perimeter:.3g} pixels long; simplify them"
        )
    text = rle.of_polygons(kept, image.height, image.width)
    return text, rle.decompress(text)


def _polygon(part, image):
    """A list of numbers -> array [2n], n possibly below 3."""
    if not isinstance(part, list) or not all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in part
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
    if polygon.size and np.abs(polygon).max() > (FAR + 1) * max(image.width, image.height):
        raise Invalid(
            "polygon_far_outside",
            f"a polygon reaches {np.abs(polygon).max():.3g} pixels, far outside {image.width}x{image.height}",
        )
    return polygon


def _run_lengths(value, image):
    """An RLE object -> its counts, which are non-negative and add up to the image: compressed, and [n]."""
    size, counts, text = value.get("size"), value.get("counts"), None
    if (
        not isinstance(size, list)
        or len(size) != 2
        or None in (height := whole(size[0]), width := whole(size[1]))
    ):
        raise Invalid("rle_size_missing", f"the RLE's size is {short(size)}; write [height, width]")
    if (height, width) != (image.height, image.width):
        hint = (
            "; it is [width, height], write [height, width]"
            if (width, height) == (image.height, image.width)
            else ""
        )
        raise Invalid(
            "rle_size_mismatch",
            f"the RLE's size is {size}, the image's [{image.height}, {image.width}]{hint}",
        )
    if isinstance(counts, str):
        try:
            text, counts = counts.encode(), rle.decompress(counts)
        except ValueError as error:
            raise Invalid("rle_invalid", f"{error}; encode the mask again") from None
    elif isinstance(counts, list) and all(
        type(count) is int and abs(count) <= MAX_PIXELS for count in counts
    ):
        counts = np.array(counts, dtype=np.int64)
    else:
        raise Invalid(
            "rle_invalid",
            f"the RLE's counts are {short(counts)}; write a list of run lengths, or their compressed text",
        )
    if (counts < 0).any():
        raise Invalid(
            "rle_negative", "the RLE contains a negative run length; encode the mask again"
        )
    if counts.sum() != image.height * image.width:
        raise Invalid(
            "rle_sum",
            f"the RLE's run lengths add up to {counts.sum()}, not {image.height}x{image.width}; encode the mask again",
        )
    return text or rle.compress(counts), counts


def _box(bbox, outline, image, remarks):
    """[x, y, width, height] -> (x1, y1, x2, y2) inside the image."""
    if bbox is None:
        remarks.append(("bbox_missing", "warn", "there is no bbox; it is taken from the mask"))
        return tuple(map(float, outline))
    if (
        not isinstance(bbox, list)
        or len(bbox) != 4
        or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in bbox)
    ):
        raise Invalid(
            "bbox_invalid", f"bbox is {short(bbox)}; write four numbers [x, y, width, height]"
        )
    if not all(map(finite, bbox)):
        raise Invalid("bbox_not_finite", f"bbox {bbox} contains NaN or infinity; correct it")
    x, y, w, h = map(float, bbox)
    if w < 0 or h < 0:
        raise Invalid(
            "bbox_negative",
            f"bbox {bbox} has a negative width or height; write [x, y, width, height] from the top left corner",
        )
    if w < MIN_SIDE or h < MIN_SIDE:
        raise Invalid(
            "bbox_empty",
            f"bbox {bbox} has no width or no height; draw it again or delete the annotation",
            "skip",
        )
    box = max(x, 0.0), max(y, 0.0), min(x + w, float(image.width)), min(y + h, float(image.height))
    if _iou((x, y, x + w, y + h), outline) < 0.5 and _iou((x, y, w, h), outline) > 0.9:
        raise Invalid(
            "bbox_corners",
            f"bbox {bbox} fits the mask when read as x1, y1, x2, y2; write [x, y, width, height]",
        )
    if box[2] - box[0] < MIN_SIDE or box[3] - box[1] < MIN_SIDE:
        raise Invalid(
            "bbox_outside",
            f"bbox {bbox} lies outside the image, {image.width}x{image.height}; correct or delete it",
            "skip",
        )
    if max(-x, -y, x + w - image.width, y + h - image.height) > 1:
        remarks.append(
            (
                "bbox_clipped",
                "warn",
                f"bbox {bbox} sticks out of the image, {image.width}x{image.height}; it is cut at the border",
            )
        )
    agreement = _iou(box, outline)
    if agreement < 0.5:
        remarks.append(
            (
                "bbox_disagrees",
                "warn",
                f"bbox {bbox} and the mask's own box {[round(v, 1) for v in outline]} overlap by only {agreement:.0%} IoU",
            )
        )
    return box


def _iou(a, b):
    overlap = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(
        0.0, min(a[3], b[3]) - max(a[1], b[1])
    )
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    return overlap / union if union > 0 else 0.0


def whole(value):
    """An int, also from a float without fraction; None for anything else."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not finite(value)
        or value != int(value)
    ):
        return None
    return int(value)


def plain(value):
    """An id fit to be a key and to be printed: int where it is whole, else text, number or None."""
    number = whole(value)
    return (
        number
        if number is not None
        else value
        if isinstance(value, str | float | None)
        else short(value)
    )


def finite(value):
    try:
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
    except OverflowError:  # an int beyond 1e308
        return False


def short(value):
    """For messages: the value as text, cut to 60 characters."""
    try:
        text = repr(value)
    except RecursionError:
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
