"""COCO's run-length encoding, checked before it is trusted.

`counts` are run lengths down the columns (column-major), background first. The compressed text form writes each count
in base 32, from the fourth count on as the difference to the count before last.

pycocotools is called for one thing, turning polygons into runs, and only after `annotations` has checked them: NaN or
huge coordinates crash it.
"""

import numpy as np
from pycocotools import mask as pycoco


def decompress(text):
    """Compressed counts (bytes or str) -> counts [n] int64. ValueError when the text is not such an encoding."""
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
    place = np.arange(digits.size) - np.repeat(starts, ends - starts)
    if place.max() > 6:
        raise ValueError("the compressed counts contain a number of more than 35 bits")
    values = np.add.reduceat((digits & 31) << (5 * place), starts)
    values -= np.where(digits[ends - 1] & 16, 1 << (5 * (ends - starts)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def compress(counts):
    """The inverse of `decompress`: counts [n] -> bytes."""
    counts = np.asarray(counts, dtype=np.int64)
    values = counts.copy()
    values[3:] -= counts[1:-2]
    width = np.ones(values.size, dtype=np.int64)  # 5-bit digits, so that the sign bit fits too
    for digits in range(1, 7):
        width += (values < -(1 << (5 * digits - 1))) | (values >= 1 << (5 * digits - 1))
    place = np.arange(width.sum()) - np.repeat(np.cumsum(width) - width, width)
    final = place == np.repeat(width, width) - 1
    return (
        (48 + (np.repeat(values, width) >> (5 * place) & 31) + np.where(final, 0, 32))
        .astype(np.uint8)
        .tobytes()
    )


def of_polygons(polygons, height, width):
    """The union of polygons ([[x1, y1, x2, y2, ..], ..], finite, 3 points or more each) -> compressed counts."""
    parts = pycoco.frPyObjects(
        [np.asarray(polygon, dtype=float).tolist() for polygon in polygons], height, width
    )
    return pycoco.merge(parts)["counts"]


def of_mask(mask):
    """[H, W] bool -> counts."""
    flat = np.asarray(mask, dtype=bool).T.ravel()
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff(changes, prepend=0, append=flat.size)


def area(counts):
    """Number of object pixels."""
    return int(counts[1::2].sum())


def bounds(counts, height):
    """Tight box (x1, y1, x2, y2) of the object's pixels in whole pixels, or None when there is none."""
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
    return (
        int(x1[0]),
        0,
        int(x2[-1]) + 1,
        height,
    )  # a run that goes round a column's end touches bottom and top


def decode_into(counts, out):
    """Set the object's pixels in `out` [H, W] bool, which comes in all False. Only its own box is touched."""
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
