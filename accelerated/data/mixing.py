"""Mix an image with others: four that share its place, and objects pasted on."""

import numpy as np
import torch

from accelerated.data import moves
from accelerated.structures import Target

# Where the images of a mosaic meet, in parts of the sides.
MEETING = 0.25, 0.75

# An image [H, W, 3] uint8 and its objects.
Sample = tuple[np.ndarray, Target]


def mosaic(samples: list[Sample], colour: np.ndarray, rng: np.random.Generator) -> Sample:
    """Arrange four images around a random point of a canvas with the sides of the first.

    samples  the first may lie in any quarter
    colour   [3] of what no image covers, because one is smaller than its quarter

    Each quarter shows a random window of its image, in the image's own pixels.
    """
    height, width = samples[0][0].shape[:2]
    order = rng.permutation(4)
    x, y = (round(side * rng.uniform(*MEETING)) for side in (width, height))
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = colour
    parts = []
    # Images lie at the corner of their quarter where all meet.
    for number, (right, below) in zip(order, np.ndindex(2, 2), strict=True):
        room = (width - x if right else x), (height - y if below else y)
        if not all(room):
            continue
        whole, objects = samples[number]
        image, target = moves.crop(whole, objects, _window(whole, room, rng))
        h, w = image.shape[:2]
        left, top = (x if right else x - w), (y if below else y - h)
        canvas[top : top + h, left : left + w] = image
        parts.append((target, left, top))
    return canvas, moves.placed(parts, (height, width))


def copy_paste(sample: Sample, other: Sample, rng: np.random.Generator) -> Sample:
    """Paste a random choice of the objects of another image onto an image [Ghiasi et al. 2021].

    Where an object of the image is hidden, its mask shrinks, and its box with it; its outlines are
    given up. One of which no pixel is left goes.
    """
    image, target = sample
    source, objects = other
    height, width = image.shape[:2]
    # An image of the same sides lies on this one; a larger one is cut, a smaller one shifted.
    source, objects = moves.crop(source, objects, _window(source, (width, height), rng))
    count = len(objects.labels)
    chosen = rng.permutation(count)[: rng.integers(1, count + 1)] if count else []
    objects = moves.select(objects, sorted(int(index) for index in chosen))
    (h, w), room = source.shape[:2], rng.random(2)
    left, top = int(room[0] * (width - w + 1)), int(room[1] * (height - h + 1))
    # On bool, NumPy is ten times as fast as PyTorch here.
    pasted = objects.masks.numpy().any(0)
    image = image.copy()
    image[top : top + h, left : left + w][pasted] = source[pasted]
    hiding = np.zeros((height, width), dtype=bool)
    hiding[top : top + h, left : left + w] = pasted
    parts = [(_below(target, hiding), 0, 0), (objects, left, top)]
    return image, moves.placed(parts, (height, width))


def _below(target, hiding):
    """Return what is left of a target where `hiding` [H, W] lies above it."""
    before = target.masks.numpy()
    masks = before & ~hiding
    boxes = target.boxes.clone()
    polygons = None if target.polygons is None else list(target.polygons)
    kept = []
    for index, mask in enumerate(masks):
        if (before[index] & hiding).any():
            if not mask.any():
                continue
            boxes[index] = moves.tightened(boxes[index], mask)
            if polygons is not None:
                polygons[index] = None
        kept.append(index)
    rest = Target(boxes, target.labels, torch.from_numpy(masks), polygons)
    return moves.select(rest, kept)


def _window(image, room, rng) -> moves.Window:
    """Draw a window of an image that fits into (width, height)."""
    height, width = image.shape[:2]
    w, h = min(width, room[0]), min(height, room[1])
    x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    return x, y, x + w, y + h
