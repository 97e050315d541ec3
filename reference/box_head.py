"""Box head: which RoIs it learns from, and pooled features -> class logits and class-specific box deltas.

Legend: R rois, C channels, P pooled size, K classes, G ground truths, E entries
(classes that have deltas: K, or K + 1 with the background first).
"""

import math
from dataclasses import dataclass

import numpy as np

from reference import box_coder, boxes, matcher, norm, sampler
from reference.activations import relu
from reference.linear import linear


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
    labels, matched = matcher.match(boxes.iou(gt_boxes, candidates), config.foreground_iou, config.background_iou, low_quality=False)
    chosen = sampler.sample(labels, priorities[: len(candidates)], config.batch_size, config.positive_fraction)
    objects, chosen = len(chosen[0]), np.concatenate(chosen)
    rois, matched = candidates[chosen], matched[chosen]
    roi_labels, deltas = np.zeros(len(rois), int), np.zeros_like(rois)
    roi_labels[:objects] = gt_labels[matched[:objects]]
    deltas[:objects] = box_coder.encode(gt_boxes[matched[:objects]], rois[:objects], config.box_weights)
    return Samples(rois, roi_labels, matched, deltas, labels, chosen)


def forward(parameters, pooled, config, training=False):
    """pooled [R, C, P, P] -> class_logits [R, K + 1], box_deltas [R, 4E], class-major.

    "two_fc": fc6, fc7 [FPN §4.2]. "four_conv_fc": four 3x3 convolutions, then fc6 [Group Normalization §4.2].
    """
    x = pooled
    if config.box_head.kind == "four_conv_fc":
        for i in range(1, 5):
            name = f"box_head.conv{i}"
            x = relu(norm.conv_norm(parameters, name, f"{name}_norm", x, config.box_head.norm, config, training, padding=1))
    x = x.reshape(len(x), math.prod(x.shape[1:]))  # in the order C, P, P
    x = relu(linear(x, parameters["box_head.fc6.weight"], parameters["box_head.fc6.bias"]))
    if config.box_head.kind == "two_fc":
        x = relu(linear(x, parameters["box_head.fc7.weight"], parameters["box_head.fc7.bias"]))
    class_logits = linear(x, parameters["box_head.class_logits.weight"], parameters["box_head.class_logits.bias"])
    return class_logits, linear(x, parameters["box_head.box_deltas.weight"], parameters["box_head.box_deltas.bias"])


def entries(config):
    """How many classes have deltas and mask channels of their own: K, or K + 1 where the (unused) background comes first."""
    return config.num_classes + (config.background == "first")


def parameter_shapes(config):
    """{parameter: shape}."""
    head, channels, shapes = config.box_head, config.fpn.channels, {}
    if head.kind == "four_conv_fc":
        for i in range(1, 5):
            shape = (head.conv_channels, channels, 3, 3)
            shapes |= norm.parameter_shapes(f"box_head.conv{i}", f"box_head.conv{i}_norm", shape, head.norm)
            channels = head.conv_channels
    shapes |= norm.parameter_shapes("box_head.fc6", "", (head.channels, channels * head.pooler.output_size**2), "none")
    if head.kind == "two_fc":
        shapes |= norm.parameter_shapes("box_head.fc7", "", (head.channels, head.channels), "none")
    shapes |= norm.parameter_shapes("box_head.class_logits", "", (config.num_classes + 1, head.channels), "none")
    return shapes | norm.parameter_shapes("box_head.box_deltas", "", (4 * entries(config), head.channels), "none")
