"""Augmentation: mirroring is exact and undoes itself; chance comes from the generator alone."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from accelerated.data.augment import augment, flip
from accelerated.data.synthetic import ShapesDataset
from reference import config

TRANSFORM = replace(config.preset("tiny").transform, min_size=(96, 128, 160))


def same(a, b):
    return np.array_equal(a[0], b[0]) and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(vars(a[1]).values(), vars(b[1]).values(), strict=True)
    )


@given(st.integers(0, 10_000), st.integers(24, 60))
def test_flip(seed, width):
    image, target, _ = ShapesDataset(1, seed=seed, size=(32, width))[0]
    mirrored = flip(image, target)
    assert same(flip(*mirrored), (image, target))
    np.testing.assert_array_equal(mirrored[0][:, 0], image[:, -1])
    # Boxes stay tight around their masks.
    for box, mask in zip(mirrored[1].boxes.numpy(), mirrored[1].masks.numpy(), strict=True):
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_flip_of_no_objects():
    image, target, _ = ShapesDataset(1, size=32)[0]
    empty = type(target)(target.boxes[:0], target.labels[:0], target.masks[:0])
    assert flip(image, empty)[1].boxes.shape == (0, 4)


def test_draws():
    image, target, _ = ShapesDataset(1, size=32)[0]
    rng = np.random.default_rng(0)
    drawn = [augment(image, target, TRANSFORM, rng) for _ in range(200)]
    sizes = [min_size for *_, min_size in drawn]
    assert set(sizes) == {96, 128, 160}
    assert 0.4 < np.mean([same(d[:2], flip(image, target)) for d in drawn]) < 0.6
    again = np.random.default_rng(0)
    assert [augment(image, target, TRANSFORM, again)[2] for _ in range(200)] == sizes
    assert augment(image, target, replace(TRANSFORM, min_size=()), rng)[2] is None
    assert same(augment(image, target, TRANSFORM, rng, flip_probability=0)[:2], (image, target))
