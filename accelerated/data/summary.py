"""Count what a data set contains."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from accelerated.data.dataset import Dataset

# COCO's limits between small, medium and large areas, in pixels.
SMALL, MEDIUM = 32**2, 96**2


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
    return "tiny"
