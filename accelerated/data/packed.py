"""The annotations of a data set in a few arrays, which worker processes share.

Reading an object of Python writes to it, as its references are counted: each worker would come to
hold a copy of them all.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from accelerated.data import rle
from accelerated.data.annotations import ImageRecord


@dataclass
class Annotations:
    """Checked annotations; legend: N images, M annotations, P outlines, V points, B bytes.

    images      [N + 1]         image i has annotations images[i] to images[i + 1]
    labels      [M] int64       1..K
    boxes       [M, 4] float64  x1, y1, x2, y2
    areas       [M] float64     in pixels
    crowds      [M] bool        whether it is a region of many objects
    runs        [M + 1]         its mask is the compressed run lengths counts[runs[m] : runs[m + 1]]
    parts       [M + 1]         it has outlines parts[m] to parts[m + 1], none if it came as a mask
    rings       [P + 1]         outline p has points rings[p] to rings[p + 1]
    points      [V, 2] float64  x, y in pixels
    counts      [B]
    """

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowds: np.ndarray
    runs: np.ndarray
    parts: np.ndarray
    rings: np.ndarray
    points: np.ndarray
    counts: bytes

    def of(self, image: int) -> np.ndarray:
        """Return the indices of the annotations of an image."""
        return np.arange(self.images[image], self.images[image + 1])

    def within(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (position in `images`, index) of the annotations of these images."""
        counts = np.diff(self.images)[images]
        positions = np.repeat(np.arange(len(images)), counts)
        # The first of an image less the number of those of the images before it.
        shifts = self.images[images] - _offsets(counts)[:-1]
        return positions, np.arange(len(positions)) + shifts[positions]

    def objects(self, image: int) -> np.ndarray:
        """Return the indices of those that are no crowd regions."""
        found = self.of(image)
        return found[~self.crowds[found]]

    def text(self, index: int) -> bytes:
        """Return the compressed run lengths of a mask."""
        return self.counts[self.runs[index] : self.runs[index + 1]]

    def draw(self, index: int, out: np.ndarray) -> None:
        """Set the pixels of a mask in `out` [H, W] bool, all False before."""
        rle.decode_into(rle.decompress(self.text(index)), out)

    def outlines(self, index: int) -> list[np.ndarray] | None:
        """Return the outlines [V, 2] of an annotation, or None if it came as a mask."""
        rings = self.rings[self.parts[index] : self.parts[index + 1] + 1]
        return [self.points[a:b] for a, b in pairwise(rings)] or None

    def raw(self, image: int) -> bytes:
        """Return the bytes of all that is known of an image's annotations."""
        first, last = self.images[image : image + 2]
        runs, parts = self.runs[first : last + 1], self.parts[first : last + 1]
        rings = self.rings[parts[0] : parts[-1] + 1]
        columns = [
            *(column[first:last] for column in (self.labels, self.boxes, self.areas, self.crowds)),
            *(np.diff(offsets) for offsets in (runs, parts, rings)),
            self.points[rings[0] : rings[-1]],
        ]
        return b"".join(map(np.ndarray.tobytes, columns)) + self.counts[runs[0] : runs[-1]]

    def per_image(self, values: np.ndarray) -> np.ndarray:
        """Sum values [M] over the objects of each image: [N]."""
        sums = _offsets(np.where(self.crowds, 0, values))
        return np.diff(sums[self.images])

    @property
    def points_of(self) -> np.ndarray:
        """The number of points of each annotation's outlines: [M]."""
        return np.diff(self.rings[self.parts])


def pack(records: Iterable[ImageRecord], labels: Mapping[int, int]) -> Annotations:
    """Pack the annotations of images; `labels` maps category ids."""
    found = [record.instances for record in records]
    flat = [instance for instances in found for instance in instances]
    outlines = [points for instance in flat for points in instance.polygons or ()]
    return Annotations(
        images=_offsets([len(instances) for instances in found]),
        labels=np.array([labels[instance.category_id] for instance in flat], dtype=np.int64),
        boxes=np.array([instance.box for instance in flat], dtype=np.float64).reshape(-1, 4),
        areas=np.array([instance.area for instance in flat], dtype=np.float64),
        crowds=np.array([instance.crowd for instance in flat], dtype=bool),
        runs=_offsets([len(instance.counts) for instance in flat]),
        parts=_offsets([len(instance.polygons or ()) for instance in flat]),
        rings=_offsets([len(points) for points in outlines]),
        points=np.concatenate([np.zeros((0, 2)), *outlines]),
        counts=b"".join([instance.counts for instance in flat]),
    )


def _offsets(lengths):
    """Return where parts of these lengths begin, and where the last ends."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
