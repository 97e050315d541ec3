"""Exercise of notebook 7: a mask as COCO's run lengths."""

from collections.abc import Callable, Iterator

import numpy as np

from accelerated.data import rle
from exercises import RIGHT, attempt, wrong


def check(answer: Callable) -> str:
    """Read the counts of `answer(mask)` with the library, for 200 masks."""
    for mask in _masks():
        result, problem = attempt(answer, mask.copy())
        if problem:
            return problem
        counts = np.asarray(result)
        if counts.ndim != 1 or counts.size == 0 or not np.issubdtype(counts.dtype, np.integer):
            return wrong("return a flat list of whole numbers, at least one")
        hint = _hint(counts.astype(np.int64), mask)
        if hint:
            height, width = mask.shape
            return wrong(f"{hint} (a mask of {height} x {width} with {mask.sum()} object pixels)")
    return RIGHT


def _masks() -> Iterator[np.ndarray]:
    """Yield telling masks first: two runs, an object at the start, one at the end, empty, full."""
    generator = np.random.default_rng(0)
    middle = np.zeros((5, 4), bool)
    middle[1:3, 1:3] = True
    yield middle
    yield np.pad(np.ones((2, 2), bool), ((0, 3), (0, 2)))
    yield np.pad(np.ones((2, 2), bool), ((3, 0), (2, 0)))
    yield np.zeros((3, 4), bool)
    yield np.ones((3, 4), bool)
    for _ in range(195):
        shape = generator.integers(1, 9, 2)
        yield generator.random(shape) < generator.choice([0.1, 0.5, 0.9])


def _hint(counts, mask):
    """Return what is wrong with the counts of a mask, or ""."""
    if (counts < 0).any():
        return "a run cannot have a negative length"
    # Of a mask that begins with the object, the first count must be 0.
    if mask[0, 0] and counts[0] != 0:
        return "the first run is background: of length 0 if the first pixel is the object's"
    if counts.sum() != mask.size:
        if np.array_equal(counts, np.cumsum(rle.of_mask(mask))):
            return "these are the places where runs end; their differences are the lengths"
        return f"the runs must add up to all {mask.size} pixels, the last run included"
    if not np.array_equal(_read(counts, mask.shape), mask):
        if np.array_equal(_read(counts, mask.shape[::-1]), mask.T):
            return "go down the columns, not along the rows"
        return "the library reads another mask from these counts"
    return ""


def _read(counts, shape):
    """Decode counts to a mask of `shape`."""
    out = np.zeros(shape, bool)
    rle.decode_into(counts, out)
    return out
