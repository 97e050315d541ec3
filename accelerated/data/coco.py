"""A data set in COCO format: checked once when opened, then read image by image."""

from collections.abc import Iterable
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from accelerated.data import images, lint, rle, sources
from accelerated.data.dataset import Item, images_and_categories
from accelerated.data.reading import DEFAULT, Reading
from accelerated.data.sources import Source
from accelerated.structures import Target


class CocoDataset:
    """The images and objects of a COCO json file, or of another format (sources.py).

    data          the file, or whatever `sources.find` recognises, or what that returns
    image_root    folder that its file names are relative to; None: found by `sources.find`
    skip_invalid  skip invalid annotations and images instead of raising, see `lint`
    open_images   check the image files too
    reading       what the files leave open

    `source` says what was recognised, without its content.
    Category ids, however sparse, become labels 1..K by rising id. Images without objects are kept.
    An object without a mask, where `reading` allows it, has its box as mask, maybe without a pixel.
    The interface is `dataset.Dataset`.
    Raises ValueError, with the first problems, for data that must not be trained on.
    """

    def __init__(
        self,
        data: str | Path | Source,
        image_root: str | Path | None = None,
        skip_invalid: bool = False,
        open_images: bool = True,
        reading: Reading = DEFAULT,
    ):
        source = data if isinstance(data, Source) else sources.find(data, image_root)
        records, self.report = lint.read(source, open_images, reading)
        self.report.require(skip_invalid)
        self.source, self.reading = replace(source, content=None), reading
        self.image_root = source.image_root
        self.category_ids = list(records.categories)
        self.class_names = list(records.categories.values())
        self.label_of = {category: k for k, category in enumerate(self.category_ids, start=1)}
        self._hold(list(records.images.values()))

    def _hold(self, records):
        """Take these records as the images."""
        self.records = records
        self.image_ids = [record.id for record in self.records]
        self.file_names = [record.file_name for record in self.records]
        self.sizes = [(record.height, record.width) for record in self.records]
        self.max_objects = max((len(record.objects) for record in self.records), default=0)
        polygons = [[instance.polygons for instance in r.objects] for r in self.records]
        self.outlined = all(all(objects) for objects in polygons)
        self.max_points = max((_count_points(objects) for objects in polygons), default=0)

    def subset(self, indices: Iterable[int]) -> "CocoDataset":
        """Return the data set of some of the images, with all its classes."""
        part = copy(self)
        part.__dict__.pop("coco", None)
        part._hold([self.records[index] for index in indices])
        return part

    def files(self) -> set[Path]:
        """Return the paths of the images, without links in the path of their folder."""
        root = self.image_root.resolve()
        return {root / name for name in self.file_names}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Item:
        record = self.records[index]
        path = images.locate(self.image_root, record.file_name)
        image = images.read(path, self.reading.exif, self.reading.pixel_range)
        height, width = image.shape[:2]
        if (height, width) != (record.height, record.width):
            raise ValueError(
                f"the file is {width}x{height}, the stated size {record.width}x{record.height}"
            )
        return Item(image, self.target(index), record.id)

    def target(self, index: int) -> Target:
        """Make the target of an image without opening its file."""
        record = self.records[index]
        boxes = [instance.box for instance in record.objects]
        labels = [self.label_of[instance.category_id] for instance in record.objects]
        masks = np.zeros((len(boxes), record.height, record.width), dtype=bool)
        for instance, mask in zip(record.objects, masks, strict=True):
            rle.decode_into(rle.decompress(instance.counts), mask)
        return Target(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor(labels, dtype=torch.int64),
            torch.from_numpy(masks),
            [instance.polygons for instance in record.objects],
        )

    def instances(self) -> list[tuple[int, int, float, bool]]:
        """Return (image index, category id, area in pixels, crowd) of every annotation."""
        return [
            (i, instance.category_id, instance.area, instance.crowd)
            for i, record in enumerate(self.records)
            for instance in record.instances
        ]

    @cached_property
    def coco(self) -> dict:
        """The valid part as a COCO dictionary for evaluation, crowd regions included.

        Annotations are numbered from 1, and masks are RLE.
        """
        annotations = []
        for record in self.records:
            for instance in record.instances:
                ids = {"id": len(annotations) + 1, "image_id": record.id}
                annotations.append(ids | _for_evaluation(instance, record))
        return images_and_categories(self) | {"annotations": annotations}


def _count_points(objects):
    return sum(len(points) for polygons in objects for points in polygons or ())


def _for_evaluation(instance, record):
    x1, y1, x2, y2 = instance.box
    size = [record.height, record.width]
    return {
        "category_id": instance.category_id,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": instance.area,
        "iscrowd": int(instance.crowd),
        "segmentation": {"size": size, "counts": instance.counts.decode()},
    }
