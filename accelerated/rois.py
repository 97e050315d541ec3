"""What the RoI operators share: checks, output sizes and rounding.

Legend: N images, R rois, C channels, P pooled size, L levels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from accelerated.kernels.eager.bins import whole_pixels

__all__ = [
    "check",
    "empty_output",
    "on_filled",
    "pair",
    "prepare",
    "register_autograd",
    "whole_pixels",
]


def prepare(
    features: Sequence[torch.Tensor],
    rois: torch.Tensor,
    image_index: torch.Tensor,
    level_index: torch.Tensor,
    scales: Sequence[float],
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor, list[float]]:
    """Return the arguments as operators take them; raise ValueError if levels are missing.

    RoIs become float32, if they are not float64; no gradient reaches them.
    """
    if not len(features) == len(scales) > 0:
        raise ValueError(f"{len(features)} levels of features, {len(scales)} scales")
    if rois.dtype not in (torch.float32, torch.float64):
        rois = rois.float()
    return list(features), rois.detach(), image_index, level_index, list(scales)


def check(
    features: Sequence[torch.Tensor],
    rois: torch.Tensor,
    image_index: torch.Tensor,
    level_index: torch.Tensor,
) -> None:
    """Raise ValueError for wrong shapes and, on a CPU, for the first bad row.

    An RoI is bad if it is not finite, except for padding, or if its image or level does not exist.
    """
    shapes = [tuple(x.shape) for x in (rois, image_index, level_index)]
    count = len(rois)
    if shapes != [(count, 4), (count,), (count,)]:
        raise ValueError(f"expected rois [R, 4], image_index [R] and level_index [R], got {shapes}")
    if rois.is_cuda:
        return
    images, levels = len(features[0]), len(features)
    for name, values, bad, expected in (
        ("rois", rois, ~rois.isfinite().all(1) & (image_index >= 0), "finite numbers"),
        ("image_index", image_index, (image_index < -1) | (image_index >= images), f"< {images}"),
        ("level_index", level_index, (level_index < 0) | (level_index >= levels), f"< {levels}"),
    ):
        if bad.any():
            row = int(bad.int().argmax())
            raise ValueError(f"{name}[{row}] is {values[row].tolist()}; expected {expected}")


def pair(output_size: int | Sequence[int]) -> list[int]:
    """Return [P_h, P_w] from P or a pair."""
    return [output_size, output_size] if isinstance(output_size, int) else list(output_size)


def empty_output(
    features: Sequence[torch.Tensor], rois: torch.Tensor, output_size: list[int], indices: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return uninitialised output [R, C, P_h, P_w], channels-last where the features are.

    The second tensor is int32, of the same shape and strides with `indices`, otherwise empty.
    """
    first = features[0]
    last = first.is_contiguous(memory_format=torch.channels_last) and not first.is_contiguous()
    out = torch.empty(
        (rois.shape[0], first.shape[1], *output_size),
        dtype=first.dtype,
        device=rois.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )
    return out, torch.empty_like(out if indices else out.new_empty(0), dtype=torch.int32)


def on_filled(
    head: Callable[..., Any], x: torch.Tensor, valid: torch.Tensor, *others: torch.Tensor
) -> Any:
    """Return head(x, valid, *others): one or several tensors of R rows; empty rows are skipped.

    x, others  [R, ...]
    valid      [R] bool  which rows are filled; the others may become anything finite

    Rows are skipped where asking for them is free: on a CPU, and not while a graph is captured.
    """
    if not x.is_cpu or torch.compiler.is_compiling() or valid.all():
        return head(x, valid, *others)
    rows = valid.nonzero()[:, 0]
    if len(rows) == 0:
        # Layers and gradients need a row, and an empty one is no special case to them.
        rows = rows.new_zeros(min(len(x), 1))
    results = head(x.index_select(0, rows), valid[rows], *(y[rows] for y in others))
    if isinstance(results, torch.Tensor):
        return _in_slots(results, rows, len(x))
    return tuple(_in_slots(result, rows, len(x)) for result in results)


def _in_slots(result, rows, count):
    """Return [count, ...] with `result` in its rows, elsewhere 0."""
    return result.new_zeros(count, *result.shape[1:]).index_copy(0, rows, result)


def register_autograd(forward: Any, backward: Any) -> None:
    """Let autograd differentiate the operator `forward` by the operator `backward`.

    forward(features, rois, image_index, level_index, ...) returns the output and indices;
    backward(grad_out, indices, *arguments of forward) returns the gradients of the features, of
    which it reads only shapes, dtype and strides.
    """

    def setup_context(ctx, inputs, output):
        features, rois, image_index, level_index, *ctx.settings = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], rois, image_index, level_index, *features)

    def differentiate(ctx, grad_out, _):
        indices, rois, image_index, level_index, *features = ctx.saved_tensors
        grads = backward(grad_out, indices, features, rois, image_index, level_index, *ctx.settings)
        return grads, *[None] * (3 + len(ctx.settings))

    @backward.register_fake
    def _(grad_out, indices, features, *_):
        return [torch.empty_like(x) for x in features]

    forward.register_autograd(differentiate, setup_context=setup_context)
