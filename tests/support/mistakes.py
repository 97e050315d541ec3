"""Wrong answers to the notebooks' exercises, and a word that the checker's hint must contain.

{module of `notebooks/exercises`: [(wrong answer, word of the hint)]}
"""

import inspect
from collections.abc import Callable

import answers
import numpy as np


def edited(name: str, *edits: tuple[str, str]) -> Callable:
    """Return the answer `name`, with the first `old` of each (old, new) in its code replaced."""
    before, head, code = inspect.getsource(answers).partition(f"def {name}(")
    for old, new in edits:
        assert old in code, f"{name}: no {old!r}"
        code = code.replace(old, new, 1)
    namespace = {}
    exec(before + head + code, namespace)
    return namespace[name]


MISTAKES = {}

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
