"""Balanced subsampling of candidates. Chance enters only as a priority per candidate, so two implementations can share it."""

import numpy as np


def sample(labels, priorities, batch_size, positive_fraction):
    """Choose at most `batch_size` candidates, positives making up at most `positive_fraction` of that.

    labels [T] (> 0 positive, 0 negative, -1 never chosen), priorities [T], the smallest are chosen.
    Returns (positive, negative): indices by rising priority, ties by rising index. Negatives fill what positives leave free.
    """
    order = np.argsort(priorities, kind="stable")
    positive = order[labels[order] > 0][: int(batch_size * positive_fraction)]
    negative = order[labels[order] == 0][: batch_size - len(positive)]
    return positive, negative
