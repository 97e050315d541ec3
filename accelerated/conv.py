"""Convolution: cross-correlation with zero padding, as in every deep learning library.

Here with what follows it in a network: a shortcut that is added, and ReLU. On a GPU and in 16 bits,
cuDNN does all of it in one pass over the activations, where PyTorch takes four.

Legend: N images, C input channels, O output channels, H' x W' the output.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable


def conv2d(
    conv: nn.Conv2d,
    x: torch.Tensor,
    folded: tuple[torch.Tensor, torch.Tensor] | None = None,
    *,
    shortcut: torch.Tensor | None = None,
    relu: bool = False,
) -> torch.Tensor:
    """Apply `conv`; add the shortcut, if there is one; apply ReLU, if asked.

    folded  weight and bias to use instead of those of `conv`

    x [N, C, H, W], shortcut [N, O, H', W'] -> [N, O, H', W']
    """
    weight, bias = (conv.weight, conv.bias) if folded is None else folded
    geometry: Any = conv.stride, conv.padding, conv.dilation, conv.groups
    autocast = x.is_cuda and torch.is_autocast_enabled("cuda")
    dtype = torch.get_autocast_dtype("cuda") if autocast else x.dtype
    if relu and bias is not None and _is_fusible(x, dtype, conv.groups):
        cast = [y if y is None else y.to(dtype) for y in (x, weight, bias, shortcut)]
        return _Fused.apply(*cast, geometry)
    x = conv(x) if folded is None else F.conv2d(x, weight, bias, *geometry)
    return add_and_relu(x, shortcut, relu)


def add_and_relu(x: torch.Tensor, shortcut: torch.Tensor | None, relu: bool) -> torch.Tensor:
    """Add the shortcut, if there is one, and apply ReLU, if asked.

    Works in place: no convolution and no norm keeps its output for the backward pass.
    """
    x = x if shortcut is None else x.add_(shortcut)
    return F.relu_(x) if relu else x


def _is_fusible(x, dtype, groups):
    """Test whether cuDNN has the fused convolution; what is compiled is fused by the compiler."""
    return (
        x.is_cuda
        and groups == 1
        and dtype in (torch.float16, torch.bfloat16)
        and torch.backends.cudnn.enabled
        and torch.backends.cudnn.is_available()
        and not torch.compiler.is_compiling()
    )


class _Fused(torch.autograd.Function):
    """relu(convolution + bias + shortcut); geometry is stride, padding, dilation and groups."""

    @staticmethod
    def forward(ctx: Any, x, weight, bias, shortcut, geometry) -> torch.Tensor:
        if shortcut is None:
            out = torch.ops.aten.cudnn_convolution_relu(x, weight, bias, *geometry)
        else:
            arguments = x, weight, shortcut, 1.0, bias, *geometry
            out = torch.ops.aten.cudnn_convolution_add_relu(*arguments)
        ctx.save_for_backward(x, weight, out)
        ctx.geometry = geometry
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple:
        x, weight, out = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        grad = torch.ops.aten.threshold_backward(grads[0], out, 0)
        arguments = stride, padding, dilation, False, (0, 0), groups
        wanted = ctx.needs_input_grad[:3]
        of_conv = torch.ops.aten.convolution_backward(
            grad, x, weight, [len(weight)], *arguments, wanted
        )
        return *of_conv, grad if ctx.needs_input_grad[3] else None, None
