"""The synthetic shapes as a data set, and as COCO files on disk."""

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from accelerated.data import rle
from accelerated.data.dataset import Item
from accelerated.structures import Target
from reference import shapes


class ShapesDataset:
    """Images of shapes, made when they are read; the interface is `dataset.Dataset`.

    count        number of images
    seed         each seed gives another endless family of images
    size         (H, W), or the side of a square
    max_objects  the most objects in an image
    style        shapes.EASY, shapes.HARD or another shapes.Style
    """

    def __init__(
        self,
        count: int,
        seed: int = 0,
        size: int | tuple[int, int] = 128,
        max_objects: int = 6,
        style: shapes.Style = shapes.EASY,
    ):
        height, width = (size, size) if isinstance(size, int) else size
        self.seed, self.max_objects, self.style = seed, max_objects, style
        self.max_points, self.outlined = 0, False
        self.image_ids = list(range(1, count + 1))
        self.file_names = [f"{image_id:06d}.png" for image_id in self.image_ids]
        self.sizes = [(height, width)] * count
        self.class_names: list[str] = list(shapes.CLASS_NAMES)
        self.category_ids = [1, 2, 3]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Item:
        image, boxes, labels, masks = self._sample(index)
        boxes = torch.from_numpy(boxes).float()
        target = Target(boxes, torch.from_numpy(labels), torch.from_numpy(masks))
        return Item(image, target, self.image_ids[index])

    def _sample(self, index) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        height, width = self.sizes[index]
        return shapes.sample(
            self.seed,
            index,
            height=height,
            width=width,
            max_objects=self.max_objects,
            style=self.style,
        )

    def instances(self) -> list[tuple[int, int, float, bool]]:
        """Return (image index, category id, area in pixels, crowd) of every annotation."""
        return [
            (a["image_id"] - 1, a["category_id"], a["area"], False)
            for a in self.coco["annotations"]
        ]

    @cached_property
    def coco(self) -> dict:
        """The ground truth as a COCO dictionary with RLE masks."""
        images, annotations = [], []
        for index, (height, width) in enumerate(self.sizes):
            image_id, name = self.image_ids[index], self.file_names[index]
            images.append({"id": image_id, "file_name": name, "width": width, "height": height})
            _, boxes, labels, masks = self._sample(index)
            for (x1, y1, x2, y2), label, mask in zip(
                boxes.tolist(), labels.tolist(), masks, strict=True
            ):
                counts = rle.compress(rle.of_mask(mask)).decode()
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": label,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": float(mask.sum()),
                        "iscrowd": 0,
                        "segmentation": {"size": [height, width], "counts": counts},
                    }
                )
        categories = [
            {"id": category_id, "name": name}
            for category_id, name in zip(self.category_ids, self.class_names, strict=True)
        ]
        return {"images": images, "categories": categories, "annotations": annotations}

    def write_coco(self, folder: str | Path) -> tuple[Path, Path]:
        """Write `folder`/images/*.png and `folder`/annotations.json; return json and images."""
        folder = Path(folder)
        images = folder / "images"
        images.mkdir(parents=True, exist_ok=True)
        for index, name in enumerate(self.file_names):
            Image.fromarray(self._sample(index)[0]).save(images / name)
        (folder / "annotations.json").write_text(json.dumps(self.coco))
        return folder / "annotations.json", images
