"""Which detection has which object: COCO's greedy matching, and the overlaps behind every error.

Detections of a class are taken by falling score. Each gets the object of its class that it overlaps
most, by at least IoU, and that no better one has. One that has none but lies in a crowd region of
its class is neither right nor wrong.

Legend: D detections, G objects and crowd regions, P pairs.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from faster_coco_eval import COCOeval_faster
from faster_coco_eval import mask as coco_mask

# From which IoU on a detection is right, and below which it shows the background [TIDE].
IOU, BACKGROUND = 0.5, 0.1


@dataclass
class Matches:
    """The detections that count, at most the best of each image and class, and the objects.

    Detections stand by image, in an image by falling score; -1 stands for none.

    image         [D]  index of the image, in the order of ids
    label         [D]  index of the class, in the order of ids
    score, area   [D]
    number        [D]  index among all detections of the evaluation
    truth         [D]  the object that the detection has found
    in_crowd      [D]  bool: neither right nor wrong
    own, own_iou  [D]  the object of its class with the highest IoU
    other, other_iou
                  [D]  that of all other classes
    truth_image, truth_label, truth_area, crowd
                  [G]
    found_by      [G]  the detection that has found the object
    pairs         [P, 2]  detection and object, of any class, with IoU of at least 0.5
    pair_iou      [P]
    classes, images    numbers of both
    """

    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    area: np.ndarray
    number: np.ndarray
    truth: np.ndarray
    in_crowd: np.ndarray
    own: np.ndarray
    own_iou: np.ndarray
    other: np.ndarray
    other_iou: np.ndarray
    truth_image: np.ndarray
    truth_label: np.ndarray
    truth_area: np.ndarray
    crowd: np.ndarray
    found_by: np.ndarray
    pairs: np.ndarray
    pair_iou: np.ndarray
    classes: int
    images: int

    @property
    def right(self) -> np.ndarray:
        """Whether each detection has found an object, [D] bool."""
        return self.truth >= 0

    @property
    def wrong(self) -> np.ndarray:
        """Whether each detection is false, [D] bool."""
        return ~self.right & ~self.in_crowd

    def objects(self) -> np.ndarray:
        """Count the objects of each class, without crowd regions."""
        return np.bincount(self.truth_label[~self.crowd], minlength=self.classes)


def match(evaluation: COCOeval_faster) -> Matches:
    """Match the detections of an evaluation by `engine.evaluate.compare`, of boxes or of masks."""
    truths, found = evaluation.cocoGt, evaluation.cocoDt
    limit, classes = evaluation.params.maxDets[-1], len(evaluation.params.catIds)
    key = "bbox" if evaluation.params.iouType == "bbox" else "rle"
    parts, before, above = [], 0, 0
    for index, image in enumerate(evaluation.params.imgIds):
        truth = truths.imgToAnns.get(image, [])
        best = _best(found.imgToAnns.get(image, []), limit)
        labels, scores, areas, numbers = _columns(best, "category_id", "score", "area", "id")
        truth_labels, truth_areas, crowd = _columns(truth, "category_id", "area", "iscrowd")
        crowd = crowd.astype(bool)
        iou = np.zeros((len(best), len(truth)))
        if iou.size:
            flags = crowd.astype(int).tolist()
            iou[:] = coco_mask.iou([d[key] for d in best], [t[key] for t in truth], flags)
        same = labels[:, None] == truth_labels
        taken, in_crowd = _greedy(iou, same, crowd)
        own, own_iou = _highest(iou, same & ~crowd)
        other, other_iou = _highest(iou, ~same & ~crowd)
        rows, columns = np.nonzero((iou >= IOU) & ~crowd)
        found_by = np.full(len(truth), -1)
        found_by[taken[taken >= 0]] = np.flatnonzero(taken >= 0) + above
        # The library counts classes and detections from 1.
        part = {
            "image": np.full(len(best), index),
            "label": labels.astype(int) - 1,
            "score": scores,
            "area": areas,
            "number": numbers.astype(int) - 1,
            "truth": _shifted(taken, before),
            "in_crowd": in_crowd,
            "own": _shifted(own, before),
            "own_iou": own_iou,
            "other": _shifted(other, before),
            "other_iou": other_iou,
            "truth_image": np.full(len(truth), index),
            "truth_label": truth_labels.astype(int) - 1,
            "truth_area": truth_areas,
            "crowd": crowd,
            "found_by": found_by,
            "pairs": np.stack([rows + above, columns + before], axis=1),
            "pair_iou": iou[rows, columns],
        }
        parts.append(part)
        before, above = before + len(truth), above + len(best)
    if not parts:
        raise ValueError("a data set without images cannot be analysed")
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Matches(**whole, classes=classes, images=len(parts))


def _best(detections, limit):
    """Return the detections of an image by falling score, the best `limit` of each class."""
    taken, best = Counter(), []
    for detection in sorted(detections, key=lambda d: -d["score"]):
        taken[detection["category_id"]] += 1
        if taken[detection["category_id"]] <= limit:
            best.append(detection)
    return best


def _columns(entries, *names):
    return (np.array([entry[name] for entry in entries], dtype=float) for name in names)


def _greedy(iou, same, crowd):
    """Return the object of each detection, or -1, and whether it lies in a crowd region instead."""
    taken, in_crowd = np.full(len(iou), -1), np.zeros(len(iou), dtype=bool)
    fits, free = same & (iou >= IOU), ~crowd
    for row in np.flatnonzero(fits.any(axis=1)):
        objects = np.flatnonzero(fits[row] & free)
        if len(objects):
            # Of equals the last, as COCO does.
            taken[row] = objects[::-1][np.argmax(iou[row, objects[::-1]])]
            free[taken[row]] = False
        else:
            in_crowd[row] = (fits[row] & crowd).any()
    return taken, in_crowd


def _highest(iou, allowed):
    """Return the allowed column with the highest overlap of each row, or -1, and the overlap."""
    if not iou.size:
        return np.full(len(iou), -1), np.zeros(len(iou))
    masked = np.where(allowed, iou, -1.0)
    column = masked.argmax(axis=1)
    highest = masked[np.arange(len(iou)), column]
    return np.where(highest < 0, -1, column), np.maximum(highest, 0.0)


def _shifted(indices, by):
    return np.where(indices < 0, -1, indices + by)
