"""Count what a data set contains, and measure its objects as a network sees them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from accelerated.data.dataset import Dataset
from accelerated.transform import resized_shape
from reference.config import Transform

# COCO's limits between small, medium and large areas, in pixels.
SMALL, MEDIUM = 32**2, 96**2
# Images whose median long side is at most this suit the preset `tiny`.
TINY = 160
# Objects with less of a side in the network's input are seldom found.
TOO_SMALL = 16
# A side at which objects are found well, and the largest input that is worth advising for it.
GOOD, LARGEST = 24, 2048


def summary(dataset: Dataset) -> dict:
    """Count images, objects, areas and classes of a data set; the result can be written as JSON.

    images, negatives (images without an object), objects (without crowd regions), crowds;
    objects_per_image, image_width and image_height as {min, median, max}; area as {small, medium,
    large}; categories: [{id, name, objects}].
    """
    annotations = dataset.instances()
    objects = [(index, category, area) for index, category, area, crowd in annotations if not crowd]
    per_image = np.bincount([index for index, *_ in objects], minlength=len(dataset))
    per_category = Counter(category for _, category, _ in objects)
    areas = np.array([area for *_, area in objects])
    return {
        "images": len(dataset),
        "negatives": int((per_image == 0).sum()),
        "objects": len(objects),
        "crowds": len(annotations) - len(objects),
        "objects_per_image": _spread(per_image),
        "image_width": _spread([width for _, width in dataset.sizes]),
        "image_height": _spread([height for height, _ in dataset.sizes]),
        "area": {
            "small": int((areas < SMALL).sum()),
            "medium": int(((areas >= SMALL) & (areas < MEDIUM)).sum()),
            "large": int((areas >= MEDIUM).sum()),
        },
        "categories": [
            {"id": category_id, "name": name, "objects": per_category[category_id]}
            for category_id, name in zip(dataset.category_ids, dataset.class_names, strict=True)
        ],
    }


def _spread(values: np.ndarray | Sequence[int]) -> dict:
    values = np.asarray(values)
    if values.size == 0:
        return {"min": 0, "median": 0, "max": 0}
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}


def default_preset(sizes: Sequence[tuple[int, int]]) -> str:
    """Choose the preset to train from scratch with on images of `sizes` (height, width)."""
    return "tiny" if np.median([max(size) for size in sizes] or [0]) <= TINY else "small"


@dataclass(frozen=True)
class InputObjects:
    """The objects of a data set in the network's input.

    count         without crowd regions
    median        of the objects' sides sqrt(area), in pixels of the input
    below_16, below_8  shares of the objects whose side is less
    input_size    (short, long) median sides of the images in the input
    """

    count: int
    median: float
    below_16: float
    below_8: float
    input_size: tuple[int, int]

    def __str__(self) -> str:
        if not self.count:
            return "no objects"
        return (
            f"objects have a median side of {self.median:.0f} pixels,"
            f" {self.below_16:.0%} are below 16, {self.below_8:.0%} below 8"
        )

    @property
    def advice(self) -> str | None:
        """What to do about objects that are too small; None if they are not."""
        if not self.count or self.median >= TOO_SMALL:
            return None
        short, long = self.input_size
        # A floor under the median: areas of 0 occur in files.
        wanted = GOOD / max(self.median, 1.0)
        factor = min(wanted, max(LARGEST / long, 1.0))
        tiles = ", and cut the images into tiles" if factor < wanted else ""
        sides = [-(-round(side * factor) // 32) * 32 for side in (short, long)]
        return (
            f"half of the objects have less than {TOO_SMALL} pixels a side in the input and will"
            f" hardly be found. Use a larger input: --set transform.min_size=[{sides[0]}]"
            f" --set transform.max_size={sides[1]}{tiles}"
        )


def input_objects(dataset: Dataset, transform: Transform) -> InputObjects:
    """Measure the objects of `dataset` as they are after resizing by `transform`."""
    shapes = [
        resized_shape(*size, transform.min_size[-1], transform) if transform.min_size else size
        for size in dataset.sizes
    ]
    zooms = [
        h * w / (size[0] * size[1]) for (h, w), size in zip(shapes, dataset.sizes, strict=True)
    ]
    areas = [area * zooms[i] for i, _, area, crowd in dataset.instances() if not crowd]
    sides = np.sqrt(np.maximum(areas, 0.0)) if areas else np.zeros(0)
    short, long = np.median([sorted(shape) for shape in shapes] or [(0, 0)], axis=0)
    return InputObjects(
        len(sides),
        float(np.median(sides)) if len(sides) else 0.0,
        float((sides < TOO_SMALL).mean()) if len(sides) else 0.0,
        float((sides < TOO_SMALL / 2).mean()) if len(sides) else 0.0,
        (int(short), int(long)),
    )
