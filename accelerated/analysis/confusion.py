"""Which class is taken for which, at one score."""

from collections.abc import Sequence

import numpy as np

from accelerated.analysis.matching import Matches


def confusion(matches: Matches, threshold: float, classes: Sequence[str]) -> dict:
    """Count the detections of at least `threshold` by the class of their object.

    Right detections have their objects. Then each other detection, by falling score, gets the
    object of another class that it overlaps most, by at least IoU 0.5, if no detection has that.
    Returns {"labels": classes and "background", "matrix": [[int]]}: rows are the objects' classes,
    columns the detections'. The last row counts detections without an object, the last column
    objects without a detection, so that the sums of rows and columns are the numbers of both.
    """
    counted = (matches.score >= threshold) & ~matches.in_crowd
    truth = np.where(counted, matches.truth, -1)
    has = np.zeros(len(matches.crowd), dtype=bool)
    has[truth[truth >= 0]] = True
    detections, objects = matches.pairs.T
    possible = counted[detections] & (truth[detections] < 0) & ~has[objects]
    pairs, iou = matches.pairs[possible], matches.pair_iou[possible]
    order = np.lexsort((-iou, -matches.score[pairs[:, 0]]))
    for detection, wanted in pairs[order].tolist():
        if truth[detection] < 0 and not has[wanted]:
            truth[detection], has[wanted] = wanted, True
    background = len(classes)
    matrix = np.zeros((background + 1, background + 1), dtype=int)
    chosen = np.flatnonzero(counted)
    labels = np.append(matches.truth_label, background)
    np.add.at(matrix, (labels[truth[chosen]], matches.label[chosen]), 1)
    missed = matches.truth_label[~has & ~matches.crowd]
    np.add.at(matrix, (missed, np.full(len(missed), background)), 1)
    return {"labels": [*classes, "background"], "matrix": matrix.tolist()}
