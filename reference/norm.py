"""Normalisation of feature maps, forward and backward: per channel with stored or batch statistics, or per group of channels.

Legend: N images, C channels, H x W pixels. weight, bias, mean, var are [C]. z = (x - mean) / sqrt(var + eps) is the normalised input,
so that every norm is z * weight + bias, and with G the gradient of its result

    grad_bias = the sum of G over images and pixels,    grad_weight = that of G z,    D = G weight = d loss / d z.

With stored statistics z is affine in x, so grad_x = D / sqrt(var + eps). With the statistics of a set of n entries of x (a channel, or
a group of an image), mean and var answer to every entry of the set: d mean / d x_i = 1 / n and d var / d x_i = 2 (x_i - mean) / n. So

    d z_j / d x_i = ([i = j] - 1 / n - z_i z_j / n) / sqrt(var + eps),
    grad_x        = (D - mean(D) - z mean(D z)) / sqrt(var + eps),    the means over the set:

what is left of D without its parts along 1 and along z, the two directions in which (but for eps) moving x does not move z.
"""

import numpy as np

from reference.autodiff import detached, primitive
from reference.conv import conv2d

MOMENTUM = 0.1  # weight of the newest batch in the running statistics


@primitive
def frozen_batch_norm(x, weight, bias, mean, var, eps):
    """A fixed affine map per channel: (x - mean) / sqrt(var + eps) * weight + bias, on x [N, C, H, W] (SPEC §13)."""
    scale = weight / np.sqrt(var + eps)
    return _affine(x, scale, bias - mean * scale)


def frozen_batch_norm_backward(grad_out, x, weight, bias, mean, var, eps):
    """Gradients with respect to x, weight and bias."""
    std = np.sqrt(var + eps)
    z = _affine(x, 1 / std, -mean / std)
    return (
        grad_out * (weight / std)[:, None, None],
        _channel_sum(grad_out * z),
        _channel_sum(grad_out),
    )


@primitive
def batch_norm(x, weight, bias, eps):
    """Each channel of x [N, C, H, W] brought to mean 0 and variance 1 over the batch and its pixels, then times weight, plus bias."""
    mean, var = batch_statistics(x)
    scale = weight / np.sqrt(var + eps)
    return _affine(x, scale, bias - mean * scale)


def batch_norm_backward(grad_out, x, weight, bias, eps):
    """Gradients with respect to x, weight and bias; the set is a channel of all images."""
    mean, var = batch_statistics(x)
    std = np.sqrt(var + eps)
    z = _affine(x, 1 / std, -mean / std)
    grad_weight, grad_bias = _channel_sum(grad_out * z), _channel_sum(grad_out)
    count = _count(x)
    grad_z = (
        grad_out - (grad_bias / count)[:, None, None] - z * (grad_weight / count)[:, None, None]
    )  # D / weight, both means taken off
    return grad_z * (weight / std)[:, None, None], grad_weight, grad_bias


def batch_statistics(x):
    """Mean and (biased) variance of each channel of x over the batch and its pixels, each [C]; 0 and 0 of no image."""
    mean = _channel_sum(x) / _count(x)
    return mean, _channel_sum((x - mean[:, None, None]) ** 2) / _count(x)


@primitive
def group_norm(x, weight, bias, groups, eps):
    """Each group of C / groups successive channels of each image brought to mean 0 and variance 1, then the affine map per channel."""
    return _affine(_by_group(x, groups, eps)[0].reshape(x.shape), weight, bias)


def group_norm_backward(grad_out, x, weight, bias, groups, eps):
    """Gradients with respect to x, weight and bias; the set is a group of channels of one image."""
    z, std = _by_group(x, groups, eps)
    grad_z = (grad_out * weight[:, None, None]).reshape(z.shape)
    grad_x = (
        grad_z - grad_z.mean(axis=2, keepdims=True) - z * (grad_z * z).mean(axis=2, keepdims=True)
    ) / std
    return (
        grad_x.reshape(x.shape),
        _channel_sum(grad_out * z.reshape(x.shape)),
        _channel_sum(grad_out),
    )


def conv_norm(parameters, conv, norm, x, kind, config, statistics=None, **keywords):
    """Apply the convolution `conv` and then the normalisation `norm`, named as in `parameters`.

    kind        "none": no normalisation; "frozen": by the stored statistics; "batch" and
                "sync_batch": in training by those of the batch, otherwise like "frozen"; "group"
    statistics  a dict that receives the updated running statistics, {name: array};
                None in inference, where the stored statistics are used
    keywords    those of `conv2d`

    The convolution has a bias only if `parameters` contains one.
    """
    x = conv2d(x, parameters[f"{conv}.weight"], parameters.get(f"{conv}.bias"), **keywords)
    if kind == "none":
        return x
    weight, bias = parameters[f"{norm}.weight"], parameters[f"{norm}.bias"]
    eps = config.backbone.norm_eps
    if kind == "group":
        return group_norm(x, weight, bias, config.norm_groups, eps)
    running = f"{norm}.running_mean", f"{norm}.running_var"
    if kind in ("batch", "sync_batch") and statistics is not None:
        before = [statistics.get(name, parameters[name]) for name in running]
        statistics.update(zip(running, running_statistics(*before, detached(x))))
        return batch_norm(x, weight, bias, eps)
    return frozen_batch_norm(x, weight, bias, *(parameters[name] for name in running), eps)


def running_statistics(mean, var, x):
    """Move the running mean and (unbiased) variance, each [C], a tenth of the way to those of x.

    This is what PyTorch does. An empty batch changes nothing.
    """
    if len(x) == 0:
        return mean, var
    batch_mean, batch_var = batch_statistics(x)
    unbiased = batch_var * _count(x) / max(_count(x) - 1, 1)
    return (
        mean * (1 - MOMENTUM) + batch_mean * MOMENTUM,
        var * (1 - MOMENTUM) + unbiased * MOMENTUM,
    )


def parameter_shapes(conv, norm, shape, kind):
    """{parameter: shape} of a convolution with a weight of that shape and its normalisation; a normalised convolution has no bias."""
    names = [f"{norm}.weight", f"{norm}.bias", f"{norm}.running_mean", f"{norm}.running_var"]
    names = {"none": [f"{conv}.bias"], "group": names[:2]}.get(kind, names)
    return {f"{conv}.weight": shape, **{name: shape[:1] for name in names}}


def _affine(x, scale, shift):
    out = x * scale[:, None, None]
    out += shift[:, None, None]
    return out


def _channel_sum(x):
    return x.sum(axis=(0, 2, 3))


def _count(x):
    return max(x.size // x.shape[1], 1)  # 1: a head may see no RoI at all


def _by_group(x, groups, eps):
    """The normalised input [N, groups, C / groups H W], and its divisor [N, groups, 1]."""
    if x.shape[1] % groups:
        raise ValueError(f"group_norm: {x.shape[1]} channels do not divide into {groups} groups")
    grouped = x.reshape(x.shape[0], groups, x.shape[1] // groups * x.shape[2] * x.shape[3])
    std = np.sqrt(grouped.var(axis=2, keepdims=True) + eps)
    return (grouped - grouped.mean(axis=2, keepdims=True)) / std, std
