"""Feature pyramid [Lin et al. 2017, arXiv 1612.03144]: 1x1 laterals, a top-down path of nearest neighbours, 3x3 outputs."""

import torch.nn.functional as F
from torch import nn

from accelerated import backbone, norm


class Neck(nn.Module):
    """{2: C2, .., 5: C5} -> {2: P2, .., 6: P6}, all of `config.fpn.channels` channels.

    P6 is every second pixel of P5, for the RPN alone. The top-down step enlarges to the lateral's size, whatever its parity (SPEC §13).
    """

    def __init__(self, config):
        super().__init__()
        kind, width = config.fpn.norm, config.fpn.channels
        for level, before in backbone.of(config).channels(config).items():
            self.add_module(f"lateral{level}", nn.Conv2d(before, width, 1, bias=kind == "none"))
            self.add_module(
                f"output{level}", nn.Conv2d(width, width, 3, padding=1, bias=kind == "none")
            )
            if kind != "none":
                self.add_module(f"lateral{level}_norm", norm.make(kind, width, config))
                self.add_module(f"output{level}_norm", norm.make(kind, width, config))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, stages):
        outputs, above = {}, None
        for level in (5, 4, 3, 2):
            x = self._layer(f"lateral{level}", stages[level])
            above = (
                x if above is None else x + F.interpolate(above, size=x.shape[-2:], mode="nearest")
            )
            outputs[level] = self._layer(f"output{level}", above)
        outputs[6] = outputs[5][:, :, ::2, ::2]
        return {level: outputs[level] for level in (2, 3, 4, 5, 6)}

    def _layer(self, name, x):
        return norm.conv_norm(getattr(self, name), getattr(self, f"{name}_norm", None), x)


def channels(config):
    """Of every level."""
    return config.fpn.channels
