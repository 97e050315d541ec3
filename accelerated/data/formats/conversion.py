"""Write COCO's dictionary in one of the formats, whole or in parts."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerated.data import annotations
from accelerated.data.formats import labelme, yolo
from accelerated.data.formats.draft import Source
from accelerated.data.split import split as split_images
from accelerated.data.text_files import parse_json, write_json
from accelerated.data.values import plain

WRITERS: dict[str, Callable[[dict, Path, str | Path], None]] = {
    "coco": lambda content, path, image_root: write_json(path, content),
    "labelme": labelme.write,
    "yolo": yolo.write,
}
# Of an annotation without a mask, which the other formats have too.
BOXES = ("mask_missing",)


def content_of(source: Source) -> dict[str, Any]:
    """Return the data of a source as COCO's dictionary. Raises ValueError if it cannot be read."""
    return parse_json(source.path) if source.content is None else source.content


def without_crowds(content: dict) -> dict:
    """Return the data with every crowd region as an object."""
    entries = content["annotations"]
    return content | {"annotations": [e | {"iscrowd": 0} if _is_crowd(e) else e for e in entries]}


def _is_crowd(entry):
    return isinstance(entry, dict) and bool(entry.get("iscrowd"))


def write(content: dict, path: Path, format: str, image_root: str | Path) -> int:
    """Write the data; return the number of annotations that the format has no place for.

    "coco" holds everything as it is; the others hold what is valid and no crowd region.
    """
    kept = content if format == "coco" else valid(content, path)
    WRITERS[format](kept, path, image_root)
    return len(content["annotations"]) - len(kept["annotations"])


def valid(content: dict, path: Path) -> dict:
    """Return what the linter accepts, without crowd regions; `path` names it in messages."""
    # Numbered anew, because ids may be missing or repeated.
    numbered = [
        annotation | {"id": number}
        for number, annotation in enumerate(content["annotations"])
        if isinstance(annotation, dict)
    ]
    records, problems = annotations.read(path, content | {"annotations": numbered})
    wrong = {p.annotation_id for p in problems if p.blocking and p.code not in BOXES}
    images = [
        {"id": record.id, "file_name": record.file_name}
        | {"width": record.width, "height": record.height}
        for record in records.images.values()
        if isinstance(record.file_name, str)
    ]
    known = {image["id"] for image in images}
    kept = [
        annotation | {"image_id": plain(annotation["image_id"])}
        for annotation in numbered
        if annotation["id"] not in wrong
        and plain(annotation["image_id"]) in known
        and not annotation.get("iscrowd")
    ]
    categories = [{"id": key, "name": name} for key, name in records.categories.items()]
    return {"images": images, "annotations": kept, "categories": categories}


def parts(content: dict, fraction: float, seed: int) -> list[dict]:
    """Split the images of a data set, see `split`: the training and the validation part."""
    classes = defaultdict(set)
    for annotation in content["annotations"]:
        if isinstance(annotation, dict) and not annotation.get("iscrowd"):
            classes[plain(annotation.get("image_id"))].add(plain(annotation.get("category_id")))
    images = [image for image in content["images"] if isinstance(image, dict)]
    found = [classes[plain(image.get("id"))] for image in images]
    made = []
    for indices in split_images(found, fraction, seed):
        chosen = [images[index] for index in indices]
        ids = {plain(image.get("id")) for image in chosen}
        inside = [
            annotation
            for annotation in content["annotations"]
            if isinstance(annotation, dict) and plain(annotation.get("image_id")) in ids
        ]
        made.append(content | {"images": chosen, "annotations": inside})
    return made
