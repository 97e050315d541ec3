"""Region proposal network [Faster R-CNN §3.1]: its head, its proposals, its targets and its losses.

Legend: N images, A anchors per cell, T anchors of all levels, G ground truths, P proposals.
Flattened order: level, y, x, anchor.
"""

from typing import NamedTuple

import numpy as np

from reference import box_coder, boxes, matcher, neck, nms, sampler
from reference.activations import relu, sigmoid
from reference.config import RPN, Config
from reference.conv import conv2d
from reference.losses import binary_cross_entropy, smooth_l1
from reference.structures import Array


class Proposals(NamedTuple):
    """The proposals of one image by falling score: boxes [P, 4] xyxy, scores [P]."""

    boxes: Array
    scores: Array


class Survivors(NamedTuple):
    """What each step of `select` leaves of the T anchors of one image, as indices into them.

    top_k         the highest logits of each level: level by level, by falling logit
    sized         those of them whose clipped boxes are long enough, in the same order
    unsuppressed  those of them that non-maximum suppression keeps, by falling score
    kept          the first of them: the proposals
    """

    top_k: Array
    sized: Array
    unsuppressed: Array
    kept: Array


class Targets(NamedTuple):
    """The values that the anchors of N images should predict.

    labels   [N, T]     1 object, 0 background, -1 ignored
    matched  [N, T]     the ground truth of highest IoU, for any label; 0 if there is none
    deltas   [N, T, 4]  0 unless the label is 1
    sampled  [N, T]     the labels of the anchors that the losses use, -1 for all others
    """

    labels: Array
    matched: Array
    deltas: Array
    sampled: Array


def head(parameters: dict, features: dict[int, Array], rpn: RPN) -> tuple[list[Array], list[Array]]:
    """Predict objectness and deltas of every anchor, by the same convolutions on each level.

    {level: [N, C, h, w]} -> two lists over levels: logits [N, A, h, w] and deltas [N, 4 A, h, w],
    channel 4 a + coordinate.
    """
    logits, deltas = [], []
    for x in features.values():
        for i in range(1, rpn.conv_depth + 1):
            weight, bias = parameters[f"rpn.conv{i}.weight"], parameters[f"rpn.conv{i}.bias"]
            x = relu(conv2d(x, weight, bias, padding=1))
        logits.append(conv2d(x, parameters["rpn.logits.weight"], parameters["rpn.logits.bias"]))
        deltas.append(conv2d(x, parameters["rpn.deltas.weight"], parameters["rpn.deltas.bias"]))
    return logits, deltas


def flatten(logits: list[Array], deltas: list[Array]) -> tuple[Array, Array]:
    """Order the maps of all levels as the anchors: logits [N, T], deltas [N, T, 4]."""
    images = len(logits[0])
    flat_logits = [x.transpose(0, 2, 3, 1).reshape(images, -1) for x in logits]
    flat_deltas = [x.transpose(0, 2, 3, 1).reshape(images, -1, 4) for x in deltas]
    return np.concatenate(flat_logits, axis=1), np.concatenate(flat_deltas, axis=1)


def proposals(
    logits: Array,
    deltas: Array,
    anchors: list[Array],
    sizes: list[tuple[int, int]],
    rpn: RPN,
    *,
    training: bool,
) -> list[Proposals]:
    """Choose the best boxes of every image after suppression within each level (SPEC §7).

    logits   [N, T]
    deltas   [N, T, 4]
    anchors  list over levels of [T_l, 4]
    sizes    (h, w) of every image without its padding
    Returns a list of Proposals, P <= post_nms_top_n; see `select`. No gradient reaches them.
    """
    level = np.repeat(np.arange(len(anchors)), [len(a) for a in anchors])
    decoded = box_coder.decode(deltas, np.concatenate(anchors), rpn.box_weights)
    return [
        select(image_boxes, image_logits, level, size, rpn, training=training)
        for image_boxes, image_logits, size in zip(decoded, logits, sizes)
    ]


def select(
    decoded: Array, logits: Array, level: Array, size: tuple[int, int], rpn: RPN, *, training: bool
) -> Proposals:
    """Choose the proposals of one image among its decoded boxes [T, 4], logits [T] and levels [T].

    Take the pre_nms_top_n highest logits of each level; clip to `size` (h, w); drop short boxes;
    suppress within each level; keep the post_nms_top_n best of all levels.
    Scores are probabilities or logits (`nms_score`). Equal scores: lower index first.
    """
    kept = survivors(decoded, logits, level, size, rpn, training=training).kept
    return Proposals(boxes.clip(decoded[kept], *size), _scores(logits[kept], rpn))


def survivors(
    decoded: Array, logits: Array, level: Array, size: tuple[int, int], rpn: RPN, *, training: bool
) -> Survivors:
    """Return the anchors that are left after each step of `select`, whose arguments these are."""
    pre = rpn.pre_nms_top_n_train if training else rpn.pre_nms_top_n_test
    post = rpn.post_nms_top_n_train if training else rpn.post_nms_top_n_test
    rows_by_level = [np.flatnonzero(level == index) for index in np.unique(level)]
    top_k = np.concatenate([rows[nms.top_k(logits[rows], pre)] for rows in rows_by_level])
    clipped = boxes.clip(decoded[top_k], *size)
    valid = boxes.is_valid(clipped, rpn.min_size, rpn.min_size_inclusive)
    sized, clipped = top_k[valid], clipped[valid]
    scores = _scores(logits[sized], rpn)
    unsuppressed = sized[nms.batched_nms(clipped, scores, level[sized], rpn.nms_iou)]
    return Survivors(top_k, sized, unsuppressed, unsuppressed[:post])


def _scores(logits, rpn):
    return sigmoid(logits) if rpn.nms_score == "probability" else logits


def targets(anchors: Array, gt_boxes: list[Array], priorities: Array, rpn: RPN) -> Targets:
    """Match the anchors to the ground truth of each image and sample those that the losses use.

    anchors     [T, 4]
    gt_boxes    list of [G, 4]; G may be 0
    priorities  [N, T]; the smallest are sampled
    """
    matches = [match(anchors, image_boxes, rpn) for image_boxes in gt_boxes]
    labels, matched, deltas = (np.stack(images) for images in zip(*matches))
    sampled = np.full_like(labels, -1)
    for row, candidates, priority in zip(sampled, labels, priorities):
        quota = rpn.batch_size, rpn.positive_fraction
        positive, negative = sampler.sample(candidates, priority, *quota)
        row[positive], row[negative] = 1, 0
    return Targets(labels, matched, deltas, sampled)


def match(anchors: Array, gt_boxes: Array, rpn: RPN) -> tuple[Array, Array, Array]:
    """Return labels [T], matched [T], deltas [T, 4] of the anchors of one image; see `Targets`."""
    iou, high, low = boxes.iou(gt_boxes, anchors), rpn.foreground_iou, rpn.background_iou
    labels, matched = matcher.match(iou, high, low, rpn.low_quality_matches, rpn.zero_iou_matches)
    positive, deltas = labels == 1, np.zeros_like(anchors)
    matched_boxes = gt_boxes[matched[positive]]
    deltas[positive] = box_coder.encode(matched_boxes, anchors[positive], rpn.box_weights)
    return labels, matched, deltas


def losses(
    logits: Array, deltas: Array, sampled: Array, target_deltas: Array, rpn: RPN
) -> tuple[Array, Array]:
    """Return the objectness loss and the box loss, two scalars: the sums of the `addends`."""
    objectness, box = addends(logits, deltas, sampled, target_deltas, rpn)
    return objectness.sum(), box.sum()


def addends(
    logits: Array, deltas: Array, sampled: Array, target_deltas: Array, rpn: RPN
) -> tuple[Array, Array]:
    """Return the addends of the objectness loss and of the box loss.

    logits         [N, T]
    deltas         [N, T, 4]
    sampled        [N, T]     1 positive, 0 negative, -1 not sampled
    target_deltas  [N, T, 4]  used where positive

    Returns [S] of the sampled anchors and [S_1, 4] of the positive ones among them, in the order of
    np.nonzero(sampled >= 0) and np.nonzero(sampled == 1). Both are divided by S (at least 1), or by
    batch_size * N (SPEC §7).
    """
    positive, used = sampled == 1, sampled >= 0
    normalizer = rpn.batch_size * len(sampled)
    if rpn.loss_normalizer == "sampled":
        normalizer = max(int(used.sum()), 1)
    objectness = binary_cross_entropy(logits[used], positive[used]) / normalizer
    difference = deltas[positive] - target_deltas[positive]
    return objectness, smooth_l1(difference, rpn.smooth_l1_beta) / normalizer


def parameter_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return {parameter: shape}."""
    channels = neck.of(config).channels(config)
    anchors = len(config.anchors.sizes[0]) * len(config.anchors.ratios)
    depth = config.rpn.conv_depth
    shapes = {f"rpn.conv{i}": (channels, channels, 3, 3) for i in range(1, depth + 1)}
    shapes |= {"rpn.logits": (anchors, channels, 1, 1), "rpn.deltas": (4 * anchors, channels, 1, 1)}
    weights = {f"{name}.weight": shape for name, shape in shapes.items()}
    return weights | {f"{name}.bias": shape[:1] for name, shape in shapes.items()}
