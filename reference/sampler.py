"""Balanced subsampling of candidates by priorities, which two implementations can share.

Legend: T candidates.
"""

import numpy as np


def sample(
    labels: np.ndarray, priorities: np.ndarray, batch_size: int, positive_fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """Choose at most `batch_size` candidates, of them at most `positive_fraction` positive.

    labels      [T]  > 0 positive, 0 negative, -1 never chosen
    priorities  [T]  the smallest are chosen, ties by lower index
    Returns (positive, negative): indices by rising priority. Negatives fill the rest.
    """
    order = np.argsort(priorities, kind="stable")
    positive = order[labels[order] > 0][: int(batch_size * positive_fraction)]
    negative = order[labels[order] == 0][: batch_size - len(positive)]
    return positive, negative
