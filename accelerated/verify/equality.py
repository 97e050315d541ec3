"""When two results are equal: the one measure of error, and the one table of tolerances.

The error of a result a is max|a - r| / max|r|, where r is the expected one, of the float64 oracle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

# Pointwise operators, gathers, pooling.
POINTWISE = {"float64": 1e-12, "float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}
# Reductions, convolutions, scattered gradients.
REDUCTION = {"float64": 1e-11, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
# Losses, logits and gradients of the whole model.
MODEL = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 5e-2}
# Losses and scores of the whole model where rounding may sample or rank another candidate.
MODEL_RERANKED = {"float32": 5e-2, "bfloat16": 2e-1}
# Against golden numbers of torchvision and detectron2, in float64.
GOLDEN_OPERATOR = 1e-12
GOLDEN_MODEL = 1e-9


def arbitrary_boxes(dtype: str, height: int, width: int) -> float:
    """Return the tolerance of pooling with boxes off the dyadic grid, whose coordinates round.

    height, width  of the feature map
    """
    if dtype == "float64":
        return 1e-11
    return POINTWISE[dtype] + 2 * float(np.finfo(np.float32).eps) * max(height, width)


@dataclass(frozen=True)
class Difference:
    """How far a result is from the expected one."""

    # max|a - r| / max|r|; infinite if shapes or non-finite entries differ.
    relative: float
    # max|a - r|
    absolute: float
    # Number of entries that differ at all.
    wrong: int
    # Index of the entry that differs most; None if none differs.
    worst: tuple[int, ...] | None = None
    # Why the results cannot be compared, or "".
    reason: str = ""


def difference(actual: ArrayLike, expected: ArrayLike) -> Difference:
    """Measure how far `actual` is from `expected`, arrays or tensors of any dtype and device.

    NaN equals NaN. If max|r| is 0, the relative difference is the absolute one.
    """
    a, r = to_numpy(actual), to_numpy(expected)
    if a.shape != r.shape:
        return Difference(np.inf, np.inf, 0, None, f"shape {[*a.shape]}, expected {[*r.shape]}")
    differs = np.asarray((a != r) & ~(np.isnan(a) & np.isnan(r)))
    if not differs.any():
        return Difference(0.0, 0.0, 0)
    distance = np.zeros_like(r)
    np.subtract(a, r, out=distance, where=differs)
    distance = np.nan_to_num(np.abs(distance), nan=np.inf, posinf=np.inf)
    worst = tuple(int(i) for i in np.unravel_index(np.argmax(distance), r.shape))
    largest, scale = float(distance[worst]), float(np.abs(r[np.isfinite(r)]).max(initial=0.0))
    return Difference(largest / (scale or 1.0), largest, int(differs.sum()), worst)


def error(actual: ArrayLike, expected: ArrayLike) -> float:
    """Return max|a - r| / max|r|. Raises AssertionError if shapes or non-finite entries differ."""
    result = difference(actual, expected)
    assert np.isfinite(result.relative), result.reason or "non-finite entries differ"
    return result.relative


def device_error(
    actual: torch.Tensor | Sequence[torch.Tensor], expected: torch.Tensor | Sequence[torch.Tensor]
) -> float:
    """Return max|a - r| / max|r|, the largest of a sequence; infinite if shapes differ.

    It is `error` on the device: copying the gradients of a benchmark to the host and comparing
    them there takes longer than measuring them. Infinite if not finite.
    """
    if not isinstance(expected, torch.Tensor):
        return max(device_error(a, r) for a, r in zip(actual, expected, strict=True))
    if not isinstance(actual, torch.Tensor) or actual.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    a, r = actual.double(), expected.double()
    error = (a - r).abs().max() / r.abs().max().clamp(min=1e-300)
    return float(error) if torch.isfinite(error) else float("inf")


def assert_close(
    actual: ArrayLike, expected: ArrayLike, tolerance: float, what: str = "value"
) -> None:
    """Raise AssertionError with the worst index unless the error is at most `tolerance`."""
    result = difference(actual, expected)
    if not result.relative <= tolerance:
        problem = f"error {result.relative:.3g} > {tolerance:.3g}"
        raise AssertionError(f"{what}: {problem}; {_worst(result, actual, expected)}")


def assert_equal(actual: ArrayLike, expected: ArrayLike, what: str = "value") -> None:
    """Raise AssertionError with the worst index unless results are exactly equal."""
    result = difference(actual, expected)
    if result.wrong or result.reason:
        problem = f"{result.wrong} entries differ"
        raise AssertionError(f"{what}: {problem}; {_worst(result, actual, expected)}")


def to_numpy(x: Any) -> np.ndarray:
    """Copy an array or tensor of any dtype and device to a float64 array."""
    if hasattr(x, "detach"):
        x = x.detach().double().cpu().numpy()
    return np.asarray(x, dtype=np.float64)


def _worst(result, actual, expected):
    if result.worst is None:
        return result.reason
    values = f"{to_numpy(actual)[result.worst]!r}, expected {to_numpy(expected)[result.worst]!r}"
    return f"worst at {result.worst}: {values}"
