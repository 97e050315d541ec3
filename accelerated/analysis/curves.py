"""Precision against recall, and both against the score from which a detection counts."""

from collections.abc import Sequence

import numpy as np
from faster_coco_eval import COCOeval_faster

from accelerated.analysis.matching import Matches

THRESHOLDS = np.linspace(0.05, 0.95, 19).round(2)


def by_recall(evaluation: COCOeval_faster, classes: Sequence[str]) -> list[dict]:
    """Return COCO's precision at 101 recalls at IoU 0.5 and 0.75: of all classes, then of each.

    That of all is the mean over the classes with objects, so that its mean is AP50 or AP75.
    A precision is None where there is no object.
    """
    # [IoU, recall, class]
    precision = evaluation.eval["precision"][[0, 5], :, :, 0, -1]
    recall = np.asarray(evaluation.params.recThrs).tolist()
    known = precision[0, 0] > -1
    whole = precision[..., known].mean(axis=-1) if known.any() else np.full((2, len(recall)), -1.0)
    columns = [("all", whole), *zip(classes, np.moveaxis(precision, 2, 0), strict=True)]
    return [
        {"class": name, "recall": recall}
        | {f"precision{iou}": _known(row) for iou, row in zip((50, 75), values, strict=True)}
        for name, values in columns
    ]


def by_score(matches: Matches, label: int | None = None) -> dict:
    """Return precision, recall and F1 of the detections from each of 19 scores on.

    label  index of a class; None: the detections and objects of all classes together
    """
    ranked, objects = _ranked(matches, label)
    scores = matches.score[ranked]
    counts = [np.count_nonzero(scores >= threshold) for threshold in THRESHOLDS]
    right = np.append(0, np.cumsum(matches.right[ranked]))[counts]
    rows = [rates(int(n), int(m), objects) for n, m in zip(right, counts, strict=True)]
    names = ("precision", "recall_by_score", "F1")
    values = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return {"scores": THRESHOLDS.tolist()} | values


def best_threshold(matches: Matches, label: int) -> dict:
    """Find the score from which on the F1 of a class is highest; None without right detection."""
    ranked, objects = _ranked(matches, label)
    scores, right = matches.score[ranked], np.cumsum(matches.right[ranked])
    names = ("best_threshold", "best_F1", "precision", "recall")
    if not len(ranked) or not right[-1]:
        return dict.fromkeys(names)
    f1 = 2 * right / (np.arange(1, len(ranked) + 1) + objects)
    # Detections of the same score count together.
    f1[:-1][scores[:-1] == scores[1:]] = -1
    best = int(f1.argmax())
    precision, recall, highest = rates(int(right[best]), best + 1, objects)
    return dict(zip(names, (float(scores[best]), highest, precision, recall), strict=True))


def rates(right: int, detections: int, objects: int) -> tuple[float | None, ...]:
    """Return precision, recall and F1; None where there is no detection or no object."""
    return tuple(
        above / below if below else None
        for above, below in (
            (right, detections),
            (right, objects),
            (2 * right, detections + objects),
        )
    )


def _ranked(matches, label):
    """Return the detections that are right or wrong by falling score, and the number of objects."""
    counted, objects = ~matches.in_crowd, matches.objects()
    if label is not None:
        counted = counted & (matches.label == label)
    ranked = np.flatnonzero(counted)
    ranked = ranked[np.argsort(-matches.score[ranked], kind="stable")]
    return ranked, int(objects.sum() if label is None else objects[label])


def _known(values):
    return [float(value) if value > -1 else None for value in values]
