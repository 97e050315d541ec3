"""A data set in COCO format: checked once when opened, then read image by image."""

from collections.abc import Iterable
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from accelerated.data import images, lint, sources
from accelerated.data.dataset import Item, images_and_categories
from accelerated.data.packed import pack
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
        labels = {category: k for k, category in enumerate(self.category_ids, start=1)}
        found = list(records.images.values())
        # All annotations of the file; image i has those of image rows[i] there.
        self.annotations, self.rows = pack(found, labels), np.arange(len(found))
        self.image_ids = [record.id for record in found]
        self.file_names = [record.file_name for record in found]
        self.sizes = [(record.height, record.width) for record in found]
        self._measure()

    def _measure(self):
        packed, ones = self.annotations, np.ones(len(self.annotations.labels), dtype=np.int64)
        points = packed.points_of
        objects, drawn, plain = map(packed.per_image, (ones, points, points == 0))
        self.max_objects = int(objects[self.rows].max(initial=0))
        self.max_points = int(drawn[self.rows].max(initial=0))
        self.outlined = not plain[self.rows].any()

    def subset(self, indices: Iterable[int]) -> "CocoDataset":
        """Return the data set of some of the images, with all its classes."""
        part, chosen = copy(self), list(indices)
        part.__dict__.pop("coco", None)
        part.rows = self.rows[chosen]
        part.image_ids, part.file_names, part.sizes = (
            [values[index] for index in chosen]
            for values in (self.image_ids, self.file_names, self.sizes)
        )
        part._measure()
        return part

    def files(self) -> set[Path]:
        """Return the paths of the images, without links in the path of their folder."""
        root = self.image_root.resolve()
        return {root / name for name in self.file_names}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        path = images.locate(self.image_root, self.file_names[index])
        image = images.read(path, self.reading.exif, self.reading.pixel_range)
        (height, width), stated = image.shape[:2], self.sizes[index]
        if (height, width) != stated:
            raise ValueError(
                f"the file is {width}x{height}, the stated size {stated[1]}x{stated[0]}"
            )
        return Item(image, self.target(index), self.image_ids[index])

    def target(self, index: int) -> Target:
        """Make the target of an image without opening its file."""
        packed = self.annotations
        objects = packed.objects(self.rows[index])
        masks = np.zeros((len(objects), *self.sizes[index]), dtype=bool)
        for number, mask in zip(objects, masks, strict=True):
            packed.draw(number, mask)
        return Target(
            torch.from_numpy(packed.boxes[objects].astype(np.float32)),
            torch.from_numpy(packed.labels[objects]),
            torch.from_numpy(masks),
            [packed.outlines(number) for number in objects],
        )

    def instances(self) -> list[tuple[int, int, float, bool]]:
        """Return (image index, category id, area in pixels, crowd) of every annotation."""
        packed = self.annotations
        positions, found = packed.within(self.rows)
        categories = [self.category_ids[label - 1] for label in packed.labels[found].tolist()]
        columns = positions, packed.areas[found], packed.crowds[found]
        positions, areas, crowds = (column.tolist() for column in columns)
        return list(zip(positions, categories, areas, crowds, strict=True))

    @cached_property
    def coco(self) -> dict:
        """The valid part as a COCO dictionary for evaluation, crowd regions included.

        Annotations are numbered from 1, and masks are RLE.
        """
        packed, annotations = self.annotations, []
        numbers = packed.within(self.rows)[1].tolist()
        for number, (i, category, area, crowd) in zip(numbers, self.instances(), strict=True):
            x1, y1, x2, y2 = packed.boxes[number].tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": self.image_ids[i],
                    "category_id": category,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": area,
                    "iscrowd": int(crowd),
                    "segmentation": {
                        "size": list(self.sizes[i]),
                        "counts": packed.text(number).decode(),
                    },
                }
            )
        return images_and_categories(self) | {"annotations": annotations}
