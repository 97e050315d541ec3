"""DeepMask [Pinheiro et al. 2015 §3] and SharpMask [Pinheiro et al. 2016 §3], small models.

Where the windows lie, and how they are drawn for a training, stands in the reference alone.

Legend: N windows, S side of a window, M side of a mask (S / 4, SharpMask: S), C channels.
"""

import torch
import torch.nn.functional as F
from torch import nn

from accelerated.losses import binary_cross_entropy
from accelerated.roi_align import roi_align
from reference.config import DeepMask


class Network(nn.Module):
    """Predict a score and a mask of each window [N, 3, S, S], as logits: [N], [N, M, M].

    With `config.refinement` it is SharpMask, of which the refinement alone is trained.
    """

    def __init__(self, config: DeepMask) -> None:
        super().__init__()
        self.config = config
        (one, two, three), hidden, side = config.channels, config.hidden, config.window // 4
        self.conv1 = nn.Conv2d(3, one, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(one, two, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(two, three, 3, stride=2, padding=1)
        self.code = nn.Linear(three * (side // 2) ** 2, hidden)
        self.score_hidden, self.score = nn.Linear(hidden, hidden), nn.Linear(hidden, 1)
        self.mask = nn.Linear(hidden, side**2)
        if config.refinement:
            self.requires_grad_(False)
            width, *widths = config.refinement
            layers: dict[str, nn.Module] = {"code": nn.Linear(hidden, width * side**2)}
            for i, (below, channels) in enumerate(zip((two, one), widths, strict=True), 1):
                layers[f"reduce{i}"] = nn.Conv2d(below, channels, 3, padding=1)
                layers[f"lateral{i}"] = nn.Conv2d(channels, channels, 3, padding=1)
                layers[f"top_down{i}"] = nn.Conv2d(width, channels, 3, padding=1)
                width = channels
            layers["logits"] = nn.Conv2d(width, 1, 3, padding=1)
            self.refinement = nn.ModuleDict(layers)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        one = F.relu(self.conv1(pixels))
        two = F.relu(self.conv2(one))
        # No ReLU: every pixel of the mask is a linear function of all features, of low rank.
        code = self.code(F.relu(self.conv3(two)).flatten(1))
        scores = self.score(F.relu(self.score_hidden(code)))[:, 0]
        if self.config.refinement:
            return scores, self._refine(code, [two, one])
        side = self.config.window // 4
        return scores, self.mask(code).unflatten(1, (side, side))

    def _refine(self, code, stages):
        """Turn codes [N, hidden] into mask logits [N, S, S] [Pinheiro et al. 2016 §3].

        Each step adds a map of the trunk, reduced, to what comes from above, and doubles the side.
        """
        layers, side = self.refinement, self.config.window // 4
        x = layers["code"](code).unflatten(1, (-1, side, side))
        for i, stage in enumerate(stages, 1):
            lateral = layers[f"lateral{i}"](F.relu(layers[f"reduce{i}"](stage)))
            x = F.relu(layers[f"top_down{i}"](x) + lateral)
            x = F.interpolate(x, scale_factor=2)
        return layers["logits"](x)[:, 0]


def cut(maps: torch.Tensor, windows: torch.Tensor, side: int, backend: str) -> torch.Tensor:
    """Resample windows [N, 4] of maps [C, H, W] by RoIAlign: [N, C, side, side], 0 outside."""
    only = torch.zeros(len(windows), dtype=torch.int64, device=windows.device)
    sampling = {"sampling_ratio": 0, "aligned": True, "backend": backend}
    return roi_align(maps[None], windows, only, output_size=side, spatial_scale=1.0, **sampling)


def losses(
    score_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    labels: torch.Tensor,
    masks: torch.Tensor,
    config: DeepMask,
) -> dict[str, torch.Tensor]:
    """Return {"score", "mask"}, the losses of what `forward` returns, summing to SPEC §18's L.

    labels  [N]        1 or 0
    masks   [N, S, S]  averaged over the cells of a coarse mask. Only those of label 1 are used.
    """
    count, side = mask_logits.shape[:2]
    score = binary_cross_entropy(score_logits, labels.to(score_logits.dtype)).sum()
    pixels = binary_cross_entropy(mask_logits, F.avg_pool2d(masks, config.window // side))
    mask = torch.where((labels == 1)[:, None, None], pixels, 0).sum()
    return {"score": score * (config.score_weight / count), "mask": mask / (count * side**2)}


def probabilities(mask_logits: torch.Tensor, config: DeepMask) -> torch.Tensor:
    """Return the probability of each pixel of the windows, coarse masks bilinear: [N, S, S]."""
    size = (config.window, config.window)
    return F.interpolate(mask_logits.sigmoid()[:, None], size, mode="bilinear")[:, 0]
