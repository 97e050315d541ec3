"""RoIAlign over one or all levels of a pyramid, forward and backward, deterministic on every device.

Kernels are in kernels/roi_align.py. Here: the operator, its autograd, and plain PyTorch, which lists for every bin the
features it touches and their weights (an interpolation matrix, sparse), and multiplies with `embedding_bag`; the backward
is the same product with the list sorted by feature.

N images, R rois, C channels, P pooled size, L levels, E entries of the list.
"""

import math
from typing import NamedTuple

import torch
from torch.nn.functional import embedding_bag

from accelerated import backend as backends

CHANNELS_AT_ONCE = 16  # of the channels-last copy: small enough to stay in a cache


def roi_align(
    features,
    rois,
    image_index,
    *,
    output_size,
    spatial_scale,
    sampling_ratio,
    aligned,
    aggregate="mean",
    backend="auto",
):
    """Average (or largest) bilinear sample in each bin of each RoI, rounding nothing [Mask R-CNN §3].

    features        [N, C, H, W]  float64, float32, float16 or bfloat16; contiguous, channels-last or strided
    rois            [R, 4]        float32 or float64; xyxy, input-image pixels; may leave the image. Coordinates are computed in their dtype
    image_index     [R]           int, row of `features`; -1: a padding RoI, whose output is 0
    output_size     P or (P_h, P_w)
    spatial_scale   feature pixels per image pixel
    sampling_ratio  samples per bin and axis; 0: ceil(bin side)
    aligned         True: shift by half a pixel; RoIs with x2 < x1 or y2 < y1 give 0. False: RoIs are at least one feature pixel wide
    aggregate       "mean", or "max": the first largest sample in row-major order
    Returns         [R, C, P_h, P_w], in the dtype and memory format of `features`; accumulated in float32 or float64.

    A sample more than one pixel outside the map is 0 but still counts in the average (SPEC §1).
    NaN in a feature reaches exactly the bins that give it a weight. No gradient reaches `rois`.
    A non-finite RoI is a ValueError on a CPU, naming its row; on a GPU its output is 0.
    """
    return multilevel(
        [features],
        rois,
        image_index,
        torch.zeros_like(image_index),
        scales=[spatial_scale],
        output_size=output_size,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
        aggregate=aggregate,
        backend=backend,
    )


def multilevel(
    features,
    rois,
    image_index,
    level_index,
    *,
    scales,
    output_size,
    sampling_ratio,
    aligned,
    aggregate="mean",
    backend="auto",
):
    """`roi_align` where RoI r reads features[level_index[r]]: one launch, fixed shapes, no synchronisation on a GPU.

    features     L tensors [N, C, H_l, W_l] of one dtype
    level_index  [R]  int, 0..L-1
    scales       L floats, feature pixels per image pixel
    Returns      [R, C, P_h, P_w].

    Backend "torch" with sampling_ratio 0 on a GPU asks the device once for the largest number of samples.
    """
    if aggregate not in ("mean", "max"):
        raise ValueError(f"aggregate: expected 'mean' or 'max', got {aggregate!r}")
    features = list(features)
    if not len(features) == len(scales) > 0:
        raise ValueError(f"{len(features)} levels of features, {len(scales)} scales")
    if rois.dtype not in (torch.float32, torch.float64):
        rois = rois.float()
    return _forward(
        features,
        rois.detach(),
        image_index,
        level_index,
        list(scales),
        pair(output_size),
        sampling_ratio,
        aligned,
        aggregate,
        backend,
    )[0]


def pair(output_size):
    """[P_h, P_w] from P or a pair."""
    return [output_size, output_size] if isinstance(output_size, int) else list(output_size)


def check(features, rois, image_index, level_index):
    """On a CPU, where it is free: a ValueError that names the first RoI that is not finite or whose image or level does not exist."""
    if (
        rois.ndim != 2
        or rois.shape[1] != 4
        or image_index.shape != rois.shape[:1]
        or level_index.shape != rois.shape[:1]
    ):
        shapes = [tuple(x.shape) for x in (rois, image_index, level_index)]
        raise ValueError(f"expected rois [R, 4], image_index [R] and level_index [R], got {shapes}")
    if rois.is_cuda or len(rois) == 0:
        return
    for what, values, bad in (
        ("rois", rois, ~rois.isfinite().all(1) & (image_index >= 0)),
        ("image_index", image_index, (image_index < -1) | (image_index >= len(features[0]))),
        ("level_index", level_index, (level_index < 0) | (level_index >= len(features))),
    ):
        if bad.any():
            row = int(bad.int().argmax())
            raise ValueError(
                f"{what}[{row}] is {values[row].tolist()}: not finite, or there is no such row"
            )


def memory_format(features):
    """That of the output: channels-last where the features are."""
    first = features[0]
    last = first.is_contiguous(memory_format=torch.channels_last) and not first.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


@torch.library.custom_op("maskrcnn::roi_align", mutates_args=())
def _forward(
    features: list[torch.Tensor],
    rois: torch.Tensor,
    image_index: torch.Tensor,
    level_index: torch.Tensor,
    scales: list[float],
    output_size: list[int],
    sampling_ratio: int,
    aligned: bool,
    aggregate: str,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, and for "max" the number of the sample taken [R, C, P_h, P_w] int32 (otherwise nothing)."""
    check(features, rois, image_index, level_index)
    out, number = _empty(
        features,
        rois,
        image_index,
        level_index,
        scales,
        output_size,
        sampling_ratio,
        aligned,
        aggregate,
        backend,
    )
    sampling = (rois, image_index, level_index, scales, output_size, sampling_ratio, aligned)
    if backends.resolve(backend, rois) == "triton":
        from accelerated.kernels.triton import roi_align as kernels

        kernels.forward(features, *sampling, out, number if aggregate == "max" else None)
        return out, number
    lists = _lists(features, *sampling, aggregate)
    for channels, table in tables(features):
        bins = (len(rois), *output_size, table.shape[1])
        if aggregate == "mean":
            values = _times(lists[0], table)
        else:
            values, which = _largest(lists, table)
            number[:, channels] = which.view(bins).permute(0, 3, 1, 2)
        out[:, channels] = values.view(bins).permute(0, 3, 1, 2)
    return out, number


@_forward.register_fake
def _empty(
    features,
    rois,
    image_index,
    level_index,
    scales,
    output_size,
    sampling_ratio,
    aligned,
    aggregate,
    backend,
):
    shape = (rois.shape[0], features[0].shape[1], *output_size)
    out = torch.empty(
        shape, dtype=features[0].dtype, device=rois.device, memory_format=memory_format(features)
    )
    return out, torch.empty(
        shape if aggregate == "max" else (0,), dtype=torch.int32, device=rois.device
    )


@torch.library.custom_op("maskrcnn::roi_align_backward", mutates_args=())
def _backward(
    grad_out: torch.Tensor,
    number: torch.Tensor,
    features: list[torch.Tensor],
    rois: torch.Tensor,
    image_index: torch.Tensor,
    level_index: torch.Tensor,
    scales: list[float],
    output_size: list[int],
    sampling_ratio: int,
    aligned: bool,
    aggregate: str,
    backend: str,
) -> list[torch.Tensor]:
    """Gradients of the features, of which only shapes, dtype and strides are read."""
    grads = [torch.empty_like(x) for x in features]
    sampling = (rois, image_index, level_index, scales, output_size, sampling_ratio, aligned)
    if backends.resolve(backend, rois) == "triton":
        from accelerated.kernels.triton import roi_align as kernels

        kernels.backward(grad_out, number if aggregate == "max" else None, *sampling, grads)
        return grads
    rows = [len(x) * x[0, 0].numel() for x in features]
    lists = [_transposed(entries, sum(rows)) for entries in _lists(features, *sampling, aggregate)]
    dtype = accumulator(features[0])
    for start in range(0, grad_out.shape[1], CHANNELS_AT_ONCE):
        channels = slice(start, start + CHANNELS_AT_ONCE)
        grad = grad_out[:, channels].permute(0, 2, 3, 1).to(dtype).flatten(0, 2)
        if aggregate == "mean":
            table = _times(lists[0], grad)
        else:
            which = number[:, channels].permute(0, 2, 3, 1).flatten(0, 2)
            table = grad.new_zeros(sum(rows) + 1, grad.shape[1])
            for k, entries in enumerate(lists):
                table += _times(entries, grad * (which == k))
        for level, part in zip(grads, table[:-1].split(rows), strict=True):
            images, _, height, width = level.shape
            level[:, channels] = part.view(images, height, width, -1).permute(0, 3, 1, 2)
    return grads


@_backward.register_fake
def _(grad_out, number, features, *_):
    return [torch.empty_like(x) for x in features]


def _setup_context(ctx, inputs, output):
    features, rois, image_index, level_index, *ctx.keywords = inputs
    ctx.save_for_backward(output[1], rois, image_index, level_index, *features)


def _autograd(ctx, grad_out, _):
    number, rois, image_index, level_index, *features = ctx.saved_tensors
    grads = _backward(grad_out, number, features, rois, image_index, level_index, *ctx.keywords)
    return grads, *[None] * (3 + len(ctx.keywords))


_forward.register_autograd(_autograd, setup_context=_setup_context)


# ---- plain PyTorch


def accumulator(features):
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def tables(features):
    """Some channels at a time: (slice of channels, the features of all levels as rows [sum of N*H*W, + a row of zeros])."""
    rows = [len(x) * x[0, 0].numel() for x in features]
    channels = features[0].shape[1]
    buffer = features[0].new_zeros(
        sum(rows) + 1, min(channels, CHANNELS_AT_ONCE), dtype=accumulator(features[0])
    )
    for start in range(0, channels, CHANNELS_AT_ONCE):
        count = min(channels - start, CHANNELS_AT_ONCE)
        table = buffer[:, :count].contiguous()
        for x, part in zip(features, table[:-1].split(rows), strict=True):
            images, _, height, width = x.shape
            part.view(images, height, width, count).copy_(
                x[:, start : start + count].permute(0, 2, 3, 1)
            )
        yield slice(start, start + count), table


class _Entries(NamedTuple):
    """A sparse matrix by rows: `index` of a column and `weight` [E], `offsets` of the rows [rows + 1]; later entries do not count."""

    index: torch.Tensor
    weight: torch.Tensor
    offsets: torch.Tensor
    exists: torch.Tensor | None = None  # [rows] bool, of "max": the bin has this sample


def _lists(
    features,
    rois,
    image_index,
    level_index,
    scales,
    output_size,
    sampling_ratio,
    aligned,
    aggregate,
):
    """The matrix from features to bins of "mean"; of "max", one for each sample of a bin.

    On a CPU entries without weight are left out; on a GPU, where their number must not be asked for, they read the row of zeros.
    """
    at, dtype = level_index.long(), rois.dtype
    rows = [len(x) * x[0, 0].numel() for x in features]
    base = choose(at, [sum(rows[:level]) for level in range(len(rows))], torch.int64)
    scale = choose(at, scales, dtype)
    height, width = (choose(at, [x.shape[axis] for x in features], torch.int64) for axis in (2, 3))
    valid = (image_index >= 0) & rois.isfinite().all(1)
    rois = torch.where(valid[:, None], rois, 0)
    first_row = base + image_index.clamp(min=0).long() * height * width
    ys = _axis(
        rois[:, 1], rois[:, 3], valid, scale, height, output_size[0], sampling_ratio, aligned
    )
    xs = _axis(rois[:, 0], rois[:, 2], valid, scale, width, output_size[1], sampling_ratio, aligned)
    ys = (ys[0] * width[:, None, None, None], *ys[1:])
    count = _may_count(rois, sampling_ratio)

    def product(y, x):
        return _product(*y, *x, first_row, sum(rows), accumulator(features[0]), count)

    if aggregate == "mean":
        return [product(_mean(*ys, count), _mean(*xs, count))]
    lists = []
    for i in range(ys[0].shape[2]):
        for j in range(xs[0].shape[2]):
            exists = (
                ((i < ys[2]) & (j < xs[2]))[:, None].expand(-1, math.prod(output_size)).flatten()
            )
            entries = product((ys[0][:, :, i], ys[1][:, :, i]), (xs[0][:, :, j], xs[1][:, :, j]))
            lists.append(entries._replace(exists=exists))
    return lists


def _may_count(rois, sampling_ratio):
    """Whether numbers may depend on the data: not on a GPU, except where adaptive sampling leaves no choice."""
    return not rois.is_cuda or sampling_ratio <= 0


def choose(at, values, dtype):
    """values[at[r]] of a Python list, without a copy from the host."""
    out = torch.full_like(at, values[0], dtype=dtype)
    for level, value in enumerate(values[1:], 1):
        out = torch.where(at == level, value, out)
    return out


def _axis(low, high, valid, scale, size, bins, sampling_ratio, aligned):
    """The samples of every RoI along one axis, in the order of arithmetic of SPEC §1.

    low, high, valid, scale, size [R] -> neighbours [R, bins, G, 2] int64, their weights [R, bins, G, 2], samples per bin [R].
    G is the largest number of samples; those beyond a RoI's own have weight 0.
    """
    offset = 0.5 if aligned else 0.0
    start = low * scale - offset
    length = (high * scale - offset) - start
    if not aligned:
        length = length.clamp(min=1)
    bin_side = length / bins
    grid = torch.full_like(start, sampling_ratio) if sampling_ratio > 0 else bin_side.ceil()
    grid = torch.where(valid & (high >= low) if aligned else valid, grid, 0)
    most = sampling_ratio if sampling_ratio > 0 else max(1, int(grid.max())) if len(grid) else 1
    first = (
        start[:, None] + torch.arange(bins, device=low.device, dtype=low.dtype) * bin_side[:, None]
    )
    sample = torch.arange(most, device=low.device, dtype=low.dtype)
    inside = (sample + 0.5) * bin_side[:, None] / grid.clamp(min=1)[:, None]
    position = first[:, :, None] + inside[:, None, :]
    end = size[:, None, None]
    inside_map = (
        (position >= -1) & (position <= end) & (sample < grid[:, None])[:, None, :]
    )  # exactly -1 and exactly `size` are valid
    position = torch.minimum(position.clamp(min=0), (end - 1).to(position.dtype))
    lower = position.long()
    fraction = position - lower
    index = torch.stack([lower, torch.minimum(lower + 1, end - 1)], -1)
    return index, torch.stack([1 - fraction, fraction], -1) * inside_map[..., None], grid


def _mean(index, weight, grid, count):
    """The mean over the samples of each bin: index and weight [R, bins, T]. On a CPU every index is weighted once, 0 fills up."""
    index, weight = index.flatten(2), weight.flatten(2) / grid.clamp(min=1)[:, None, None]
    if index.is_cuda or not count:
        return index, weight
    index, order = index.sort(dim=-1, stable=True)
    slot = torch.nn.functional.pad((index.diff(dim=-1) != 0).cumsum(-1), (1, 0))
    weight = torch.zeros_like(weight).scatter_add_(-1, slot, weight.gather(-1, order))
    return torch.zeros_like(index).scatter_(-1, slot, index), weight


def _product(index_y, weight_y, index_x, weight_x, first_row, zero_row, dtype, count):
    """Entries of all bins from those of their axes: index and weight [R, P, T] each."""
    rois, bins_y, taps_y = index_y.shape
    _, bins_x, taps_x = index_x.shape
    index_y = first_row[:, None, None] + index_y
    if count:
        axes = [_packed(index_y, weight_y.to(dtype)), _packed(index_x, weight_x.to(dtype))]
        (index_y, weight_y, first_y, count_y), (index_x, weight_x, first_x, count_x) = axes
        counts = (count_y.view(rois, bins_y, 1) * count_x.view(rois, 1, bins_x)).flatten()
        offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        bins = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        inside = torch.arange(len(bins), device=counts.device) - offsets[bins]
        bin_y, bin_x = bins // bins_x, bins // (bins_x * bins_y) * bins_x + bins % bins_x
        taps = count_x[bin_x]
        y, x = first_y[bin_y] + inside // taps, first_x[bin_x] + inside % taps
        return _Entries((index_y[y] + index_x[x]).int(), weight_y[y] * weight_x[x], offsets.int())
    weight = weight_y[:, :, None, :, None].to(dtype) * weight_x[:, None, :, None, :].to(dtype)
    index = torch.where(
        weight != 0, index_y[:, :, None, :, None] + index_x[:, None, :, None, :], zero_row
    )
    ends = torch.arange(rois * bins_y * bins_x + 1, device=index.device, dtype=torch.int32) * (
        taps_y * taps_x
    )
    return _Entries(index.flatten().int(), weight.flatten(), ends)


def _packed(index, weight):
    """[R, bins, T] without the entries of no weight: index and weight [E], and of each bin its first entry and their number."""
    used = weight != 0
    kept = used.flatten().nonzero()[:, 0]
    counts = used.sum(-1).flatten()
    return index.flatten()[kept], weight.flatten()[kept], counts.cumsum(0) - counts, counts


def _transposed(entries, rows):
    """The same matrix by columns, `rows` and one for the row of zeros; the entries of one column keep their order."""
    bins = torch.arange(len(entries.offsets) - 1, device=entries.index.device, dtype=torch.int32)
    bins = bins.repeat_interleave(entries.offsets.diff(), output_size=len(entries.index))
    index, order = entries.index.sort(stable=True)
    offsets = torch.searchsorted(
        index, torch.arange(rows + 2, device=index.device, dtype=index.dtype), out_int32=True
    )
    return entries._replace(index=bins[order], weight=entries.weight[order], offsets=offsets)


def _times(entries, table):
    """The sparse matrix times the dense `table`; adds in the order of the entries."""
    if len(entries.index) == 0:
        return table.new_zeros(len(entries.offsets) - 1, table.shape[1])
    return embedding_bag(
        entries.index,
        table,
        entries.offsets,
        mode="sum",
        per_sample_weights=entries.weight,
        include_last_offset=True,
    )


def _largest(lists, table):
    """Of the samples of each bin the first largest, and its number; NaN is larger than all."""
    best = table.new_zeros(len(lists[0].offsets) - 1, table.shape[1])
    number = torch.full_like(best, -1, dtype=torch.int32)
    for k, entries in enumerate(lists):
        values = _times(entries, table)
        larger = (number < 0) | (values > best) | (values.isnan() & ~best.isnan())
        larger = larger & entries.exists[:, None]
        best, number = torch.where(larger, values, best), torch.where(larger, k, number)
    return best, number
