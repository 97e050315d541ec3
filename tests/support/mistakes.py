"""Wrong answers to the notebooks' exercises, and a word that the checker's hint must contain.

{module of `notebooks/exercises`: [(wrong answer, word of the hint)]}
"""

from functools import partial

import answers
import numpy as np


def iou(a, b, plus=0, least=0, sort=False, order=(0, 1, 2, 3), divisor="union"):
    """IoU of two boxes, with one of the mistakes of `pixels_and_boxes` if an argument is given."""
    a, b = a[list(order)], b[list(order)]
    if sort:
        a, b = (np.sort(box.reshape(2, 2), axis=0).ravel() for box in (a, b))
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]) + plus, least)
    areas = [(box[2:] - box[:2] + plus).prod() for box in (a, b)]
    shared = sides.prod()
    divisors = {"union": sum(areas) - shared, "sum": sum(areas), "smaller": min(areas)}
    return shared / divisors[divisor] if shared or divisor == "smaller" else 0.0


DIAGNOSIS = answers.failure_zoo
MISTAKES = {
    "one_image": [
        ("P2", "stays the same"),
        ("proposal_scores", "whether, not what"),
        ("detections", "read off numbers that came before"),
        ("mask_logits", "label has long been chosen"),
        ("labels", "no field"),
    ],
    "pixels_and_boxes": [
        (partial(iou, divisor="sum"), "count the shared area once"),
        (partial(iou, order=(0, 2, 1, 3)), "x1, y1, x2, y2"),
        (partial(iou, plus=1), "without a +1"),
        (partial(iou, least=-np.inf), "positive product"),
        (partial(iou, divisor="smaller"), "divide by the union"),
        (lambda a, b: iou(a, b) if a[0] != a[2] else 0 / 0, "no 0 / 0"),
        (partial(iou, sort=True), "covers nothing"),
    ],
    "failure_zoo": [
        (DIAGNOSIS | {"A": "anchors half a stride too far"}, "A: its first field"),
        (DIAGNOSIS | {"B": "box head reads half a cell too far"}, "B: its first field"),
        (DIAGNOSIS | {"C": "mean colour not subtracted"}, "C: its first field"),
        (DIAGNOSIS | {"C": "bad luck"}, "not in the list"),
        ({"A": DIAGNOSIS["A"]}, "each of A, B, C"),
    ],
}
