"""What a data set holds, in numbers."""

from collections import Counter

import numpy as np

SMALL, MEDIUM = 32**2, 96**2  # COCO's areas in pixels: below, between, above


def summary(dataset) -> dict:
    """Counts of a data set, ready for JSON.

    images, negatives (images without an object), objects (crowd regions apart), crowds; objects_per_image and
    image_width, image_height as {min, median, max}; area as {small, medium, large}; categories: [{id, name, objects}].
    """
    instances = [
        (index, category, area) for index, category, area, crowd in dataset.instances() if not crowd
    ]
    per_image = np.bincount([index for index, *_ in instances], minlength=len(dataset))
    areas = np.array([area for *_, area in instances])
    of_category = Counter(category for _, category, _ in instances)
    heights, widths = zip(*dataset.sizes, strict=True) if dataset.sizes else ((), ())
    return {
        "images": len(dataset),
        "negatives": int((per_image == 0).sum()),
        "objects": len(instances),
        "crowds": len(dataset.instances()) - len(instances),
        "objects_per_image": _spread(per_image),
        "image_width": _spread(widths),
        "image_height": _spread(heights),
        "area": {
            "small": int((areas < SMALL).sum()),
            "medium": int(((areas >= SMALL) & (areas < MEDIUM)).sum()),
            "large": int((areas >= MEDIUM).sum()),
        },
        "categories": [
            {"id": number, "name": name, "objects": of_category[number]}
            for number, name in zip(dataset.category_ids, dataset.class_names, strict=True)
        ],
    }


def _spread(values):
    values = np.asarray(values)
    if values.size == 0:
        return {"min": 0, "median": 0, "max": 0}
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}
