"""The one table of tolerances, and the one way to compare.

The error of `actual` against the float64 oracle `expected` is max|a - r| / max|r|.
"""

import numpy as np

POINTWISE = {
    "float64": 1e-12,
    "float32": 2e-6,
    "float16": 1e-3,
    "bfloat16": 8e-3,
}  # pointwise, gather, pooling
REDUCTION = {
    "float64": 1e-11,
    "float32": 1e-5,
    "float16": 2e-3,
    "bfloat16": 1.6e-2,
}  # reductions, convolutions, scattered gradients
MODEL = {
    "float64": 1e-9,
    "float32": 1e-4,
    "bfloat16": 5e-2,
}  # losses, logits and gradients of the whole model
GOLDEN_OPERATOR = 1e-12  # float64, against numbers of torchvision and detectron2
GOLDEN_MODEL = 1e-9


def arbitrary_boxes(dtype: str, height: int, width: int) -> float:
    """Tolerance of a pooling whose boxes do not lie on a dyadic grid: coordinates round in float32."""
    if dtype == "float64":
        return 1e-11
    return POINTWISE[dtype] + 2 * np.finfo(np.float32).eps * max(height, width)


def to_numpy(x) -> np.ndarray:
    """float64 copy of an array or tensor, any dtype, any device."""
    if hasattr(x, "detach"):
        x = x.detach().double().cpu().numpy()
    return np.asarray(x, dtype=np.float64)


def error(actual, expected) -> float:
    """max|a - r| / max|r|; NaN and infinity must stand in the same places."""
    actual, expected = to_numpy(actual), to_numpy(expected)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    if expected.size == 0:
        return 0.0
    finite = np.isfinite(expected)
    assert np.array_equal(actual[~finite], expected[~finite], equal_nan=True), (
        "non-finite entries differ"
    )
    difference = np.where(
        finite, np.abs(np.where(finite, actual, 0) - np.where(finite, expected, 0)), 0
    )
    if np.isnan(difference).any():
        return float("inf")
    scale = np.abs(expected[finite]).max(initial=0.0)
    return float(difference.max() / (scale if scale > 0 else 1.0))


def assert_close(actual, expected, tolerance: float, what: str = "value"):
    """Fail with the worst index unless the error is at most `tolerance`."""
    e = error(actual, expected)
    if not e <= tolerance:
        difference = np.nan_to_num(np.abs(to_numpy(actual) - to_numpy(expected)), nan=np.inf)
        worst = tuple(int(i) for i in np.unravel_index(np.argmax(difference), difference.shape))
        values = f"{to_numpy(actual)[worst]!r}, expected {to_numpy(expected)[worst]!r}"
        raise AssertionError(f"{what}: error {e:.3g} > {tolerance:.3g}; worst at {worst}: {values}")


def assert_equal(actual, expected, what: str = "value"):
    """Discrete results: exactly equal."""
    actual, expected = to_numpy(actual), to_numpy(expected)
    assert actual.shape == expected.shape, (
        f"{what}: shape {actual.shape}, expected {expected.shape}"
    )
    wrong = np.argwhere(~((actual == expected) | (np.isnan(actual) & np.isnan(expected))))
    if len(wrong):
        first = tuple(int(i) for i in wrong[0])
        raise AssertionError(
            f"{what}: {len(wrong)} entries differ, first at {first}: {actual[first]}, expected {expected[first]}"
        )
