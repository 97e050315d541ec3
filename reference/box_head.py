"""Box head [Fast R-CNN §2]: its RoIs in training, its class logits and box deltas, its losses.

Legend: R RoIs, C channels, P side of the RoI features, D features that describe a RoI, K classes,
E box deltas per RoI (see labels.delta_layout), G ground truths, P proposals in sampling.
"""

from typing import NamedTuple

import numpy as np

from reference import box_coder, boxes, matcher, norm, sampler, shared_head
from reference.activations import relu
from reference.average_pool import global_average_pool
from reference.config import BoxHead, Config
from reference.labels import class_layout, delta_layout
from reference.linear import flatten, fully_connected, linear
from reference.linear import parameter_shapes as linear_shapes
from reference.losses import cross_entropy, smooth_l1
from reference.structures import Array


class Samples(NamedTuple):
    """The RoIs of one image that the heads learn from, objects first.

    rois              [R, 4]   xyxy
    labels            [R]      0..K
    matched           [R]      row of the ground truth
    deltas            [R, 4]   0 for background
    candidate_labels  [P + G]  before sampling: 1 foreground, 0 background, -1 ignored
    indices           [R]      row of the candidate
    """

    rois: Array
    labels: Array
    matched: Array
    deltas: Array
    candidate_labels: Array
    indices: Array


def targets(
    proposals: Array, gt_boxes: Array, gt_labels: Array, priorities: Array, head: BoxHead
) -> Samples:
    """Sample RoIs among the proposals of one image and, if configured, its ground truths (SPEC §6).

    proposals   [P, 4]; P may be 0
    gt_boxes    [G, 4]; G may be 0
    gt_labels   [G]      1..K
    priorities  [P + G]  of the proposals, then of the ground truths; the smallest are sampled
    """
    candidates = np.concatenate([proposals, gt_boxes]) if head.append_ground_truth else proposals
    candidate_labels, matched = matcher.match(
        boxes.iou(gt_boxes, candidates), head.foreground_iou, head.background_iou, low_quality=False
    )
    positive, negative = sampler.sample(
        candidate_labels, priorities[: len(candidates)], head.batch_size, head.positive_fraction
    )
    objects, indices = len(positive), np.concatenate([positive, negative])
    rois, matched = candidates[indices], matched[indices]
    labels, deltas = np.zeros(len(rois), int), np.zeros_like(rois)
    labels[:objects], matched_boxes = gt_labels[matched[:objects]], gt_boxes[matched[:objects]]
    deltas[:objects] = box_coder.encode(matched_boxes, rois[:objects], head.box_weights)
    return Samples(rois, labels, matched, deltas, candidate_labels, indices)


def forward(
    parameters: dict, features: Array, config: Config, statistics: dict | None = None
) -> tuple[Array, Array]:
    """Predict class logits [R, K + 1] and box deltas [R, 4 E] from RoI features [R, C, P, P].

    Deltas are class-major (4 * class + coordinate). `statistics` as in `norm.conv_norm`.
    """
    x = KINDS[config.box_head.kind](parameters, features, config, statistics)
    class_logits, box_deltas = (
        linear(x, parameters[f"box_head.{name}.weight"], parameters[f"box_head.{name}.bias"])
        for name in ("class_logits", "box_deltas")
    )
    return class_logits, box_deltas


def two_fc(parameters: dict, x: Array, config: Config, statistics: dict | None) -> Array:
    """Describe RoIs by fully connected layers fc6 and fc7 [FPN §4.2]: [R, C, P, P] -> [R, D].

    With 4096 channels these are VGG-16's.
    """
    x = fully_connected(parameters, "box_head.fc6", flatten(x))
    return fully_connected(parameters, "box_head.fc7", x)


def four_conv_fc(parameters: dict, x: Array, config: Config, statistics: dict | None) -> Array:
    """Describe RoIs by four 3x3 convolutions, then fc6 [Group Normalization §4.2]: -> [R, D]."""
    kind = config.box_head.norm
    for name in (f"box_head.conv{i}" for i in range(1, 5)):
        x = norm.conv_norm(parameters, name, f"{name}_norm", x, kind, config, statistics, padding=1)
        x = relu(x)
    return fully_connected(parameters, "box_head.fc6", flatten(x))


def mean(parameters: dict, x: Array, config: Config, statistics: dict | None) -> Array:
    """Describe RoIs by the mean over their pixels: [R, C, P, P] -> [R, C].

    It is enough after a shared stage of the backbone [Deep Residual Learning §A].
    """
    return global_average_pool(x)


KINDS = {"two_fc": two_fc, "four_conv_fc": four_conv_fc, "mean": mean}


def losses(
    class_logits: Array, box_deltas: Array, labels: Array, target_deltas: Array, config: Config
) -> tuple[Array, Array]:
    """Return the classification loss and the box loss, two scalars: the sums of the `addends`."""
    classification, box = addends(class_logits, box_deltas, labels, target_deltas, config)
    return classification.sum(), box.sum()


def addends(
    class_logits: Array, box_deltas: Array, labels: Array, target_deltas: Array, config: Config
) -> tuple[Array, Array]:
    """Return the addends of the classification loss and of the box loss.

    class_logits   [R, K + 1]
    box_deltas     [R, 4 E]
    labels         [R]     0..K
    target_deltas  [R, 4]  used for objects

    Returns [R] of the sampled RoIs and [R_1, 4] of the objects among them, in the order of
    np.flatnonzero(labels > 0), in the deltas of their class. Both are divided by R (at least 1).
    """
    normalizer = max(len(labels), 1)
    columns = class_layout(config).column(labels)
    classification = cross_entropy(class_logits, columns) / normalizer
    layout, objects = delta_layout(config), np.flatnonzero(labels > 0)
    per_class = box_deltas.reshape(len(labels), layout.columns, 4)
    deltas = per_class[objects, layout.column(labels[objects])]
    difference = deltas - target_deltas[objects]
    return classification, smooth_l1(difference, config.box_head.smooth_l1_beta) / normalizer


def parameter_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return {parameter: shape}."""
    head, shapes = config.box_head, {}
    channels, side = shared_head.shape(config, head.pooler)
    if head.kind == "four_conv_fc":
        for name in (f"box_head.conv{i}" for i in range(1, 5)):
            shape = (head.conv_channels, channels, 3, 3)
            shapes |= norm.parameter_shapes(name, f"{name}_norm", shape, head.norm)
            channels = head.conv_channels
    if head.kind != "mean":
        shapes |= linear_shapes("box_head.fc6", (head.channels, channels * side**2))
        channels = head.channels
    if head.kind == "two_fc":
        shapes |= linear_shapes("box_head.fc7", (channels, channels))
    shapes |= linear_shapes("box_head.class_logits", (class_layout(config).columns, channels))
    return shapes | linear_shapes(
        "box_head.box_deltas", (4 * delta_layout(config).columns, channels)
    )
