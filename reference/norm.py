"""Normalisation of feature maps: per channel with stored or batch statistics, or per group of channels.

Legend: N images, C channels, H x W pixels. weight, bias, mean, var are [C].
"""

import numpy as np

from reference.conv import conv2d


def frozen_batch_norm(x, weight, bias, mean, var, eps):
    """A fixed affine map per channel: (x - mean) / sqrt(var + eps) * weight + bias, on x [N, C, H, W] (SPEC §13)."""
    scale = weight / np.sqrt(var + eps)
    return _affine(x, scale, bias - mean * scale)


def batch_norm(x, weight, bias, eps):
    """Each channel of x [N, C, H, W] brought to mean 0 and variance 1 over the batch and its pixels, then times weight, plus bias."""
    count = max(x.size // x.shape[1], 1)  # 1: a head may see no RoI at all
    mean = x.sum(axis=(0, 2, 3)) / count
    var = ((x - mean[:, None, None]) ** 2).sum(axis=(0, 2, 3)) / count
    scale = weight / np.sqrt(var + eps)
    return _affine(x, scale, bias - mean * scale)


def group_norm(x, weight, bias, groups, eps):
    """Each group of C / groups successive channels of each image brought to mean 0 and variance 1, then the affine map per channel."""
    if x.shape[1] % groups:
        raise ValueError(f"group_norm: {x.shape[1]} channels do not divide into {groups} groups")
    grouped = x.reshape(x.shape[0], groups, x.shape[1] // groups * x.shape[2] * x.shape[3])
    mean = grouped.mean(axis=2, keepdims=True)
    std = np.sqrt(grouped.var(axis=2, keepdims=True) + eps)
    return _affine(((grouped - mean) / std).reshape(x.shape), weight, bias)


def conv_norm(parameters, conv, norm, x, kind, config, training, **keywords):
    """The convolution `conv`, then the normalisation `norm` of the given kind, both found in `parameters` by these names.

    "none": no normalisation. "frozen" always uses the stored statistics, "batch" those of the batch in training, "group" none.
    A convolution has a bias only where `parameters` have one; the other keywords are those of `conv2d`.
    """
    x = conv2d(x, parameters[f"{conv}.weight"], parameters.get(f"{conv}.bias"), **keywords)
    if kind == "none":
        return x
    weight, bias, eps = parameters[f"{norm}.weight"], parameters[f"{norm}.bias"], config.backbone.norm_eps
    if kind == "group":
        return group_norm(x, weight, bias, config.norm_groups, eps)
    if kind == "batch" and training:
        return batch_norm(x, weight, bias, eps)
    return frozen_batch_norm(x, weight, bias, parameters[f"{norm}.running_mean"], parameters[f"{norm}.running_var"], eps)


def parameter_shapes(conv, norm, shape, kind):
    """{parameter: shape} of a convolution with a weight of that shape and its normalisation; a normalised convolution has no bias."""
    names = {
        "none": [f"{conv}.bias"],
        "group": [f"{norm}.weight", f"{norm}.bias"],
        "batch": [f"{norm}.weight", f"{norm}.bias", f"{norm}.running_mean", f"{norm}.running_var"],
        "frozen": [f"{norm}.weight", f"{norm}.bias", f"{norm}.running_mean", f"{norm}.running_var"],
    }
    return {f"{conv}.weight": shape, **{name: shape[:1] for name in names[kind]}}


def _affine(x, scale, shift):
    out = x * scale[:, None, None]
    out += shift[:, None, None]
    return out
