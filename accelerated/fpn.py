"""The feature pyramid [FPN, Lin et al. 2017], SPEC §13.

Legend: N images. Level l has stride 2^l; C2..C5 come from the backbone, P2..P6 go to the heads.
"""

import torch
import torch.nn.functional as F
from torch import nn

from accelerated import backbone, norm
from reference.config import Config


class Neck(nn.Module):
    """Compute {2: C2, ..., 5: C5} -> {2: P2, ..., 6: P6}, all with `config.fpn.channels` channels.

    From the top down, each map is resized to the next finer one and added to it. P6 is every second
    pixel of P5; only the RPN reads it.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        kind, width = config.fpn.norm, config.fpn.channels
        for level, before in backbone.of(config).channels(config).items():
            lateral = nn.Conv2d(before, width, 1, bias=kind == "none")
            output = nn.Conv2d(width, width, 3, padding=1, bias=kind == "none")
            for name, conv in ((f"lateral{level}", lateral), (f"output{level}", output)):
                self.add_module(name, conv)
                if kind != "none":
                    self.add_module(f"{name}_norm", norm.make(kind, width, config))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, stages: dict) -> dict:
        pyramid, above = {}, None
        for level in (5, 4, 3, 2):
            x = self._layer(f"lateral{level}", stages[level])
            if above is not None:
                # Autocast would widen both to float32.
                with torch.autocast(x.device.type, enabled=False):
                    x = x + F.interpolate(above, size=x.shape[-2:], mode="nearest")
            above = x
            pyramid[level] = self._layer(f"output{level}", above)
        pyramid[6] = pyramid[5][:, :, ::2, ::2]
        return {level: pyramid[level] for level in sorted(pyramid)}

    def _layer(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return norm.conv_norm(getattr(self, name), getattr(self, f"{name}_norm", None), x)


def channels(config: Config) -> int:
    """Return the number of channels of every level."""
    return config.fpn.channels
