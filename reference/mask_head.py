"""Mask head [Mask R-CNN §3, figure 4]: its logits per class and pixel, its targets and its loss.

Legend: R RoIs, C channels, P side of the RoI features, S = 2 P side of a mask,
M channels of masks (see labels.mask_layout).
"""

import numpy as np

from reference import masks, norm, shared_head
from reference.activations import relu, sigmoid, softmax
from reference.box_head import Samples
from reference.config import Config, MaskHead
from reference.conv import conv2d, conv_transpose2d
from reference.labels import mask_layout
from reference.linear import flatten, fully_connected, linear
from reference.linear import parameter_shapes as linear_shapes
from reference.losses import binary_cross_entropy, soft_cross_entropy
from reference.structures import Array, Target


def forward(
    parameters: dict, features: Array, config: Config, statistics: dict | None = None
) -> Array:
    """Predict mask logits [R, M, S, S] from RoI features [R, C, P, P].

    `statistics` as in `norm.conv_norm`.
    """
    return KINDS[config.mask_head.kind](parameters, features, config, statistics)


def fcn(parameters: dict, x: Array, config: Config, statistics: dict | None) -> Array:
    """Apply 3x3 convolutions, a transposed one that doubles the side, and a 1x1 convolution.

    Every pixel keeps its position.
    """
    kind = config.mask_head.norm
    for name in (f"mask_head.conv{i}" for i in range(1, config.mask_head.convs + 1)):
        x = norm.conv_norm(parameters, name, f"{name}_norm", x, kind, config, statistics, padding=1)
        x = relu(x)
    weight, bias = parameters["mask_head.deconv.weight"], parameters["mask_head.deconv.bias"]
    x = relu(conv_transpose2d(x, weight, bias, stride=2))
    return conv2d(x, parameters["mask_head.logits.weight"], parameters["mask_head.logits.bias"])


def mlp(parameters: dict, x: Array, config: Config, statistics: dict | None) -> Array:
    """Apply two fully connected layers and one that predicts all pixels [Mask R-CNN, table 2e]."""
    side = 2 * x.shape[2]
    x = fully_connected(parameters, "mask_head.fc1", flatten(x))
    x = fully_connected(parameters, "mask_head.fc2", x)
    x = linear(x, parameters["mask_head.logits.weight"], parameters["mask_head.logits.bias"])
    return x.reshape(len(x), mask_layout(config).columns, side, side)


KINDS = {"fcn": fcn, "mlp": mlp}


def targets(
    image_targets: list[Target], samples: list[Samples], head: MaskHead, size: int
) -> Array:
    """Sample or draw each object inside its RoI: [R, size, size] in [0, 1] (SPEC §10).

    image_targets  of each image, in pixels of the network's input
    samples        of each image; R counts the objects among them
    """
    return np.concatenate(
        [
            _targets(target, s.matched[s.labels > 0], s.rois[s.labels > 0], head, size)
            for target, s in zip(image_targets, samples)
        ]
    )


def _targets(target, matched, rois, head, size):
    """Return the targets of an image; an object without outlines is sampled from its mask."""
    out = masks.targets(target.masks, matched, rois, head, size)
    if head.target == "polygon" and target.polygons is not None:
        polygons = [target.polygons[g] for g in matched]
        drawn = np.array([bool(outlines) for outlines in polygons], dtype=bool)
        out[drawn] = masks.polygon_targets(list(filter(None, polygons)), rois[drawn], size)
    return out


def loss(mask_logits: Array, labels: Array, targets: Array, config: Config) -> Array:
    """Return the mask loss, the sum of the `addends`; 0 without objects."""
    return addends(mask_logits, labels, targets, config).sum()


def addends(mask_logits: Array, labels: Array, targets: Array, config: Config) -> Array:
    """Return the addends of the mask loss [R, S, S], a mean over the pixels of all objects.

    mask_logits  [R, M, S, S]
    labels       [R]        1..K
    targets      [R, S, S]  in [0, 1]
    """
    pixels = LOSSES[config.mask_head.loss](mask_logits, labels, targets, config)
    return pixels / max(targets.size, 1)


def sigmoid_loss(mask_logits: Array, labels: Array, targets: Array, config: Config) -> Array:
    """Return the binary cross-entropy of each object's class channel [R, S, S].

    Classes do not compete.
    """
    columns = mask_layout(config).column(labels)
    return binary_cross_entropy(mask_logits[np.arange(len(labels)), columns], targets)


def softmax_loss(mask_logits: Array, labels: Array, targets: Array, config: Config) -> Array:
    """Return the cross-entropy of all pixels [R, S, S]. Classes and background compete.

    A pixel belongs to its object's class with the target's probability, else to the background.
    """
    layout, rows = mask_layout(config), np.arange(len(labels))
    distribution = np.zeros(mask_logits.shape, targets.dtype)
    distribution[rows, layout.column(labels)] = targets
    distribution[:, layout.background] = 1 - targets
    flat_logits, flat_distribution = (
        x.transpose(0, 2, 3, 1).reshape(targets.size, layout.columns)
        for x in (mask_logits, distribution)
    )
    return soft_cross_entropy(flat_logits, flat_distribution).reshape(*targets.shape)


LOSSES = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}


def probabilities(mask_logits: Array, labels: Array, config: Config) -> Array:
    """Return the probability of each pixel to belong to the object -> [R, S, S].

    mask_logits  [R, M, S, S]
    labels       [R]  1..K
    """
    columns, rows = mask_layout(config).column(labels), np.arange(len(labels))
    if config.mask_head.loss == "softmax":
        return softmax(np.moveaxis(mask_logits, 1, -1))[rows, ..., columns]
    return sigmoid(mask_logits[rows, columns])


def parameter_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return {parameter: shape}; the transposed convolution's weight is [in, out, 2, 2].

    Without a mask branch there is no parameter.
    """
    head, columns, shapes = config.mask_head, mask_layout(config).columns, {}
    channels, side = shared_head.shape(config, head.pooler)
    if head.kind == "none":
        return {}
    if head.kind == "mlp":
        width = head.mlp_channels
        shapes |= linear_shapes("mask_head.fc1", (width, channels * side**2))
        shapes |= linear_shapes("mask_head.fc2", (width, width))
        return shapes | linear_shapes("mask_head.logits", (columns * (2 * side) ** 2, width))
    for name in (f"mask_head.conv{i}" for i in range(1, head.convs + 1)):
        shape = (head.channels, channels, 3, 3)
        shapes |= norm.parameter_shapes(name, f"{name}_norm", shape, head.norm)
        channels = head.channels
    shapes |= {
        "mask_head.deconv.weight": (channels, head.channels, 2, 2),
        "mask_head.deconv.bias": (head.channels,),
        "mask_head.logits.weight": (columns, head.channels, 1, 1),
        "mask_head.logits.bias": (columns,),
    }
    return shapes
