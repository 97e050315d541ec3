"""Augment training images: mirror half of them, and choose one of several sizes."""

import numpy as np
import torch

from accelerated.structures import Target
from reference.config import Transform


def augment(
    image: np.ndarray,
    target: Target,
    transform: Transform,
    rng: np.random.Generator,
    flip_probability: float = 0.5,
) -> tuple[np.ndarray, Target, int | None]:
    """Draw one random augmentation of an image [H, W, 3] and its target from `rng`.

    Returns the image, the target and min_size for `transform.prepare`, drawn from
    `transform.min_size` (None if that is empty).
    """
    mirrored = rng.random() < flip_probability
    min_size = int(rng.choice(transform.min_size)) if transform.min_size else None
    if mirrored:
        image, target = flip(image, target)
    return image, target, min_size


def flip(image: np.ndarray, target: Target) -> tuple[np.ndarray, Target]:
    """Mirror left and right. Pixel i spans [i, i+1), so x becomes W - x."""
    width = image.shape[1]
    x1, y1, x2, y2 = target.boxes.unbind(1)
    boxes = torch.stack([width - x2, y1, width - x1, y2], dim=1)
    polygons = target.polygons and [
        outlines and [points * [-1, 1] + [width, 0] for points in outlines]
        for outlines in target.polygons
    ]
    return image[:, ::-1].copy(), Target(boxes, target.labels, target.masks.flip(2), polygons)
