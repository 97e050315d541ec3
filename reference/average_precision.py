"""Average precision as COCO defines it, number for number that of pycocotools, and boundary AP.

Take the detections of a class in all images by falling score. Each is right if it is matched to a
truth that no better one has taken. After each, precision is the share of right ones so far, recall
the share of truths found. AP is the precision, made monotone, averaged over 101 recalls, over IoU
thresholds 0.5 to 0.95 and over classes.

Legend: D detections, G ground truths, T thresholds, K classes.
"""

import math
from typing import NamedTuple

import numpy as np

from reference.autodiff import Array
from reference.boxes import area as box_area
from reference.nms import top_k
from reference.structures import Detections, Target

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
# Smallest and largest area in square pixels, both included.
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


class Comparison(NamedTuple):
    """The detections of one image against its truths, of all classes.

    iou           [D, G]  see `compare`
    scores        [D]
    labels        [D]
    areas         [D]     square pixels
    truth_labels  [G]
    truth_areas   [G]
    crowd         [G]     bool: a region of many objects, see `match`
    """

    iou: Array
    scores: Array
    labels: Array
    areas: Array
    truth_labels: Array
    truth_areas: Array
    crowd: Array


class Matches(NamedTuple):
    """The detections of one class in all images by falling score, and their matches.

    images   [D]     index of the image
    rows     [D]     index among the detections of that image
    scores   [D]
    truths   [T, D]  index among the truths of that image; -1: not matched
    ignored  [T, D]  bool: neither right nor wrong; any other is right if matched, wrong if not
    count            number of truths to find, in all images: those that are not ignored
    """

    images: Array
    rows: Array
    scores: Array
    truths: Array
    ignored: Array
    count: int


class Curve(NamedTuple):
    """Precision against recall of one class; the mean of `interpolated` is its AP per threshold.

    recall, precision  [T, D]    after each detection
    interpolated       [T, 101]  highest precision at recall >= RECALLS; 0 where none gets so far
    """

    recall: Array
    precision: Array
    interpolated: Array


def summary(
    truths: list[Target],
    detections: list[Detections],
    kind: str = "box",
    crowds: list[Array] | None = None,
    areas: list[Array] | None = None,
) -> dict[str, float]:
    """Return COCO's twelve numbers in 0..1 for lists over images; -1 where there is no truth.

    AP, AP50, AP75       mean over thresholds; at threshold 0.5; at 0.75
    APs, APm, APl        of small, medium and large objects
    AR1, AR10, AR100     recall with so many detections per image and class, mean over thresholds
    ARs, ARm, ARl        of small, medium and large objects

    kind, crowds, areas  as in `compare`, the latter two as lists over images
    """
    nothing = [None] * len(truths)
    images = zip(truths, detections, crowds or nothing, areas or nothing, strict=True)
    comparisons = [compare(a, b, kind, crowd, area) for a, b, crowd, area in images]
    by_area = {area: _classes(comparisons, area) for area in AREAS}
    (precision, recall), sizes = by_area["all"], ("small", "medium", "large")
    at_50, at_75 = precision[THRESHOLDS == 0.5], precision[THRESHOLDS == 0.75]
    numbers = {"AP": precision, "AP50": at_50, "AP75": at_75}
    numbers |= {f"AP{size[0]}": by_area[size][0] for size in sizes}
    numbers |= {f"AR{limit}": _classes(comparisons, limit=limit)[1] for limit in (1, 10)}
    numbers |= {"AR100": recall} | {f"AR{size[0]}": by_area[size][1] for size in sizes}
    return {name: float(values.mean()) for name, values in numbers.items()}


def _classes(comparisons, area="all", limit=100) -> tuple[Array, Array]:
    """Return precision [T, 101, K] and recall [T, K] of the classes with truths; -1 if none has."""
    labels = np.unique([label for image in comparisons for label in image.truth_labels])
    found = [matches(comparisons, label, area, limit) for label in labels]
    curves = [precision_recall(f) for f in found if f.count]
    if not curves:
        return np.full((len(THRESHOLDS), 101, 1), -1.0), np.full((len(THRESHOLDS), 1), -1.0)
    recalls = [curve.recall.max(axis=1, initial=0) for curve in curves]
    return np.stack([curve.interpolated for curve in curves], axis=2), np.stack(recalls, axis=1)


def compare(
    truth: Target,
    found: Detections,
    kind: str = "box",
    crowd: Array | None = None,
    areas: Array | None = None,
) -> Comparison:
    """Compute the overlaps of one image.

    kind   "box": IoU of boxes; "mask": of masks; "boundary": the smaller of the IoU of masks and
           that of their boundaries [Boundary IoU, Cheng et al. 2021]. With a crowd, the share of
           the detection's box or mask that lies in the crowd
    crowd  [G]  bool; default: none is
    areas  [G]  of the truths; default, for each kind: of their masks, as COCO's annotations have it
    """
    crowd = np.zeros(len(truth.labels), bool) if crowd is None else np.asarray(crowd, bool)
    truth_areas = truth.masks.sum(axis=(1, 2)) if areas is None else np.asarray(areas)
    if kind == "box":
        iou, sizes = _box_iou(found.boxes, truth.boxes, crowd), box_area(found.boxes)
    elif kind in ("mask", "boundary") and found.masks is not None:
        iou, sizes = _mask_iou(found.masks, truth.masks, crowd), found.masks.sum(axis=(1, 2))
        if kind == "boundary":
            thin_iou = _mask_iou(boundary(found.masks), boundary(truth.masks), crowd)
            iou = np.where(crowd, iou, np.minimum(iou, thin_iou))
    else:
        raise ValueError(f"kind: expected box, or with masks mask or boundary, got {kind!r}")
    return Comparison(iou, found.scores, found.labels, sizes, truth.labels, truth_areas, crowd)


def _box_iou(found, true, crowd):
    low = np.maximum(found[:, None, :2], true[:, :2])
    high = np.minimum(found[:, None, 2:], true[:, 2:])
    common = np.maximum(high - low, 0).prod(axis=2)
    return _over_union(common, box_area(found), box_area(true), crowd)


def _mask_iou(found, true, crowd):
    pairs = [np.count_nonzero(a & b) for a in found for b in true]
    common = np.array(pairs, float).reshape(len(found), len(true))
    return _over_union(common, found.sum(axis=(1, 2)), true.sum(axis=(1, 2)), crowd)


def _over_union(common, found, true, crowd):
    """Divide areas in common [D, G] by those of unions or, with crowds, of the detections."""
    union = np.where(crowd, found[:, None], found[:, None] + true - common)
    return np.divide(common, union, out=np.zeros(union.shape), where=common > 0)


def boundary(masks: Array) -> Array:
    """Return the pixels of masks [N, H, W] that are at most d pixels from their outline, bool.

    d is 2 % of the image's diagonal, rounded (half to even), and at least 1. A mask loses what
    remains of it after erosion by a square of side 2 d + 1. Outside the image is background, so
    that a mask which the image cuts off has a boundary there too.
    """
    d = max(1, round(0.02 * math.hypot(*masks.shape[1:])))
    inside = np.pad(masks, ((0, 0), (d, d), (d, d)))
    for axis in (1, 2):
        windows = np.lib.stride_tricks.sliding_window_view(inside, 2 * d + 1, axis=axis)
        inside = windows.all(axis=-1)
    return masks & ~inside


def matches(
    comparisons: list[Comparison],
    label: int,
    area: str = "all",
    limit: int = 100,
    thresholds: Array = THRESHOLDS,
) -> Matches:
    """Match the detections of class `label`, at most the best `limit` of each image.

    A crowd is ignored, and so is a truth outside the range of areas (see AREAS). A detection is
    ignored if its truth is, or if it has none and is outside the range itself.
    """
    smallest, largest = AREAS[area]
    found, count = [], 0
    for index, image in enumerate(comparisons):
        rows = np.flatnonzero(image.labels == label)
        rows = rows[top_k(image.scores[rows], limit)]
        columns = np.flatnonzero(image.truth_labels == label)
        outside, truth_outside = (
            (x < smallest) | (x > largest) for x in (image.areas[rows], image.truth_areas[columns])
        )
        ignored = image.crowd[columns] | truth_outside
        count += int(np.count_nonzero(~ignored))
        iou = image.iou[rows][:, columns]
        truth = match(iou, image.crowd[columns], ignored, thresholds)
        # A detection without truth (-1) reads the last entry.
        truth_ignored = np.append(ignored, False)[truth] | ((truth < 0) & outside)
        truths = np.append(columns, -1)[truth]
        images = np.full(len(rows), index)
        found.append((images, rows, image.scores[rows], truths, truth_ignored))
    joined = (np.concatenate(parts, axis=-1) for parts in zip(*found, strict=True))
    images, rows, scores, truths, ignored = joined
    order = top_k(scores, len(scores))
    truths, ignored = truths[:, order], ignored[:, order]
    return Matches(images[order], rows[order], scores[order], truths, ignored, count)


def match(iou: Array, crowd: Array, ignored: Array, thresholds: Array = THRESHOLDS) -> Array:
    """Match detections with truths, one after the other, at each threshold on its own.

    iou      [D, G]  detections by falling score
    crowd    [G]     bool: may be matched any number of times, any other truth once
    ignored  [G]     bool: matched only if no other truth is free and overlaps enough
    Returns [T, D]: the truth of highest IoU >= threshold, the last of equals; -1: none is left.
    """
    taken = np.zeros((len(thresholds), len(crowd)), bool)
    out = np.full((len(thresholds), len(iou)), -1)
    # An IoU of 1 may be rounded.
    lowest = np.minimum(thresholds, 1 - 1e-10)[:, None]
    for row, overlaps in enumerate(iou if len(crowd) else ()):
        possible = (overlaps >= lowest) & (crowd | ~taken)
        preferred = possible & ~ignored
        possible = np.where(preferred.any(axis=1, keepdims=True), preferred, possible)
        best = len(crowd) - 1 - np.where(possible, overlaps, -1)[:, ::-1].argmax(axis=1)
        found = np.flatnonzero(possible.any(axis=1))
        out[found, row] = best[found]
        taken[found, best[found]] = True
    return out


def precision_recall(found: Matches) -> Curve:
    """Return the curve of one class. Raises ValueError if it has no truth to find."""
    if found.count == 0:
        raise ValueError("recall is undefined: there is no truth to find")
    right = np.cumsum(~found.ignored & (found.truths >= 0), axis=1)
    wrong = np.cumsum(~found.ignored & (found.truths < 0), axis=1)
    recall, precision = right / found.count, right / (right + wrong + np.spacing(1))
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # What is never reached reads the last column.
    highest = np.pad(highest, ((0, 0), (0, 1)))
    first = [np.searchsorted(row, RECALLS) for row in recall]
    return Curve(recall, precision, np.take_along_axis(highest, np.array(first), axis=1))
