"""Wrong answers to the notebooks' exercises, and a word that the checker's hint must contain.

{module of `notebooks/exercises`: [(wrong answer, word of the hint)]}
"""

import inspect
import math
from collections.abc import Callable

import answers
import numpy as np

from reference.boxes import area, iou

MISTAKES = {}


# 2. Anchors


def labels(table, high, low, *, best_rule=lambda table: False, strict=False, axis=0):
    """The rule of the anchors, to be broken in one place."""
    if len(table) == 0:
        return np.zeros(table.shape[1], int)
    best = table.max(axis=axis)[: table.shape[1]]
    above = best > high if strict else best >= high
    below = best <= low if strict else best < low
    return np.where(above | best_rule(table), 1, np.where(below, 0, -1))


def of_truth(table):
    """The anchors that are the best of some truth, at an IoU above 0."""
    return ((table == table.max(axis=1, keepdims=True)) & (table > 0)).any(axis=0)


def no_low_quality(table, high, low):
    return labels(table, high, low)


def first_of_ties(table, high, low):
    first = np.isin(np.arange(table.shape[1]), table.argmax(axis=1)) if len(table) else False
    return labels(table, high, low, best_rule=lambda table: first & (table > 0).any(axis=0))


def one_best_of_all(table, high, low):
    return labels(table, high, low, best_rule=lambda t: ((t == t.max()) & (t > 0)).any(axis=0))


def best_at_zero(table, high, low):
    return labels(
        table, high, low, best_rule=lambda t: (t == t.max(axis=1, keepdims=True)).any(axis=0)
    )


def thresholds_to_the_other_side(table, high, low):
    return labels(table, high, low, best_rule=of_truth, strict=True)


def first_truth_only(table, high, low):
    return labels(table[:1], high, low, best_rule=lambda t: of_truth(table))


def halo_is_background(table, high, low):
    return np.maximum(labels(table, high, low, best_rule=of_truth), 0)


def never_empty(table, high, low):
    return labels(table, high, low, best_rule=of_truth) if table.max() >= 0 else None


MISTAKES["anchors"] = [
    (halo_is_background, "-1 lies between"),
    (first_truth_only, "down a column"),
    (thresholds_to_the_other_side, "equal to a threshold"),
    (no_low_quality, "however low"),
    (one_best_of_all, "of its own"),
    (first_of_ties, "tie for the best"),
    (best_at_zero, "IoU of 0"),
    (never_empty, "[0, T]"),
]


# 3. RPN


def suppress(boxes, scores, threshold, *, order=None, overlaps=iou, remove=np.greater):
    """Non-maximum suppression, to be broken in one place."""
    keep, rest = [], np.argsort(-scores, kind="stable") if order is None else order
    while len(rest):
        best, rest = rest[0], rest[1:]
        keep.append(int(best))
        rest = rest[~remove(overlaps(boxes[[best]], boxes[rest])[0], threshold)]
    return np.array(keep, int)


def in_order_of_index(boxes, scores, threshold):
    return np.sort(suppress(boxes, scores, threshold))


def worst_first(boxes, scores, threshold):
    return suppress(boxes, scores, threshold, order=np.argsort(scores, kind="stable"))[::-1]


def removed_boxes_remove(boxes, scores, threshold):
    order = np.argsort(-scores, kind="stable")
    overlaps = np.triu(iou(boxes[order], boxes[order]) > threshold, 1)
    return order[~overlaps.any(axis=0)]


def at_the_threshold(boxes, scores, threshold):
    return suppress(boxes, scores, threshold, remove=np.greater_equal)


def plus_one(boxes, scores, threshold):
    def overlaps(a, b):
        wider = np.array([0, 0, 1, 1])
        return iou(a + wider, b + wider)

    return suppress(boxes, scores, threshold, overlaps=overlaps)


def over_the_smaller(boxes, scores, threshold):
    def overlaps(a, b):
        total = area(a)[:, None] + area(b)
        shared = total * iou(a, b) / (1 + iou(a, b))
        return shared / np.minimum(area(a)[:, None], area(b))

    return suppress(boxes, scores, threshold, overlaps=overlaps)


def higher_index_first(boxes, scores, threshold):
    order = np.argsort(scores, kind="stable")[::-1]
    return suppress(boxes, scores, threshold, order=order)


MISTAKES["rpn"] = [
    (in_order_of_index, "falling score"),
    (worst_first, "higher score stays"),
    (removed_boxes_remove, "removes nothing"),
    (at_the_threshold, "strictly above"),
    (plus_one, "+1"),
    (over_the_smaller, "union"),
    (higher_index_first, "lower index"),
]


def edited(name: str, *edits: tuple[str, str]) -> Callable:
    """Return the answer `name`, with the first `old` of each (old, new) in its code replaced."""
    before, head, code = inspect.getsource(answers).partition(f"def {name}(")
    for old, new in edits:
        assert old in code, f"{name}: no {old!r}"
        code = code.replace(old, new, 1)
    namespace = {}
    exec(before + head + code, namespace)
    return namespace[name]


MISTAKES["roi_align"] = [
    (edited("roi_align", (" - 0.5", "")), "half pixel is missing"),
    (edited("roi_align", (" - 0.5", " + 0.5")), "added instead of subtracted"),
    (edited("roi_align", ("x1, y1, x2, y2 =", "y1, x1, y2, x2 =")), "swapped: a box is"),
    (edited("roi_align", ("out[p, q]", "out[q, p]")), "swapped in the result"),
    (edited("roi_align", ("(feature, y, x)", "(feature, x, y)")), "swapped: a map is"),
    (
        edited("roi_align", ("(i + 0.5)", "i"), ("(j + 0.5)", "j")),
        "samples lie in the corners",
    ),
    (
        edited(
            "roi_align",
            ("(i + 0.5) * bin_h / sampling_ratio", "bin_h * i / max(sampling_ratio - 1, 1)"),
            ("(j + 0.5) * bin_w / sampling_ratio", "bin_w * j / max(sampling_ratio - 1, 1)"),
        ),
        "edges of the bins",
    ),
    (edited("roi_align", (" / sampling_ratio**2", "")), "sum of its samples"),
    (edited("roi_align", (" / sampling_ratio**2", " / sampling_ratio")), "one axis only"),
    (edited("roi_align", (" * spatial_scale", "")), "not scaled"),
    (
        edited("roi_align", ("np.array(box) * spatial_scale", "np.round(box * spatial_scale)")),
        "rounded to whole cells",
    ),
    (
        edited(
            "roi_align",
            ("top, left = int(y), int(x)", "y, x = round(y), round(x); top, left = y, x"),
        ),
        "nearest cell",
    ),
    (
        edited("roi_align", ("if not (-1 <= y <= height and -1 <= x <= width)", "if False")),
        "yours reads the outermost cell",
    ),
    (
        edited(
            "roi_align",
            (
                "(-1 <= y <= height and -1 <= x <= width)",
                "(0 <= y <= height - 1 and 0 <= x <= width - 1)",
            ),
        ),
        "but yours is 0",
    ),
    (
        lambda feature, *rest: (
            answers.roi_align(feature, *rest)
            / np.maximum(answers.roi_align(np.ones_like(feature), *rest), 1e-9)
        ),
        "counts in the mean",
    ),
    (lambda *arguments: answers.roi_align(*arguments)[0], "shape"),
    (lambda *arguments: answers.roi_align(*arguments) * 1.001, "off by"),
]

MISTAKES["one_step"] = [
    (edited("one_step", ("grad_out * ", "")), "grad_out is not used"),
    (
        edited(
            "one_step",
            ("np.sign(difference)", "1"),
            ("difference / beta", "np.abs(difference) / beta"),
        ),
        "sign is lost",
    ),
    (edited("one_step", ("difference / beta", "difference")), "not d"),
    (edited("one_step", ("difference / beta", "difference / (2 * beta)")), "2 cancels"),
    (edited("one_step", ("np.sign(difference)", "difference")), "however large"),
    (edited("one_step", ("np.sign(difference)", "difference / beta")), "everywhere"),
    (edited("one_step", ("< beta", ">= beta")), "swapped"),
    (edited("one_step", ("np.abs(difference)", "difference")), "instead of |d|"),
    (edited("one_step", ("< beta", "< 1")), "not at 1"),
    (
        lambda grad_out, d, beta: (
            grad_out * np.where(np.abs(d) < beta, d * d / 2 / beta, np.abs(d) - beta / 2)
        ),
        "loss itself",
    ),
    (edited("one_step", ("return grad_out", "return -grad_out")), "reversed"),
    (edited("one_step", ("return grad_out", "return 2 * grad_out")), "finite differences"),
    (edited("one_step", ("np.sign(difference))", "np.sign(difference)).sum(axis=1)")), "shape"),
]


def level(width, height, *, size=lambda w, h: math.sqrt(w * h), log=math.log2, down=math.floor):
    """The level of a box, with a place for each mistake."""
    side = size(width, height)
    return 2 if side == 0 else min(max(down(4 + log(side / 224)), 2), 5)


MISTAKES["backbone_and_pyramid"] = [
    (lambda w, h: level(w, h, size=max), "square root of its area"),
    (lambda w, h: level(w, h, down=round), "rounded down"),
    (lambda w, h: level(w, h, log=math.log), "base 2"),
    (lambda w, h: math.floor(4 + math.log2(math.sqrt(w * h) / 224)), "clamp the level from below"),
    (lambda w, h: max(math.floor(4 + math.log2(math.sqrt(w * h) / 224)), 2), "above P5"),
    (
        lambda w, h: min(max(math.floor(4 + math.log2(math.sqrt(w * h) / 224)), 2), 5),
        "logarithm of 0",
    ),
]


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def one_hot(column, size=4):
    return np.eye(size)[column]


MISTAKES["two_heads"] = [
    (lambda x, k: softmax(x), "the probability itself"),
    (lambda x, k: one_hot(k) - softmax(x), "the sign is reversed"),
    (lambda x, k: 1 / (1 + np.exp(-x)) - one_hot(k), "these are sigmoids"),
    (lambda x, k: one_hot(k) * (softmax(x) - 1), "depends on the other logits"),
    (lambda x, k: softmax(x)[k] - 1, "one entry per logit"),
    (lambda x, k: np.exp(x) / np.exp(x).sum() - one_hot(k), "overflows"),
]


MISTAKES |= {
    "one_image": [
        ("P2", "stays the same"),
        ("proposal_scores", "whether, not what"),
        ("detections", "read off numbers that came before"),
        ("mask_logits", "label has long been chosen"),
        ("labels", "no field"),
    ],
}


MISTAKES["training"] = [
    (0.002, "too low"),
    (0.128, "too high"),
    (-0.005, "positive"),
    (5, "every weight"),
    ("fast", "a number"),
]
