"""Normalisation of feature maps: per channel with stored or batch statistics, or per group.

PyTorch's layers are used where they fit. Here stored statistics are constants, and batch statistics
leave out padded rows and may run over all processes.

Legend: N images, C channels, H x W pixels.
"""

from collections.abc import Callable

import torch
from torch import nn

from accelerated import processes
from accelerated.conv import add_and_relu, conv2d
from reference.config import Config


class Remembered:
    """A function of tensors that returns its last result again while its tensors are unchanged.

    function  (constant, *tensors) -> a tuple of tensors

    A tensor is unchanged if it is the same object with the same memory and the same version, which
    PyTorch raises at a write in place. Nothing is remembered while a gradient may flow or is kept
    for an optimizer, because the fused ones do not raise the version; nor in what torch.compile,
    torch.export or a CUDA graph records, because that reads the tensors themselves. `forget` is
    for writes that PyTorch does not see: through `.data`, NumPy or the replay of a CUDA graph.
    A copy and a pickle remember nothing, and tensors of FakeTensorMode are not remembered.
    """

    def __init__(self, function: Callable[..., tuple]) -> None:
        self.function = function
        self.forget()

    def __reduce__(self) -> tuple:
        return Remembered, (self.function,)

    def forget(self) -> None:
        """Drop the last result."""
        self.last: tuple | None = None

    def __call__(self, constant: object, *tensors: torch.Tensor) -> tuple:
        """Return function(constant, *tensors)."""
        if torch.compiler.is_compiling() or _is_capturing(tensors[0]):
            return self.function(constant, *tensors)
        if not all(map(_is_constant, tensors)):
            self.forget()
            return self.function(constant, *tensors)
        # Autocast changes the dtype of the result.
        device = tensors[0].device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        key = constant, autocast, [(id(x), x._version, x.data_ptr(), x.stride()) for x in tensors]
        last = self.last
        if last is not None and last[0] == key:
            return last[1]
        # A result that was made in inference mode could not serve a training step.
        with torch.inference_mode(False), torch.no_grad():
            result = self.function(constant, *tensors)
        if all(type(x) is torch.Tensor for x in result):
            # Objects and memory stay alive, so that no others get their ids and addresses.
            self.last = key, result, tensors, [x.detach() for x in tensors]
        return result


def _is_constant(x):
    """Test whether no gradient changes x and its version tells all other changes."""
    trained = x.requires_grad and (torch.is_grad_enabled() or not x.is_leaf or x.grad is not None)
    return not trained and not x.is_inference() and type(x) in (torch.Tensor, nn.Parameter)


def _is_capturing(x):
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


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
        self._constants, self._folded = Remembered(_constants), Remembered(_folded)

    def affine(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (scale [C], shift [C]): the layer computes x * scale + shift. Do not write."""
        return self._constants(self.eps, *self._stored())[:2]

    def folded(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight [C, ...] and bias [C] of a convolution by `weight` and this norm after it.

        They have the dtype in which the convolution runs. Do not write into them.
        """
        if weight.requires_grad and torch.is_grad_enabled():
            self._folded.forget()
            return _fold(weight, *self._constants(self.eps, *self._stored()))
        return self._folded(self.eps, weight, *self._stored())

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        # The replay of a captured training step has changed the weights, but not their versions.
        if mode != self.training:
            self._folded.forget()
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale, shift = (t.to(x.dtype)[:, None, None] for t in self.affine())
        return x * scale + shift

    def _stored(self):
        return self.weight, self.bias, self.running_mean, self.running_var


def _constants(eps, weight, bias, mean, var):
    """Return scale and shift of a frozen norm, and shift as a convolution's bias; each [C]."""
    scale = weight * (var + eps).rsqrt()
    shift = bias - mean * scale
    return scale, shift, _operand(shift)


def _folded(eps, weight, *stored):
    return _fold(weight, *_constants(eps, *stored))


def _fold(weight, scale, _, bias):
    return _operand(weight * scale[:, None, None, None]), bias


def _operand(x):
    """Cast x as autocast, where it is enabled, casts the operands of a convolution."""
    device = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device))
    return x


class BatchNorm2d(nn.BatchNorm2d):
    """PyTorch's batch normalisation, with statistics of the `valid` [N] rows in training.

    So a padded RoI changes neither the other rows nor the running statistics. Without any valid row
    these do not change.
    """

    momentum: float
    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    # Whether training keeps the statistics, as where it does not train scale and shift.
    keeps_statistics = False

    def train(self, mode: bool = True) -> "BatchNorm2d":
        return super().train(mode and not self.keeps_statistics)

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
        return processes.number() > 1

    def over_all(self, total: torch.Tensor) -> torch.Tensor:
        return processes.total(total)


KINDS = {"frozen": FrozenBatchNorm2d, "batch": BatchNorm2d, "sync_batch": SyncBatchNorm2d}


def make(kind: str, channels: int, config: Config) -> nn.Module:
    """Make the normalisation layer `kind` ("group" or one of KINDS) for `channels` channels."""
    eps = config.backbone.norm_eps
    if kind == "group":
        return nn.GroupNorm(config.norm_groups, channels, eps=eps)
    return KINDS[kind](channels, eps=eps)


def conv_norm(
    conv: nn.Conv2d,
    norm: nn.Module | None,
    x: torch.Tensor,
    valid: torch.Tensor | None = None,
    *,
    shortcut: torch.Tensor | None = None,
    relu: bool = False,
) -> torch.Tensor:
    """Apply the convolution `conv`, then the normalisation `norm`, if there is one.

    shortcut  is added then, and after it, with `relu`, ReLU applied

    A frozen norm is folded into the convolution's weight and bias, so that it costs no pass over
    the activations.
    """
    if norm is None or isinstance(norm, FrozenBatchNorm2d):
        folded = None if norm is None else norm.folded(conv.weight)
        return conv2d(conv, x, folded, shortcut=shortcut, relu=relu)
    x = conv(x)
    x = norm(x, valid) if isinstance(norm, BatchNorm2d) else norm(x)
    return add_and_relu(x, shortcut, relu)
