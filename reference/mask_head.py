"""Mask head: RoI features -> one mask of logits per class [Mask R-CNN §3, figure 4], or a single one for all.

Legend: R rois, C channels, P side of the RoI features, S = 2 P mask size, E channels of masks (see losses.mask_channels).
"""

from reference import losses, norm, shared_head
from reference.activations import relu
from reference.conv import conv2d, conv_transpose2d
from reference.linear import flatten, fully_connected, linear


def forward(parameters, features, config, statistics=None):
    """RoI features [R, C, P, P] -> logits [R, E, S, S]."""
    return KINDS[config.mask_head.kind](parameters, features, config, statistics)


def fcn(parameters, x, config, statistics):
    """3x3 convolutions, a transposed convolution that doubles the side, and a 1x1 convolution: every pixel keeps its place."""
    for i in range(1, config.mask_head.convs + 1):
        name = f"mask_head.conv{i}"
        x = relu(
            norm.conv_norm(
                parameters,
                name,
                f"{name}_norm",
                x,
                config.mask_head.norm,
                config,
                statistics,
                padding=1,
            )
        )
    x = relu(
        conv_transpose2d(
            x, parameters["mask_head.deconv.weight"], parameters["mask_head.deconv.bias"], stride=2
        )
    )
    return conv2d(x, parameters["mask_head.logits.weight"], parameters["mask_head.logits.bias"])


def mlp(parameters, x, config, statistics):
    """Two fully connected layers, then one that puts out all pixels at once [Mask R-CNN, table 2e]."""
    side = 2 * x.shape[2]
    x = fully_connected(
        parameters, "mask_head.fc2", fully_connected(parameters, "mask_head.fc1", flatten(x))
    )
    x = linear(x, parameters["mask_head.logits.weight"], parameters["mask_head.logits.bias"])
    return x.reshape(len(x), losses.mask_channels(config), side, side)


KINDS = {"fcn": fcn, "mlp": mlp}


def parameter_shapes(config):
    """{parameter: shape}; the transposed convolution's weight is [in, out, 2, 2]. Without a mask branch there is none."""
    head, masks, shapes = config.mask_head, losses.mask_channels(config), {}
    channels, side = shared_head.shape(config, head.pooler)
    if head.kind == "none":
        return {}
    if head.kind == "mlp":
        layers = {
            "fc1": (head.mlp_channels, channels * side**2),
            "fc2": (head.mlp_channels, head.mlp_channels),
            "logits": (masks * (2 * side) ** 2, head.mlp_channels),
        }
        return {
            f"mask_head.{name}.{part}": size
            for name, shape in layers.items()
            for part, size in (("weight", shape), ("bias", shape[:1]))
        }
    for i in range(1, head.convs + 1):
        shapes |= norm.parameter_shapes(
            f"mask_head.conv{i}",
            f"mask_head.conv{i}_norm",
            (head.channels, channels, 3, 3),
            head.norm,
        )
        channels = head.channels
    shapes |= {
        "mask_head.deconv.weight": (channels, head.channels, 2, 2),
        "mask_head.deconv.bias": (head.channels,),
    }
    return shapes | {
        "mask_head.logits.weight": (masks, head.channels, 1, 1),
        "mask_head.logits.bias": (masks,),
    }
