"""The interface of a data set: what the loader, the evaluation and the drawings read.

A class of your own needs no file in COCO's format. This one paints its images:

    import numpy as np
    import torch
    from accelerated import Target
    from accelerated.data.dataset import Dataset, Item
    from accelerated.engine.train import train
    from reference.config import override, preset

    class Squares(Dataset):
        category_ids, class_names, max_objects = [1], ["square"], 1

        def __init__(self, count):
            self.image_ids = list(range(count))
            self.file_names = [f"square {i}" for i in self.image_ids]
            self.sizes = [(96, 128)] * count

        def __getitem__(self, index):
            rng = np.random.default_rng(index)
            image = rng.integers(0, 80, (96, 128, 3), dtype=np.uint8)
            x, y, side = rng.integers(8, 40, 3).tolist()
            masks = np.zeros((1, 96, 128), dtype=bool)
            masks[0, y : y + side, x : x + side] = True
            image[masks[0]] = 200
            boxes = torch.tensor([[x, y, x + side, y + side]])
            target = Target(boxes, torch.tensor([1]), torch.from_numpy(masks))
            return Item(image, target, self.image_ids[index])

    config = override(preset("tiny"), "num_classes=1")
    result = train(config, Squares(8), "squares", iterations=2, evaluation=Squares(2))
    [detections] = result.model.eval().detect([Squares(1)[0].image])
    print(result.metrics["segm"]["AP"], detections.scores, result.model.class_names)
"""

from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from accelerated.data import rle
from accelerated.structures import Target


class Item(NamedTuple):
    """One image: [H, W, 3] uint8 RGB, its Target without crowd regions, and its id."""

    image: np.ndarray
    target: Target
    image_id: Any


class Dataset(Protocol):
    """Images with annotated objects; a class that inherits from this gets what can be derived.

    image_ids, file_names, sizes  one per image; sizes are (height, width)
    category_ids, class_names     one per class; label k in 1..K is category_ids[k - 1]
    max_objects                   the most objects in an image
    max_points                    the most points of all outlines of an image
    outlined                      whether all objects have outlines
    """

    image_ids: list
    file_names: list[str]
    sizes: list[tuple[int, int]]
    category_ids: list[int]
    class_names: list[str]
    max_objects: int
    max_points: int = 0
    outlined: bool = False

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Item:
        """Return an image with its objects, the same each time."""
        ...

    @cached_property
    def coco(self) -> Any:
        """The ground truth as COCO's dictionary, for evaluation; here that of all items."""
        return ground_truth(self)

    def instances(self) -> list[tuple[int, int, float, bool]]:
        """Return (image index, category id, area in pixels, crowd) of every annotation."""
        index_of = {image_id: index for index, image_id in enumerate(self.image_ids)}
        return [
            (index_of[a["image_id"]], a["category_id"], a["area"], bool(a["iscrowd"]))
            for a in self.coco["annotations"]
        ]


def categories(dataset: Dataset) -> list[dict]:
    """Return {"id", "name"} of the labels 1..K."""
    pairs = zip(dataset.category_ids, dataset.class_names, strict=True)
    return [{"id": category_id, "name": name} for category_id, name in pairs]


def images_and_categories(dataset: Dataset) -> dict:
    """Make COCO's dictionary of the images and categories of a data set."""
    rows = zip(dataset.image_ids, dataset.file_names, dataset.sizes, strict=True)
    images = [
        {"id": image_id, "file_name": name, "width": width, "height": height}
        for image_id, name, (height, width) in rows
    ]
    return {"images": images, "categories": categories(dataset)}


def ground_truth(dataset: Dataset) -> dict:
    """Make COCO's dictionary, with masks as RLE, of all items of a data set."""
    annotations = []
    for index, image_id in enumerate(dataset.image_ids):
        target = dataset[index].target
        for box, label, mask in zip(target.boxes, target.labels, target.masks, strict=True):
            x1, y1, x2, y2 = box.tolist()
            counts = rle.compress(rle.of_mask(mask)).decode()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": dataset.category_ids[int(label) - 1],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": list(mask.shape), "counts": counts},
                }
            )
    return images_and_categories(dataset) | {"annotations": annotations}
