"""RoIPool in plain PyTorch: the features of every bin as a list, its maximum by `embedding_bag`.

Legend: R rois, C channels, P pooled size, E entries of all lists.
"""

import torch
from torch.nn.functional import embedding_bag

from accelerated.kernels.arguments import Pooling
from accelerated.kernels.eager import tables
from accelerated.kernels.eager.bins import bins as bins_of


def forward(
    features: list[torch.Tensor], pooling: Pooling, out: torch.Tensor, argmax: torch.Tensor
) -> None:
    """Fill `out` and `argmax` [R, C, P_h, P_w], of the same strides."""
    first_row = tables.first_rows(features, pooling.image_index, pooling.level_index)
    width = tables.choose(pooling.level_index, [x.shape[3] for x in features], torch.int64)
    index, offsets = _lists(bins_of(pooling, features), first_row, width)
    for channels, table in tables.by_channels(features, zero_row=True):
        shape = (len(out), *out.shape[2:], table.shape[1])
        values, row = _largest(index, offsets, table)
        out[:, channels] = values.view(shape).permute(0, 3, 1, 2)
        row = row.view(shape).permute(0, 3, 1, 2)
        row = torch.where(row < 0, row, row - first_row[:, None, None, None])
        argmax[:, channels] = row.int()


def backward(
    grad_out: torch.Tensor, argmax: torch.Tensor, pooling: Pooling, grads: list[torch.Tensor]
) -> None:
    """Fill `grads`, a tensor per level, from grad_out and argmax [R, C, P_h, P_w]."""
    dtype = tables.accumulator(grad_out)
    for level, grad in enumerate(grads):
        _, channels, height, width = grad.shape
        kept = (argmax >= 0) & (pooling.level_index == level)[:, None, None, None]
        channel = torch.arange(channels, device=grad.device)
        plane = pooling.image_index.long().clamp(min=0)[:, None] * channels + channel
        index = torch.where(kept, plane[:, :, None, None] * (height * width) + argmax, 0).flatten()
        values = torch.where(kept, grad_out, 0).to(dtype).flatten()
        total = torch.zeros(grad.numel(), dtype=dtype, device=grad.device)
        # Both are deterministic: the one sorts, the other adds in order.
        if grad.is_cuda:
            total.index_put_((index,), values, accumulate=True)
        else:
            total.scatter_add_(0, index, values)
        grad.copy_(total.view(grad.shape))


def _lists(bins, first_row, width):
    """Return the rows of the table in every bin [E] int64 and the offsets of the bins."""
    counts = bins.rows[:, :, None] * bins.columns[:, None, :]
    top = first_row[:, None] + bins.tops * width[:, None]
    corner = top[:, :, None] + bins.lefts[:, None, :]
    offsets, lists, position = tables.number_entries(counts)
    columns = bins.columns[:, None, :].expand_as(counts).flatten()[lists]
    stride = width[:, None, None].expand_as(counts).flatten()[lists]
    return corner.flatten()[lists] + position // columns * stride + position % columns, offsets


def _largest(index, offsets, table):
    """Return the largest row entry of each list by channel, and its row; 0 and -1 if it is empty.

    Of equals the first; NaN is larger than all.
    """
    if len(index) == 0:
        shape = (len(offsets) - 1, table.shape[1])
        return table.new_zeros(shape), torch.full(shape, -1, device=table.device)
    isnan = table.isnan()
    ordered = table.masked_fill(isnan, torch.inf)
    values, _, _, row = torch.embedding_bag(ordered, index, offsets, False, 2, False, None, True)
    row = torch.where(offsets.diff()[:, None] > 0, row, -1)
    if isnan.any():
        nans = isnan.to(table.dtype)
        count = embedding_bag(index, nans, offsets, mode="sum", include_last_offset=True)
        values = torch.where(count > 0, torch.nan, values)
    return values, row
