"""Exercise of notebook 14: from outlines to an annotation of a COCO file."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from accelerated.data import lint, rle, sources
from exercises import RIGHT, attempt, wrong

WIDTH, HEIGHT = 60, 40
# Numbers of image and category, and the outlines: one part, two parts, corners between pixels.
CASES = (
    (4, 7, [[[30, 15], [54, 19], [42, 36]]]),
    (4, 9, [[[5, 20], [25, 6], [25, 20]], [[31, 6], [50, 20], [31, 20]]]),
    (4, 7, [[[12.5, 3.25], [41.75, 12.5], [55.5, 36.25], [20.25, 27.75]]]),
)
IDS = {
    "id": "id is the annotation's own number, the second argument",
    "image_id": "image_id is the number of the image, the third argument",
    "category_id": "category_id is the number of the category as it is given, not a label",
}


def check(answer: Callable) -> str:
    """Put annotations of `answer(polygons, number, image, category)` before the linter."""
    for number, (image, category, polygons) in enumerate(CASES, start=11):
        copies = [[list(point) for point in polygon] for polygon in polygons]
        result, reply = attempt(answer, copies, number, image, category)
        if reply:
            return reply
        ids = dict(zip(IDS, (number, image, category), strict=True))
        hint = _form(result, ids) or _content(result, polygons)
        if hint:
            return wrong(f"{hint} (outlines {polygons})")
    return RIGHT


def _form(result, ids):
    """Return what is wrong with the form of an annotation, or ""."""
    if not isinstance(result, dict):
        return f"return a dict, not a {type(result).__name__}"
    try:
        json.dumps(result)
    except TypeError as problem:
        return f"JSON takes lists and Python's own numbers, not arrays: {problem}"
    for name, value in ids.items():
        if result.get(name) != value:
            return f"{IDS[name]}: {value}, not {result.get(name)}"
    return ""


def _content(result, polygons):
    """Return what is wrong with mask, box and area of an annotation, or ""."""
    record, problems = _read(result)
    for problem in problems:
        if problem.blocking:
            return f"the linter says: {problem.message}"
    [instance] = record.instances
    expected = _pixels(polygons)
    if instance.counts != expected:
        return _mask(instance.counts, polygons)
    points = np.concatenate(polygons)
    tight = [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]
    if np.abs(np.array(instance.box) - tight).max() > 1:
        return f"the corners of the box are the least and the largest x and y of all parts, {tight}"
    for problem in problems:
        return f"the linter says: {problem.message}"
    # Pixels or the exact area: COCO's files have either.
    pixels = rle.area(rle.decompress(expected))
    if abs(result["area"] / pixels - 1) > 0.1:
        if abs(result["area"] / np.prod(result["bbox"][2:]) - 1) < 0.01:
            return "area is that of the outlines, not of the box"
        return f"area is {result['area']}, but the outlines cover {pixels} pixels"
    return ""


def _mask(counts, polygons):
    """Return what is wrong with a mask that differs from that of the outlines."""
    if counts == _pixels([np.array(polygon)[:, ::-1] for polygon in polygons]):
        return "x and y are swapped: a polygon is x1, y1, x2, y2, .."
    if counts in [_pixels([polygon]) for polygon in polygons]:
        return "the mask is one part only: segmentation holds a polygon for every part"
    return "segmentation holds another mask than the outlines"


def _read(annotation):
    """Read a file of one annotation: the image's record, and the linter's problems."""
    image = {"id": annotation["image_id"], "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
    categories = [{"id": number, "name": f"class {number}"} for number in (7, 9)]
    content = {"images": [image], "categories": categories, "annotations": [annotation]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.json"
        path.write_text(json.dumps(content))
        records, report = lint.read(sources.find(path, folder), open_images=False)
    return records.images[image["id"]], report.problems


def _pixels(polygons):
    """Return the mask that the linter reads from outlines, as compressed run lengths."""
    return rle.of_polygons([np.ravel(polygon) for polygon in polygons], HEIGHT, WIDTH)
