"""RoIPool in plain PyTorch: the features of every bin as a list, its maximum by `embedding_bag`.

On a CPU, most RoIs have the bins of PyTorch's adaptive pooling: each is one call of it, which is
faster. RoIs cut by the border of the map, and maps with NaN, take the lists.

Legend: R rois, C channels, P pooled size, E entries of all lists.
"""

import torch
from torch.nn.functional import adaptive_max_pool2d, embedding_bag

from accelerated.kernels.arguments import Pooling
from accelerated.kernels.eager import tables
from accelerated.kernels.eager.bins import Bins
from accelerated.kernels.eager.bins import bins as bins_of


def forward(
    features: list[torch.Tensor], pooling: Pooling, out: torch.Tensor, argmax: torch.Tensor
) -> None:
    """Fill `out` and `argmax` [R, C, P_h, P_w], of the same strides."""
    bins = bins_of(pooling, features)
    # A sum is quick; of infinities it may be NaN too, which only takes longer.
    has_nan = any(x.sum().isnan() for x in features)
    if out.is_cuda or has_nan:
        _from_lists(features, pooling, bins, slice(None), out, argmax, has_nan)
        return
    features = [x.contiguous(memory_format=torch.channels_last) for x in features]
    adaptive = _is_adaptive(bins.tops, bins.rows) & _is_adaptive(bins.lefts, bins.columns)
    _from_lists(features, pooling, bins, (~adaptive).nonzero()[:, 0], out, argmax, has_nan)
    _adaptively(features, pooling, bins, adaptive.nonzero()[:, 0], out, argmax)


def _adaptively(features, pooling, bins, rows, out, argmax):
    """Fill the RoIs `rows` of `out` and `argmax` by adaptive pooling of channels-last maps."""
    firsts = [x[rows, 0].tolist() for x in (bins.tops, bins.lefts)]
    ends = [x[rows, -1].tolist() for x in (bins.tops + bins.rows, bins.lefts + bins.columns)]
    indices = [x[rows].tolist() for x in (pooling.level_index, pooling.image_index)]
    threads = torch.get_num_threads()
    # A call is too short to be shared: other threads would cost more than they help.
    torch.set_num_threads(1)
    try:
        for row, level, image, top, left, bottom, right in zip(
            rows.tolist(), *indices, *firsts, *ends, strict=True
        ):
            window = features[level][image : image + 1, :, top:bottom, left:right]
            values, index = adaptive_max_pool2d(window, out.shape[2:], return_indices=True)
            # From an index into the window to an index into the map.
            width, columns = features[level].shape[3], right - left
            index += index.div(columns, rounding_mode="floor").mul_(width - columns)
            out[row], argmax[row] = values[0], index[0].add_(top * width + left)
    finally:
        torch.set_num_threads(threads)


def _is_adaptive(first, count):
    """Tell whose bins [R, P] along an axis, none empty, are those of adaptive pooling."""
    bins = torch.arange(first.shape[1], device=first.device)
    length = (first + count)[:, -1:] - first[:, :1]
    start = bins * length // len(bins)
    end = -(-(bins + 1) * length // len(bins))
    same = (first - first[:, :1] == start) & (count == end - start)
    return same.all(1) & (length[:, 0] > 0)


def _from_lists(features, pooling, bins, rows, out, argmax, has_nan):
    """Fill the RoIs `rows` of `out` and `argmax` from the list of each bin."""
    image_index, level_index = pooling.image_index[rows], pooling.level_index[rows]
    first_row = tables.first_rows(features, image_index, level_index)
    width = tables.choose(level_index, [x.shape[3] for x in features], torch.int64)
    index, offsets = _lists(Bins(*(x[rows] for x in bins)), first_row, width)
    for channels, table in tables.by_channels(features, zero_row=False):
        shape = (len(first_row), *out.shape[2:], table.shape[1])
        values, row = _largest(index, offsets, table, has_nan)
        out[rows, channels] = values.view(shape).permute(0, 3, 1, 2).to(out.dtype)
        row = row.view(shape).permute(0, 3, 1, 2)
        row = torch.where(row < 0, row, row - first_row[:, None, None, None])
        argmax[rows, channels] = row.int()


def backward(
    grad_out: torch.Tensor, argmax: torch.Tensor, pooling: Pooling, grads: list[torch.Tensor]
) -> None:
    """Fill `grads`, a tensor per level, from grad_out and argmax [R, C, P_h, P_w]."""
    fill = _add_sorted if grad_out.is_cuda else _add_in_order
    for level, grad in enumerate(grads):
        here = (pooling.level_index == level) & (pooling.image_index >= 0)
        fill(grad_out, argmax, pooling.image_index, here, grad)


def _add_sorted(grad_out, argmax, image_index, here, grad):
    """Fill `grad` from the RoIs that are `here`; deterministic on a GPU, because it sorts."""
    dtype, (_, channels, height, width) = tables.accumulator(grad), grad.shape
    kept = (argmax >= 0) & here[:, None, None, None]
    channel = torch.arange(channels, device=grad.device)
    plane = image_index.long().clamp(min=0)[:, None] * channels + channel
    index = torch.where(kept, plane[:, :, None, None] * (height * width) + argmax, 0).flatten()
    values = torch.where(kept, grad_out, 0).to(dtype).flatten()
    total = torch.zeros(grad.numel(), dtype=dtype, device=grad.device)
    grad.copy_(total.index_put_((index,), values, accumulate=True).view(grad.shape))


def _add_in_order(grad_out, argmax, image_index, here, grad):
    """Fill `grad` from the RoIs that are `here`, one after the other."""
    dtype, last = tables.accumulator(grad), grad.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if last else torch.contiguous_format
    in_place = grad.dtype == dtype and grad.is_contiguous(memory_format=memory_format)
    total = grad if in_place else torch.empty_like(grad, dtype=dtype, memory_format=memory_format)
    # Pixels along axis 0 or 1, as they lie in memory.
    planes = total.zero_().permute(0, 2, 3, 1).flatten(1, 2) if last else total.zero_().flatten(2)
    rows = here.nonzero()[:, 0]
    for row, image in zip(rows.tolist(), image_index[rows].tolist(), strict=True):
        values, index = (x[row].flatten(1) for x in (grad_out, argmax))
        if last:
            values, index = values.T, index.T
        values = values.to(dtype).masked_fill(index < 0, 0)
        planes[image].scatter_add_(0 if last else 1, index.clamp(min=0).long(), values)
    if not in_place:
        grad.copy_(total)


def _lists(bins, first_row, width):
    """Return the rows of the table in every bin [E] int64 and the offsets of the bins."""
    counts = bins.rows[:, :, None] * bins.columns[:, None, :]
    top = first_row[:, None] + bins.tops * width[:, None]
    corner = top[:, :, None] + bins.lefts[:, None, :]
    offsets, lists, position = tables.number_entries(counts)
    columns = bins.columns[:, None, :].expand_as(counts).flatten()[lists]
    stride = width[:, None, None].expand_as(counts).flatten()[lists]
    return corner.flatten()[lists] + position // columns * stride + position % columns, offsets


def _largest(index, offsets, table, has_nan):
    """Return the largest row entry of each list by channel, and its row; 0 and -1 if it is empty.

    Of equals the first; NaN is larger than all.
    """
    if len(index) == 0:
        shape = (len(offsets) - 1, table.shape[1])
        return table.new_zeros(shape), torch.full(shape, -1, device=table.device)
    ordered = table.masked_fill(table.isnan(), torch.inf) if has_nan else table
    values, _, _, row = torch.embedding_bag(ordered, index, offsets, False, 2, False, None, True)
    row = torch.where(offsets.diff()[:, None] > 0, row, -1)
    if has_nan:
        nans = table.isnan().to(table.dtype)
        count = embedding_bag(index, nans, offsets, mode="sum", include_last_offset=True)
        values = torch.where(count > 0, torch.nan, values)
    return values, row
