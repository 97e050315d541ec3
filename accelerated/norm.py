"""Normalisation of feature maps: per channel with stored or batch statistics, or per group.

PyTorch's layers are used where they fit. Here stored statistics are constants, and batch statistics
leave out padded rows and may run over all processes.

Legend: N images, C channels, H x W pixels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import distributed, nn

from reference.config import Config


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose four tensors are constants, never trained or updated (SPEC §13)."""

    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def affine(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (scale [C], shift [C]): the layer computes x * scale + shift."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale, shift = (t.to(x.dtype)[:, None, None] for t in self.affine())
        return x * scale + shift


class BatchNorm2d(nn.BatchNorm2d):
    """PyTorch's batch normalisation, with statistics of the `valid` [N] rows in training.

    So a padded RoI changes neither the other rows nor the running statistics. Without any valid row
    these do not change.
    """

    momentum: float
    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def forward(self, x: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        if valid is None and not self.synchronised():
            # On a CPU, PyTorch sums a channels-last map in float32, others in float64.
            return super().forward(x if x.is_cuda else x.contiguous())
        high = x.to(torch.promote_types(x.dtype, torch.float32))
        weight = high.new_ones(len(x)) if valid is None else valid.to(high.dtype)
        # Counted in pixels, because the maps of other processes have other sides.
        count = self.over_all(weight.sum() * (x.shape[2] * x.shape[3]))
        weight = weight[:, None, None, None]
        mean = self.over_all((high * weight).sum((0, 2, 3))) / count.clamp(min=1)
        centred = high - mean[:, None, None]
        variance = self.over_all((centred.square() * weight).sum((0, 2, 3))) / count.clamp(min=1)
        with torch.no_grad():
            share = (count > 0).to(self.running_mean.dtype) * self.momentum
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
            self.num_batches_tracked.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    def synchronised(self) -> bool:
        """Test whether statistics are summed over several processes."""
        return False

    def over_all(self, total: torch.Tensor) -> torch.Tensor:
        """Sum `total` over all processes."""
        return total


class SyncBatchNorm2d(BatchNorm2d):
    """Batch normalisation over the batches of all processes [MegDet, Peng et al. 2018]."""

    def synchronised(self) -> bool:
        return distributed.is_available() and distributed.is_initialized()

    def over_all(self, total: torch.Tensor) -> torch.Tensor:
        return SumOverProcesses.apply(total) if self.synchronised() else total


class SumOverProcesses(torch.autograd.Function):
    """The sum over all processes, in each of them; the backward sums over all processes too."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return SumOverProcesses.apply(grad)


KINDS = {"frozen": FrozenBatchNorm2d, "batch": BatchNorm2d, "sync_batch": SyncBatchNorm2d}


def make(kind: str, channels: int, config: Config) -> nn.Module:
    """Make the normalisation layer `kind` ("group" or one of KINDS) for `channels` channels."""
    eps = config.backbone.norm_eps
    if kind == "group":
        return nn.GroupNorm(config.norm_groups, channels, eps=eps)
    return KINDS[kind](channels, eps=eps)


def conv_norm(
    conv: nn.Conv2d, norm: nn.Module | None, x: torch.Tensor, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """Apply the convolution `conv` and then the normalisation `norm`, if there is one.

    A frozen norm is folded into the convolution's weight and bias, so that it costs no pass over
    the activations.
    """
    if isinstance(norm, FrozenBatchNorm2d):
        scale, shift = norm.affine()
        weight = conv.weight * scale[:, None, None, None]
        return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)
    x = conv(x)
    if norm is None:
        return x
    return norm(x, valid) if isinstance(norm, BatchNorm2d) else norm(x)
