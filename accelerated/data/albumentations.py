"""Augment with a pipeline of the library albumentations, as a function of one's own.

In a file of one's own, here mine.py, for `--set augment.function=mine:augment`:

    import albumentations as A
    from accelerated.data.albumentations import adapt

    augment = adapt(A.Compose([A.ElasticTransform(p=0.5), A.GaussNoise(p=0.5)]))
"""

from typing import Any

import numpy as np
import torch

from accelerated.data.own_function import Function
from accelerated.structures import Target


def adapt(pipeline: Any) -> Function:
    """Return an albumentations.Compose as a function that augments.

    It is seeded by the generator of each image. Masks go through it as masks. If they change, boxes
    are those of their pixels, outlines are given up, and objects without a pixel go.
    Raises ValueError for a pipeline that cannot be seeded, such as one of albumentations 1.
    """
    if not hasattr(pipeline, "set_random_seed"):
        raise ValueError(
            f"{type(pipeline).__name__}: expected albumentations.Compose of version 2 or later"
        )

    def function(image, target, rng):
        before = target.masks.numpy()
        pipeline.set_random_seed(int(rng.integers(2**31)))
        result = pipeline(image=image, masks=[mask.astype(np.uint8) for mask in before])
        image = result["image"]
        after = np.zeros((len(before), *image.shape[:2]), dtype=bool)
        for mask, pixels in zip(after, result["masks"], strict=True):
            mask[:] = pixels
        if np.array_equal(before, after):
            return image, target
        return image, _of_masks(after, target)

    return function


def _of_masks(masks, target):
    """Return the target with other masks [G, H, W], of those objects that have a pixel."""
    kept, boxes = [], []
    for index, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            kept.append(index)
            boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    polygons = None if target.polygons is None else [None] * len(kept)
    return Target(
        torch.tensor(np.array(boxes, dtype=np.float32).reshape(-1, 4)),
        target.labels[kept],
        torch.from_numpy(masks[kept]),
        polygons,
    )
