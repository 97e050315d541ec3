"""Problems that only the whole of a data set shows, not one of its annotations."""

from collections import Counter
from collections.abc import Iterator

from accelerated.data import bbox
from accelerated.data.annotations import Problem, Records
from accelerated.data.instance import is_blank
from accelerated.data.reading import Reading
from accelerated.data.values import Invalid, Remark, plain, whole

# Of all annotations: COCO has one crowd region in a hundred.
UNUSUAL_CROWDS = 0.1
# Boxes without masks that must all look like corners, objects that must all lie within 0..100.
CORNERS, PERCENT = 4, 10
# Pixels: no side of an image that percents are suspected in is shorter.
LARGE = 200


def check(records: Records, problems: list[Problem], reading: Reading, name: str) -> list[Problem]:
    """Return what is unlikely of the data set as a whole.

    problems  those found so far
    name      of the json file
    """
    content = records.content
    if not isinstance(content, dict) or not records.images:
        return []
    found = [
        _crowds(records, reading),
        _boxes(content, problems),
        _corners(content, records),
        _percent(records),
        *(superclass for _, superclass in superclasses(content)),
    ]
    return [
        Problem(code, severity, "file", name, None, None, message)
        for code, severity, message in filter(None, found)
    ]


def _crowds(records, reading):
    crowds = [i.crowd for record in records.images.values() for i in record.instances]
    if reading.crowd == "objects" or sum(crowds) <= UNUSUAL_CROWDS * len(crowds):
        return None
    message = f"{sum(crowds)} of {len(crowds)} annotations have iscrowd 1 and are not trained on;"
    message += " CVAT writes this for brush masks: --crowd objects makes them objects"
    return "crowds_unusual", "warn", message


def _boxes(content, problems):
    total = len(content["annotations"])
    codes = Counter(problem.code for problem in problems)
    wrong = codes["bbox_disagrees"] + sum(codes[code] for code in bbox.READINGS)
    if wrong < 2 or 2 * wrong <= total:
        return None
    message = f"{wrong} of {total} boxes disagree with their masks, so that one of the two is wrong"
    return "boxes_disagree", "reject", f"{message}; correct them"


def _corners(content, records):
    """Find boxes without masks that are corners: they end right of and below where they start."""
    beyond, total = 0, 0
    for entry in content["annotations"]:
        if not isinstance(entry, dict) or not is_blank(entry.get("segmentation")):
            continue
        image = records.images.get(plain(entry.get("image_id")))
        if image is None:
            continue
        try:
            x, y, w, h = bbox.numbers(entry.get("bbox"))
        except Invalid:
            continue
        if not (x < w <= image.width and y < h <= image.height):
            return None
        total += 1
        beyond += x + w > image.width + 1 or y + h > image.height + 1
    if total < CORNERS or 3 * beyond < total:
        return None
    message = f"all {total} boxes without masks fit into their images as x1, y1, x2, y2, but"
    message += f" {beyond} do not as x, y, width, height; write the latter"
    return "bbox_all_corners", "reject", message


def _percent(records):
    used = [record for record in records.images.values() if record.instances]
    boxes = [instance.box for record in used for instance in record.instances]
    if len(boxes) < PERCENT or len(used) < 2:
        return None
    right, bottom = (max(sides) for sides in list(zip(*boxes, strict=True))[2:])
    small = min(min(record.width, record.height) for record in used) < LARGE
    if small or not (80 < right <= 100 and 80 < bottom <= 100):
        return None
    message = f"all {len(boxes)} objects lie within the first 100 pixels of their images; convert"
    return "coordinates_percent", "warn", f"{message} the coordinates if they are percentages"


def superclasses(content: dict) -> Iterator[tuple[int, Remark]]:
    """Yield the index of each category that only groups others, and a note on it."""
    entries = [entry for entry in content["annotations"] if isinstance(entry, dict)]
    used = {whole(entry.get("category_id")) for entry in entries}
    categories = [(k, c) for k, c in enumerate(content["categories"]) if isinstance(c, dict)]
    parents = {
        str(c.get("supercategory"))
        for _, c in categories
        if c.get("supercategory") != c.get("name")
    }
    for index, category in categories:
        category_id, name = whole(category.get("id")), category.get("name")
        if category_id not in used and str(name) in parents and used:
            message = f"category {category_id}, {name!r}, is the supercategory of others and has no"
            message += " annotation, as Roboflow writes it; the model has a class for it even so"
            yield index, ("category_is_superclass", "note", message)
