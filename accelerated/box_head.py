"""Box head: pooled features -> class logits and class-specific box deltas.

Shapes: R rois, C channels, P pooled size, K classes, E entries (classes that have deltas: K, or K + 1 with the background first).
"""

import torch.nn.functional as F
from torch import nn

from accelerated import norm


class BoxHead(nn.Module):
    """pooled [R, C, P, P], valid [R] or None -> class_logits [R, K + 1], box_deltas [R, 4 E], class-major.

    "two_fc": fc6, fc7 [FPN §4.2]. "four_conv_fc": four 3x3 convolutions, then fc6 [Group Normalization §4.2].
    `valid` keeps padded RoIs out of batch statistics; it changes nothing else.
    """

    def __init__(self, config):
        super().__init__()
        head, channels = config.box_head, config.fpn.channels
        self.convs = 4 if head.kind == "four_conv_fc" else 0
        for i in range(1, self.convs + 1):
            self.add_module(f"conv{i}", nn.Conv2d(channels, head.conv_channels, 3, padding=1, bias=head.norm == "none"))
            if head.norm != "none":
                self.add_module(f"conv{i}_norm", norm.make(head.norm, head.conv_channels, config))
            channels = head.conv_channels
        self.fc6 = nn.Linear(channels * head.pooler.output_size**2, head.channels)
        self.fc7 = nn.Linear(head.channels, head.channels) if head.kind == "two_fc" else None
        self.class_logits = nn.Linear(head.channels, config.num_classes + 1)
        self.box_deltas = nn.Linear(head.channels, 4 * entries(config))
        self._initialise()

    def _initialise(self):
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight, a=1)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.class_logits.weight, std=0.01)
        nn.init.normal_(self.box_deltas.weight, std=0.001)

    def forward(self, pooled, valid=None):
        x = pooled
        for i in range(1, self.convs + 1):
            x = F.relu(norm.conv_norm(getattr(self, f"conv{i}"), getattr(self, f"conv{i}_norm", None), x, valid))
        x = F.relu(self.fc6(x.flatten(1)))  # in the order C, P, P
        if self.fc7 is not None:
            x = F.relu(self.fc7(x))
        return self.class_logits(x), self.box_deltas(x)


def entries(config):
    """How many classes have deltas and mask channels of their own: K, or K + 1 where the (unused) background comes first."""
    return config.num_classes + (config.background == "first")
