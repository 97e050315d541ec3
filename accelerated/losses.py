"""The five losses, from their elementwise primitives (SPEC §7, §8, §10), and where each label's numbers stand in a head's output.

N images, T anchors, R RoI slots of the batch, K classes, S mask side, E = K + 1 or K deltas per RoI.
Shapes are fixed; labels say which slots count. Every loss depends on every number it is given, if only by a factor of 0.
"""

import torch
from torch.nn import functional as F


def foreground(config):
    """Slice of the class columns or deltas that holds labels 1..K in this order."""
    first = 1 if config.background == "first" else 0
    return slice(first, first + config.num_classes)


def class_columns(labels, config):
    """Labels 0..K -> their columns in the class logits."""
    return labels if config.background == "first" else (labels - 1) % (config.num_classes + 1)


def entries(labels, config):
    """Labels 1..K -> their deltas in the box head's output; other labels get some valid entry."""
    return (labels if config.background == "first" else labels - 1).clamp(min=0)


def smooth_l1(difference, beta):
    """0.5 d² / beta below `beta`, |d| - 0.5 beta from there on; |d| everywhere for beta < 1e-5. Elementwise."""
    if beta < 1e-5:
        return difference.abs()
    return F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none", beta=beta)


def binary_cross_entropy(logits, targets):
    """-(t ln σ(x) + (1 - t) ln(1 - σ(x))), without overflow for any x. Elementwise."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def cross_entropy(logits, columns):
    """-ln softmax(logits)[column] of each row: logits [R, K + 1], columns [R] -> [R]."""
    return F.cross_entropy(logits, columns, reduction="none")


def rpn_losses(logits, deltas, labels, target_deltas, config):
    """Objectness and box loss of the sampled anchors.

    logits [N, T]; deltas, target_deltas [N, T, 4]; labels [N, T]: 1 positive, 0 negative, -1 not sampled; config: config.RPN
    Returns two scalars; both are divided by the number of sampled anchors (at least 1), or by batch_size * N.
    `target_deltas` may hold anything where the label is not 1.
    """
    positive, sampled = labels == 1, labels >= 0
    normalizer = (
        sampled.sum().clamp(min=1)
        if config.loss_normalizer == "sampled"
        else config.batch_size * len(labels)
    )
    objectness = (
        torch.where(sampled, binary_cross_entropy(logits, positive.to(logits.dtype)), 0).sum()
        / normalizer
    )
    difference = torch.where(positive[..., None], deltas - target_deltas, 0)
    return objectness, smooth_l1(difference, config.smooth_l1_beta).sum() / normalizer


def box_losses(class_logits, box_deltas, labels, target_deltas, config):
    """Classification and box loss of the sampled RoIs.

    class_logits [R, K + 1]; box_deltas [R, 4E]; labels [R] in 0..K, -1 in empty slots; target_deltas [R, 4]; config: config.Config
    Returns two scalars, both divided by the number of filled slots (at least 1): boxes count for objects only, in the deltas of
    their own class. `target_deltas` may hold anything where there is no object.
    """
    filled, positive = labels >= 0, labels > 0
    normalizer = filled.sum().clamp(min=1)
    per_roi = cross_entropy(class_logits, class_columns(labels.clamp(min=0), config))
    classification = torch.where(filled, per_roi, 0).sum() / normalizer
    own = box_deltas.unflatten(1, (-1, 4)).take_along_dim(
        entries(labels, config)[:, None, None], 1
    )[:, 0]
    difference = torch.where(positive[:, None], own - target_deltas, 0)
    return classification, smooth_l1(difference, config.box_head.smooth_l1_beta).sum() / normalizer


def mask_channels(config):
    """How many masks the head puts out for a RoI: one per class, or one for all; beside a softmax one more, for the background."""
    classes = 1 if config.mask_head.class_agnostic else config.num_classes
    unused = (
        config.background == "first" and not config.mask_head.class_agnostic
    )  # torchvision keeps a channel that nobody trains
    return classes + (config.mask_head.loss == "softmax" or unused)


def mask_columns(labels, config):
    """Labels 1..K -> their channels in the mask logits; label 0: the background's channel of a softmax, or some valid one."""
    labels = labels.clamp(0, 1) if config.mask_head.class_agnostic else labels.clamp(min=0)
    only = mask_channels(config) == 1
    return (
        labels
        if config.background == "first" and not only
        else (labels - 1) % mask_channels(config)
    )


def mask_loss(mask_logits, labels, targets, config):
    """The loss of each object's mask, mean over objects and pixels; 0 without objects.

    mask_logits [R, mask_channels, S, S]; labels [R] in 1..K, 0 or less in empty slots; targets [R, S, S] in [0, 1]; config: config.Config
    """
    objects = labels > 0
    pixels = MASK_LOSSES[config.mask_head.loss](
        mask_logits, labels, targets.to(mask_logits.dtype), config
    )
    total = torch.where(objects[:, None, None], pixels, 0).sum()
    return total / (objects.sum().clamp(min=1) * targets[0].numel() if len(targets) else 1)


def sigmoid_mask_loss(mask_logits, labels, targets, config):
    """Binary cross-entropy of the own class's channel alone, [R, S, S]: classes do not compete."""
    return binary_cross_entropy(
        mask_logits.take_along_dim(_channel(labels, config), 1)[:, 0], targets
    )


def softmax_mask_loss(mask_logits, labels, targets, config):
    """Every pixel is of the own class (by its share, the target) or background: classes compete. [R, S, S]"""
    own, background = _channel(labels, config), _channel(torch.zeros_like(labels), config)
    likelihood = mask_logits.log_softmax(1)
    own, background = (likelihood.take_along_dim(channel, 1)[:, 0] for channel in (own, background))
    return -(targets * own + (1 - targets) * background)


MASK_LOSSES = {"sigmoid": sigmoid_mask_loss, "softmax": softmax_mask_loss}


def mask_probabilities(mask_logits, labels, config):
    """Each pixel's probability to belong to the object, by its class's channel.

    mask_logits [R, mask_channels, S, S], labels [R] in 1..K, any other gets some channel -> [R, S, S].
    """
    probabilities = (
        mask_logits.softmax(1) if config.mask_head.loss == "softmax" else mask_logits.sigmoid()
    )
    return probabilities.take_along_dim(_channel(labels, config), 1)[:, 0]


def _channel(labels, config):
    return mask_columns(labels, config)[:, None, None, None]
