"""LabelMe: a json file per image, in pixels."""

import json
import os
from pathlib import Path

from accelerated.data.formats import outlines, writing


def write(content: dict, folder: Path, image_root: str | Path = ".") -> None:
    """Write a COCO dictionary as a folder of LabelMe files, and its class names as labels.txt.

    content     images, annotations, categories; an annotation may have a "score"
    image_root  folder that its file names are relative to

    An object of several parts is several polygons with one group_id; a hole is cut open, see
    `outlines`. An object without a mask is a rectangle. Ids, areas and crowd regions are lost.
    """
    folder = Path(folder)
    names = {c["id"]: " ".join(c["name"].split()) for c in content["categories"]}
    objects, images = writing.objects_by_image(content), content["images"]
    paths = writing.label_paths([image["file_name"] for image in images], ".json")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in names.values()))
    for image, relative in zip(images, paths, strict=True):
        path = folder / relative
        picture = os.path.relpath(Path(image_root) / image["file_name"], path.parent)
        shapes = [
            {"label": names[annotation["category_id"]], "flags": {}, "description": ""} | shape
            for group, annotation in enumerate(objects[image["id"]], start=1)
            for shape in _shapes(annotation, group)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(
            {
                "version": "5.5.0",
                "flags": {},
                "shapes": shapes,
                "imagePath": Path(picture).as_posix(),
                "imageData": None,
                "imageHeight": image["height"],
                "imageWidth": image["width"],
            },
            indent=1,
        )
        path.write_text(text)


def _shapes(annotation, group):
    """Return the shapes of an object, without their labels."""
    score = {"score": annotation["score"]} if "score" in annotation else {}
    parts = outlines.polygons(annotation.get("segmentation") or [])
    if not parts:
        x, y, w, h = annotation["bbox"]
        corners = [[x, y], [x + w, y + h]]
        return [{"shape_type": "rectangle", "points": corners, "group_id": None} | score]
    group_id = group if len(parts) > 1 else None
    return [
        {"shape_type": "polygon", "points": part.tolist(), "group_id": group_id} | score
        for part in parts
    ]
