"""Check a COCO bbox, [x, y, width, height], against its image and its mask."""

from collections.abc import Callable
from typing import Any

from accelerated.data.values import Invalid, finite, is_number, short

# In pixels: shorter sides vanish in float32.
MIN_SIDE = 0.01
# Of a box and its mask's box: below they disagree, above another reading of the box fits.
DISAGREES, FITS = 0.5, 0.8

EXCHANGED = "; with x and y exchanged they agree"

Box = tuple[float, float, float, float]


def _corners(a, b, c, d):
    return a, b, c, d


def _sides(a, b, c, d):
    return a, b, a + c, b + d


def _centres(a, b, c, d):
    return a - c / 2, b - d / 2, a + c / 2, b + d / 2


def _fractions(read):
    """Read fractions of the image's sides."""
    return lambda a, b, c, d, w, h: read(a * w, b * h, c * w, d * h)


def _pixels(read):
    return lambda a, b, c, d, w, h: read(a, b, c, d)


# What other programs write: {code: (what the four numbers are, their readings as corners)}.
READINGS: dict[str, tuple[str, list[Callable[..., Box]]]] = {
    "bbox_corners": ("x1, y1, x2, y2", [_pixels(_corners)]),
    "bbox_centres": ("the centre's x and y, width, height", [_pixels(_centres)]),
    "bbox_fractions": (
        "fractions of the image's width and height",
        [_fractions(read) for read in (_sides, _centres, _corners)],
    ),
}


def check(bbox: Any, outline: Box, image: Any, remarks: list) -> Box:
    """Convert [x, y, width, height] to (x1, y1, x2, y2) inside the image.

    outline  the tight box of the mask
    image    its ImageRecord
    remarks  receives what does not invalidate the box

    Raises Invalid.
    """
    if bbox is None:
        remarks.append(("bbox_missing", "warn", "bbox is missing; the mask's box is used"))
        x1, y1, x2, y2 = map(float, outline)
        return x1, y1, x2, y2
    x, y, w, h = numbers(bbox)
    if iou((x, y, x + w, y + h), outline) < DISAGREES:
        fitting = reading((x, y, w, h), outline, image)
        if fitting is not None:
            message = f"bbox {bbox} fits the mask when read as {READINGS[fitting[0]][0]}"
            raise Invalid(fitting[0], f"{message}; write [x, y, width, height] in pixels")
    box = inside(bbox, image, remarks)
    agreement = iou(box, outline)
    if agreement < DISAGREES:
        rounded = [round(side, 1) for side in outline]
        message = f"bbox {bbox} and the box of the mask, {rounded} (x1, y1, x2, y2),"
        message += f" have an IoU of only {agreement:.0%}"
        # Of the two, either may be wrong.
        message += EXCHANGED if iou((y, x, y + h, x + w), outline) > FITS else ""
        remarks.append(("bbox_disagrees", "warn", message))
    return box


def reading(bbox: Box, outline: Box, image: Any) -> tuple[str, Box] | None:
    """Return code and corners of the other reading of a box that fits its mask, or None."""
    for code, (_, readings) in READINGS.items():
        for read in readings:
            corners = read(*bbox, image.width, image.height)
            if iou(corners, outline) > FITS:
                return code, corners
    return None


def inside(bbox: Any, image: Any, remarks: list) -> Box:
    """Clip [x, y, width, height] to the image: (x1, y1, x2, y2). Raises Invalid if none is left."""
    x, y, w, h = numbers(bbox)
    size = f"{image.width}x{image.height}"
    if w < MIN_SIDE or h < MIN_SIDE:
        raise Invalid(
            "bbox_empty",
            f"bbox {bbox} has no width or no height; draw it again or delete the annotation",
            "skip",
        )
    box = max(x, 0.0), max(y, 0.0), min(x + w, float(image.width)), min(y + h, float(image.height))
    if box[2] - box[0] < MIN_SIDE or box[3] - box[1] < MIN_SIDE:
        message = f"bbox {bbox} lies outside the image of {size}; correct or delete it"
        raise Invalid("bbox_outside", message, "skip")
    if max(-x, -y, x + w - image.width, y + h - image.height) > 1:
        message = f"bbox {bbox} extends beyond the image of {size}; it is clipped"
        remarks.append(("bbox_clipped", "warn", message))
    return box


def numbers(bbox: Any) -> Box:
    """Return the four numbers of a bbox. Raises Invalid unless they are finite, sides from 0 on."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_number, bbox)):
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
    return x, y, w, h


def iou(a: Box, b: Box) -> float:
    """Compute the intersection over union of two boxes (x1, y1, x2, y2)."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    overlap = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    return overlap / union if union > 0 else 0.0
