"""Wrong answers to the notebooks' exercises, and a word that the checker's hint must contain.

{module of `notebooks/exercises`: [(wrong answer, word of the hint)]}
"""

import math

import answers
import numpy as np

MISTAKES = {}


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
