"""Objects in picture files: a drawn picture each, and one json in COCO's format of what was found where."""

import glob
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from pycocotools import mask as coco_mask
from rich.progress import track

from accelerated.data import images
from accelerated.drawing.detections import draw, save
from accelerated.engine.evaluate import entries, write_json

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Result:
    predictions: dict  # as predictions.json
    failed: list[tuple[str, str]]  # (picture, what is wrong with it)


def predict(model, inputs, output, *, categories, threshold=0.5, bar=False) -> Result:
    """Detect in each picture of `inputs`, one after the other.

    inputs      files, folders (their pictures, by name) and globs
    output      folder for predictions.json (COCO: images, categories, annotations with "score") and the drawn pictures, NAME.png
    categories  of the model's labels 1..K, each {"id", "name"}
    threshold   detections that score less are left out (0..1)

    A picture that cannot be read or is too large for the device ends up in `failed`, and the others go on. What was found until then is
    written even if the run is broken off. ValueError if `inputs` mean no file at all.
    """
    output, paths = Path(output), find(inputs)
    drawn = _pictures(paths, output)
    ids, names = (
        [category["id"] for category in categories],
        [category["name"] for category in categories],
    )
    found = {"images": [], "categories": categories, "annotations": []}
    failed = []
    try:
        for path in track(paths, "detecting", disable=not bar):
            try:
                image = images.read(path)
                detections = _above(model.detect([image])[0], threshold)
            except (ValueError, OSError, torch.OutOfMemoryError) as error:
                failed.append((str(path), " ".join(str(error).split())))
                continue
            image_id = len(found["images"]) + 1
            found["images"].append(
                {
                    "id": image_id,
                    "file_name": str(path),
                    "width": image.shape[1],
                    "height": image.shape[0],
                }
            )
            for entry in entries(detections, ids):
                area = (
                    int(coco_mask.area(entry["segmentation"]))
                    if "segmentation" in entry
                    else entry["bbox"][2] * entry["bbox"][3]
                )
                found["annotations"].append(
                    {
                        "id": len(found["annotations"]) + 1,
                        "image_id": image_id,
                        "area": area,
                        "iscrowd": 0,
                    }
                    | entry
                )
            save(draw(image, detections, names, threshold=threshold), drawn[path])
    finally:
        write_json(output / "predictions.json", found)
    return Result(found, failed)


def find(inputs) -> list[Path]:
    """Files, folders and globs -> the files meant, each once, in the order given; a path that does not exist is kept and fails later."""
    paths = {}
    for item in map(str, inputs):
        if Path(item).is_dir():
            matches = sorted(
                path
                for path in Path(item).iterdir()
                if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
            )
        else:
            matches = (
                [Path(item)]
                if Path(item).exists()
                else sorted(map(Path, glob.glob(item, recursive=True)))
            )
            matches = matches or ([] if glob.has_magic(item) else [Path(item)])
        paths |= dict.fromkeys(matches)
    if not paths:
        raise ValueError(f"no picture in {', '.join(map(str, inputs)) or 'an empty list'}")
    return list(paths)


def _pictures(paths, output) -> dict:
    """Where the drawn picture of each path goes; equal names get a number. ValueError where it would replace a picture that comes in."""
    drawn, inputs, counts = {}, {path.resolve() for path in paths}, Counter()
    for path in paths:
        counts[path.stem] += 1
        drawn[path] = output / (
            f"{path.stem}.png" if counts[path.stem] == 1 else f"{path.stem}_{counts[path.stem]}.png"
        )
        if drawn[path].resolve() in inputs:
            raise ValueError(
                f"{drawn[path]} is a picture to look at, and would be written over: choose another folder"
            )
    return drawn


def _above(detections, threshold):
    keep = detections.scores >= threshold
    values = {field.name: getattr(detections, field.name) for field in fields(detections)}
    return replace(
        detections, **{name: value[keep] for name, value in values.items() if value is not None}
    )
