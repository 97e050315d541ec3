"""The synthetic data set: deterministic, tight boxes, nothing mostly hidden, any size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import shapes


@given(st.integers(0, 1000), st.integers(0, 10_000), st.integers(24, 160), st.integers(24, 160))
def test_contract(seed, index, height, width):
    image, boxes, labels, masks = shapes.sample(seed, index, height=height, width=width)
    count = len(labels)
    assert 1 <= count <= 6
    assert image.shape == (height, width, 3) and image.dtype == np.uint8
    assert boxes.shape == (count, 4) and masks.shape == (count, height, width) and masks.dtype == bool
    assert set(labels.tolist()) <= {1, 2, 3}
    assert masks.sum(axis=0).max() == 1  # visible parts do not overlap
    for (x1, y1, x2, y2), mask in zip(boxes.astype(int), masks, strict=True):
        rows, columns = np.nonzero(mask)
        assert (x1, y1, x2, y2) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_depends_on_seed_and_index_only():
    first, again, other_index, other_seed = (shapes.sample(s, i, height=64, width=80) for s, i in ((3, 7), (3, 7), (3, 8), (4, 7)))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], other_index[0]) and not np.array_equal(first[0], other_seed[0])


@pytest.mark.parametrize("side", [128, 256])
def test_statistics(side):
    drawn = [shapes.sample(0, i, height=side, width=side) for i in range(200)]
    labels = np.concatenate([d[2] for d in drawn])
    boxes = np.concatenate([d[1] for d in drawn]) * 128 / side
    sides = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    assert np.bincount(labels, minlength=4)[1:].min() > 0.28 * len(labels)
    assert sides.min() >= 10 and sides.max() <= 70
    assert 2.5 < len(labels) / len(drawn) < 4
    assert 0.03 < np.mean([d[3].any(axis=0).mean() for d in drawn]) < 0.5


def test_objects_stand_out():
    """The mean colour inside differs from the mean colour around every object by far more than the noise."""
    for index in range(30):
        image, boxes, _, masks = shapes.sample(1, index)
        for (x1, y1, x2, y2), mask in zip(boxes.astype(int), masks, strict=True):
            around = np.zeros_like(mask)
            around[max(y1 - 3, 0) : y2 + 3, max(x1 - 3, 0) : x2 + 3] = True
            around &= ~masks.any(axis=0)
            if around.sum() > 20:
                assert np.abs(image[mask].mean(axis=0) - image[around].mean(axis=0)).max() > 25
