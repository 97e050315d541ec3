"""The exercise of notebook 5: RoIAlign of one channel and one box."""

from collections.abc import Callable

import numpy as np

from exercises import RIGHT, attempt, wrong
from reference.roi_align import neighbours, sample_positions

# (box in image pixels, output_size, spatial_scale, sampling_ratio)
INSIDE = [
    ((9.3, 21.7, 43.1, 37.9), 3, 0.25, 2),
    ((17.2, 8.6, 25.4, 55.0), 4, 0.25, 1),
    ((3.1, 4.4, 11.7, 9.8), 2, 0.5, 3),
]
OVER_THE_BORDER = [
    ((-19.3, 14.2, 29.8, 41.6), 3, 0.25, 4),
    ((30.4, -9.1, 83.5, 70.3), 3, 0.25, 2),
    ((44.0, 30.0, 92.7, 120.9), 2, 0.25, 3),
]


def check(answer: Callable) -> str:
    """Compare `answer` with the oracle, first inside the map and then over its border."""
    generator = np.random.default_rng(5)
    for cases, what in ((INSIDE, INSIDE_MISTAKES), (OVER_THE_BORDER, BORDER_MISTAKES)):
        for case in cases:
            feature = generator.standard_normal((18, 13))
            result, reply = attempt(answer, feature.copy(), np.array(case[0]), *case[1:])
            if reply:
                return reply
            result = np.asarray(result, float)
            if result.shape != (case[1], case[1]):
                return wrong(f"the result has the shape {result.shape}, not {(case[1], case[1])}")
            if not _same(result, _expected(feature, *case)):
                return wrong(_hint(result, feature, case, what))
    return RIGHT


def _expected(feature, box, bins, scale, ratio, positions=sample_positions, weights=neighbours):
    """RoIAlign as A_y X A_xᵀ, from what gives the positions and what gives the weights."""
    x1, y1, x2, y2 = np.array(box) * scale
    rows = _matrix(positions(y1, y2, bins, ratio, True), feature.shape[0], weights)
    columns = _matrix(positions(x1, x2, bins, ratio, True), feature.shape[1], weights)
    return rows @ feature @ columns.T


def _matrix(positions, size, weights):
    lower, upper, weight_lower, weight_upper = weights(positions, size)
    one_hot = np.eye(size)
    each = weight_lower[..., None] * one_hot[lower] + weight_upper[..., None] * one_hot[upper]
    return each.mean(axis=1)


def _shifted(offset):
    return lambda *arguments: sample_positions(*arguments) + offset


def _in_corners(low, high, bins, ratio, aligned):
    return sample_positions(low, high, bins, ratio, aligned) - (high - low) / bins / ratio / 2


def _ends_of_bins(low, high, bins, ratio, aligned):
    side = (high - low) / bins
    return low - 0.5 + side * (np.arange(bins)[:, None] + np.linspace(0, 1, ratio))


def _rounded(low, high, bins, ratio, aligned):
    return sample_positions(np.round(low), np.round(high), bins, ratio, aligned)


def _nearest(positions, size):
    cell = np.clip(np.round(positions), 0, size - 1).astype(int)
    return cell, cell, np.ones(positions.shape), np.zeros(positions.shape)


def _swapped_weights(positions, size):
    lower, upper, weight_lower, weight_upper = neighbours(positions, size)
    return lower, upper, weight_upper, weight_lower


def _clamped(positions, size):
    return neighbours(np.clip(positions, 0, size - 1), size)


def _zero_outside(positions, size):
    lower, upper, weight_lower, weight_upper = neighbours(positions, size)
    inside = (positions >= 0) & (positions <= size - 1)
    return lower, upper, weight_lower * inside, weight_upper * inside


def _mean_of_inside(feature, box, bins, scale, ratio):
    share = _expected(np.ones_like(feature), box, bins, scale, ratio)
    return _expected(feature, box, bins, scale, ratio) / np.where(share > 0, share, 1)


def _swapped_box(feature, box, bins, scale, ratio):
    x1, y1, x2, y2 = box
    return _expected(feature, (y1, x1, y2, x2), bins, scale, ratio)


# Mistakes, most likely first: (hint, what the result would then be).
INSIDE_MISTAKES = [
    (
        "the half pixel is missing: the index of place c is c - 0.5",
        lambda *case: _expected(*case, positions=_shifted(0.5)),
    ),
    (
        "the half pixel is added instead of subtracted: the index of place c is c - 0.5",
        lambda *case: _expected(*case, positions=_shifted(1.0)),
    ),
    (
        "x and y are swapped: a box is (x1, y1, x2, y2), but a map is feature[y, x]",
        _swapped_box,
    ),
    (
        "x and y are swapped in the result: its first axis is y",
        lambda *case: _expected(*case).T,
    ),
    (
        "x and y are swapped: a map is feature[y, x], and the first axis of the result is y",
        lambda *case: _swapped_box(*case).T,
    ),
    (
        "the samples lie in the corners of their parts of a bin: sample i lies at (i + 0.5) / g",
        lambda *case: _expected(*case, positions=_in_corners),
    ),
    (
        "the samples lie on the edges of the bins: sample i lies at (i + 0.5) / g",
        lambda *case: _expected(*case, positions=_ends_of_bins),
    ),
    (
        "each bin is the sum of its samples, not their mean: divide by their number",
        lambda *case: _expected(*case) * case[-1] ** 2,
    ),
    (
        "the sum of a bin is divided by the samples of one axis only: there are g * g samples",
        lambda *case: _expected(*case) * case[-1],
    ),
    (
        "the box is not scaled to feature pixels: multiply it by spatial_scale",
        lambda feature, box, bins, scale, ratio: _expected(feature, box, bins, 1.0, ratio),
    ),
    (
        "the box is rounded to whole cells, as RoIPool does",
        lambda *case: _expected(*case, positions=_rounded),
    ),
    (
        "a sample takes the nearest cell; it needs the weighted sum of four",
        lambda *case: _expected(*case, weights=_nearest),
    ),
    (
        "the weights are swapped: the nearer cell has the larger weight",
        lambda *case: _expected(*case, weights=_swapped_weights),
    ),
]
BORDER_MISTAKES = [
    (
        "a sample far outside the map is 0, but yours reads the outermost cell",
        lambda *case: _expected(*case, weights=_clamped),
    ),
    (
        "a sample up to one cell beyond an outer centre reads the outermost cell, but yours is 0",
        lambda *case: _expected(*case, weights=_zero_outside),
    ),
    (
        "a sample outside the map counts in the mean: the divisor is always g * g",
        _mean_of_inside,
    ),
]


def _hint(result, feature, case, mistakes):
    """Name the mistake that explains the result."""
    for hint, mistaken in mistakes:
        with np.errstate(all="ignore"):
            if _same(result, mistaken(feature, *case)):
                return hint
    where = "inside the map" if case in INSIDE else "over the border; inside the map it is right"
    error = np.abs(result - _expected(feature, *case)).max()
    return f"the result is off by {error:.2g} for the box {case[0]}, {where}"


def _same(a, b):
    return a.shape == b.shape and np.allclose(a, b, rtol=0, atol=1e-9)
