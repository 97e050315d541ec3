"""Mask head: pooled features -> one mask of logits per class [Mask R-CNN §3, figure 4].

Shapes: R rois, C channels, P pooled size, S = 2 P mask size, E entries (see box_head).
"""

import torch.nn.functional as F
from torch import nn

from accelerated import losses, norm
from accelerated.box_head import entries


class MaskHead(nn.Module):
    """pooled [R, C, P, P], valid [R] or None -> logits [R, E, S, S]. `valid` as in BoxHead."""

    def __init__(self, config):
        super().__init__()
        head, channels = config.mask_head, config.fpn.channels
        self.convs = head.convs
        for i in range(1, self.convs + 1):
            self.add_module(f"conv{i}", nn.Conv2d(channels, head.channels, 3, padding=1, bias=head.norm == "none"))
            if head.norm != "none":
                self.add_module(f"conv{i}_norm", norm.make(head.norm, head.channels, config))
            channels = head.channels
        self.deconv = nn.ConvTranspose2d(channels, head.channels, 2, 2)
        self.logits = nn.Conv2d(head.channels, entries(config), 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.logits.weight, std=0.001)  # all probabilities start at one half

    def forward(self, pooled, valid=None):
        x = pooled
        for i in range(1, self.convs + 1):
            x = F.relu_(norm.conv_norm(getattr(self, f"conv{i}"), getattr(self, f"conv{i}_norm", None), x, valid))
        return self.logits(F.relu_(self.deconv(x)))


def select(logits, labels, config):
    """The channel of each RoI's class: logits [R, E, S, S], labels [R] (1..K; any other gets some channel) -> [R, S, S]."""
    entry = losses.entries(labels, config).clamp(min=0)
    return logits.gather(1, entry[:, None, None, None].expand(-1, 1, *logits.shape[2:]))[:, 0]
