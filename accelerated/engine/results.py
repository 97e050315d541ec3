"""Detections that a file holds, checked against a data set, so that they can be scored."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerated.data import rle
from accelerated.data.dataset import Dataset
from accelerated.data.formats.coco import is_file
from accelerated.data.text_files import read_json
from accelerated.data.values import finite, objects, short

# A threshold of scores that hardly changes AP, the model's own in most presets.
LOWEST = 0.05


@dataclass
class Detected:
    """The detections of a file.

    path       the file
    results    [{"image_id", "category_id", "score", "bbox" or "segmentation" or both}]
    iou_types  which of "bbox" and "segm" all of them have
    images     {"id", "file_name", ..} and
    categories {"id", "name"} of predictions.json, which has ids of its own; None: the data set's
    notes      what a reader of the scores should know
    """

    path: Path
    results: list[dict]
    iou_types: tuple[str, ...]
    images: list[dict] | None = None
    categories: list[dict] | None = None
    notes: list[str] = field(default_factory=list)


def read(path: str | Path) -> Detected:
    """Read COCO's result format, or the predictions.json of `predict`.

    Raises ValueError, of one line, if the file is neither.
    """
    path = Path(path)
    content = read_json(path)
    images = categories = None
    if is_file(content):
        images, categories = content["images"], content["categories"]
        content = content["annotations"]
        ids = {"id": (int, str)}
        try:
            objects(images, ids | {"file_name": str, "width": int, "height": int})
            objects(categories, ids | {"name": str})
        except ValueError as error:
            raise ValueError(f"{path}: images and categories are damaged: {error}") from None
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise ValueError(
            f"{path}: expected a list of detections in COCO's result format, or predictions.json of"
            " `maskrcnn predict`"
        )
    keys = ("bbox", "segmentation")
    counted = {key: sum(key in entry for entry in content) for key in keys}
    for key, number in counted.items():
        if 0 < number < len(content):
            raise ValueError(
                f"{path}: {number} of {len(content)} detections have a {key}; give one to all"
            )
    kinds = [kind for kind, key in zip(("bbox", "segm"), keys, strict=True) if counted[key]]
    if content and not kinds:
        raise ValueError(f"{path}: detections need a bbox or a segmentation")
    detected = Detected(path, content, tuple(kinds or ["bbox"]), images, categories)
    for index, entry in enumerate(content):
        try:
            _check_numbers(entry)
        except ValueError as error:
            raise ValueError(f"{path}: detection {index + 1} of {len(content)}: {error}") from None
    return detected


def fit(detected: Detected, dataset: Dataset, name: str | Path) -> list[dict]:
    """Return the detections with the ids of a data set; add to the notes of `detected`.

    name  of the data set, for messages

    Images of predictions.json are found by file name and its categories by name.
    Raises ValueError, of one line, for detections that do not belong to the data set.
    """
    image_ids, category_ids = None, None
    if detected.images is not None and detected.categories is not None:
        image_ids = _images_by_name(detected, dataset, name)
        category_ids = _categories_by_name(detected, dataset, name)
        lowest = min((entry["score"] for entry in detected.results), default=0.0)
        if lowest > 2 * LOWEST:
            detected.notes.append(
                f"the lowest score is {lowest:.2f}, but AP counts weaker detections too:"
                f" predict with --threshold {LOWEST}"
            )
    results = [dict(entry) for entry in detected.results]
    for key, known, renamed in (
        ("image_id", dataset.image_ids, image_ids),
        ("category_id", dataset.category_ids, category_ids),
    ):
        _rename(results, key, known, renamed, detected.path, name)
    sizes = dict(zip(dataset.image_ids, dataset.sizes, strict=True))
    for index, entry in enumerate(results):
        if "segmentation" in entry:
            try:
                entry["segmentation"] = _runs(entry["segmentation"], sizes[entry["image_id"]])
            except ValueError as error:
                where = f"{detected.path}: detection {index + 1}, image {entry['image_id']}"
                raise ValueError(f"{where}: {error}") from None
    missing = len(sizes) - len({entry["image_id"] for entry in results})
    if missing:
        detected.notes.append(f"{missing} of {len(sizes)} images have no detection")
    return results


def _check_numbers(entry):
    for key in ("image_id", "category_id", "score"):
        if key not in entry:
            hint = "; is this a file of annotations?" if key == "score" else ""
            raise ValueError(f"it has no {key}{hint}")
    for key in ("image_id", "category_id"):
        if isinstance(entry[key], list | dict):
            raise ValueError(f"{key} is {short(entry[key])}")
    if not finite(entry["score"]):
        raise ValueError(f"score is {short(entry['score'])}, not a finite number")
    box = entry.get("bbox", [0, 0, 0, 0])
    if not isinstance(box, list) or len(box) != 4 or not all(map(finite, box)):
        raise ValueError(f"bbox is {short(box)}, not [x, y, width, height]")
    if min(box[2:]) < 0:
        raise ValueError(f"bbox {box} has a negative side; write [x, y, width, height]")


def _runs(value: Any, size: tuple[int, int]) -> dict:
    """Return a mask as {"size", "counts"}, compressed, of an image with `size` (height, width)."""
    if not isinstance(value, dict) or not isinstance(value.get("counts"), str | list):
        raise ValueError("its segmentation is no run-length encoding, {size, counts}")
    if value.get("size") != [*size]:
        raise ValueError(f"its mask has size {short(value.get('size'))}, the image {[*size]}")
    counts = value["counts"]
    if isinstance(counts, list):
        if not all(isinstance(n, int) and n >= 0 for n in counts):
            raise ValueError("the counts of its mask are no numbers of pixels")
        counts = rle.compress(counts).decode()
    runs = rle.decompress(counts)
    if (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise ValueError(f"the counts of its mask do not fill an image of {size[1]}x{size[0]}")
    return {"size": [*size], "counts": counts}


def _rename(results, key, known, renamed, path, name):
    """Give each result the data set's id. Raises ValueError if there is none."""
    known = set(known)
    unknown = []
    for entry in results:
        entry[key] = entry[key] if renamed is None else renamed.get(entry[key])
        if entry[key] not in known:
            unknown.append(entry[key])
    if not unknown:
        return
    first, texts = unknown[0], {str(value) for value in known}
    hint = ""
    if str(first) in texts:
        kinds = ("a text", "a number") if isinstance(first, str) else ("a number", "a text")
        hint = f", which is {kinds[0]} here and {kinds[1]} there"
    raise ValueError(
        f"{path}: {len(unknown)} of {len(results)} detections have a {key} that {name} lacks; the"
        f" first is {short(first)}{hint}"
    )


def _images_by_name(detected, dataset, name):
    """Return {id in predictions.json: id in the data set}; images that it lacks are left out."""
    places = {}
    for image_id, file_name, size in zip(
        dataset.image_ids, dataset.file_names, dataset.sizes, strict=True
    ):
        places.setdefault(Path(file_name).name, []).append((Path(file_name).parts, image_id, size))
    ids, others = {}, []
    for image in detected.images:
        parts = Path(image["file_name"]).parts or ("",)
        candidates = places.get(parts[-1], [])
        matches = [place for place in candidates if parts[-len(place[0]) :] == place[0]]
        if len(matches) != 1:
            others.append(image["file_name"])
            continue
        [(_, image_id, (height, width))] = matches
        if (image["height"], image["width"]) != (height, width):
            turned = (image["width"], image["height"]) == (height, width)
            hint = "; predict with the other --exif" if turned else ""
            sides = f"{image['width']}x{image['height']} here and {width}x{height}"
            raise ValueError(f"{detected.path}: {image['file_name']} is {sides} in {name}{hint}")
        if image_id in ids.values():
            twice = f"{image['file_name']} and another picture are the same image of {name}"
            raise ValueError(f"{detected.path}: {twice}")
        ids[image["id"]] = image_id
    if others:
        raise ValueError(
            f"{detected.path}: {len(others)} of {len(detected.images)} pictures are not in {name},"
            f" or in it twice; the first is {others[0]}"
        )
    return ids


def _categories_by_name(detected, dataset, name):
    """Return {id in predictions.json: id in the data set}."""
    ids = dict(zip(dataset.class_names, dataset.category_ids, strict=True))
    used = {entry["category_id"] for entry in detected.results}
    for category in detected.categories:
        if category["id"] in used and category["name"] not in ids:
            raise ValueError(f"{detected.path}: {name} has no category {category['name']!r}")
    return {category["id"]: ids.get(category["name"]) for category in detected.categories}
