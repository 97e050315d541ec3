"""The synthetic shapes as a data set, and as COCO files on disk."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from accelerated.data.dataset import Dataset, Item
from accelerated.structures import Target
from reference import shapes


class ShapesDataset(Dataset):
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
        self.image_ids = list(range(1, count + 1))
        self.file_names = [f"{image_id:06d}.png" for image_id in self.image_ids]
        self.sizes = [(height, width)] * count
        self.class_names: list[str] = list(shapes.CLASS_NAMES)
        self.category_ids = [1, 2, 3]

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

    def write_coco(self, folder: str | Path) -> tuple[Path, Path]:
        """Write `folder`/images/*.png and `folder`/annotations.json; return json and images."""
        folder = Path(folder)
        images = folder / "images"
        images.mkdir(parents=True, exist_ok=True)
        for index, name in enumerate(self.file_names):
            Image.fromarray(self._sample(index)[0]).save(images / name)
        (folder / "annotations.json").write_text(json.dumps(self.coco))
        return folder / "annotations.json", images
