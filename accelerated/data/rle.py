"""COCO's run-length encoding, with checks.

`counts` are run lengths down the columns (column-major), background first. The compressed text form
writes each count in base 32, from the fourth count on as the difference from the second to last.

faster-coco-eval, a library, only converts polygons to runs, after `instance` has checked them: NaN
or huge coordinates crash it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import ArrayLike


def decompress(text: bytes | str) -> np.ndarray:
    """Convert compressed counts to counts [n] int64. Raises ValueError for an invalid text."""
    raw = text if isinstance(text, bytes) else text.encode("ascii", errors="replace")
    digits = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    if digits.size == 0:
        return digits
    if (digits & ~63).any():
        raise ValueError("the compressed counts contain a character outside '0'..'o'")
    final = digits & 32 == 0
    if not final[-1]:
        raise ValueError("the compressed counts end in the middle of a number")
    ends = np.flatnonzero(final) + 1
    starts = np.concatenate([[0], ends[:-1]])
    exponent = np.arange(digits.size) - np.repeat(starts, ends - starts)
    if exponent.max() > 6:
        raise ValueError("the compressed counts contain a number of more than 35 bits")
    values = np.add.reduceat((digits & 31) << (5 * exponent), starts)
    values -= np.where(digits[ends - 1] & 16, 1 << (5 * (ends - starts)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def compress(counts: ArrayLike) -> bytes:
    """Convert counts [n] to their compressed form, the inverse of `decompress`."""
    counts = np.asarray(counts, dtype=np.int64)
    values = counts.copy()
    values[3:] -= counts[1:-2]
    # Digits of 5 bits of each value, with room for the sign bit.
    width = np.ones(values.size, dtype=np.int64)
    for digits in range(1, 7):
        width += (values < -(1 << (5 * digits - 1))) | (values >= 1 << (5 * digits - 1))
    exponent = np.arange(width.sum()) - np.repeat(np.cumsum(width) - width, width)
    final = exponent == np.repeat(width, width) - 1
    digits = np.repeat(values, width) >> (5 * exponent) & 31
    return (48 + digits + np.where(final, 0, 32)).astype(np.uint8).tobytes()


def of_polygons(polygons: Sequence[ArrayLike], height: int, width: int) -> bytes:
    """Rasterise the union of polygons to compressed counts.

    polygons  finite [x1, y1, x2, y2, ..] of at least 3 points each
    """
    numbers = [np.asarray(polygon, dtype=float).tolist() for polygon in polygons]
    runs: Any = coco_mask.frPyObjects(numbers, height, width)
    if len(runs) == 1:
        return runs[0]["counts"]
    # The library's own `merge` takes thirty times as long.
    return compress(union([decompress(run["counts"]) for run in runs]))


def union(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Return the counts of the pixels that are in any of the masks, each of the same image."""
    ends = [np.cumsum(counts) for counts in masks]
    first = np.concatenate([end[0::2][: len(end) // 2] for end in ends])
    last = np.concatenate([end[1::2] for end in ends])
    filled = first < last
    positions = np.concatenate([first[filled], last[filled]])
    steps = np.repeat([1, -1], filled.sum())
    # A run that begins where another one ends continues it.
    order = np.lexsort((-steps, positions))
    changes = np.diff(np.cumsum(steps[order]) > 0, prepend=False)
    edges, pixels = positions[order][changes], int(ends[0][-1])
    return np.diff(edges[edges < pixels], prepend=0, append=pixels)


def of_mask(mask: ArrayLike) -> np.ndarray:
    """Convert a mask [H, W] bool to counts [n]."""
    flat = np.asarray(mask, dtype=bool).T.ravel()
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff(changes, prepend=0, append=flat.size)


def of_crop(pixels: ArrayLike, top: int, left: int, size: tuple[int, int]) -> np.ndarray:
    """Convert a mask that is empty outside a window to counts [n], as `of_mask` does.

    pixels     [h, w] bool, the window
    top, left  its first row and column
    size       (H, W) of the image
    """
    height, width = size
    columns = np.pad(np.asarray(pixels, dtype=bool).T, ((0, 0), (1, 1))).astype(np.int8)
    # Where runs start and end down each column of the window; sorted, as columns follow each other.
    (x_first, first), (x_last, last) = (np.nonzero(np.diff(columns) == sign) for sign in (1, -1))
    first, last = ((left + x) * height + top + y for x, y in ((x_first, first), (x_last, last)))
    # A run that reaches the bottom goes on at the top of the next column.
    joined = np.concatenate([first[1:] == last[:-1], [False]])[: len(first)]
    first, last = first[~np.roll(joined, 1)], last[~joined]
    edges = np.stack([first, last], 1).ravel()
    return np.diff(edges[edges < height * width], prepend=0, append=height * width)


def area(counts: np.ndarray) -> int:
    """Count the object's pixels."""
    return int(counts[1::2].sum())


def bounds(counts: np.ndarray, height: int) -> tuple[int, int, int, int] | None:
    """Return the tight box (x1, y1, x2, y2) of the object's pixels, or None if it has none."""
    ends = np.cumsum(counts)
    first, last = ends[0::2][: counts.size // 2], ends[1::2]
    filled = last > first
    if not filled.all():
        first, last = first[filled], last[filled]
    if not first.size:
        return None
    (x1, top), (x2, bottom) = divmod(first, height), divmod(last - 1, height)
    if (x1 == x2).all():
        return int(x1[0]), int(top.min()), int(x2[-1]) + 1, int(bottom.max()) + 1
    # A run that continues in the next column touches the bottom and the top.
    return int(x1[0]), 0, int(x2[-1]) + 1, height


def decode_into(counts: np.ndarray, out: np.ndarray) -> None:
    """Set the object's pixels in `out` [H, W] bool, all False before. Only its box is written."""
    height = out.shape[0]
    box = bounds(counts, height)
    if box is None:
        return
    x1, y1, x2, y2 = box
    edges = np.clip(np.cumsum(counts), x1 * height, x2 * height)
    runs = np.diff(edges, prepend=x1 * height)
    columns = np.repeat(np.arange(runs.size) % 2 == 1, runs)
    columns = np.pad(columns, (0, (x2 - x1) * height - columns.size))
    out[y1:y2, x1:x2] = columns.reshape(x2 - x1, height)[:, y1:y2].T
