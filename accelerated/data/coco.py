"""A data set in COCO format: checked once when opened, then image by image.

Every data set here has the same face: `len`, `[i]` -> Item, and lists with one entry per image (`image_ids`,
`file_names`, `sizes`) or per class (`category_ids`, `class_names`), `max_objects`, the most
in one image, `instances()`, and `coco`, the ground truth for evaluation.
"""

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from accelerated.data import images, lint, rle
from accelerated.structures import Target


class Item(NamedTuple):
    image: np.ndarray  # [H, W, 3] uint8 RGB
    target: Target  # on that image, crowd regions left out; labels 1..K
    image_id: object


class CocoDataset:
    """json_path and image_root as in COCO; `skip_invalid` leaves out what `lint` rejects instead of refusing to start.

    Category ids, however sparse, become labels 1..K by rising id. Images without objects stay. Raises ValueError, with
    the first problems, for data that must not be trained on. `open_images=False` does not look at the image files.
    """

    def __init__(self, json_path, image_root, skip_invalid=False, open_images=True):
        records, self.report = lint.read(json_path, image_root, open_images)
        self.report.require(skip_invalid)
        self.image_root = image_root
        self.category_ids = list(records.categories)
        self.class_names = list(records.categories.values())
        self.label_of = {
            category: label for label, category in enumerate(self.category_ids, start=1)
        }
        self.records = list(records.images.values())
        self.image_ids = [record.id for record in self.records]
        self.file_names = [record.file_name for record in self.records]
        self.sizes = [(record.height, record.width) for record in self.records]
        self.max_objects = max(
            (sum(not instance.crowd for instance in record.instances) for record in self.records),
            default=0,
        )

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        record = self.records[index]
        image = images.read(images.locate(self.image_root, record.file_name))
        if image.shape[:2] != (record.height, record.width):
            raise ValueError(
                f"the file is {image.shape[1]}x{image.shape[0]}, the json says {record.width}x{record.height}"
            )
        return Item(image, self.target(index), record.id)

    def target(self, index):
        """What is annotated in an image, whose file is not opened."""
        record = self.records[index]
        objects = [instance for instance in record.instances if not instance.crowd]
        masks = np.zeros((len(objects), record.height, record.width), dtype=bool)
        for instance, mask in zip(objects, masks, strict=True):
            rle.decode_into(rle.decompress(instance.counts), mask)
        return Target(
            boxes=torch.tensor([instance.box for instance in objects], dtype=torch.float32).reshape(
                -1, 4
            ),
            labels=torch.tensor(
                [self.label_of[instance.category_id] for instance in objects], dtype=torch.int64
            ),
            masks=torch.from_numpy(masks),
        )

    def instances(self):
        """(image index, category id, area in pixels, crowd) of every annotation."""
        return [
            (i, a.category_id, a.area, a.crowd)
            for i, record in enumerate(self.records)
            for a in record.instances
        ]

    @cached_property
    def coco(self):
        """The sound part as a COCO dictionary, crowd regions included, fit for pycocotools: annotations numbered from 1, RLE masks."""
        instances = [(record, instance) for record in self.records for instance in record.instances]
        return {
            "images": [
                {"id": r.id, "file_name": r.file_name, "width": r.width, "height": r.height}
                for r in self.records
            ],
            "categories": [
                {"id": c, "name": name}
                for c, name in zip(self.category_ids, self.class_names, strict=True)
            ],
            "annotations": [
                {
                    "id": number,
                    "image_id": record.id,
                    "category_id": instance.category_id,
                    **_for_evaluation(instance, record),
                }
                for number, (record, instance) in enumerate(instances, start=1)
            ],
        }


def _for_evaluation(instance, record):
    x1, y1, x2, y2 = instance.box
    return {
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": instance.area,
        "iscrowd": int(instance.crowd),
        "segmentation": {"size": [record.height, record.width], "counts": instance.counts.decode()},
    }
