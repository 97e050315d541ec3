"""Normalisation where PyTorch's own layers do not fit: stored statistics as constants; batch statistics of valid rows, of all processes."""

import torch
import torch.nn.functional as F
from torch import distributed, nn


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose four tensors are constants: no parameter, nothing updated [SPEC §13]."""

    def __init__(self, channels, eps):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def affine(self):
        """(scale [C], shift [C]): the layer is x * scale + shift."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x):
        scale, shift = (t.to(x.dtype)[:, None, None] for t in self.affine())
        return x * scale + shift


class BatchNorm2d(nn.BatchNorm2d):
    """PyTorch's, with one addition: in training, `valid` [N] bool says which rows count in the statistics.

    So a padded RoI changes neither its neighbours nor the running statistics. Without any valid row the latter stay.
    """

    def forward(self, x, valid=None):
        if not self.training or (valid is None and not self.synchronised()):
            return super().forward(x)
        high = x.to(torch.promote_types(x.dtype, torch.float32))
        weight = high.new_ones(len(x)) if valid is None else valid.to(high.dtype)
        count = self.over_all(
            weight.sum() * (x.shape[2] * x.shape[3])
        )  # in pixels: maps of other processes have other sides
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

    def synchronised(self):
        return False

    def over_all(self, total):
        return total


class SyncBatchNorm2d(BatchNorm2d):
    """With the statistics of all processes together, as if their batches were one [Peng et al. 2018, MegDet]; on any device."""

    def synchronised(self):
        return distributed.is_available() and distributed.is_initialized()

    def over_all(self, total):
        return SumOverProcesses.apply(total) if self.synchronised() else total


class SumOverProcesses(torch.autograd.Function):
    """The sum over all processes, in each of them; what any of them makes of it counts in the gradient of all."""

    @staticmethod
    def forward(ctx, x):
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad):
        return SumOverProcesses.apply(grad)


def make(kind, channels, config):
    """The normalisation layer called `kind` ("frozen", "batch", "sync_batch" or "group") for `channels` channels."""
    eps = config.backbone.norm_eps
    if kind == "group":
        return nn.GroupNorm(config.norm_groups, channels, eps=eps)
    return {"frozen": FrozenBatchNorm2d, "batch": BatchNorm2d, "sync_batch": SyncBatchNorm2d}[kind](
        channels, eps=eps
    )


def conv_norm(conv, norm, x, valid=None):
    """norm(conv(x)); a frozen norm is folded into the convolution's weight and bias, so that it costs no pass over the activations."""
    if isinstance(norm, FrozenBatchNorm2d):
        scale, shift = norm.affine()
        return F.conv2d(
            x,
            conv.weight * scale[:, None, None, None],
            shift,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
        )
    x = conv(x)
    if norm is None:
        return x
    return norm(x, valid) if isinstance(norm, BatchNorm2d) else norm(x)
