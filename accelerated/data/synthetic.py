"""The synthetic shapes as a data set with the face of `coco.CocoDataset`, and as COCO files on disk."""

import json
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image

from accelerated.data import rle
from accelerated.data.coco import Item
from accelerated.structures import Target
from reference import shapes


class ShapesDataset:
    """`count` images of `size` (H, W), or a square of `size`, made when asked for; `seed` names an endless family of them.

    style  shapes.EASY or shapes.HARD, or another shapes.Style
    """

    def __init__(self, count, seed=0, size=128, max_objects=6, style=shapes.EASY):
        height, width = (size, size) if isinstance(size, int) else size
        self.seed, self.max_objects, self.style = seed, max_objects, style
        self.image_ids = list(range(1, count + 1))
        self.file_names = [f"{number:06d}.png" for number in self.image_ids]
        self.sizes = [(height, width)] * count
        self.class_names = list(shapes.CLASS_NAMES)
        self.category_ids = [1, 2, 3]

    def __len__(self):
        return len(self.image_ids)

    def __getitem__(self, index):
        image, boxes, labels, masks = self._sample(index)
        return Item(
            image,
            Target(
                torch.from_numpy(boxes).float(), torch.from_numpy(labels), torch.from_numpy(masks)
            ),
            self.image_ids[index],
        )

    def _sample(self, index):
        height, width = self.sizes[index]
        return shapes.sample(
            self.seed,
            index,
            height=height,
            width=width,
            max_objects=self.max_objects,
            style=self.style,
        )

    def instances(self):
        """(image index, category id, area in pixels, crowd) of every annotation."""
        return [
            (a["image_id"] - 1, a["category_id"], a["area"], False)
            for a in self.coco["annotations"]
        ]

    @cached_property
    def coco(self):
        """The ground truth as a COCO dictionary with RLE masks."""
        annotations = []
        for index, (image_id, (height, width)) in enumerate(
            zip(self.image_ids, self.sizes, strict=True)
        ):
            _, boxes, labels, masks = self._sample(index)
            for (x1, y1, x2, y2), label, mask in zip(
                boxes.tolist(), labels.tolist(), masks, strict=True
            ):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": label,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": float(mask.sum()),
                        "iscrowd": 0,
                        "segmentation": {
                            "size": [height, width],
                            "counts": rle.compress(rle.of_mask(mask)).decode(),
                        },
                    }
                )
        images = zip(self.image_ids, self.file_names, self.sizes, strict=True)
        return {
            "images": [
                {"id": number, "file_name": name, "width": width, "height": height}
                for number, name, (height, width) in images
            ],
            "categories": [
                {"id": number, "name": name}
                for number, name in zip(self.category_ids, self.class_names, strict=True)
            ],
            "annotations": annotations,
        }

    def write_coco(self, folder):
        """Write `folder`/images/*.png and `folder`/annotations.json; returns (json path, image folder)."""
        folder = Path(folder)
        images = folder / "images"
        images.mkdir(parents=True, exist_ok=True)
        for index, name in enumerate(self.file_names):
            Image.fromarray(self._sample(index)[0]).save(images / name)
        (folder / "annotations.json").write_text(json.dumps(self.coco))
        return folder / "annotations.json", images
