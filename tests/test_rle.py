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
