"""The outlines of a mask as polygons, for formats that have no run lengths."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import ArrayLike

from accelerated.data import rle


def polygons(segmentation: Any) -> list[np.ndarray]:
    """Convert COCO's segmentation to polygons [V, 2] (x, y), one per part.

    segmentation  polygons, which are returned as they are, or an RLE object

    A hole is cut open along a line of no width, which leads from the outer outline to it and back.
    Raises ValueError for a segmentation that is neither.
    """
    if isinstance(segmentation, list):
        return [np.array(part, dtype=np.float64).reshape(-1, 2) for part in segmentation]
    if not isinstance(segmentation, dict):
        raise ValueError(f"a segmentation is {type(segmentation).__name__}")
    counts, (height, width) = segmentation["counts"], segmentation["size"]
    if isinstance(counts, str | bytes):
        counts = rle.decompress(counts)
    mask = np.zeros((height, width), dtype=bool)
    rle.decode_into(np.asarray(counts, dtype=np.int64), mask)
    return of_mask(mask)


def of_mask(mask: ArrayLike) -> list[np.ndarray]:
    """Trace a mask [H, W] bool: polygons [V, 2] (x, y), one per part, see `polygons`.

    The outlines run half-way between the centres of pixels inside and outside, so that a diagonal
    edge is a straight line. Filling them gives the mask again, up to single pixels.
    """
    mask = np.asarray(mask, dtype=bool)
    columns, rows = (np.flatnonzero(mask.any(axis=axis)) for axis in (0, 1))
    if not columns.size:
        return []
    left, top = columns[0], rows[0]
    window = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    generator = contour_generator(z=window.astype(np.float64), fill_type=FillType.OuterOffset)
    parts, offsets = cast(tuple[list, list], generator.filled(0.5, np.inf))
    # The padding, and the centre of the first pixel.
    shift = np.array([left - 0.5, top - 0.5])
    traced = []
    for points, ends in zip(parts, offsets, strict=True):
        # The last point of a loop is its first.
        loops = [
            _straightened(np.asarray(points)[start : end - 1] + shift)
            for start, end in pairwise(ends)
        ]
        traced.append(joined(loops))
    return traced


def joined(loops: Sequence[np.ndarray]) -> np.ndarray:
    """Join loops [V, 2] to one polygon by lines of no width, which lead to a loop and back.

    Filled by parity, as COCO's tools and most others do, the lines vanish.
    """
    first, *rest = loops
    for loop in rest:
        here = ((first - loop[0]) ** 2).sum(axis=1).argmin()
        first = np.concatenate([first[: here + 1], loop, loop[:1], first[here:]])
    return first


def _straightened(loop):
    """Drop the points in the middle of a straight line."""
    before, after = loop - np.roll(loop, 1, axis=0), np.roll(loop, -1, axis=0) - loop
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return loop[turns]
