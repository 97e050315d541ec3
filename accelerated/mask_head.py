"""Mask head: RoI features -> one mask of logits per class [Mask R-CNN §3, figure 4], or a single one for all.

Shapes: R rois, C channels, P side of the RoI features, S = 2 P mask size, E channels of masks (see losses.mask_channels).
"""

import math

import torch.nn.functional as F
from torch import nn

from accelerated import losses, norm, shared_head
from accelerated.box_head import initialise


class FCN(nn.Module):
    """RoI features [R, C, P, P], valid [R] or None -> logits [R, E, S, S]. `valid` as in BoxHead.

    3x3 convolutions, a transposed convolution that doubles the side, and a 1x1 convolution: every pixel keeps its place.
    """

    def __init__(self, config):
        super().__init__()
        head = config.mask_head
        channels, _ = shared_head.shape(config, head.pooler)
        self.convs = head.convs
        for i in range(1, self.convs + 1):
            self.add_module(
                f"conv{i}",
                nn.Conv2d(channels, head.channels, 3, padding=1, bias=head.norm == "none"),
            )
            if head.norm != "none":
                self.add_module(f"conv{i}_norm", norm.make(head.norm, head.channels, config))
            channels = head.channels
        self.deconv = nn.ConvTranspose2d(channels, head.channels, 2, 2)
        self.logits = nn.Conv2d(head.channels, losses.mask_channels(config), 1)
        for module in self.modules():
            initialise(module)
        nn.init.normal_(self.logits.weight, std=0.001)  # all probabilities start equal

    def forward(self, features, valid=None):
        x = features
        for i in range(1, self.convs + 1):
            x = F.relu_(
                norm.conv_norm(
                    getattr(self, f"conv{i}"), getattr(self, f"conv{i}_norm", None), x, valid
                )
            )
        return self.logits(F.relu_(self.deconv(x)))


class MLP(nn.Module):
    """As FCN, by two fully connected layers and one that puts out all pixels at once [Mask R-CNN, table 2e]."""

    def __init__(self, config):
        super().__init__()
        channels, side = shared_head.shape(config, config.mask_head.pooler)
        width, self.out = (
            config.mask_head.mlp_channels,
            (losses.mask_channels(config), 2 * side, 2 * side),
        )
        self.fc1, self.fc2 = nn.Linear(channels * side**2, width), nn.Linear(width, width)
        self.logits = nn.Linear(width, math.prod(self.out))
        for module in self.modules():
            initialise(module)
        nn.init.normal_(self.logits.weight, std=0.001)

    def forward(self, features, valid=None):
        x = F.relu_(self.fc2(F.relu_(self.fc1(features.flatten(1)))))
        return self.logits(x).unflatten(1, self.out)


KINDS = {"fcn": FCN, "mlp": MLP}


def make(config):
    """The mask head of the configured kind."""
    return KINDS[config.mask_head.kind](config)
