import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.golden_cases import EXTENT, cases

import accelerated.sampler
import reference.sampler
from accelerated.verify.equality import assert_equal


def torch_sample(labels, priorities, batch_size, fraction):
    """The accelerated sampler on one image, its padding taken off again."""
    indices, is_positive, valid = accelerated.sampler.sample(
        torch.tensor(labels)[None], torch.tensor(priorities)[None], batch_size, fraction
    )
    assert indices.shape == is_positive.shape == valid.shape == (1, batch_size)
    assert not (is_positive & ~valid).any() and not indices[~valid].any()
    return indices[is_positive].numpy(), indices[valid & ~is_positive].numpy()


SAMPLERS = pytest.mark.parametrize(
    "sample", [reference.sampler.sample, torch_sample], ids=["numpy", "torch"]
)


def golden_priorities(labels):
    """Make priorities by which `perm[i] = (7919 i + 13) mod n` chooses among each label."""
    priorities = np.full(len(labels), np.inf)
    for chosen in np.flatnonzero(labels > 0), np.flatnonzero(labels == 0):
        n = len(chosen)
        priorities[chosen[(7919 * np.arange(n) + 13) % n]] = np.arange(n)
    return priorities


@SAMPLERS
@EXTENT
def test_torchvision(sample, extent, request):
    for case in cases(request, extent, "tv", "sampler").values():
        labels = case["in.labels"]
        positive, negative = sample(
            labels, golden_priorities(labels), int(case["in.batch"]), float(case["in.frac"])
        )
        assert_equal(np.sort(positive), np.flatnonzero(case["out.pos"]))
        assert_equal(np.sort(negative), np.flatnonzero(case["out.neg"]))


@SAMPLERS
@EXTENT
def test_detectron2(sample, extent, request):
    for case in cases(request, extent, "d2", "sampler").values():
        labels = case["in.labels"]
        positive, negative = sample(
            labels, golden_priorities(labels), int(case["in.batch"]), float(case["in.frac"])
        )
        # In the order of the permutation.
        assert_equal(positive, case["out.pos"])
        assert_equal(negative, case["out.neg"])


@SAMPLERS
def test_by_hand(sample):
    labels = np.array([1, 0, -1, 3, 0, 0, 2, 0])
    priorities = np.array([0.5, 0.1, 0.0, 0.2, 0.4, 0.4, 0.2, 0.3])
    for (batch_size, fraction), expected in {
        # Equal priorities: the lower index first.
        (4, 0.5): ([3, 6], [1, 7]),
        # int(2.5) positives.
        (5, 0.5): ([3, 6], [1, 7, 4]),
        (4, 1.0): ([3, 6, 0], [1]),
        # Fewer than asked for.
        (12, 0.5): ([3, 6, 0], [1, 7, 4, 5]),
        (4, 0.0): ([], [1, 7, 4, 5]),
    }.items():
        for ours, wanted in zip(
            sample(labels, priorities, batch_size, fraction), expected, strict=True
        ):
            assert_equal(ours, np.array(wanted, int))


@given(
    st.lists(
        st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 4)), min_size=7, max_size=7),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 9),
)
def test_twins(images, batch_size):
    """A batch with many equal priorities: same choice, same order, and the same as masks."""
    labels, priorities = np.moveaxis(np.array(images), -1, 0)
    arguments = torch.tensor(labels), torch.tensor(priorities).double(), batch_size, 0.5
    indices, is_positive, valid = accelerated.sampler.sample(*arguments)
    masks = accelerated.sampler.sampled_mask(*arguments)
    for n in range(len(images)):
        positive, negative = reference.sampler.sample(labels[n], priorities[n], batch_size, 0.5)
        assert_equal(indices[n][is_positive[n]], positive)
        assert_equal(indices[n][valid[n] & ~is_positive[n]], negative)
        # Positives first, padding last.
        assert_equal(np.flatnonzero(is_positive[n]), np.arange(len(positive)))
        assert_equal(np.flatnonzero(valid[n]), np.arange(len(positive) + len(negative)))
        for mask, chosen in zip(masks, (positive, negative), strict=True):
            assert_equal(np.flatnonzero(mask[n]), np.sort(chosen))


def test_many_equal_priorities(rng):
    labels, priorities = rng.integers(-1, 2, 5000), rng.integers(0, 3, 5000).astype(float)
    for ours, expected in zip(
        torch_sample(labels, priorities, 3000, 0.4),
        reference.sampler.sample(labels, priorities, 3000, 0.4),
        strict=True,
    ):
        assert_equal(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_priorities_that_are_no_numbers(rng, dtype):
    """Infinity comes after all numbers and NaN last, but before what is excluded."""
    numbers = [0.0, -0.0, 0.25, 0.25, np.inf, -np.inf, np.nan, -np.nan]
    for _ in range(30):
        priorities = rng.choice(numbers, 12)
        labels = rng.integers(-1, 2, 12)
        batch_size, fraction = int(rng.integers(1, 14)), rng.choice([0.0, 0.3, 1.0])
        order = sorted(
            range(12),
            key=lambda i: (np.isnan(priorities[i]), np.nan_to_num(priorities[i], nan=0.0), i),
        )
        positive = [i for i in order if labels[i] > 0][: int(batch_size * fraction)]
        negative = [i for i in order if labels[i] == 0][: batch_size - len(positive)]
        arguments = torch.tensor(labels)[None], torch.tensor(priorities, dtype=dtype)[None]
        indices, is_positive, valid = accelerated.sampler.sample(*arguments, batch_size, fraction)
        assert_equal(indices[is_positive], positive)
        assert_equal(indices[valid & ~is_positive], negative)
        masks = accelerated.sampler.sampled_mask(*arguments, batch_size, fraction)
        for mask, chosen in zip(masks, (positive, negative), strict=True):
            assert_equal(np.flatnonzero(mask[0]), np.sort(chosen))


def test_compiles_without_a_break(rng):
    labels, priorities = (
        torch.tensor(rng.integers(-1, 2, (2, 50))),
        torch.tensor(rng.random((2, 50))),
    )
    for function in accelerated.sampler.sample, accelerated.sampler.sampled_mask:
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for ours, eager in zip(
            compiled(labels, priorities, 16, 0.25),
            function(labels, priorities, 16, 0.25),
            strict=True,
        ):
            assert_equal(ours, eager)
