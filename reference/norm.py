"""Normalisation of feature maps: per channel with stored or batch statistics, or per group.

Legend: N images, C channels, H x W pixels. weight, bias, mean, var are [C].

With z = (x - mean) / sqrt(var + eps), every norm is z * weight + bias. With G the gradient of its
result and D = G weight = d loss / d z,

    grad_bias = the sum of G over images and pixels,    grad_weight = that of G z.

Stored statistics are constants, so grad_x = D / sqrt(var + eps). The statistics of a set of n
entries of x (a channel, or a group of an image) depend on every entry: d mean / d x_i = 1 / n and
d var / d x_i = 2 (x_i - mean) / n. So

    d z_j / d x_i = ([i = j] - 1 / n - z_i z_j / n) / sqrt(var + eps),
    grad_x        = (D - mean(D) - z mean(D z)) / sqrt(var + eps),    the means over the set:

D minus its projections onto 1 and onto z, the two directions in which (except for eps) moving x
does not move z.
"""

import numpy as np

from reference.autodiff import Array, detached, primitive
from reference.config import Config
from reference.conv import conv2d

# Weight of the newest batch in the running statistics.
MOMENTUM = 0.1


@primitive
def frozen_batch_norm(
    x: Array, weight: Array, bias: Array, mean: Array, var: Array, eps: float
) -> Array:
    """Compute (x - mean) / sqrt(var + eps) * weight + bias for x [N, C, H, W] (SPEC §13)."""
    scale = weight / np.sqrt(var + eps)
    return _affine(x, scale, bias - mean * scale)


def frozen_batch_norm_backward(
    grad_out: Array, x: Array, weight: Array, bias: Array, mean: Array, var: Array, eps: float
) -> tuple:
    """Compute the gradients with respect to x, weight and bias."""
    std = np.sqrt(var + eps)
    z = _affine(x, 1 / std, -mean / std)
    grad_x = grad_out * (weight / std)[:, None, None]
    return grad_x, _channel_sum(grad_out * z), _channel_sum(grad_out)


@primitive
def batch_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Normalise each channel of x [N, C, H, W] by its statistics over images and pixels."""
    return frozen_batch_norm(x, weight, bias, *batch_statistics(x), eps)


def batch_norm_backward(grad_out: Array, x: Array, weight: Array, bias: Array, eps: float) -> tuple:
    """Compute the gradients with respect to x, weight and bias; the set is a channel."""
    mean, var = batch_statistics(x)
    std, n = np.sqrt(var + eps), _count(x)
    z = _affine(x, 1 / std, -mean / std)
    grad_weight, grad_bias = _channel_sum(grad_out * z), _channel_sum(grad_out)
    # D / weight, minus both projections.
    grad_z = grad_out - (grad_bias / n)[:, None, None] - z * (grad_weight / n)[:, None, None]
    return grad_z * (weight / std)[:, None, None], grad_weight, grad_bias


def batch_statistics(x: Array) -> tuple[Array, Array]:
    """Compute the mean and biased variance of each channel of x, each [C]; 0 without images."""
    mean = _channel_sum(x) / _count(x)
    return mean, _channel_sum((x - mean[:, None, None]) ** 2) / _count(x)


@primitive
def group_norm(x: Array, weight: Array, bias: Array, groups: int, eps: float) -> Array:
    """Normalise each group of C / groups channels of each image of x [N, C, H, W]."""
    return _affine(_by_group(x, groups, eps)[0].reshape(x.shape), weight, bias)


def group_norm_backward(
    grad_out: Array, x: Array, weight: Array, bias: Array, groups: int, eps: float
) -> tuple:
    """Compute the gradients with respect to x, weight and bias; the set is a group of an image."""
    z, std = _by_group(x, groups, eps)
    grad_z = (grad_out * weight[:, None, None]).reshape(z.shape)
    grad_x = grad_z - grad_z.mean(axis=2, keepdims=True)
    grad_x = (grad_x - z * (grad_z * z).mean(axis=2, keepdims=True)) / std
    grad_weight = _channel_sum(grad_out * z.reshape(x.shape))
    return grad_x.reshape(x.shape), grad_weight, _channel_sum(grad_out)


def conv_norm(
    parameters: dict,
    conv: str,
    norm: str,
    x: Array,
    kind: str,
    config: Config,
    statistics: dict | None = None,
    **keywords: int,
) -> Array:
    """Apply the convolution `conv` and then the normalisation `norm`, named as in `parameters`.

    kind        "none": no normalisation; "frozen": by the stored statistics; "batch" and
                "sync_batch": in training by those of the batch, otherwise like "frozen"; "group"
    statistics  as in backbone.py; keywords are those of `conv2d`
    """
    # A normalised convolution has no bias.
    x = conv2d(x, parameters[f"{conv}.weight"], parameters.get(f"{conv}.bias"), **keywords)
    if kind == "none":
        return x
    weight, bias = parameters[f"{norm}.weight"], parameters[f"{norm}.bias"]
    eps = config.backbone.norm_eps
    if kind == "group":
        return group_norm(x, weight, bias, config.norm_groups, eps)
    names = f"{norm}.running_mean", f"{norm}.running_var"
    if kind in ("batch", "sync_batch") and statistics is not None:
        mean, var = (statistics.get(name, parameters[name]) for name in names)
        statistics.update(zip(names, running_statistics(mean, var, detached(x))))
        return batch_norm(x, weight, bias, eps)
    mean, var = (parameters[name] for name in names)
    return frozen_batch_norm(x, weight, bias, mean, var, eps)


def running_statistics(mean: Array, var: Array, x: Array) -> tuple[Array, Array]:
    """Move mean and (unbiased) variance [C] a tenth of the way to those of x, if it has images."""
    if len(x) == 0:
        return mean, var
    batch_mean, batch_var = batch_statistics(x)
    unbiased = batch_var * _count(x) / max(_count(x) - 1, 1)
    mean = mean * (1 - MOMENTUM) + batch_mean * MOMENTUM
    return mean, var * (1 - MOMENTUM) + unbiased * MOMENTUM


def parameter_shapes(conv: str, norm: str, shape: tuple, kind: str) -> dict:
    """Return {parameter: shape} of a convolution with a weight of that shape, and of its norm."""
    names = [f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    names = {"none": [f"{conv}.bias"], "group": names[:2]}.get(kind, names)
    return {f"{conv}.weight": shape, **{name: shape[:1] for name in names}}


def _affine(x, scale, shift):
    out = x * scale[:, None, None]
    out += shift[:, None, None]
    return out


def _channel_sum(x):
    return x.sum(axis=(0, 2, 3))


def _count(x):
    """Count the entries per channel; at least 1, because a head may see no RoI at all."""
    return max(x.size // x.shape[1], 1)


def _by_group(x, groups, eps):
    """Compute the normalised input [N, groups, C / groups H W] and its divisor [N, groups, 1]."""
    if x.shape[1] % groups:
        raise ValueError(f"group_norm: {x.shape[1]} channels do not divide into {groups} groups")
    grouped = x.reshape(x.shape[0], groups, x.shape[1] // groups * x.shape[2] * x.shape[3])
    std = np.sqrt(grouped.var(axis=2, keepdims=True) + eps)
    return (grouped - grouped.mean(axis=2, keepdims=True)) / std, std
