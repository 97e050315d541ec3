"""A small COCO file that is right, to be damaged as annotation programs damage it."""

import copy
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 96, 80
# x, y, width, height of the objects of four images.
BOXES = [
    [(45, 28, 24, 24), (4, 6, 19, 19)],
    [(38, 44, 20, 20), (12, 51, 16, 16)],
    [(19, 7, 24, 20), (60, 27, 20, 26)],
    [(8, 30, 30, 18), (50, 5, 22, 40)],
]


def outline(box: tuple) -> list[float]:
    """Return the rectangle x, y, width, height as the numbers of a polygon."""
    x, y, w, h = map(float, box)
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def data() -> dict:
    """Return the content of the right file."""
    annotations = [
        {
            "id": 2 * k + j + 1,
            "image_id": k + 1,
            "category_id": 1 + j,
            "bbox": list(map(float, box)),
            "segmentation": [outline(box)],
            "area": float(box[2] * box[3]),
            "iscrowd": 0,
        }
        for k, boxes in enumerate(BOXES)
        for j, box in enumerate(boxes)
    ]
    names = [f"img{k}.png" for k in range(len(BOXES))]
    return {
        "images": [
            {"id": k + 1, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for k, name in enumerate(names)
        ],
        "annotations": copy.deepcopy(annotations),
        "categories": [{"id": 1, "name": "square"}, {"id": 2, "name": "other"}],
    }


def pictures(folder: Path) -> Path:
    """Write the four pictures into a folder and return it."""
    folder.mkdir(parents=True)
    for k, boxes in enumerate(BOXES):
        pixels = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
        for x, y, w, h in boxes:
            pixels[y : y + h, x : x + w] = 200
        Image.fromarray(pixels).save(folder / f"img{k}.png")
    return folder
