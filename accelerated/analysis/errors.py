"""The six kinds of errors of TIDE [Bolya et al. 2020], and the AP50 that each costs.

A detection that is no right one is of the first kind that fits:

    localisation  0.1 <= IoU < 0.5 with the object of its class that it overlaps most
    class         IoU >= 0.5 with an object of another class
    duplicate     IoU >= 0.5 with an object of its class that a better detection has
    background    IoU < 0.1 with every object
    both          the rest: 0.1 <= IoU < 0.5 with an object of another class

An object that no detection has found is missed, unless an error of localisation or class points at
it. The cost of a kind is the rise of AP50 when errors of this kind alone are mended: an error of
localisation or class becomes right, if it is the best of both kinds at its object and none has
found that; all other errors of the kind vanish, and so do missed objects.
"""

from dataclasses import dataclass

import numpy as np

from accelerated.analysis.matching import BACKGROUND, IOU, Matches

FALSE = ("class", "localisation", "both", "duplicate", "background")
KINDS = (*FALSE, "missed")
RECALLS = np.linspace(0, 1, 101)


@dataclass
class Errors:
    """The errors among the detections [D] and objects [G] of `matches`.

    kind    [D]  index in FALSE; -1: right, or in a crowd region
    target  [D]  the object that an error of class or localisation points at; -1: none
    missed  [G]  bool
    """

    matches: Matches
    kind: np.ndarray
    target: np.ndarray
    missed: np.ndarray


def find(matches: Matches) -> Errors:
    """Give every false detection its kind, and find the objects that are missed."""
    own, other = matches.own_iou, matches.other_iou
    located = (own >= BACKGROUND) & (own < IOU)
    nothing = np.maximum(own, other) < BACKGROUND
    rules = [located, other >= IOU, own >= IOU, nothing]
    order = ("localisation", "class", "duplicate", "background")
    codes = [FALSE.index(name) for name in order]
    kind = np.where(matches.wrong, np.select(rules, codes, FALSE.index("both")), -1)
    target = np.full(len(kind), -1)
    for name, of in (("class", matches.other), ("localisation", matches.own)):
        chosen = kind == FALSE.index(name)
        target[chosen] = of[chosen]
    covered = np.zeros(len(matches.crowd), dtype=bool)
    covered[target[target >= 0]] = True
    return Errors(matches, kind, target, ~covered & ~matches.crowd & (matches.found_by < 0))


def summary(matches: Matches) -> dict:
    """Count the errors of each kind and compute what they cost.

    Returns {"AP50", "kinds": [{"kind", "count", "cost"}], "false_positives", "false_negatives"},
    the last two with the cost of all false detections and of all objects that were not found.
    AP50 and costs are None without an object.
    """
    errors = find(matches)
    base = average_precision(matches)

    def gain(mended):
        return None if base is None or mended is None else mended - base

    kinds = []
    for name in KINDS:
        count = errors.missed if name == "missed" else errors.kind == FALSE.index(name)
        cost = gain(repaired(errors, [name]))
        kinds.append({"kind": name, "count": int(count.sum()), "cost": cost})
    unfound = ~matches.crowd & (matches.found_by < 0)
    return {
        "AP50": base,
        "kinds": kinds,
        "false_positives": gain(average_precision(matches, kept=matches.right)),
        "false_negatives": gain(average_precision(matches, dropped=unfound)),
    }


def repaired(errors: Errors, kinds: list[str]) -> float | None:
    """Compute AP50 with all errors of some kinds mended; None without an object."""
    matches = errors.matches
    mended = np.isin(errors.kind, [FALSE.index(kind) for kind in kinds if kind != "missed"])
    right, label = matches.right.copy(), matches.label.copy()
    # The first that points at an object that none has found gets it, if it is mended: in an image,
    # the best.
    pointing = np.flatnonzero(errors.target >= 0)
    pointing = pointing[matches.found_by[errors.target[pointing]] < 0]
    _, first = np.unique(errors.target[pointing], return_index=True)
    made_right = pointing[first]
    made_right = made_right[mended[made_right]]
    right[made_right] = True
    label[made_right] = matches.truth_label[errors.target[made_right]]
    kept = right | (matches.wrong & ~mended)
    dropped = errors.missed if "missed" in kinds else None
    return average_precision(matches, right, label, kept, dropped)


def average_precision(
    matches: Matches,
    right: np.ndarray | None = None,
    label: np.ndarray | None = None,
    kept: np.ndarray | None = None,
    dropped: np.ndarray | None = None,
) -> float | None:
    """Compute AP50, the mean over the classes that have objects; None if none has.

    right, label, kept  [D]  bool, class and bool, instead of those of `matches`
    dropped             [G]  bool: objects that do not count

    A class all of whose objects are dropped has AP 1, or 0 if a detection is left.
    """
    right = matches.right if right is None else right
    label = matches.label if label is None else label
    kept = ~matches.in_crowd if kept is None else kept
    lost = np.zeros(len(matches.crowd), dtype=bool) if dropped is None else dropped
    objects = matches.objects()
    counts = objects - np.bincount(matches.truth_label[lost], minlength=matches.classes)
    found = np.flatnonzero(kept)
    # By class, then by falling score; equal scores stay in order.
    found = found[np.lexsort((-matches.score[found], label[found]))]
    ends = np.searchsorted(label[found], np.arange(matches.classes + 1))
    precisions = []
    for k in np.flatnonzero(objects):
        ranked = right[found[ends[k] : ends[k + 1]]]
        precisions.append(interpolated(ranked, int(counts[k])).mean())
    return float(np.mean(precisions)) if precisions else None


def interpolated(ranked: np.ndarray, count: int) -> np.ndarray:
    """Return the highest precision at 101 recalls or more; 0 where none gets so far.

    ranked  [D]  bool: whether each detection of a class is right, by falling score
    count        number of objects; without one, precision is 1 if there is no detection, else 0
    """
    if not count:
        return np.full(len(RECALLS), float(not len(ranked)))
    right = np.cumsum(ranked)
    precision = right / np.arange(1, len(ranked) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return np.append(highest, 0.0)[np.searchsorted(right / count, RECALLS)]
