"""Detect objects in picture files: draw each picture, and list all objects in COCO's format."""

import glob
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from pycocotools import mask as coco_mask
from rich.progress import track

from accelerated.data import images
from accelerated.drawing.detections import draw, save
from accelerated.engine.capture import detector
from accelerated.engine.evaluate import coco_results, write_json
from accelerated.mask_rcnn import MaskRCNN
from accelerated.structures import Detections

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Result:
    """The predictions, as in predictions.json, and (picture, reason) of each failure."""

    predictions: dict
    failed: list[tuple[str, str]]


def predict(
    model: MaskRCNN,
    inputs: Iterable[str | Path],
    output: str | Path,
    *,
    categories: list[dict],
    threshold: float = 0.5,
    compile: str | None = None,
    graph: bool = False,
    amp: bool = False,
    bar: bool = False,
) -> Result:
    """Detect objects in each picture of `inputs` and draw them.

    inputs      files, folders (their pictures, by name) and globs
    output      folder for predictions.json (COCO: images, categories, annotations with "score") and
                the drawn pictures, NAME.png
    categories  {"id", "name"} of each of the model's labels 1..K
    threshold   minimum score of a detection, 0..1
    compile, graph, amp
                see `capture.detector`

    A picture that cannot be read or is too large for the device is skipped and listed in `failed`.
    An interrupted run still writes the predictions for the pictures before.
    Raises ValueError if `inputs` match no file.
    """
    run = detector(model, compile, graph, amp)
    output, paths = Path(output), find(inputs)
    drawn = _drawn_paths(paths, output)
    ids = [category["id"] for category in categories]
    names = [category["name"] for category in categories]
    predictions = {"images": [], "categories": categories, "annotations": []}
    failed = []
    try:
        for path in track(paths, "detecting", disable=not bar):
            try:
                image = images.read(path)
                detections = _above(model.detect([image], run=run)[0], threshold)
            except (ValueError, OSError, torch.OutOfMemoryError) as error:
                failed.append((str(path), " ".join(str(error).split())))
                continue
            _add(predictions, path, image, coco_results(detections, ids))
            save(draw(image, detections, names, threshold=threshold), drawn[path])
    finally:
        write_json(output / "predictions.json", predictions)
    return Result(predictions, failed)


def find(inputs: Iterable[str | Path]) -> list[Path]:
    """Expand files, folders and globs to files, each once, in the given order.

    A path that does not exist is kept, to fail when it is read. Raises ValueError without any file.
    """
    paths = {}
    for item in map(str, inputs):
        paths |= dict.fromkeys(_matches(item))
    if not paths:
        raise ValueError(f"no picture in {', '.join(map(str, inputs)) or 'an empty list'}")
    return list(paths)


def _matches(item):
    path = Path(item)
    if path.is_dir():
        pictures = [file for file in path.iterdir() if file.suffix.lower() in SUFFIXES]
        return sorted(file for file in pictures if not file.name.startswith("."))
    if path.exists():
        return [path]
    matches = sorted(map(Path, glob.glob(item, recursive=True)))
    return matches if matches or glob.has_magic(item) else [path]


def _drawn_paths(paths, output) -> dict[Path, Path]:
    """Return the path of each drawn picture; equal names get an index.

    Raises ValueError if one would replace an input picture.
    """
    drawn, inputs, counts = {}, {path.resolve() for path in paths}, Counter()
    for path in paths:
        counts[path.stem] += 1
        suffix = "" if counts[path.stem] == 1 else f"_{counts[path.stem]}"
        drawn[path] = output / f"{path.stem}{suffix}.png"
        if drawn[path].resolve() in inputs:
            raise ValueError(
                f"{drawn[path]} is an input picture and would be overwritten: choose another folder"
            )
    return drawn


def _add(predictions, path, image, results):
    """Append an image and its detections, in COCO's result format, to a COCO data set."""
    height, width = image.shape[:2]
    image_id = len(predictions["images"]) + 1
    predictions["images"].append(
        {"id": image_id, "file_name": str(path), "width": width, "height": height}
    )
    for result in results:
        if "segmentation" in result:
            area = int(coco_mask.area(result["segmentation"]))
        else:
            area = result["bbox"][2] * result["bbox"][3]
        annotation_id = len(predictions["annotations"]) + 1
        annotation = {"id": annotation_id, "image_id": image_id, "area": area, "iscrowd": 0}
        predictions["annotations"].append(annotation | result)


def _above(detections, threshold):
    """Keep the detections that score at least `threshold`."""
    keep = detections.scores >= threshold
    masks = None if detections.masks is None else detections.masks[keep]
    return Detections(
        detections.boxes[keep], detections.scores[keep], detections.labels[keep], masks
    )
