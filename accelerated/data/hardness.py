"""How hard a data set is: what in it the settings of a model do not fit.

Sides and shapes are those in the network's input; boxes stand for objects.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from accelerated.data.coco import CocoDataset
from accelerated.transform import resized_shape
from reference.config import Anchors, Config

# IoU from which on an anchor's shape fits an object's.
FITS = 0.5
# Thresholds of NMS that are worth advising, and the share of overlapping objects to keep.
NMS, KEPT = (0.55, 0.6, 0.65, 0.7, 0.75, 0.8), 0.9
# Shapes of anchors that are tried, and the smallest side that is, the stride of the finest level.
RATIOS = ((0.25, 0.5, 1.0, 2.0, 4.0), (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0))
LEAST_SIDE = 4
# Other anchors are advised if so large a share of the objects gains, and each more shape costs.
GAIN, COST = 0.05, 0.01
# Objects of an image that are compared with all of it at a time.
BLOCK = 256


@dataclass(frozen=True)
class Fit:
    """How many objects have the shape of an anchor.

    unfit             share of objects whose box no anchor overlaps by 0.5, wherever it stands
    small, large, elongated
                      the same share by reason: less than, or more than, any anchor's side;
                      a longer shape than any anchor's
    sizes, ratios     other anchors with which `unfit_then` is left; None: keep those there are
    """

    unfit: float
    small: float
    large: float
    elongated: float
    sizes: tuple[tuple[float, ...], ...] | None
    ratios: tuple[float, ...] | None
    unfit_then: float


@dataclass(frozen=True)
class Hardness:
    """What makes a data set hard; crowd regions count nowhere.

    images, objects   their numbers
    class_objects     {class: objects}
    class_images      {class: images with an object of it}
    overlapping       objects whose box overlaps another of the same class by more than NMS's IoU
    nms_iou           a threshold that keeps nine of ten of these, at most 0.8; None: no need
    overlapping_then  objects that overlap another by more than that
    most_objects      in an image
    over_limit        images with more objects than detections are kept
    lost              objects above that limit
    fit               None without an object
    scales            factors of the images' sides into the input: the least and the greatest of
                      95 % of the images; (1, 1) without an image
    long_sides        of the images in pixels, likewise
    """

    images: int
    objects: int
    class_objects: dict[str, int]
    class_images: dict[str, int]
    overlapping: int
    nms_iou: float | None
    overlapping_then: int
    most_objects: int
    over_limit: int
    lost: int
    fit: Fit | None
    scales: tuple[float, float]
    long_sides: tuple[float, float]


def measure(dataset: CocoDataset, config: Config) -> Hardness:
    """Compare the objects of a data set with the settings of a model."""
    packed = dataset.annotations
    images, rows = packed.within(dataset.rows)
    kept = ~packed.crowds[rows]
    images, rows = images[kept], rows[kept]
    boxes, labels = packed.boxes[rows], packed.labels[rows]
    per_image = np.bincount(images, minlength=len(dataset))
    overlaps = _overlaps(boxes, labels, images)
    over = overlaps > config.box_head.nms_iou
    kept_by = {t: np.count_nonzero(overlaps[over] <= t) for t in NMS}
    advised = next((t for t, count in kept_by.items() if count >= KEPT * over.sum()), NMS[-1])
    useful = over.any() and advised > config.box_head.nms_iou
    limit = config.box_head.max_detections
    scale = _scales(dataset, config)
    sides = (boxes[:, 2:] - boxes[:, :2]) * scale[images, None]
    present = np.unique(np.stack([images, labels]), axis=1)
    return Hardness(
        images=len(dataset),
        objects=len(rows),
        class_objects=_by_class(labels, dataset.class_names),
        class_images=_by_class(present[1], dataset.class_names),
        overlapping=int(over.sum()),
        nms_iou=advised if useful else None,
        overlapping_then=int((overlaps > max(advised, config.box_head.nms_iou)).sum()),
        most_objects=int(per_image.max(initial=0)),
        over_limit=int((per_image > limit).sum()),
        lost=int(np.maximum(per_image - limit, 0).sum()),
        fit=fit(sides, config.anchors) if len(sides) else None,
        scales=_middle(scale),
        long_sides=_middle([max(size) for size in dataset.sizes]),
    )


def fit(sides: np.ndarray, anchors: Anchors) -> Fit:
    """Compare boxes of [N, 2] width and height with the shapes of anchors, and try others."""
    before = _best(sides, anchors.sizes, anchors.ratios) < FITS
    scale, ratio = np.sqrt(sides.prod(axis=1)), _elongation(sides)
    flat = [size for level in anchors.sizes for size in level]
    longest = max(max(r, 1 / r) for r in anchors.ratios)
    # A square of less than half of the area of another overlaps it by less than 0.5.
    small = before & (scale < min(flat) * np.sqrt(FITS))
    large = before & ~small & (scale > max(flat) / np.sqrt(FITS))
    elongated = before & ~small & ~large & (ratio > longest)
    now, tried = float(before.mean()), []
    for ratios in (anchors.ratios, *(r for r in RATIOS if len(r) > len(anchors.ratios))):
        for shift in (0, 1, -1, 2, -2):
            sizes = tuple(tuple(size * 2.0**shift for size in level) for level in anchors.sizes)
            if shift >= 0 or min(map(min, sizes)) >= LEAST_SIDE:
                left = float((_best(sides, sizes, ratios) < FITS).mean())
                tried.append((left + COST * len(ratios), left, sizes, ratios))
    _, left, sizes, ratios = min(tried, key=lambda t: t[0])
    if now - left < GAIN:
        left, sizes, ratios = now, anchors.sizes, anchors.ratios
    return Fit(
        unfit=now,
        small=float(small.mean()),
        large=float(large.mean()),
        elongated=float(elongated.mean()),
        sizes=None if sizes == anchors.sizes else sizes,
        ratios=None if ratios == anchors.ratios else ratios,
        unfit_then=left,
    )


def _best(sides, sizes, ratios):
    """Return the highest IoU of each box [N, 2] with an anchor of the same centre."""
    best = np.zeros(len(sides))
    area = sides.prod(axis=1)
    for size in (size for level in sizes for size in level):
        for ratio in ratios:
            anchor = size / np.sqrt(ratio), size * np.sqrt(ratio)
            common = np.minimum(sides, anchor).prod(axis=1)
            best = np.maximum(best, common / (area + size**2 - common))
    return best


def _elongation(sides):
    return sides.max(axis=1) / np.maximum(sides.min(axis=1), 1e-6)


def _overlaps(boxes, labels, images):
    """Return the highest IoU of each box [N, 4] with another of its class in its image."""
    best = np.zeros(len(boxes))
    bounds = np.flatnonzero(np.diff(images, prepend=-1, append=-1))
    for first, last in pairwise(bounds):
        ours, kinds, rows = boxes[first:last], labels[first:last], np.arange(last - first)
        area = (ours[:, 2:] - ours[:, :2]).prod(axis=1)
        # A few at a time: in a crowded image, all pairs would fill the memory.
        for some in np.array_split(rows, -(-len(rows) // BLOCK)):
            low = np.maximum(ours[some, None, :2], ours[:, :2])
            high = np.minimum(ours[some, None, 2:], ours[:, 2:])
            common = np.maximum(high - low, 0).prod(axis=2)
            union = np.maximum(area[some, None] + area - common, 1e-9)
            other = (kinds[some, None] == kinds) & (some[:, None] != rows)
            best[first + some] = np.where(other, common / union, 0).max(axis=1)
    return best


def _scales(dataset, config):
    """Return the factor of the sides of each image into the network's input."""
    if not config.transform.min_size:
        return np.ones(len(dataset))
    transform, scales = config.transform, []
    for height, width in dataset.sizes:
        h, w = resized_shape(height, width, transform.min_size[-1], transform)
        scales.append(np.sqrt(h * w / (height * width)))
    return np.array(scales)


def _middle(values):
    """Return the limits of 95 % of the values; of none, (1, 1)."""
    low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (1.0, 1.0)
    return float(low), float(high)


def _by_class(labels, names):
    counts = np.bincount(labels, minlength=len(names) + 1)[1:]
    return dict(zip(names, counts.tolist(), strict=True))
