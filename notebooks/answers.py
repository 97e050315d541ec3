"""Answers to the notebooks' exercises, each under the name of its module in `exercises/`.

A notebook never imports this file. The tests put every answer before its checker.
"""

import numpy as np

# 0. One image through the whole machine
# The box head's first output has a column per class. Everything before it is about any object.
one_image = "class_logits"


# 1. Pixels and boxes
def pixels_and_boxes(a, b):
    """Intersection over union of two boxes."""
    shared = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared
    return shared / union if shared > 0 else 0.0


# 15. The failure zoo
# A differs first in `proposals`, B in `mask_features`, C in `detections`.
failure_zoo = {
    "A": "RPN decodes with the box head's weights",
    "B": "mask head reads half a cell too far",
    "C": "score threshold far too high",
}
