"""Label Studio's own json: tasks with results, in percent of the image's sides."""

import math
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from accelerated.data.formats import draft
from accelerated.data.formats.draft import Draft, Shape, Source
from accelerated.data.formats.place import Listing, Place
from accelerated.data.images import MAX_PIXELS
from accelerated.data.values import finite, is_point, short

NAME = "Label Studio"
LOOKED_FOR = "Label Studio (.json)"
# Results that are outlines, and the key of their labels.
KINDS = ("polygonlabels", "ellipselabels", "brushlabels", "rectanglelabels")


def recognises(place: Place) -> bool:
    """Tell whether this is a list of tasks."""
    content = place.content
    first = content[0] if isinstance(content, list) and content else None
    return (
        isinstance(first, dict)
        and "data" in first
        and not first.keys().isdisjoint(("annotations", "completions"))
    )


def read(place: Place, image_root: Path | None) -> Source:
    """Convert a list of tasks.

    Polygons, ellipses and brush masks are objects; a rectangle is a box without a mask, unless it
    is rotated: then it is an outline. Of several annotations of an image the last one that was not
    cancelled is read. The name of an image is what follows Label Studio's own prefix.
    """
    root = place.path.parent if image_root is None else image_root
    made = Draft(place.path, NAME, Listing(root))
    for number, task in enumerate(place.content or [], start=1):
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            made.report("task_invalid", "skip", f"task {number} is {short(task)}; export it again")
            continue
        done = task.get("annotations", task.get("completions"))
        done = done if isinstance(done, list) else []
        done = [entry for entry in done if isinstance(entry, dict)]
        done = [entry for entry in done if not entry.get("was_cancelled")]
        if len(done) > 1:
            made.skip("older annotations of images that have several")
        results = done[-1].get("result") if done else []
        _read_task(made, task, number, results if isinstance(results, list) else [])
    return made.source()


def _read_task(made, task, number, results):
    found = _picture(made.pictures, task["data"])
    if found is None:
        named = ", ".join(short(value) for value in task["data"].values()) or "nothing"
        made.report_missing(f"the picture of task {number} ({named})", "")
        return
    results = [result for result in results if isinstance(result, dict)]
    stated = (draft.stated_size(r.get("original_width"), r.get("original_height")) for r in results)
    image = made.image(found, next(filter(None, stated), None))
    if image is not None:
        made.add_shapes(image, results, partial(_shape, made, image), found)


def _picture(pictures, data):
    """Return the picture that a task shows, or None."""
    for value in data.values():
        if not isinstance(value, str):
            continue
        # /data/local-files/?d=folder/a.jpg, /data/upload/1/9af3e1c2-a.jpg, or an address.
        try:
            address = urlsplit(value)
            path = unquote(parse_qs(address.query).get("d", [address.path])[0])
        except ValueError:
            continue
        name = PurePosixPath(path).name
        _, dash, plain = name.partition("-")
        for candidate in (path, plain if dash else name):
            found = pictures.find(candidate) if candidate else None
            if found:
                return found
    return None


def _shape(made, image, result) -> Shape | None:
    """Read a shape; None for one that is counted only. Raises ValueError, with the reason."""
    kind, value = result.get("type"), result.get("value")
    if not isinstance(kind, str) or kind not in KINDS or not isinstance(value, dict):
        made.skip(f"results of type {short(kind)}, which outline nothing")
        return None
    labels = value.get(kind)
    label = labels[0] if isinstance(labels, list) and labels else None
    width, height = image["width"] / 100, image["height"] / 100
    if kind == "brushlabels":
        return Shape("mask", label, None, (0, 0, _brush(value.get("rle"), image)))
    if kind == "polygonlabels":
        points = value.get("points")
        if not isinstance(points, list) or not all(map(is_point, points)):
            raise ValueError(f"its points are {short(points)}")
        outline = [side for x, y in points for side in (x * width, y * height)]
        return Shape("outline", label, None, outline)
    names = ("x", "y", "radiusX", "radiusY")
    if kind == "rectanglelabels":
        names = ("x", "y", "width", "height")
    numbers = [value.get(name) for name in names]
    if not all(map(finite, numbers)):
        raise ValueError(f"its numbers are {short(numbers)}")
    x, y, w, h = (n * scale for n, scale in zip(numbers, (width, height) * 2, strict=True))
    rotation = value.get("rotation")
    angle = math.radians(rotation) if finite(rotation) else 0.0
    if kind == "ellipselabels":
        return Shape("outline", label, None, draft.ellipse(x, y, w, h, angle))
    if not angle:
        return Shape("box", label, None, (x, y, x + w, y + h))
    corners = draft.rectangle(x, y, x + w, y + h)
    return Shape("outline", label, None, draft.turned(corners, corners[0], angle))


def _brush(values: Any, image: dict) -> np.ndarray:
    """Return a brush mask [H, W]: run lengths of an RGBA picture, of which alpha counts."""
    if not isinstance(values, list) or not all(
        type(value) is int and 0 <= value < 256 for value in values
    ):
        raise ValueError(f"its rle is {short(values)}")
    height, width = image["height"], image["width"]
    if height * width > MAX_PIXELS:
        raise ValueError(f"the image has more than {MAX_PIXELS:,} pixels")
    pixels = _decode(bytes(values), 4 * height * width).reshape(height, width, 4)
    return pixels[..., 3] > 127


def _decode(data: bytes, expected: int) -> np.ndarray:
    """Decode Label Studio's runs to bytes [expected] (of @thi.ng/rle-pack).

    A stream of bits: 32 for the count of values, 5 for their width less 1, four times 4 for the
    widths of lengths less 1; then blocks of one bit (whether a value is repeated), two for the
    width of the length, the length less 1, and the value, or that many values.
    Raises ValueError if it is damaged or of another length.
    """
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    position = 0

    def take(count: int) -> int:
        nonlocal position
        if position + count > bits.size:
            raise ValueError("its rle ends too early")
        word = bits[position : position + count]
        position += count
        return int(word @ (1 << np.arange(count - 1, -1, -1)))

    size, word = take(32), take(5) + 1
    if size != expected or word != 8:
        raise ValueError(f"its rle has {size} values, not {expected}, the image's 4 per pixel")
    widths = [take(4) + 1 for _ in range(4)]
    out, filled = np.zeros(size, dtype=np.uint8), 0
    while filled < size:
        repeated = take(1)
        end = min(size, filled + 1 + take(widths[take(2)]))
        if repeated:
            out[filled:end] = take(word)
        else:
            count = word * (end - filled)
            if position + count > bits.size:
                raise ValueError("its rle ends too early")
            out[filled:end] = np.packbits(bits[position : position + count])
            position += count
        filled = end
    return out
