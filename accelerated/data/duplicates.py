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
BLOCK = 256


@dataclass(frozen=True)
class Thumbnails:
    """The pictures of a data set in small, without those that show nothing.

    names   [N]
    pixels  [N, 256] float32, of mean 0 and norm 1
    hashes  [N, 64] float32, 1 or -1
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
        np.where(cells > np.roll(cells, -1, axis=2), 1, -1)
        .reshape(-1, CELLS * CELLS)
        .astype(np.float32),
    )


def copies(pictures: Thumbnails, others: Thumbnails | None = None) -> list[tuple[str, str]]:
    """List (other, picture) for each picture that is nearly the same as another, the first such.

    others  among which the other one is looked for; None: among the pictures before
    """
    found = []
    for start in range(0, len(pictures.names), BLOCK):
        block = slice(start, start + BLOCK)
        stop = block.stop if others is None else None
        names, pixels, hashes = (x[:stop] for x in vars(others or pictures).values())
        # Hashes that differ in b bits have a product of 64 - 2 b.
        alike = pictures.hashes[block] @ hashes.T >= CELLS * CELLS - 2 * BITS
        alike &= pictures.pixels[block] @ pixels.T >= CORRELATION
        if others is None:
            alike = np.tril(alike, start - 1)
        rows = np.flatnonzero(alike.any(axis=1))
        for row, other in zip(rows.tolist(), alike[rows].argmax(axis=1).tolist(), strict=True):
            found.append((names[other], pictures.names[start + row]))
    return found
