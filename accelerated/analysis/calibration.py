"""How often a detection of a given score is right, and what scores and sizes occur."""

import numpy as np

from accelerated.analysis.matching import Matches

BINS = 10


def calibration(matches: Matches) -> dict:
    """Compare the scores of detections with the share of them that is right.

    Returns {"bins": [{"low", "high", "count", "score", "precision"}], "ece"}: ten bins of equal
    width, with the mean score and the precision of the detections in each (None without one). ece,
    the expected calibration error, is the mean difference of both, weighted with the counts.
    """
    counted = ~matches.in_crowd
    scores, right = matches.score[counted], matches.right[counted]
    place = np.clip((scores * BINS).astype(int), 0, BINS - 1)
    bins, error = [], 0.0
    for k in range(BINS):
        here = place == k
        count = int(here.sum())
        score, precision = (float(x[here].mean()) if count else None for x in (scores, right))
        limits = {"low": k / BINS, "high": (k + 1) / BINS}
        bins.append(limits | {"count": count, "score": score, "precision": precision})
        if score is not None and precision is not None:
            error += count * abs(score - precision)
    return {"bins": bins, "ece": error / len(scores) if len(scores) else None}


def scores(matches: Matches) -> dict:
    """Count the right and the wrong detections by score, in twenty bins of equal width.

    Returns {"edges": [21], "right": [20], "wrong": [20]}.
    """
    edges = np.linspace(0, 1, 21).round(2)

    def count(chosen):
        return np.histogram(np.clip(matches.score[chosen], 0, 1), edges)[0].tolist()

    parts = {"right": count(matches.right), "wrong": count(matches.wrong)}
    return {"edges": edges.tolist()} | parts


def sizes(matches: Matches, threshold: float) -> dict:
    """Count objects, found objects and detections by sqrt(area) in pixels.

    threshold  score from which on a detection counts and finds an object

    Returns {"edges": [B + 1], "objects": [B], "found": [B], "detections": [B]}: each edge is
    sqrt(2) times the one before. What has less than a pixel is in the first bin.
    """
    counted = (matches.score >= threshold) & ~matches.in_crowd
    found = np.zeros(len(matches.crowd), dtype=bool)
    found[matches.truth[counted & matches.right]] = True
    areas = {
        "objects": matches.truth_area[~matches.crowd],
        "found": matches.truth_area[found],
        "detections": matches.area[counted],
    }
    # Twice the binary logarithm of the side: edges are whole numbers.
    steps = {name: np.log2(np.maximum(area, 1.0)) for name, area in areas.items()}
    whole = np.concatenate([*steps.values()])
    if not whole.size:
        return {"edges": []} | {name: [] for name in areas}
    edges = np.arange(np.floor(whole.min()), np.floor(whole.max()) + 2)
    counts = {name: np.histogram(values, edges)[0].tolist() for name, values in steps.items()}
    return {"edges": (2 ** (edges / 2)).round(2).tolist()} | counts
