"""The measure of equality: non-finite entries, shapes, the worst index, and every dtype."""

import numpy as np
import pytest
import torch

from accelerated.verify.equality import assert_close, assert_equal, difference, error


def test_differences():
    same = difference(np.array([1.0, np.nan]), np.array([1.0, np.nan]))
    assert (same.relative, same.wrong) == (0.0, 0)
    off = difference(np.array([1.0, 4.5]), np.array([1.0, 4.0]))
    assert (off.relative, off.absolute, off.wrong) == (0.125, 0.5, 1)
    assert difference(np.array([np.nan, 1.0]), np.array([0.0, 1.0])).relative == np.inf
    assert difference(np.array([1.0, 1.0]), np.array([np.inf, 1.0])).relative == np.inf
    assert difference(np.zeros(0), np.zeros(0)).relative == 0
    assert "expected [3]" in difference(np.zeros(2), np.zeros(3)).reason


def test_the_worst_index_is_named():
    expected = np.zeros((2, 3))
    expected[0, 0] = 4
    actual = expected.copy()
    actual[1, 2], actual[0, 1] = 1, 0.5
    assert difference(actual, expected).worst == (1, 2)
    assert difference(np.float64(2), np.float64(1)).worst == ()
    assert_close(actual, expected, 0.25)
    with pytest.raises(AssertionError, match=r"map: error 0.25 > 0.2; worst at \(1, 2\)"):
        assert_close(actual, expected, 0.2, "map")
    with pytest.raises(AssertionError, match=r"value: 2 entries differ; worst at \(1, 2\)"):
        assert_equal(actual, expected)


@pytest.mark.parametrize(
    "actual", [np.array([1.0, 2, 3]), np.array([1.0, np.nan]), np.array([1.0, -np.inf])]
)
def test_other_shapes_and_non_finite_entries_never_pass(actual):
    expected = np.array([1.0, np.inf])
    assert difference(actual, expected).relative == np.inf
    for check in (error, lambda a, r: assert_close(a, r, 1e300), assert_equal):
        with pytest.raises(AssertionError):
            check(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.bool])
def test_tensors_of_any_dtype(dtype):
    tensor = torch.tensor([0.0, 1.0]).to(dtype).requires_grad_(dtype.is_floating_point)
    assert error(tensor, np.array([0.0, 1.0])) == 0
    assert error(tensor, np.array([1.0, 1.0])) == 1
