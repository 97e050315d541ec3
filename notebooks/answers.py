"""Answers to the notebooks' exercises, each under the name of its module in `exercises/`.

A notebook never imports this file. The tests put every answer before its checker.
"""

import math

import numpy as np

from reference import deepmask
from reference.boxes import iou as overlaps

# 0. One image through the whole machine
# The box head's first output has a column per class. Everything before it is about any object.
one_image = "class_logits"


# 1. Pixels and boxes
def pixels_and_boxes(a, b):
    """Intersection over union of two boxes."""
    shared = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared
    return shared / union if shared > 0 else 0.0


# 2. Anchors


def anchors(iou, high, low):
    """Label anchors by their overlaps with the truths."""
    if len(iou) == 0:
        return np.zeros(iou.shape[1], int)
    best = iou.max(axis=0)
    labels = np.where(best >= high, 1, np.where(best < low, 0, -1))
    best_of_truth = iou.max(axis=1, keepdims=True)
    labels[((iou == best_of_truth) & (iou > 0)).any(axis=0)] = 1
    return labels


# 3. RPN


def rpn(boxes, scores, threshold):
    """Keep the best box, drop what overlaps it, repeat."""
    keep, rest = [], np.argsort(-scores, kind="stable")
    while len(rest):
        best, rest = rest[0], rest[1:]
        keep.append(best)
        rest = rest[overlaps(boxes[[best]], boxes[rest])[0] <= threshold]
    return np.array(keep, int)


# 4. Backbone and pyramid


def backbone_and_pyramid(width, height):
    size = math.sqrt(width * height)
    return 2 if size == 0 else min(max(math.floor(4 + math.log2(size / 224)), 2), 5)


# 5. RoIAlign


def roi_align(feature, box, output_size, spatial_scale, sampling_ratio):
    """RoIAlign of one channel with loops: samples of all bins, four neighbours each."""
    x1, y1, x2, y2 = np.array(box) * spatial_scale - 0.5
    bin_w, bin_h = (x2 - x1) / output_size, (y2 - y1) / output_size
    out = np.zeros((output_size, output_size))
    for p, q, i, j in np.ndindex(output_size, output_size, sampling_ratio, sampling_ratio):
        y = y1 + p * bin_h + (i + 0.5) * bin_h / sampling_ratio
        x = x1 + q * bin_w + (j + 0.5) * bin_w / sampling_ratio
        out[p, q] += bilinear(feature, y, x) / sampling_ratio**2
    return out


def bilinear(feature, y, x):
    """Read a map [H, W] between its cells."""
    height, width = feature.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    above = (1 - (x - left)) * feature[top, left] + (x - left) * feature[top, right]
    below = (1 - (x - left)) * feature[bottom, left] + (x - left) * feature[bottom, right]
    return (1 - (y - top)) * above + (y - top) * below


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


# 8. One training step


def one_step(grad_out, difference, beta):
    """Backward of smooth L1: the slope is d / beta on the parabola and the sign of d beyond."""
    parabola = np.abs(difference) < beta
    return grad_out * np.where(parabola, difference / beta, np.sign(difference))


# 9. Training
# Below a hundredth the mask takes longer to learn; above a few hundredths the boxes jump about.
training = 0.016


# 10. Average precision


def average_precision(iou, threshold):
    """Match detections [D] greedily with truths [G], the last of equals first."""
    taken, out = set(), []
    for row in iou:
        free = [g for g in range(len(row)) if g not in taken and row[g] >= threshold]
        best = max(free, key=lambda g: (row[g], g), default=-1)
        out.append(best)
        taken.add(best)
    return np.array(out, int)


# 11. The Triton kernel


def triton_kernel(ys, xs, height, width):
    """Mask the places of a tile, rows ys and columns xs, that lie in the map."""
    return (ys < height)[:, None] & (xs < width)[None, :]


# 12. The same weights, three conventions
# 0: boxes move although the proposals are equal. 1: boxes equal, all masks move to the upper left.
# 2: other proposals from equal deltas. 3: boxes grow or shrink at equal scores. 4: only the rims.
conventions = [
    "box_head.pooler.aligned=false",
    "mask_head.pooler.aligned=false",
    "rpn.box_weights=[10, 10, 5, 5]",
    "box_head.box_weights=[5, 5, 2, 2]",
    "mask_head.paste=torchvision",
]


# 13. What came before


def before_mask_rcnn(settings, classes):
    """Only the layer of the masks grows."""
    sizes = {name: math.prod(x) for name, x in deepmask.parameter_shapes(settings).items()}
    masks_of_a_class = sizes["mask.weight"] + sizes["mask.bias"]
    return sum(sizes.values()) + (classes - 1) * masks_of_a_class


# 14. Your own data


def own_data(polygons, number, image, category):
    """Turn outlines, lists of points [x, y], into an annotation."""
    x, y = zip(*(point for polygon in polygons for point in polygon), strict=True)
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [min(x), min(y), max(x) - min(x), max(y) - min(y)],
        "segmentation": [[value for point in polygon for value in point] for polygon in polygons],
        "area": sum(area_of(polygon) for polygon in polygons),
        "iscrowd": 0,
    }


def area_of(polygon):
    """Area of a polygon, a list of points [x, y]."""
    following = [*polygon[1:], polygon[0]]
    twice = sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(polygon, following, strict=True))
    return abs(twice) / 2


# 15. The failure zoo
# A differs first in `proposals`, B in `mask_features`, C in `detections`.
failure_zoo = {
    "A": "RPN decodes with the box head's weights",
    "B": "mask head reads half a cell too far",
    "C": "score threshold far too high",
}
