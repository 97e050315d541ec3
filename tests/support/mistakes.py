"""Wrong answers to the notebooks' exercises, and a word that the checker's hint must contain.

{module of `notebooks/exercises`: [(wrong answer, word of the hint)]}
"""

import inspect
import math
from collections.abc import Callable
from functools import partial

import answers
import numpy as np

from reference import deepmask
from reference.boxes import area, iou

MISTAKES = {}


# 0. One image


MISTAKES["one_image"] = [
    ("P2", "stays the same"),
    ("proposal_scores", "whether, not what"),
    ("detections", "read off numbers that came before"),
    ("mask_logits", "label has long been chosen"),
    ("labels", "no field"),
]


# 1. Pixels and boxes


def iou_of_two(a, b, plus=0, least=0, sort=False, order=(0, 1, 2, 3), divisor="union"):
    """IoU of two boxes, with one of the mistakes of `pixels_and_boxes` if an argument is given."""
    a, b = a[list(order)], b[list(order)]
    if sort:
        a, b = (np.sort(box.reshape(2, 2), axis=0).ravel() for box in (a, b))
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]) + plus, least)
    areas = [(box[2:] - box[:2] + plus).prod() for box in (a, b)]
    shared = sides.prod()
    divisors = {"union": sum(areas) - shared, "sum": sum(areas), "smaller": min(areas)}
    return shared / divisors[divisor] if shared or divisor == "smaller" else 0.0


MISTAKES["pixels_and_boxes"] = [
    (partial(iou_of_two, divisor="sum"), "count the shared area once"),
    (partial(iou_of_two, order=(0, 2, 1, 3)), "x1, y1, x2, y2"),
    (partial(iou_of_two, plus=1), "without a +1"),
    (partial(iou_of_two, least=-np.inf), "positive product"),
    (partial(iou_of_two, divisor="smaller"), "divide by the union"),
    (lambda a, b: iou_of_two(a, b) if a[0] != a[2] else 0 / 0, "no 0 / 0"),
    (partial(iou_of_two, sort=True), "covers nothing"),
]


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


# 4. Backbone and pyramid


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


# 5. RoIAlign


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


# 6. Two heads


@np.errstate(over="ignore", invalid="ignore")
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
    (lambda x, k: softmax(x) - one_hot(k), "overflows"),
]


# 7. Masks there and back


def runs(mask):
    return answers.masks(mask)


MISTAKES["masks"] = [
    (lambda mask: runs(mask.T), "down the columns"),
    (lambda mask: np.trim_zeros(runs(mask), "f"), "of length 0 if the first pixel"),
    (lambda mask: runs(mask)[:-1] or [0], "the last run included"),
    (lambda mask: np.cumsum(runs(mask)).tolist(), "the places where runs end"),
    (lambda mask: runs(~mask), "another mask"),
    (lambda mask: [] if not mask.any() else runs(mask), "at least one"),
]


# 8. One training step


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


# 9. Training


MISTAKES["training"] = [
    (0.002, "too low"),
    (0.128, "too high"),
    (-0.005, "positive"),
    (5, "every weight"),
    ("fast", "a number"),
]


# 10. Average precision


def greedy(iou, threshold, *, free=True, retry=True, inclusive=True, last=True):
    """Match as the answer to notebook 10 does, or without one of its rules."""
    taken, out = set(), []
    for row in iou:
        allowed = [g for g, value in enumerate(row) if value > threshold - 1e-9 * inclusive]
        if free and retry:
            allowed = [g for g in allowed if g not in taken]
        best = max(allowed, key=lambda g: (row[g], g if last else -g), default=-1)
        if free and best in taken:
            best = -1
        out.append(best)
        taken.add(best)
    return out


def truth_by_truth(iou, threshold):
    """Let every truth choose the best detection, instead of every detection the best truth."""
    out = np.full(len(iou), -1)
    for g, column in enumerate(iou.T if len(iou) else ()):
        best = column.argmax()
        if column[best] >= threshold:
            out[best] = g
    return out


def best_pairing(iou, threshold):
    """Choose the pairing with the most matches, and among these the best for the upper rows."""
    pairings = [()]
    for row in iou:
        reach = [-1, *np.flatnonzero(row >= threshold).tolist()]
        pairings = [(*p, g) for p in pairings for g in reach if g < 0 or g not in p]
    padded = np.pad(iou, ((0, 0), (0, 1)))
    return max(pairings, key=lambda p: (sum(g >= 0 for g in p), *padded[range(len(p)), p]))


def first_within_reach(iou, threshold):
    """Take the first free truth above the threshold, not the best."""
    return greedy((iou >= threshold) * 1.0, 0.5, last=False)


MISTAKES["average_precision"] = [
    (lambda iou, t: [int(row.argmax()) for row in iou], "-1 for none"),
    (truth_by_truth, "two detections on one object"),
    (lambda iou, t: greedy(iou, t, free=False), "only once"),
    (first_within_reach, "highest IoU"),
    (lambda iou, t: greedy(iou, t, retry=False), "tries the next best"),
    (best_pairing, "greedy"),
    (lambda iou, t: greedy(iou, t, inclusive=False), "exactly the threshold"),
    (lambda iou, t: greedy(iou, t, last=False), "last one is taken"),
    (lambda iou, t: greedy(iou, t) if iou.size else 1 / 0, "no truth, or no detection"),
]


# 11. The Triton kernel


MISTAKES["triton_kernel"] = [
    (lambda ys, xs, h, w: (ys >= 0)[:, None] & (xs >= 0)[None, :], "every place"),
    (lambda ys, xs, h, w: (ys >= 0)[:, None] & (xs < w)[None, :], "rows below"),
    (lambda ys, xs, h, w: (ys < h)[:, None] & (xs >= 0)[None, :], "to the right"),
    (lambda ys, xs, h, w: (ys <= h)[:, None] & (xs <= w)[None, :], "too many"),
    (lambda ys, xs, h, w: (ys < h - 1)[:, None] & (xs < w - 1)[None, :], "not read"),
    (lambda ys, xs, h, w: (ys < w)[:, None] & (xs < h)[None, :], "swapped"),
    (lambda ys, xs, h, w: (ys < h)[:, None] | (xs < w)[None, :], "with &"),
    (lambda ys, xs, h, w: (ys < h)[None, :] & (xs < w)[:, None], "transposed"),
    (lambda ys, xs, h, w: ys[:, None] * w + xs[None, :] < h * w, "next row"),
    (lambda ys, xs, h, w: (ys >= h)[:, None] | (xs >= w)[None, :], "inverted"),
    (lambda ys, xs, h, w: (ys < h)[:, None] & (xs < 2)[None, :], "the place y = 0, x = 2"),
]


# 12. The same weights, three conventions


def conventions(pair, switch):
    """The right names with another one at a pair."""
    return [switch if i == pair else name for i, name in enumerate(answers.conventions)]


MISTAKES["conventions"] = [
    (answers.conventions[:4], "one for each pair"),
    ("mask_head.paste=torchvision", "not a text"),
    (conventions(0, "box_head.pooler.aligned"), "copy a name from the list"),
    (conventions(0, "transform.channel_order=bgr"), "would change images; look at images"),
    (conventions(1, "mask_head.pooler.operator=roi_pool"), "not the only switch of"),
    (
        conventions(2, "box_head.box_weights=[5, 5, 2, 2]"),
        "look at proposals, which differs already",
    ),
    (conventions(4, "mask_head.threshold=0.3"), "pair 4: masks is indeed"),
]


# 13. What came before


def deepmask_sizes(settings, kind=""):
    shapes = deepmask.parameter_shapes(settings).items()
    return {name: math.prod(shape) for name, shape in shapes if name.endswith(kind)}


def deepmask_count(settings, classes, *, kind="", layer=1, extra=1, bias=1, score=0):
    """The parameters of a DeepMask with a mask per class, with a place for each mistake."""
    sizes = deepmask_sizes(settings)
    one = layer * (sizes["mask.weight"] + bias * sizes["mask.bias"])
    one += score * (sizes["score.weight"] + sizes["score.bias"])
    return sum(deepmask_sizes(settings, kind).values()) + (classes - extra) * one


MISTAKES["before_mask_rcnn"] = [
    (lambda s, k: k * sum(deepmask_sizes(s).values()), "trunk, code and score serve all"),
    (partial(deepmask_count, layer=16), "a fourth of the window's side"),
    (partial(deepmask_count, bias=0), "a bias for each pixel"),
    (
        lambda s, k: k * sum(n for x, n in deepmask_sizes(s).items() if x.startswith("mask.")),
        "count the rest too",
    ),
    (partial(deepmask_count, kind=".weight", bias=0), "biases are parameters"),
    (partial(deepmask_count, extra=0), "background has no mask"),
    (partial(deepmask_count, score=1), "single score"),
    (lambda s, k: deepmask_count(s, k) + 1, "has"),
]


# 14. Your own data


def annotated(change):
    """Return the answer of `own_data`, with `change(annotation, polygons)` in its dict."""

    def answer(polygons, *ids):
        annotation = answers.own_data(polygons, *ids)
        return annotation | change(annotation, polygons)

    return answer


def of_one(key):
    """Change the entry `key` to that of the first part alone."""
    return lambda a, polygons: {key: answers.own_data(polygons[:1], 0, 0, 0)[key]}


def without(key):
    """Return the answer of `own_data` without an entry."""

    def answer(*arguments):
        annotation = answers.own_data(*arguments)
        return {name: value for name, value in annotation.items() if name != key}

    return answer


def swapped(annotation, polygons):
    """Write y before x in the outlines."""
    return {"segmentation": [np.flip(polygon, 1).ravel().tolist() for polygon in polygons]}


MISTAKES["own_data"] = [
    (edited("own_data", ("max(x) - min(x), max(y) - min(y)", "max(x), max(y)")), "as x1, y1"),
    (annotated(lambda a, polygons: {"segmentation": a["segmentation"][0]}), "flat list"),
    (annotated(lambda a, polygons: {"segmentation": polygons}), "a polygon is"),
    (annotated(swapped), "x and y are swapped"),
    (annotated(of_one("segmentation")), "one part only"),
    (
        annotated(lambda a, polygons: {"segmentation": [part[:6] for part in a["segmentation"]]}),
        "another mask",
    ),
    (annotated(of_one("bbox")), "of all parts"),
    (annotated(lambda a, polygons: {"area": a["bbox"][2] * a["bbox"][3]}), "not of the box"),
    (annotated(of_one("area")), "the outlines cover"),
    (annotated(lambda a, polygons: {"category_id": 1}), "not a label"),
    (annotated(lambda a, polygons: {"id": a["image_id"], "image_id": a["id"]}), "own number"),
    (annotated(lambda a, polygons: {"bbox": np.array(a["bbox"])}), "not arrays"),
    (without("iscrowd"), "iscrowd is missing"),
    (without("area"), "area is missing"),
    (without("segmentation"), "without a mask"),
    (lambda *arguments: [answers.own_data(*arguments)], "a dict"),
]


# 15. The failure zoo


DIAGNOSIS = answers.failure_zoo


MISTAKES["failure_zoo"] = [
    (DIAGNOSIS | {"A": "anchors half a stride too far"}, "A: its first field"),
    (DIAGNOSIS | {"B": "box head reads half a cell too far"}, "B: its first field"),
    (DIAGNOSIS | {"C": "mean colour not subtracted"}, "C: its first field"),
    (DIAGNOSIS | {"C": "bad luck"}, "not in the list"),
    ({"A": DIAGNOSIS["A"]}, "each of A, B, C"),
]
