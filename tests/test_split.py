"""Training and validation data: by seed, with every class on both sides."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerated.data.split import split


def sides(images, *indices):
    return [{name for index in part for name in images[index]} for part in indices]


@given(
    st.lists(st.frozensets(st.integers(0, 5), max_size=2), min_size=2, max_size=40),
    st.floats(0.05, 0.6),
    st.integers(0, 5),
)
def test_a_split_is_a_partition(images, fraction, seed):
    train, val = split(images, fraction, seed)
    assert sorted([*train, *val]) == list(range(len(images))) and train and val
    assert (train, val) == split(images, fraction, seed)


def test_classes_keep_their_shares(rng):
    """A common, a less common and a rare class, and images without objects."""
    shares = {"leaf": 0.7, "stem": 0.3, "root": 0.02}
    images = [{c for c, share in shares.items() if rng.random() < share} for _ in range(500)]
    train, val = split(images, 0.2, seed=0)
    assert len(val) == pytest.approx(100, abs=4)
    for name in shares:
        total = sum(name in found for found in images)
        assert sum(name in images[k] for k in val) == pytest.approx(0.2 * total, abs=4)
    empty = [k for k, found in enumerate(images) if not found]
    assert 0 < len(set(val) & set(empty)) < len(empty)
    assert split(images, 0.2, seed=1) != (train, val)


def test_rare_classes_are_on_both_sides():
    # 30 images, 5 classes with two images each; a fraction of 0.1 alone would hold three.
    images = [{"common"}] * 20 + [{"common", f"rare {k // 2}"} for k in range(10)]
    for seed in range(10):
        train, val = split(images, 0.1, seed)
        assert sides(images, train, val) == [set().union(*images)] * 2
    # Two of the three classes share the only images that they have.
    linked = [{"a", "b"}, {"b", "c"}, {"a", "c"}, {"a"}, {"c"}, {"b"}]
    for seed in range(10):
        train, val = split(linked, 0.34, seed)
        assert sides(linked, train, val) == [{"a", "b", "c"}] * 2


def test_a_class_of_one_image_is_trained_on():
    images = [{"leaf"}] * 9 + [{"leaf", "single"}]
    for seed in range(20):
        assert 9 in split(images, 0.3, seed)[0]


def test_what_cannot_be_split():
    for fraction in (0, 1, -0.2, 20, float("nan")):
        with pytest.raises(ValueError, match="expected a fraction between 0 and 1"):
            split([{1}, {1}], fraction, 0)
    with pytest.raises(ValueError, match="needs two images at least, the data has 1"):
        split([{1}], 0.2, 0)
    assert np.concatenate(split([{1}, {1}], 0.01, 0)).tolist() in ([0, 1], [1, 0])
