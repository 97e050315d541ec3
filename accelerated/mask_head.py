"""Mask head [Mask R-CNN §3, figure 4]: its logits per class and pixel, its targets and its loss.

Legend: R RoIs, C channels, P side of the RoI features, S = 2 P side of a mask,
M channels of masks (see labels.mask_layout).
"""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from accelerated import masks, norm, processes, shared_head
from accelerated.labels import mask_layout
from accelerated.losses import at_least_float32, binary_cross_entropy
from accelerated.parameters import initialise
from accelerated.rois import on_filled
from accelerated.structures import Batch, Stages, keep
from reference.config import Config, MaskHead


class FCN(nn.Module):
    """Apply 3x3 convolutions, a transposed one that doubles the side, and a 1x1 convolution.

    RoI features [R, C, P, P] -> mask logits [R, M, S, S]. Every pixel keeps its position.
    `valid` [R] keeps padded RoIs out of batch statistics and changes nothing else.
    With `columns` [R], compute channel columns[r] alone, which takes a small part of the work:
    -> a tuple of [R, S, S] and, if asked for `every`, [R, M, S, S].
    """

    def __init__(self, config: Config):
        super().__init__()
        head = config.mask_head
        channels, _ = shared_head.shape(config, head.pooler)
        self.convs = head.convs
        for i in range(1, self.convs + 1):
            bias = head.norm == "none"
            self.add_module(f"conv{i}", nn.Conv2d(channels, head.channels, 3, padding=1, bias=bias))
            if head.norm != "none":
                self.add_module(f"conv{i}_norm", norm.make(head.norm, head.channels, config))
            channels = head.channels
        self.deconv = nn.ConvTranspose2d(channels, head.channels, 2, 2)
        self.logits = nn.Conv2d(head.channels, mask_layout(config).columns, 1)
        for module in self.modules():
            initialise(module)
        # All probabilities start equal.
        nn.init.normal_(self.logits.weight, std=0.001)

    def forward(
        self,
        features: torch.Tensor,
        valid: torch.Tensor | None = None,
        columns: torch.Tensor | None = None,
        every: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        x = features
        for i in range(1, self.convs + 1):
            normalise = getattr(self, f"conv{i}_norm", None)
            x = norm.conv_norm(getattr(self, f"conv{i}"), normalise, x, valid, relu=True)
        x = F.relu_(self.deconv(x))
        if columns is None:
            return self.logits(x)
        own = _rows_of(self.logits, columns, x)
        return (own, self.logits(x)) if every else (own,)


def _rows_of(conv, columns, x):
    """Compute channel columns[r] of a 1x1 convolution of x[r]: x [R, C, S, S] -> [R, S, S]."""
    weight, bias = conv.weight.flatten(1)[columns], conv.bias[columns]
    product = torch.baddbmm(bias[:, None, None], weight[:, None], x.flatten(2))
    return product.unflatten(2, x.shape[2:])[:, 0]


class MLP(nn.Module):
    """Apply two fully connected layers and one that predicts all pixels [Mask R-CNN, table 2e]."""

    def __init__(self, config: Config):
        super().__init__()
        channels, side = shared_head.shape(config, config.mask_head.pooler)
        width = config.mask_head.mlp_channels
        self.shape = (mask_layout(config).columns, 2 * side, 2 * side)
        self.fc1, self.fc2 = nn.Linear(channels * side**2, width), nn.Linear(width, width)
        self.logits = nn.Linear(width, math.prod(self.shape))
        for module in self.modules():
            initialise(module)
        nn.init.normal_(self.logits.weight, std=0.001)

    def forward(self, features: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        x = F.relu_(self.fc2(F.relu_(self.fc1(features.flatten(1)))))
        return self.logits(x).unflatten(1, self.shape)


KINDS = {"fcn": FCN, "mlp": MLP}


def make(config: Config) -> nn.Module:
    """Create the configured mask head."""
    return KINDS[config.mask_head.kind](config)


def targets(
    batch: Batch,
    image_index: torch.Tensor,
    matched: torch.Tensor,
    rois: torch.Tensor,
    head: MaskHead,
    size: int,
    backend: str = "auto",
) -> torch.Tensor:
    """Sample or draw each object inside its RoI: [R, size, size] in [0, 1] (SPEC §10).

    image_index  [R]  -1 in empty slots, whose targets are 0
    matched      [R]  ground-truth slot
    rois         [R, 4]
    """
    sampled, drawn = image_index >= 0, None
    if head.target == "polygon" and batch.points is not None:
        outlines: Any = batch.points, batch.rings, batch.parts
        points, rings, parts = outlines
        drawn = masks.polygon_targets(
            points, rings, parts, image_index, matched, rois, sampled, size, backend=backend
        )
        if batch.masks.shape[2] == 0:
            return drawn
        has_outlines = parts.diff() > 0
        sampled = sampled & ~has_outlines[image_index.clamp(min=0), matched.clamp(min=0)]
    which = image_index, matched, rois, sampled
    out = masks.targets(batch.masks, *which, head, size, sizes=batch.sizes, backend=backend)
    # Each is 0 where the other one counts.
    return out if drawn is None else out + drawn


def loss(
    mask_logits: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor, config: Config
) -> torch.Tensor:
    """Return the mask loss, the mean over objects and pixels; 0 without objects.

    mask_logits  [R, M, S, S], or where classes do not compete [R, S, S] of each object's alone
    labels       [R]        1..K, 0 or less in empty slots
    targets      [R, S, S]  in [0, 1]
    """
    objects = labels > 0
    targets = targets.to(mask_logits.dtype)
    pixels = LOSSES[config.mask_head.loss](mask_logits, labels, targets, config)
    total = torch.where(objects[:, None, None], pixels, 0).sum()
    pixels_per_mask = targets[0].numel() if len(targets) else 1
    return total / (processes.count(objects, "objects") * pixels_per_mask)


def sigmoid_loss(
    mask_logits: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor, config: Config
) -> torch.Tensor:
    """Return the binary cross-entropy of each object's class channel [R, S, S].

    Classes do not compete.
    """
    columns = mask_layout(config).column(labels)
    return binary_cross_entropy(_channel(mask_logits, columns), targets)


def softmax_loss(
    mask_logits: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor, config: Config
) -> torch.Tensor:
    """Return the cross-entropy of all pixels [R, S, S]. Classes and background compete.

    A pixel belongs to its object's class with the target's probability, else to the background.
    """
    layout, likelihood = mask_layout(config), mask_logits.log_softmax(1)
    of_class = _channel(likelihood, layout.column(labels))
    of_background = likelihood[:, layout.background]
    return -(targets * of_class + (1 - targets) * of_background)


def is_separable(config: Config) -> bool:
    """Test whether the logits of a class can be computed, and are read, without the others."""
    return config.mask_head.kind == "fcn" and config.mask_head.loss == "sigmoid"


def logits_of(
    head: nn.Module,
    x: torch.Tensor,
    labels: torch.Tensor,
    valid: torch.Tensor,
    config: Config,
    record: Stages | None,
) -> torch.Tensor:
    """Compute the mask logits of RoIs by their features x [R, C, P, P]; labels, valid [R].

    They are [R, S, S], of each RoI's class, where nothing reads the others; else [R, M, S, S].
    A record receives those of all classes.
    """
    if not is_separable(config):
        logits = at_least_float32(on_filled(head, x, valid))
        keep(record, mask_logits=logits)
        return logits
    head_of = partial(head, every=record is not None)
    outputs = on_filled(head_of, x, valid, mask_layout(config).column(labels))
    own, *every = (at_least_float32(y) for y in outputs)
    keep(record, mask_logits=every[0] if every else None)
    return own


LOSSES = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}


def probabilities(mask_logits: torch.Tensor, labels: torch.Tensor, config: Config) -> torch.Tensor:
    """Return the probability of each pixel to belong to the object -> [R, S, S].

    mask_logits  [R, M, S, S], or where classes do not compete [R, S, S] of each object's alone
    labels       [R]  1..K; for other labels the result is meaningless
    """
    columns = mask_layout(config).column(labels)
    if config.mask_head.loss == "softmax":
        return _channel(mask_logits.softmax(1), columns)
    return _channel(mask_logits, columns).sigmoid()


def _channel(maps, columns):
    """Take channel columns[r] of each row of maps [R, M, S, S], unless they are [R, S, S]."""
    return maps if maps.dim() == 3 else maps.take_along_dim(columns[:, None, None, None], 1)[:, 0]
