"""How an entry of a COCO file is mended, for each problem whose repair has one meaning."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from accelerated.data import bbox, images, plausibility, rle
from accelerated.data.annotations import ImageRecord, Problem, counterparts, number
from accelerated.data.causes import outlines, shift_of_categories, shifted
from accelerated.data.file_names import Folder
from accelerated.data.instance import Instance, is_blank, read_instance
from accelerated.data.reading import Reading
from accelerated.data.values import Invalid, finite, is_number, plain, whole

# Code of the problem, part of the file, index in it, new fields; None leaves the entry out.
Fix = tuple[str, str, int, dict | None]
# Pixels that a side may differ where a picture is cropped, not scaled.
CROPPED = 2
# Share that the shapes of two sizes may differ.
SAME_SHAPE = 0.02


@dataclass
class Case:
    """The file in repair, as parsed, and its images."""

    content: dict[str, Any]
    root: Path
    reading: Reading
    probe: Callable[..., images.Header]

    @cached_property
    def annotations(self) -> dict[Any, list[tuple[int, dict, ImageRecord]]]:
        """Index, entry and image of the annotations that have an image, by the image's id."""
        found = defaultdict(list)
        for index, entry in enumerate(self.content["annotations"]):
            record = self.record(entry)
            if record is not None:
                found[record.id].append((index, entry, record))
        return found

    def record(self, entry: Any) -> ImageRecord | None:
        """Return the image of an annotation with its size, if they are valid."""
        image = self.by_id.get(plain(entry.get("image_id"))) if isinstance(entry, dict) else None
        width, height = (whole(image.get(key)) for key in ("width", "height")) if image else (0, 0)
        if image is None or not width or not height or min(width, height) < 1:
            return None
        return ImageRecord(plain(image.get("id")), image.get("file_name"), width, height)

    def size(self, image: dict) -> tuple[int, int] | None:
        """Return (width, height) of an image's file, None if it is not readable or undecided."""
        try:
            header = self.probe(images.locate(self.root, image.get("file_name")), decode=False)
        except images.ImageError:
            return None
        if self.reading.exif is None and header.orientation > 1:
            return None
        return header.size(self.reading.exif)

    @cached_property
    def by_id(self) -> dict:
        """The images by their ids."""
        entries = [entry for entry in self.content["images"] if isinstance(entry, dict)]
        return {plain(entry.get("id")): entry for entry in entries}

    @cached_property
    def names(self) -> dict[str, str]:
        """The files that are meant by names which name none."""
        entries = [entry.get("file_name") for entry in self.by_id.values()]
        found = Folder(self.root).mend_all(name for name in entries if isinstance(name, str))
        return {name: mended for name, (mended, _) in found.items()}

    @cached_property
    def texts(self) -> dict[int, str]:
        """The images' ids that write a number as text."""
        return counterparts(self.by_id)

    @cached_property
    def shifted(self) -> bool:
        """Whether all annotations name the image after theirs."""
        return shifted(self.content)

    @cached_property
    def categories(self) -> dict[Any, int]:
        """The categories' ids, by id and by name."""
        entries = [c for c in self.content["categories"] if isinstance(c, dict)]
        known = [(whole(c.get("id")), str(c.get("name"))) for c in entries]
        counts = Counter(name for _, name in known)
        ids: dict[Any, int] = {key: key for key, _ in known if key is not None}
        return ids | {n: key for key, n in known if key is not None and counts[n] == 1}

    @cached_property
    def free_ids(self) -> Iterator[int]:
        """Annotation ids that are not in use."""
        ids = [a.get("id") for a in self.content["annotations"] if isinstance(a, dict)]
        return count(1 + max((int(value) for value in ids if finite(value)), default=0))


def fixes(case: Case, problems: list[Problem]) -> Iterator[Fix]:
    """Yield the changes that mend problems; an entry may have several, of which one counts."""
    shared = set()
    for problem in problems:
        if problem.code in OF_ENTRY and problem.index is not None:
            fields = OF_ENTRY[problem.code](case, problem.entry(case.content))
            if fields is not None:
                yield problem.code, problem.part, problem.index, fields
        if problem.code in OF_FILE and problem.code not in shared:
            shared.add(problem.code)
            for part, index, fields in OF_FILE[problem.code](case):
                yield problem.code, part, index, fields
        if problem.code == "duplicate_annotation" and problem.index is not None:
            yield problem.code, "annotations", problem.index, None


def instance(entry: dict, record: ImageRecord | None) -> Instance | None:
    """Read the mask of an annotation, whatever else is wrong with it; None if it has none."""
    if record is None or is_blank(entry.get("segmentation")):
        return None
    try:
        return read_instance(entry | {"bbox": None, "category_id": 0, "iscrowd": 0}, record, {0})[0]
    except Invalid:
        return None


def _sides(corners):
    x1, y1, x2, y2 = corners
    return [x1, y1, x2 - x1, y2 - y1]


def _box(case, entry):
    """Convert a box that fits its mask in another reading; otherwise take the mask's."""
    record, value = case.record(entry), entry.get("bbox")
    mask = instance(entry, record)
    try:
        bbox.numbers(value)
    except Invalid:
        if mask is None and isinstance(value, list) and len(value) == 4 and all(map(finite, value)):
            x, y, w, h = value
            return {"bbox": [min(x, x + w), min(y, y + h), abs(w), abs(h)]}
    else:
        found = mask and record and bbox.reading(value, mask.box, record)
        if found:
            return {"bbox": _sides(found[1])}
    return mask and {"bbox": _sides(mask.box)}


def _boxes(case):
    """Convert all boxes from the reading that fits most masks, where it fits better."""
    masks = [(i, e, r, instance(e, r)) for of in case.annotations.values() for i, e, r in of]
    known, codes = [], Counter()
    for index, entry, record, mask in masks:
        try:
            value = bbox.numbers(entry.get("bbox"))
        except Invalid:
            continue
        if mask is not None:
            found = bbox.reading(value, mask.box, record)
            codes[found and found[0]] += 1
            known.append((index, value, mask.box, found))
    code = codes.most_common(1)[0][0] if codes else None
    for index, value, outline, found in known:
        x, y, w, h = value
        if code and found and found[0] == code:
            agreement = bbox.iou((x, y, x + w, y + h), outline)
            if bbox.iou(found[1], outline) > agreement:
                yield "annotations", index, {"bbox": _sides(found[1])}


def _corners(case):
    for index, entry, _ in (found for of in case.annotations.values() for found in of):
        box = entry.get("bbox")
        numbers = isinstance(box, list) and len(box) == 4 and all(map(finite, box))
        if numbers and is_blank(entry.get("segmentation")):
            yield "annotations", index, {"bbox": _sides(box)}


def _fractions(case, entry):
    record, value, box = case.record(entry), entry.get("segmentation"), entry.get("bbox")
    if record is None:
        return None
    sides, fields = (record.width, record.height), {}
    if isinstance(value, list) and value:
        fields["segmentation"] = _scaled(value, sides)
    if isinstance(box, list) and len(box) == 4 and all(map(finite, box)) and max(box) <= 1:
        fields["bbox"] = _scaled([box], sides)[0]
    return fields | {"area": None}


def _scaled(polygons, factors):
    return [(np.reshape(part, (-1, 2)) * factors).ravel().tolist() for part in polygons]


def _image_id(case, entry):
    value = plain(entry.get("image_id"))
    found = number(value) if isinstance(value, str) else case.texts.get(value)
    return {"image_id": found} if found in case.by_id and found is not None else None


def _image_ids(case):
    for index, entry in enumerate(case.content["annotations"] if case.shifted else ()):
        if isinstance(entry, dict) and is_number(entry.get("image_id")):
            yield "annotations", index, {"image_id": entry["image_id"] - 1}


def _category(case, entry):
    value = plain(entry.get("category_id"))
    if value is None and len(case.content["categories"]) == 1:
        value = next(iter(case.categories), None)
    if isinstance(value, str) and value not in case.categories:
        value = number(value)
    found = case.categories.get(value)
    return None if found is None else {"category_id": found}


def _shifted_categories(case):
    shift = shift_of_categories(case.content)
    for index, entry in enumerate(case.content["annotations"] if shift else ()):
        if isinstance(entry, dict):
            yield "annotations", index, {"category_id": int(entry["category_id"]) + shift}


def _category_ids(case):
    for index, entry in enumerate(case.content["categories"]):
        value = number(entry.get("id")) if isinstance(entry, dict) else None
        if value is not None:
            yield "categories", index, {"id": value}


def _superclasses(case):
    for index, _ in plausibility.superclasses(case.content):
        yield "categories", index, None


def _outlines(case, entry):
    found = outlines(entry.get("segmentation"))
    return {"segmentation": found} if found else None


def _rectangle(case, entry):
    x, y, w, h = entry["bbox"]
    return {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}


def _crowd(case, entry):
    value = {"0": 0, "1": 1, "false": 0, "true": 1}.get(str(entry.get("iscrowd")).lower())
    return None if value is None else {"iscrowd": value}


def _area(case, entry):
    mask = instance(entry, case.record(entry))
    return mask and {"area": float(rle.area(rle.decompress(mask.counts)))}


def _run_lengths(case, entry):
    """Encode a mask of the image's shape for the image's size, or exchange its sides."""
    value, record = entry["segmentation"], case.record(entry)
    size = value.get("size")
    if record is None or not isinstance(size, list):
        return None
    height, width = map(int, size)
    if abs(height * record.width - width * record.height) <= SAME_SHAPE * height * record.width:
        stored = ImageRecord(record.id, record.file_name, width, height)
        mask = instance(entry, stored) if width * height <= images.MAX_PIXELS else None
        if mask is None:
            return None
        pixels = np.zeros((height, width), dtype=bool)
        rle.decode_into(rle.decompress(mask.counts), pixels)
        scaled = Image.fromarray(pixels).resize((record.width, record.height), 0)
        counts = rle.compress(rle.of_mask(np.asarray(scaled))).decode()
    elif [height, width] == [record.width, record.height]:
        counts = value.get("counts")
    else:
        return None
    mended = {"size": [record.height, record.width], "counts": counts}
    mask = instance(entry | {"segmentation": mended}, record)
    try:
        x, y, w, h = bbox.numbers(entry.get("bbox"))
    except Invalid:
        return None
    fits = mask is not None and bbox.iou((x, y, x + w, y + h), mask.box) > bbox.DISAGREES
    return {"segmentation": mended} if fits else None


def _run_size(case, entry):
    record = case.record(entry)
    mended = record and entry["segmentation"] | {"size": [record.height, record.width]}
    return {"segmentation": mended} if instance(entry | {"segmentation": mended}, record) else None


def _file(case, image):
    found = case.names.get(image.get("file_name"))
    return found and {"file_name": found}


def _size(case, image):
    size = case.size(image)
    return size and {"width": size[0], "height": size[1]}


def _resized(case):
    """Write the files' sizes, and scale the labels of those that were scaled."""
    for at, image in enumerate(case.content["images"]):
        size = case.size(image) if isinstance(image, dict) else None
        stated = [whole(image.get(key)) for key in ("width", "height")] if size else []
        if size is None or not all(stated) or tuple(stated) in (size, size[::-1]):
            continue
        (width, height), (w, h) = size, stated
        cropped = abs(width - w) <= CROPPED and abs(height - h) <= CROPPED
        if not cropped and abs(width * h - height * w) > SAME_SHAPE * width * h:
            continue
        yield "images", at, {"width": width, "height": height}
        factors = np.array([width / w, height / h])
        for index, entry, _ in case.annotations[plain(image.get("id"))] if not cropped else ():
            box, outlined, area = (entry.get(key) for key in ("bbox", "segmentation", "area"))
            if isinstance(box, list) and len(box) == 4:
                fields: dict[str, Any] = {"bbox": _scaled([box], factors)[0]}
                if isinstance(outlined, list):
                    fields["segmentation"] = _scaled(outlined, factors)
                if finite(area):
                    fields["area"] = area * factors.prod()
                yield "annotations", index, fields


def _swapped(case, image):
    """Exchange width and height if the labels fit then."""
    size = case.size(image)
    if size is None:
        return None
    width, height = size
    for _, entry, _ in case.annotations[plain(image.get("id"))]:
        value = entry.get("segmentation")
        try:
            x, y, w, h = bbox.numbers(entry.get("bbox"))
        except Invalid:
            return None
        sized = value.get("size") if isinstance(value, dict) else None
        if x + w > width + 1 or y + h > height + 1 or sized not in (None, [height, width]):
            return None
    return {"width": width, "height": height}


# {code of a problem: the new fields of its entry, or None}, and {code: changes of many entries}.
OF_ENTRY: dict[str, Callable[[Case, dict], dict | None]] = {
    **dict.fromkeys((*bbox.READINGS, "bbox_missing", "bbox_invalid", "bbox_negative"), _box),
    **dict.fromkeys(("bbox_not_finite", "bbox_empty", "bbox_outside"), _box),
    "coordinates_fractions": _fractions,
    "unknown_image": _image_id,
    "unknown_category": _category,
    **dict.fromkeys(("segmentation_invalid", "polygon_too_short", "polygon_invalid"), _outlines),
    "box_as_mask": _rectangle,
    "iscrowd_invalid": _crowd,
    "iscrowd_missing": lambda case, entry: {"iscrowd": 0},
    "area_missing": _area,
    "rle_size_mismatch": _run_lengths,
    "rle_size_missing": _run_size,
    **dict.fromkeys(
        ("annotation_id_missing", "duplicate_annotation_id"),
        lambda case, entry: {"id": next(case.free_ids)},
    ),
    **dict.fromkeys(("file_missing", "file_outside_root", "file_name_invalid"), _file),
    **dict.fromkeys(("image_size_missing", "image_size_invalid"), _size),
    "size_swapped": _swapped,
}
OF_FILE: dict[str, Callable[[Case], Iterator[tuple[str, int, dict | None]]]] = {
    "boxes_disagree": _boxes,
    "bbox_all_corners": _corners,
    "unknown_image": _image_ids,
    "unknown_category": _shifted_categories,
    "category_invalid": _category_ids,
    "category_is_superclass": _superclasses,
    "size_mismatch": _resized,
}
