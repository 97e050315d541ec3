"""Answers to the notebooks' exercises, each under the name of its module in `exercises/`.

A notebook never imports this file. The tests put every answer before its checker.
"""

import math

import numpy as np

# 4. Backbone and pyramid


def backbone_and_pyramid(width, height):
    size = math.sqrt(width * height)
    return 2 if size == 0 else min(max(math.floor(4 + math.log2(size / 224)), 2), 5)


# 6. Two heads


def two_heads(logits, column):
    # The largest logit is subtracted so that no exponential overflows.
    exponentials = np.exp(logits - np.max(logits))
    probabilities = exponentials / exponentials.sum()
    return probabilities - np.eye(len(logits))[column]


# 7. Masks there and back


def masks(mask):
    counts, colour, length = [], False, 0
    for pixel in mask.T.ravel():
        if pixel != colour:
            counts.append(length)
            colour, length = pixel, 0
        length += 1
    return [*counts, length]
