"""The five losses, from their elementwise primitives (SPEC §7, §8, §10), and where each label's numbers stand in a head's output.

N images, T anchors, R sampled RoIs of the batch, K classes, S mask side, E = K + 1 or K deltas per RoI.
"""

import numpy as np

from reference.activations import log_softmax, sigmoid, softmax
from reference.autodiff import primitive


def foreground(config):
    """Slice of the class columns or deltas that holds labels 1..K in this order."""
    first = 1 if config.background == "first" else 0
    return slice(first, first + config.num_classes)


def class_columns(labels, config):
    """Labels 0..K -> their columns in the class logits."""
    return labels if config.background == "first" else (labels - 1) % (config.num_classes + 1)


def entries(labels, config):
    """Labels 1..K -> their deltas in the box head's output; label 0 gets some valid entry."""
    return labels if config.background == "first" else np.maximum(labels - 1, 0)


@primitive
def smooth_l1(difference, beta):
    """0.5 d² / beta below `beta`, |d| - 0.5 beta from there on; |d| everywhere for beta < 1e-5. Elementwise."""
    d = np.abs(difference)
    if beta < 1e-5:
        return d
    return np.where(d < beta, 0.5 * d * d / beta, d - 0.5 * beta)


def smooth_l1_backward(grad_out, difference, beta):
    """d / beta below `beta`, the sign of d from there on. The sign of 0 is 0: plain L1 has a kink there."""
    sign = np.sign(difference)
    if beta < 1e-5:
        return grad_out * sign
    return grad_out * np.where(np.abs(difference) < beta, difference / beta, sign)


@primitive
def binary_cross_entropy(logits, targets):
    """-(t ln σ(x) + (1 - t) ln(1 - σ(x))), without overflow for any x. Elementwise."""
    return np.maximum(logits, 0) - logits * targets + np.log1p(np.exp(-np.abs(logits)))


def binary_cross_entropy_backward(grad_out, logits, targets):
    """σ(x) - t, because d ln σ(x) / dx = 1 - σ(x) and d ln(1 - σ(x)) / dx = -σ(x). Targets are constants."""
    return grad_out * (sigmoid(logits) - targets)


@primitive
def cross_entropy(logits, columns):
    """-ln softmax(logits)[column] of each row: logits [R, K + 1], columns [R] -> [R]."""
    return -log_softmax(logits)[np.arange(len(columns)), columns]


def cross_entropy_backward(grad_out, logits, columns):
    """softmax(logits) - one_hot(column), because -ln softmax(x)[c] = ln(sum of exp(x_k)) - x_c."""
    grad = softmax(logits)
    grad[np.arange(len(columns)), columns] -= 1
    return grad * grad_out[:, None]


@primitive
def soft_cross_entropy(logits, targets):
    """-sum over k of t_k ln softmax(logits)_k of each row: logits [R, K], targets [R, K], each row a distribution -> [R]."""
    return -(targets * log_softmax(logits)).sum(axis=-1)


def soft_cross_entropy_backward(grad_out, logits, targets):
    """softmax(logits) - targets, as above with the targets' sum of 1 in place of the one. Targets are constants."""
    return (softmax(logits) - targets) * grad_out[:, None]


def rpn_losses(logits, deltas, labels, target_deltas, config):
    """Objectness and box loss of the sampled anchors.

    logits [N, T]; deltas, target_deltas [N, T, 4]; labels [N, T]: 1 positive, 0 negative, -1 not sampled; config: config.RPN
    Returns two scalars; both are divided by the number of sampled anchors (at least 1), or by batch_size * N.
    """
    positive, sampled = labels == 1, labels >= 0
    normalizer = (
        max(int(sampled.sum()), 1)
        if config.loss_normalizer == "sampled"
        else config.batch_size * len(labels)
    )
    objectness = binary_cross_entropy(logits[sampled], positive[sampled]).sum() / normalizer
    box = (
        smooth_l1(deltas[positive] - target_deltas[positive], config.smooth_l1_beta).sum()
        / normalizer
    )
    return objectness, box


def box_losses(class_logits, box_deltas, labels, target_deltas, config):
    """Classification and box loss of the sampled RoIs.

    class_logits [R, K + 1]; box_deltas [R, 4E]; labels [R] in 0..K; target_deltas [R, 4]; config: config.Config
    Returns two scalars, both divided by R (at least 1): boxes count for objects only, in the deltas of their own class.
    """
    normalizer = max(len(labels), 1)
    classification = cross_entropy(class_logits, class_columns(labels, config)).sum() / normalizer
    positive = np.flatnonzero(labels > 0)
    deltas = box_deltas.reshape(len(labels), box_deltas.shape[1] // 4, 4)[
        positive, entries(labels[positive], config)
    ]
    box = (
        smooth_l1(deltas - target_deltas[positive], config.box_head.smooth_l1_beta).sum()
        / normalizer
    )
    return classification, box


def mask_channels(config):
    """How many masks the head puts out for a RoI: one per class, or one for all; beside a softmax one more, for the background."""
    classes = 1 if config.mask_head.class_agnostic else config.num_classes
    unused = (
        config.background == "first" and not config.mask_head.class_agnostic
    )  # torchvision keeps a channel that nobody trains
    return classes + (config.mask_head.loss == "softmax" or unused)


def mask_columns(labels, config):
    """Labels 1..K -> their channels in the mask logits; label 0: the background's channel of a softmax."""
    if config.mask_head.class_agnostic:
        labels = np.minimum(labels, 1)
    only = mask_channels(config) == 1
    return (
        labels
        if config.background == "first" and not only
        else (labels - 1) % mask_channels(config)
    )


def mask_loss(mask_logits, labels, targets, config):
    """The loss of each object's mask, mean over objects and pixels; 0 without objects.

    mask_logits [R, mask_channels, S, S]; labels [R] in 1..K; targets [R, S, S] in [0, 1]; config: config.Config
    """
    return MASK_LOSSES[config.mask_head.loss](mask_logits, labels, targets, config).sum() / max(
        targets.size, 1
    )


def sigmoid_mask_loss(mask_logits, labels, targets, config):
    """Binary cross-entropy of the own class's channel alone, [R, S, S]: classes do not compete."""
    return binary_cross_entropy(
        mask_logits[np.arange(len(labels)), mask_columns(labels, config)], targets
    )


def softmax_mask_loss(mask_logits, labels, targets, config):
    """Every pixel is of the own class (by its share, the target) or background: classes compete. Of all pixels in a row, [R S S]."""
    rows, wanted = np.arange(len(labels)), np.zeros(mask_logits.shape, targets.dtype)
    wanted[rows, mask_columns(labels, config)] = targets
    wanted[rows, mask_columns(np.zeros_like(labels), config)] = 1 - targets
    channels = mask_logits.shape[1]
    pixels = [
        x.transpose(0, 2, 3, 1).reshape(targets.size, channels) for x in (mask_logits, wanted)
    ]
    return soft_cross_entropy(*pixels)


MASK_LOSSES = {"sigmoid": sigmoid_mask_loss, "softmax": softmax_mask_loss}


def mask_probabilities(mask_logits, labels, config):
    """Each pixel's probability to belong to the object, by its class's channel.

    mask_logits [R, mask_channels, S, S], labels [R] in 1..K -> [R, S, S].
    """
    if config.mask_head.loss == "softmax":
        probabilities = np.moveaxis(softmax(np.moveaxis(mask_logits, 1, -1)), -1, 1)
    else:
        probabilities = sigmoid(mask_logits)
    return probabilities[np.arange(len(labels)), mask_columns(labels, config)]
