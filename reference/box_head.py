"""Box head: which RoIs it learns from, and RoI features -> class logits and class-specific box deltas.

Legend: R rois, C channels, P side of the RoI features, D numbers that describe a RoI, K classes, G ground truths, E entries
(classes that have deltas: K, or K + 1 with the background first).
"""

from dataclasses import dataclass

import numpy as np

from reference import box_coder, boxes, matcher, norm, sampler, shared_head
from reference.activations import relu
from reference.average_pool import global_average_pool
from reference.linear import flatten, fully_connected, linear
from reference.linear import parameter_shapes as linear_shapes


@dataclass
class Samples:
    """The RoIs of one image that the heads learn from, foreground first: what they are, and what the heads should answer."""

    rois: np.ndarray  # [R, 4]
    labels: np.ndarray  # [R], 0..K
    matched: np.ndarray  # [R], row of the ground truth
    deltas: np.ndarray  # [R, 4], 0 for background
    candidate_labels: np.ndarray  # [P + G], before sampling: 1 foreground, 0 background, -1 ignored
    indices: np.ndarray  # [R], row of the candidate


def targets(proposals, gt_boxes, gt_labels, priorities, config):
    """A balanced sample of one image's proposals, and of its ground-truth boxes where the configuration appends them (SPEC §6).

    proposals [P, 4], gt_boxes [G, 4], gt_labels [G] in 1..K; G may be 0, P too
    priorities [P + G]: of the proposals, then of the ground truths; the smallest are taken. config: config.BoxHead
    """
    candidates = np.concatenate([proposals, gt_boxes]) if config.append_ground_truth else proposals
    labels, matched = matcher.match(
        boxes.iou(gt_boxes, candidates),
        config.foreground_iou,
        config.background_iou,
        low_quality=False,
    )
    chosen = sampler.sample(
        labels, priorities[: len(candidates)], config.batch_size, config.positive_fraction
    )
    objects, chosen = len(chosen[0]), np.concatenate(chosen)
    rois, matched = candidates[chosen], matched[chosen]
    roi_labels, deltas = np.zeros(len(rois), int), np.zeros_like(rois)
    roi_labels[:objects] = gt_labels[matched[:objects]]
    deltas[:objects] = box_coder.encode(
        gt_boxes[matched[:objects]], rois[:objects], config.box_weights
    )
    return Samples(rois, roi_labels, matched, deltas, labels, chosen)


def forward(parameters, features, config, statistics=None):
    """RoI features [R, C, P, P] -> class_logits [R, K + 1], box_deltas [R, 4E], class-major."""
    x = KINDS[config.box_head.kind](parameters, features, config, statistics)
    class_logits = linear(
        x, parameters["box_head.class_logits.weight"], parameters["box_head.class_logits.bias"]
    )
    return class_logits, linear(
        x, parameters["box_head.box_deltas.weight"], parameters["box_head.box_deltas.bias"]
    )


def two_fc(parameters, x, config, statistics):
    """[R, C, P, P] -> [R, D] by fully connected layers fc6 and fc7 [FPN §4.2]; with 4096 channels, those of VGG-16."""
    return fully_connected(
        parameters, "box_head.fc7", fully_connected(parameters, "box_head.fc6", flatten(x))
    )


def four_conv_fc(parameters, x, config, statistics):
    """[R, C, P, P] -> [R, D] by four 3x3 convolutions, then fc6 [Group Normalization §4.2]."""
    for i in range(1, 5):
        name = f"box_head.conv{i}"
        x = relu(
            norm.conv_norm(
                parameters,
                name,
                f"{name}_norm",
                x,
                config.box_head.norm,
                config,
                statistics,
                padding=1,
            )
        )
    return fully_connected(parameters, "box_head.fc6", flatten(x))


def mean(parameters, x, config, statistics):
    """[R, C, P, P] -> [R, C]: behind a shared stage of the backbone the mean over the pixels is enough [Deep Residual Learning §A]."""
    return global_average_pool(x)


KINDS = {"two_fc": two_fc, "four_conv_fc": four_conv_fc, "mean": mean}


def entries(config):
    """How many classes have deltas of their own: K, or K + 1 where the (unused) background comes first."""
    return config.num_classes + (config.background == "first")


def parameter_shapes(config):
    """{parameter: shape}."""
    head = config.box_head
    channels, side = shared_head.shape(config, head.pooler)
    shapes, layers = {}, {}
    if head.kind == "four_conv_fc":
        for i in range(1, 5):
            shape = (head.conv_channels, channels, 3, 3)
            shapes |= norm.parameter_shapes(
                f"box_head.conv{i}", f"box_head.conv{i}_norm", shape, head.norm
            )
            channels = head.conv_channels
    if head.kind in ("two_fc", "four_conv_fc"):
        layers["fc6"] = (head.channels, channels * side**2)
        channels = head.channels
    if head.kind == "two_fc":
        layers["fc7"] = (channels, channels)
    layers |= {
        "class_logits": (config.num_classes + 1, channels),
        "box_deltas": (4 * entries(config), channels),
    }
    for name, shape in layers.items():
        shapes |= linear_shapes(f"box_head.{name}", shape)
    return shapes
