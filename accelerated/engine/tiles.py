"""Detect in overlapping tiles of a large picture, and merge what is found across their seams.

Two tiles see the same pixels where they overlap. Detections of one class, in two tiles, are the
same object if they agree there: the IoU of what they cover in this common region is above one half.
Objects that merely touch do not agree, however close they are. Of detections that agree, a whole
object beats pieces cut by the seam of a tile, a higher score beats a lower one, and pieces of which
no tile has the whole object are joined. Masks decide where there are any, else boxes.

Legend: H, W sides of the picture, D detections in all tiles.
"""

import math
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from accelerated.structures import Crop, CroppedDetections, Detections

# Above this IoU two detections agree; it is the suppression of most presets.
AGREEMENT = 0.5
# A box that comes this near to a seam is cut by it, in shares of its own side but at least in
# pixels, because a network does not place it on the seam to the pixel.
NEAR_SHARE, NEAR_PIXELS = 0.05, 2
SMALLEST = 16

# Detects in images [h, w, 3]; masks, if there are any, are crops.
Find = Callable[[list], Sequence[Detections]]


class Tiles(NamedTuple):
    """Squares of `side` pixels; neighbours share at least `overlap` pixels."""

    side: int
    overlap: int


class Window(NamedTuple):
    """A part of the picture: its first row and column, and the ends of both."""

    top: int
    left: int
    bottom: int
    right: int


class _Seen(NamedTuple):
    """A detection in a tile.

    window  its box, or the window of its mask, of which `pixels` are the contents; one without a
            pixel counts as full
    cut     whether a seam cuts it
    """

    tile: Window
    window: Window
    pixels: np.ndarray | None
    cut: bool


@dataclass
class _Object:
    """An object: the detections whose shapes it has, and the best of those that show it."""

    rows: list[int]
    best: int


def parse(text: str) -> Tiles:
    """Read the value of --tiles, SIDE or SIDE:OVERLAP in pixels; OVERLAP is a quarter of SIDE.

    Raises ValueError unless SIDE is at least 16, and OVERLAP from 1 to half of SIDE.
    """
    side, colon, overlap = text.partition(":")
    if not side.isdecimal() or (colon and not overlap.isdecimal()):
        raise ValueError(f"--tiles {text}: expected SIDE or SIDE:OVERLAP in pixels, as 1024:256")
    tiles = Tiles(int(side), int(overlap) if colon else int(side) // 4)
    if tiles.side < SMALLEST or not 1 <= tiles.overlap <= tiles.side // 2:
        raise ValueError(
            f"--tiles {text}: SIDE must be at least {SMALLEST}, OVERLAP from 1 to half of SIDE"
        )
    return tiles


def windows(height: int, width: int, tiles: Tiles) -> list[Window]:
    """Return the fewest tiles that cover a picture, evenly spread; one if the picture fits."""
    rows, columns = (list(_intervals(length, tiles)) for length in (height, width))
    return [Window(top, left, bottom, right) for top, bottom in rows for left, right in columns]


def _intervals(length: int, tiles: Tiles) -> Iterator[tuple[int, int]]:
    spare = max(length - tiles.side, 0)
    steps = math.ceil(spare / (tiles.side - tiles.overlap))
    for step in range(steps + 1):
        first = spare * step // max(steps, 1)
        yield first, min(first + tiles.side, length)


def tiled(find: Find, tiles: Tiles, batch_size: int = 1, threshold: float = 0.0) -> Find:
    """Return what detects in images by `detect`, one image after the other."""
    return lambda images: [detect(find, image, tiles, batch_size, threshold) for image in images]


def detect(
    find: Find,
    image: np.ndarray | torch.Tensor,
    tiles: Tiles,
    batch_size: int = 1,
    threshold: float = 0.0,
) -> Detections:
    """Detect in the tiles of a picture and merge; a picture that fits into one is left whole.

    find        detects in a list of images [h, w, 3], as `partial(model.detect, crops=True)` does
    image       [H, W, 3]
    batch_size  tiles that `find` gets at a time
    threshold   minimum score of an object after merging, 0..1

    Of each detection, the mask is held in the window of its box, never in the whole picture.
    """
    height, width = image.shape[:2]
    parts = windows(height, width, tiles)
    pixels = [image[w.top : w.bottom, w.left : w.right] for w in parts]
    chunks = (pixels[first : first + batch_size] for first in range(0, len(parts), batch_size))
    found = [detections for chunk in chunks for detections in find(chunk)]
    merged = merge(found, parts, (height, width)) if len(parts) > 1 else found[0]
    count = int((merged.scores >= threshold).sum())
    if count == len(merged.scores):
        return merged
    best = merged.boxes[:count], merged.scores[:count], merged.labels[:count], None
    if isinstance(merged, CroppedDetections):
        return CroppedDetections(*best, merged.crops[:count])
    return Detections(*best)


def merge(
    found: Sequence[Detections], parts: Sequence[Window], size: tuple[int, int]
) -> Detections:
    """Merge the detections in each tile, in pixels of the tile, to those of the picture.

    found  CroppedDetections of each of `parts`; of a model without masks, Detections
    size   (H, W) of the picture
    Returns what `found` holds, by falling score. What was merged has the highest of its scores;
    what was joined has all pixels of its pieces, and the box around their boxes.
    """
    pairs = list(zip(found, parts, strict=True))
    boxes = torch.cat([d.boxes + d.boxes.new_tensor([*w[1::-1], *w[1::-1]]) for d, w in pairs])
    scores, labels = (torch.cat([getattr(d, name) for d in found]) for name in ("scores", "labels"))
    tiles = [tile for detections, tile in pairs for _ in detections.labels]
    crops = [
        Crop(crop.pixels, crop.top + tile.top, crop.left + tile.left, size)
        for detections, tile in pairs
        if isinstance(detections, CroppedDetections)
        for crop in detections.crops
    ]
    # From here on a detection is its row in the order of scores.
    order = scores.argsort(descending=True, stable=True)
    boxes, scores, labels = boxes[order], scores[order], labels[order]
    tiles, crops = ([rows[i] for i in order.tolist()] if rows else [] for rows in (tiles, crops))
    seen = [
        _seen(tile, box, crop, size)
        for tile, box, crop in zip(tiles, boxes.tolist(), crops or [None] * len(tiles), strict=True)
    ]
    objects = _objects(seen, boxes.numpy(force=True), labels.numpy(force=True))
    best = [one.best for one in objects]
    around = [_around(boxes[one.rows]) for one in objects]
    merged = torch.stack(around) if around else boxes, scores[best], labels[best]
    if not isinstance(found[0], CroppedDetections):
        return Detections(*merged, None)
    joined = [_union([crops[row] for row in one.rows]) for one in objects]
    return CroppedDetections(*merged, None, joined)


def _seen(tile, box, crop, size):
    """Describe a detection with `box` in pixels of a picture of `size` (H, W)."""
    x1, y1, x2, y2 = box
    near_x, near_y = (max(NEAR_PIXELS, NEAR_SHARE * side) for side in (x2 - x1, y2 - y1))
    cut = (
        (tile.left > 0 and x1 - tile.left <= near_x)
        or (tile.top > 0 and y1 - tile.top <= near_y)
        or (tile.right < size[1] and tile.right - x2 <= near_x)
        or (tile.bottom < size[0] and tile.bottom - y2 <= near_y)
    )
    if crop is None:
        return _Seen(tile, Window(y1, x1, y2, x2), None, cut)
    pixels = crop.pixels.numpy()
    pixels = pixels if pixels.any() else np.ones_like(pixels)
    return _Seen(tile, _window(crop), pixels, cut)


def _window(crop):
    rows, columns = crop.pixels.shape
    return Window(crop.top, crop.left, crop.top + rows, crop.left + columns)


def _objects(seen: list[_Seen], boxes: np.ndarray, labels: np.ndarray) -> list[_Object]:
    """Tell the objects from detections by falling score; the objects have the same order."""
    # {row of a detection: its object}
    whole: dict[int, _Object] = {}

    def agreeing(row: int, others: Container[int]) -> list[tuple[float, int]]:
        (first, last), (firsts, lasts) = np.split(boxes[row], 2), np.split(boxes, 2, axis=1)
        touching = (np.minimum(last, lasts) > np.maximum(first, firsts)).all(1)
        near = np.flatnonzero(touching & (labels == labels[row])).tolist()
        pairs = [(_agreement(seen[row], seen[other]), other) for other in near if other in others]
        return [pair for pair in pairs if pair[0] > AGREEMENT]

    loose = []
    for row in sorted(range(len(seen)), key=lambda row: seen[row].cut):
        if found := agreeing(row, whole):
            one = whole[max(found, key=lambda pair: pair[0])[1]]
            one.best = min(one.best, row)
        elif seen[row].cut:
            loose.append(row)
        else:
            whole[row] = _Object([row], row)
    joined, left = [], set(loose)
    for row in loose:
        if row not in left:
            continue
        left.remove(row)
        rows = [row]
        # The list grows while it is read.
        for member in rows:
            found = [other for _, other in agreeing(member, left)]
            left.difference_update(found)
            rows += found
        joined.append(_Object(rows, min(rows)))
    return sorted([*whole.values(), *joined], key=lambda one: one.best)


def _agreement(a: _Seen, b: _Seen) -> float:
    """Compute the IoU of two detections within what both their tiles show; 0 in the same tile."""
    both = _common(a.tile, b.tile)
    shared = _common(both, _common(a.window, b.window))
    if a.tile == b.tile or not _area(shared):
        return 0.0
    parts = [_common(both, one.window) for one in (a, b)]
    if a.pixels is None or b.pixels is None:
        overlap, *areas = map(_area, (shared, *parts))
    else:
        overlap = np.count_nonzero(_within(a, shared) & _within(b, shared))
        areas = [np.count_nonzero(_within(*pair)) for pair in zip((a, b), parts, strict=True)]
    return overlap / (sum(areas) - overlap) if overlap else 0.0


def _within(one, window):
    """Return the pixels of a detection in a part of its own window."""
    top, left, bottom, right = window
    first, start = one.window[:2]
    return one.pixels[top - first : bottom - first, left - start : right - start]


def _common(a, b):
    """Return the window that two have in common, of negative sides if they are apart."""
    return Window(*map(max, a[:2], b[:2]), *map(min, a[2:], b[2:]))


def _area(window):
    return max(window.bottom - window.top, 0) * max(window.right - window.left, 0)


def _around(boxes):
    """Return the box [4] around boxes [n, 4]."""
    return torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])


def _union(crops: list[Crop]) -> Crop:
    """Return the pixels of all crops in one."""
    if len(crops) == 1:
        return crops[0]
    sides = list(zip(*map(_window, crops), strict=True))
    top, left, bottom, right = *map(min, sides[:2]), *map(max, sides[2:])
    pixels = torch.zeros(bottom - top, right - left, dtype=torch.bool)
    for crop in crops:
        rows, columns = crop.pixels.shape
        y, x = crop.top - top, crop.left - left
        pixels[y : y + rows, x : x + columns] |= crop.pixels
    return Crop(pixels, top, left, crops[0].size)
