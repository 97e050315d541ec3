"""Small images whose objects have boxes, masks and outlines that say the same to the pixel."""

import numpy as np
import torch
from hypothesis import strategies as st

from accelerated.data import rle
from accelerated.structures import Target


def scene(seed, height=23, width=31, objects=3):
    """An image of noise with L-shaped objects, of which a corner is missing: image and target."""
    rng = np.random.default_rng([7, seed, height, width])
    outlines = [_outline(rng, height, width) for _ in range(objects)]
    masks = np.zeros((objects, height, width), dtype=bool)
    for mask, points in zip(masks, outlines, strict=True):
        mask[:] = drawn([points], height, width)
    boxes = np.array([[*points.min(0), *points.max(0)] for points in outlines]).reshape(-1, 4)
    target = Target(
        torch.tensor(boxes, dtype=torch.float32),
        torch.from_numpy(rng.integers(1, 4, objects)),
        torch.from_numpy(masks),
        [[points] for points in outlines],
    )
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), target


def _outline(rng, height, width):
    x = np.sort(rng.choice(width + 1, 3, replace=False)).astype(float)
    y = np.sort(rng.choice(height + 1, 3, replace=False)).astype(float)
    corners = [(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2)]
    # One of four corners is missing.
    x, y = x[:: rng.choice([-1, 1])], y[:: rng.choice([-1, 1])]
    return np.array([(x[i], y[j]) for i, j in corners])


def drawn(outlines, height, width):
    """Rasterise outlines [V, 2] as data sets are."""
    mask = np.zeros((height, width), dtype=bool)
    counts = rle.of_polygons([points.ravel() for points in outlines], height, width)
    rle.decode_into(rle.decompress(counts), mask)
    return mask


def assert_consistent(image, target):
    """Everything fits: boxes are tight, and outlines are those of the masks to the pixel."""
    height, width = image.shape[:2]
    count = len(target.labels)
    assert image.dtype == np.uint8 and image.shape == (height, width, 3)
    assert target.boxes.shape == (count, 4) and target.masks.shape == (count, height, width)
    assert target.polygons is None or len(target.polygons) == count
    for index, mask in enumerate(target.masks.numpy()):
        rows, columns = np.nonzero(mask)
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert target.boxes[index].tolist() == tight
        outlines = target.polygons and target.polygons[index]
        if outlines is not None:
            assert all(len(points) >= 3 for points in outlines)
            np.testing.assert_array_equal(drawn(outlines, height, width), mask)


def assert_same(sample, other):
    """Two images and their targets are equal to the last bit."""
    np.testing.assert_array_equal(sample[0], other[0])
    for name in ("boxes", "labels", "masks"):
        assert torch.equal(getattr(sample[1], name), getattr(other[1], name)), name
    assert str(sample[1].polygons) == str(other[1].polygons)


scenes = st.builds(
    scene, st.integers(0, 999), st.integers(2, 24), st.integers(2, 24), st.integers(0, 4)
)
