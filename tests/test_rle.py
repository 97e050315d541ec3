"""COCO's run lengths: those of pycocotools, and any text decompresses or is refused."""

import contextlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as pycoco

from accelerated.data import rle


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_run_lengths_are_those_of_pycocotools(height, width, seed):
    mask = (
        np.random.default_rng(seed).random((height, width))
        < np.random.default_rng(seed + 1).random()
    )
    runs = rle.of_mask(mask)
    text = pycoco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert rle.compress(runs) == text
    np.testing.assert_array_equal(rle.decompress(text), runs)
    out = np.zeros_like(mask)
    rle.decode_into(runs, out)
    np.testing.assert_array_equal(out, mask)
    assert rle.area(runs) == mask.sum()
    rows, columns = np.nonzero(mask)
    expected = (
        (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if mask.any() else None
    )
    assert rle.bounds(runs, height) == expected


@given(st.lists(st.integers(0, 2**28), min_size=1, max_size=8))
def test_compression_round_trip(counts):
    np.testing.assert_array_equal(rle.decompress(rle.compress(counts)), counts)


@given(
    st.one_of(st.text(max_size=20), st.text(alphabet=[chr(c) for c in range(48, 112)], max_size=20))
)
def test_any_text_decompresses_or_is_refused(text):
    with contextlib.suppress(ValueError):
        assert rle.decompress(text).dtype == np.int64


@given(
    st.lists(st.integers(0, 2**30 - 1), min_size=1, max_size=4),
    st.sampled_from([(5, 6), (1, 30), (30, 1)]),
)
def test_union_is_that_of_pycocotools(bits, size):
    masks = [np.array([b >> i & 1 for i in range(30)], dtype=np.uint8).reshape(size) for b in bits]
    union = rle.union([rle.of_mask(mask) for mask in masks])
    encoded = [pycoco.encode(np.asfortranarray(mask)) for mask in masks]
    assert rle.compress(union) == pycoco.merge(encoded)["counts"]
    assert (union == rle.of_mask(np.any(masks, axis=0))).all()
    # Runs of no pixel change nothing.
    split = [np.concatenate([[0, 0], rle.of_mask(mask), [0, 0]]) for mask in masks]
    assert (rle.union(split) == union).all()


def test_polygons_are_joined_as_by_pycocotools(rng):
    for _ in range(50):
        polygons = [rng.uniform(-5, 45, 2 * rng.integers(3, 9)).tolist() for _ in range(3)]
        expected = pycoco.merge(pycoco.frPyObjects(polygons, 40, 36))["counts"]
        assert rle.of_polygons(polygons, 40, 36) == expected
