"""Mask head: pooled features -> one mask of logits per class [Mask R-CNN §3, figure 4].

Legend: R rois, C channels, P pooled size, S = 2 P mask size, E entries (see box_head).
"""

import numpy as np

from reference import losses, norm
from reference.activations import relu
from reference.box_head import entries
from reference.conv import conv2d, conv_transpose2d


def forward(parameters, pooled, config, training=False):
    """pooled [R, C, P, P] -> logits [R, E, S, S]."""
    x = pooled
    for i in range(1, config.mask_head.convs + 1):
        name = f"mask_head.conv{i}"
        x = relu(norm.conv_norm(parameters, name, f"{name}_norm", x, config.mask_head.norm, config, training, padding=1))
    x = relu(conv_transpose2d(x, parameters["mask_head.deconv.weight"], parameters["mask_head.deconv.bias"], stride=2))
    return conv2d(x, parameters["mask_head.logits.weight"], parameters["mask_head.logits.bias"])


def select(logits, labels, config):
    """The channel of each RoI's class: logits [R, E, S, S], labels [R] in 1..K -> [R, S, S]."""
    return logits[np.arange(len(labels)), losses.entries(labels, config)]


def parameter_shapes(config):
    """{parameter: shape}; the transposed convolution's weight is [in, out, 2, 2]."""
    head, channels, shapes = config.mask_head, config.fpn.channels, {}
    for i in range(1, head.convs + 1):
        shapes |= norm.parameter_shapes(f"mask_head.conv{i}", f"mask_head.conv{i}_norm", (head.channels, channels, 3, 3), head.norm)
        channels = head.channels
    shapes |= {"mask_head.deconv.weight": (channels, head.channels, 2, 2), "mask_head.deconv.bias": (head.channels,)}
    return shapes | {"mask_head.logits.weight": (entries(config), head.channels, 1, 1), "mask_head.logits.bias": (entries(config),)}
