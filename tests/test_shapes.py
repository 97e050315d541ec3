"""The synthetic data set: deterministic, tight boxes, nothing mostly hidden, any size."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import shapes

STYLES = st.sampled_from([shapes.EASY, shapes.HARD])


@given(
    st.integers(0, 1000), st.integers(0, 10_000), st.integers(24, 160), st.integers(24, 160), STYLES
)
def test_contract(seed, index, height, width, style):
    image, boxes, labels, masks = shapes.sample(
        seed, index, height=height, width=width, style=style
    )
    count = len(labels)
    assert 1 <= count <= 6
    assert image.shape == (height, width, 3) and image.dtype == np.uint8
    assert (
        boxes.shape == (count, 4) and masks.shape == (count, height, width) and masks.dtype == bool
    )
    assert set(labels.tolist()) <= {1, 2, 3}
    # Visible parts do not overlap.
    assert masks.sum(axis=0).max() == 1
    for (x1, y1, x2, y2), mask in zip(boxes.astype(int), masks, strict=True):
        rows, columns = np.nonzero(mask)
        assert (x1, y1, x2, y2) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_depends_on_seed_and_index_only():
    first, again, other_index, other_seed = (
        shapes.sample(s, i, height=64, width=80) for s, i in ((3, 7), (3, 7), (3, 8), (4, 7))
    )
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], other_index[0]) and not np.array_equal(
        first[0], other_seed[0]
    )


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
    """Inside and around every object, mean colours differ by far more than the noise."""
    for index in range(30):
        image, boxes, _, masks = shapes.sample(1, index)
        for (x1, y1, x2, y2), mask in zip(boxes.astype(int), masks, strict=True):
            around = np.zeros_like(mask)
            around[max(y1 - 3, 0) : y2 + 3, max(x1 - 3, 0) : x2 + 3] = True
            around &= ~masks.any(axis=0)
            if around.sum() > 20:
                assert np.abs(image[mask].mean(axis=0) - image[around].mean(axis=0)).max() > 25


def test_easy_images_are_the_ones_they_always_were():
    """Numbers reported on them stay comparable."""
    drawn = [shapes.sample(9, index, height=96, width=112) for index in range(3)]
    kept = [
        zlib.crc32(np.packbits(masks).tobytes() + labels.tobytes()) for _, _, labels, masks in drawn
    ]
    assert kept == [3702249369, 4073024327, 3413393090]
    np.testing.assert_allclose(
        [image.mean() for image, *_ in drawn], [141.029638, 164.195716, 138.272135], atol=1e-4
    )


def test_hard_shapes_are_outlines_and_overlap_more():
    def statistics(style):
        drawn = [shapes.sample(0, index, height=96, width=96, style=style) for index in range(200)]
        boxes, masks = (np.concatenate([d[i] for d in drawn]) for i in (1, 3))
        width, height = (boxes[:, 2:] - boxes[:, :2]).T
        hidden = [
            (a[0] < b[2]) & (b[0] < a[2]) & (a[1] < b[3]) & (b[1] < a[3])
            for d in drawn
            for a in d[1]
            for b in d[1]
            if a is not b
        ]
        return (
            masks.sum((1, 2)) / (width * height),
            np.maximum(width, height),
            len(hidden) and sum(hidden) / len(masks),
        )

    (filled, sides, overlaps), (hard_filled, hard_sides, hard_overlaps) = (
        statistics(shapes.EASY),
        statistics(shapes.HARD),
    )
    # The fraction of its box that an object covers.
    assert np.percentile(hard_filled, 10) < 0.4 < np.percentile(filled, 10)
    assert hard_overlaps > 1.05 * overlaps and np.percentile(hard_sides, 90) < np.percentile(
        sides, 90
    )
