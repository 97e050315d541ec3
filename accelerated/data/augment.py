"""What training changes about an image before the transform: mirrored half of the time, and one of several sizes."""

import torch

from accelerated.structures import Target


def augment(image, target, config, rng, flip_probability=0.5):
    """One random draw for a training image.

    image [H, W, 3] ndarray; config a `Transform`; rng a NumPy generator, the only source of chance.
    Returns (image, target, min_size): the last for `transform.prepare`, drawn from `config.min_size` (None if there is none).
    """
    mirrored = rng.random() < flip_probability
    min_size = int(rng.choice(config.min_size)) if config.min_size else None
    return *(flip(image, target) if mirrored else (image, target)), min_size


def flip(image, target):
    """Mirror left and right. Pixel i spans [i, i+1), so x becomes W - x."""
    width = image.shape[1]
    x1, y1, x2, y2 = target.boxes.unbind(1)
    boxes = torch.stack([width - x2, y1, width - x1, y2], dim=1)
    return image[:, ::-1].copy(), Target(boxes, target.labels, target.masks.flip(2))
