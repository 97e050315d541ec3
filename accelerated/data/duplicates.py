"""Pictures that are nearly the same, found by their thumbnails.

Two pictures are near-duplicates if their thumbnails correlate and their difference hashes, 64 bits
that tell whether a cell of 8 x 8 is brighter than the next, are nearly the same: copies in another
size or format or of other brightness, and neighbouring frames of a video.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from accelerated.data import images
from accelerated.data.coco import CocoDataset

# Side of a thumbnail, and the cells of a hash.
SIDE, CELLS = 16, 8
CORRELATION, BITS = 0.98, 4
# Standard deviation of grey values below which a picture shows nothing to compare.
CONTRAST = 2.0
# Pictures that are compared with all others at a time.
BLOCK = 512


@dataclass(frozen=True)
class Thumbnails:
    """The pictures of a data set in small, without those that show nothing.

    names   [N]
    pixels  [N, 256] float32, of mean 0 and norm 1
    hashes  [N, 64] bool
    """

    names: list[str]
    pixels: np.ndarray
    hashes: np.ndarray


def thumbnails(dataset: CocoDataset) -> Thumbnails:
    """Read all pictures of a data set in small, several at a time. Raises ImageError."""

    def read(name):
        return images.thumbnail(images.locate(dataset.image_root, name), SIDE)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        grey = np.array([*pool.map(read, dataset.file_names)], np.float32).reshape(-1, SIDE, SIDE)
    shown = grey.std(axis=(1, 2)) >= CONTRAST
    grey, step = grey[shown], SIDE // CELLS
    cells = grey.reshape(-1, CELLS, step, CELLS, step).mean(axis=(2, 4))
    flat = grey.reshape(-1, SIDE * SIDE)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return Thumbnails(
        [name for name, kept in zip(dataset.file_names, shown.tolist(), strict=True) if kept],
        flat / np.linalg.norm(flat, axis=1, keepdims=True),
        # The next of a row's last cell is its first.
        (cells > np.roll(cells, -1, axis=2)).reshape(-1, CELLS * CELLS),
    )


def pairs(first: Thumbnails, second: Thumbnails | None = None) -> list[tuple[str, str]]:
    """List the pictures that are nearly the same, within a data set or between two."""
    other, found = first if second is None else second, []
    for start in range(0, len(first.names), BLOCK):
        block = slice(start, start + BLOCK)
        rows, columns = np.nonzero(first.pixels[block] @ other.pixels.T >= CORRELATION)
        rows += start
        if second is None:
            rows, columns = rows[rows < columns], columns[rows < columns]
        alike = (first.hashes[rows] != other.hashes[columns]).sum(axis=1) <= BITS
        for row, column in zip(rows[alike].tolist(), columns[alike].tolist(), strict=True):
            found.append((first.names[row], other.names[column]))
    return found
