"""YOLO as Ultralytics reads it: a text file per image, a row per object, in parts of its sides."""

from pathlib import Path

import yaml

from accelerated.data.formats import outlines, writing


def write(content: dict, folder: Path, image_root: str | Path = ".") -> None:
    """Write a COCO dictionary as a folder of YOLO labels, labels/*.txt with classes.txt.

    content     images, annotations, categories
    image_root  not needed: labels belong to images by their names

    Parts and holes of an object are joined to one row by lines of no width, see `outlines`. An
    object without a mask is a row of a box. Ids, scores and crowd regions are lost; classes are
    numbered from 0 in the order of `categories`, and data.yaml names them.
    Raises ValueError if two images differ in their suffix alone, for they would share a file.
    """
    folder, categories = Path(folder), content["categories"]
    index = {category["id"]: k for k, category in enumerate(categories)}
    objects, images = writing.objects_by_image(content), content["images"]
    paths = writing.label_paths([image["file_name"] for image in images], ".txt")
    for image, path in zip(images, paths, strict=True):
        if Path(image["file_name"].replace("\\", "/")).stem != path.stem:
            raise ValueError(
                f"{image['file_name']} and another picture would share the labels"
                f" {path.stem.rpartition('_')[0]}.txt: rename one of them"
            )
    names = [" ".join(category["name"].split()) for category in categories]
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    (folder / "labels" / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    layout = {"train": "images", "val": "images", "names": dict(enumerate(names))}
    text = yaml.safe_dump(layout, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text)
    for image, path in zip(images, paths, strict=True):
        rows = [
            [index[annotation["category_id"]], *_numbers(annotation, image)]
            for annotation in objects[image["id"]]
        ]
        path = folder / "labels" / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(" ".join(f"{v:.12g}" for v in row) + "\n" for row in rows))


def _numbers(annotation, image):
    """Return the outline x1, y1, x2, y2, .. of an object, or its box by centre and size."""
    width, height = image["width"], image["height"]
    parts = outlines.polygons(annotation.get("segmentation") or [])
    if parts:
        return (outlines.joined(parts) / [width, height]).ravel().tolist()
    x, y, w, h = annotation["bbox"]
    return [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
