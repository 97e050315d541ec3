"""RoIPool over one or all levels of a pyramid, forward and backward, deterministic on every device.

Kernels are in kernels/roi_pool.py. Here: the operator, its autograd, and plain PyTorch, which lists the features of every
bin in row-major order and takes the maximum of each list with `embedding_bag`.

N images, R rois, C channels, P pooled size, L levels.
"""

import torch

from accelerated import backend as backends
from accelerated.roi_align import check, choose, memory_format, pair, tables


def roi_pool(features, rois, image_index, *, output_size, spatial_scale, backend="auto"):
    """Largest feature in each bin of each RoI [Fast R-CNN §2.1; SPEC §2].

    features       [N, C, H, W]  float64, float32, float16 or bfloat16; contiguous, channels-last or strided
    rois           [R, 4]        float32 or float64; xyxy, input-image pixels; may leave the image. Coordinates are computed in their dtype
    image_index    [R]           int, row of `features`; -1: a padding RoI, whose output is 0
    output_size    P or (P_h, P_w)
    spatial_scale  feature pixels per image pixel
    Returns        [R, C, P_h, P_w], in the dtype and memory format of `features`; an empty bin is 0.

    Coordinates round half away from zero, the end is inclusive, bins may overlap by a pixel. NaN reaches the bins it lies in.
    The first maximum in row-major order takes the whole gradient. A non-finite RoI is a ValueError on a CPU, naming its row;
    on a GPU its output is 0.
    """
    level_index = torch.zeros_like(image_index)
    return multilevel(
        [features],
        rois,
        image_index,
        level_index,
        scales=[spatial_scale],
        output_size=output_size,
        backend=backend,
    )


def multilevel(features, rois, image_index, level_index, *, scales, output_size, backend="auto"):
    """`roi_pool` where RoI r reads features[level_index[r]]: one launch, fixed shapes, no synchronisation on a GPU.

    features     L tensors [N, C, H_l, W_l] of one dtype
    level_index  [R]  int, 0..L-1
    scales       L floats, feature pixels per image pixel
    Returns      [R, C, P_h, P_w].

    Backend "torch" on a GPU asks the device for the sizes of the bins.
    """
    return multilevel_argmax(
        features,
        rois,
        image_index,
        level_index,
        scales=scales,
        output_size=output_size,
        backend=backend,
    )[0]


def multilevel_argmax(
    features, rois, image_index, level_index, *, scales, output_size, backend="auto"
):
    """`multilevel` and where its values come from: argmax [R, C, P_h, P_w] int32, y * W_l + x; -1 in an empty bin."""
    features = list(features)
    if not len(features) == len(scales) > 0:
        raise ValueError(f"{len(features)} levels of features, {len(scales)} scales")
    if rois.dtype not in (torch.float32, torch.float64):
        rois = rois.float()
    return _forward(
        features, rois.detach(), image_index, level_index, list(scales), pair(output_size), backend
    )


@torch.library.custom_op("maskrcnn::roi_pool", mutates_args=())
def _forward(
    features: list[torch.Tensor],
    rois: torch.Tensor,
    image_index: torch.Tensor,
    level_index: torch.Tensor,
    scales: list[float],
    output_size: list[int],
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    check(features, rois, image_index, level_index)
    out, argmax = _empty(features, rois, image_index, level_index, scales, output_size, backend)
    if backends.resolve(backend, rois) == "triton":
        from accelerated.kernels.triton import roi_pool as kernels

        bins = _bins(features, rois, image_index, level_index, scales, output_size)
        kernels.forward(features, image_index, level_index, [x.int() for x in bins], out, argmax)
        return out, argmax
    index, offsets, first_row = _lists(
        features, rois, image_index, level_index, scales, output_size
    )
    first_row = first_row[:, None, None, None]
    for channels, table in tables(features):
        bins = (len(rois), *output_size, table.shape[1])
        values, row = _largest(index, offsets, table)
        out[:, channels] = values.view(bins).permute(0, 3, 1, 2)
        row = row.view(bins).permute(0, 3, 1, 2)
        argmax[:, channels] = torch.where(row < 0, row, row - first_row).int()
    return out, argmax


@_forward.register_fake
def _empty(features, rois, image_index, level_index, scales, output_size, backend):
    shape = (rois.shape[0], features[0].shape[1], *output_size)
    out = torch.empty(
        shape, dtype=features[0].dtype, device=rois.device, memory_format=memory_format(features)
    )
    return out, torch.empty_like(out, dtype=torch.int32)


@torch.library.custom_op("maskrcnn::roi_pool_backward", mutates_args=())
def _backward(
    grad_out: torch.Tensor,
    argmax: torch.Tensor,
    features: list[torch.Tensor],
    rois: torch.Tensor,
    image_index: torch.Tensor,
    level_index: torch.Tensor,
    scales: list[float],
    output_size: list[int],
    backend: str,
) -> list[torch.Tensor]:
    """Gradients of the features, of which only shapes, dtype and strides are read."""
    grads = [torch.empty_like(x) for x in features]
    if backends.resolve(backend, rois) == "triton":
        from accelerated.kernels.triton import roi_pool as kernels

        bins = _bins(features, rois, image_index, level_index, scales, output_size)
        kernels.backward(grad_out, argmax, image_index, level_index, [x.int() for x in bins], grads)
        return grads
    dtype = torch.float64 if grad_out.dtype == torch.float64 else torch.float32
    for level, grad in enumerate(grads):
        _, channels, height, width = grad.shape
        kept = (argmax >= 0) & (level_index == level)[:, None, None, None]
        plane = image_index.long().clamp(min=0)[:, None] * channels + torch.arange(
            channels, device=rois.device
        )
        index = torch.where(kept, plane[:, :, None, None] * (height * width) + argmax, 0).flatten()
        values = torch.where(kept, grad_out, 0).to(dtype).flatten()
        total = torch.zeros(grad.numel(), dtype=dtype, device=rois.device)
        if rois.is_cuda:
            total.index_put_((index,), values, accumulate=True)  # sorts, therefore deterministic
        else:
            total.scatter_add_(0, index, values)  # in order
        grad.copy_(total.view(grad.shape))
    return grads


@_backward.register_fake
def _(grad_out, argmax, features, *_):
    return [torch.empty_like(x) for x in features]


def _setup_context(ctx, inputs, output):
    features, rois, image_index, level_index, *ctx.keywords = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], rois, image_index, level_index, *features)


def _autograd(ctx, grad_out, _):
    argmax, rois, image_index, level_index, *features = ctx.saved_tensors
    grads = _backward(grad_out, argmax, features, rois, image_index, level_index, *ctx.keywords)
    return grads, *[None] * (3 + len(ctx.keywords))


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _bins(features, rois, image_index, level_index, scales, output_size):
    """The bins in feature pixels, int64: tops and rows [R, P_h], lefts and columns [R, P_w]; no rows in RoIs that pool nothing."""
    at = level_index.long()
    scale = choose(at, scales, rois.dtype)
    height, width = (choose(at, [x.shape[axis] for x in features], torch.int64) for axis in (2, 3))
    valid = (image_index >= 0) & rois.isfinite().all(1)
    rois = torch.where(valid[:, None], rois, 0)
    left, top, right, bottom = whole_pixels(rois, scale).unbind(1)
    tops, rows = _edges(top, bottom, height, output_size[0])
    return tops, rows * valid[:, None], *_edges(left, right, width, output_size[1])


def whole_pixels(rois, scale):
    """The RoIs [R, 4], each times its scale [R], in whole feature pixels: ends rounded and inclusive, hence one more; never empty."""
    low, high = _round(rois * scale[:, None]).split(2, dim=1)
    return torch.cat([low, torch.maximum(high, low) + 1], 1)


def _edges(start, end, size, bins):
    """First feature pixel of each bin along one axis, and how many [R, bins] int64."""
    bin_side = (end - start) / bins
    number = torch.arange(bins + 1, device=start.device, dtype=start.dtype)
    first = (number[:-1] * bin_side[:, None]).floor() + start[:, None]
    last = (number[1:] * bin_side[:, None]).ceil() + start[:, None]
    size = size[:, None]
    first, last = (torch.minimum(x.clamp(min=0), size.to(x.dtype)).long() for x in (first, last))
    return first, (last - first).clamp(min=0)


def _round(x):
    """Half away from zero, as C rounds."""
    whole = x.trunc()
    return whole + x.sign() * ((x - whole).abs() >= 0.5)


# ---- plain PyTorch


def _lists(features, rois, image_index, level_index, scales, output_size):
    """Rows of the table in every bin: (index [E] int64, offsets [bins + 1]), and the first row of each RoI's image [R]."""
    tops, heights, lefts, widths = _bins(
        features, rois, image_index, level_index, scales, output_size
    )
    at = level_index.long()
    rows = [len(x) * x[0, 0].numel() for x in features]
    width = choose(at, [x.shape[3] for x in features], torch.int64)
    plane = choose(at, [x[0, 0].numel() for x in features], torch.int64)
    first_row = (
        choose(at, [sum(rows[:level]) for level in range(len(rows))], torch.int64)
        + image_index.clamp(min=0).long() * plane
    )
    counts = heights[:, :, None] * widths[:, None, :]
    corner = (first_row[:, None] + tops * width[:, None])[:, :, None] + lefts[:, None, :]
    offsets = torch.nn.functional.pad(counts.flatten().cumsum(0), (1, 0))

    def of_entry(values):
        return values.expand_as(counts).flatten().repeat_interleave(counts.flatten())

    inside = torch.arange(int(offsets[-1]), device=rois.device) - of_entry(
        offsets[:-1].view_as(counts)
    )
    columns = of_entry(widths[:, None, :])
    index = of_entry(corner) + inside // columns * of_entry(width[:, None, None]) + inside % columns
    return index, offsets, first_row


def _largest(index, offsets, table):
    """The largest row entry of each list by channel, and its row; of equals the first; NaN is larger than all. Empty: 0 and -1."""
    if len(index) == 0:
        shape = (len(offsets) - 1, table.shape[1])
        return table.new_zeros(shape), torch.full(shape, -1, device=table.device)
    isnan = table.isnan()
    ordered = table.masked_fill(isnan, torch.inf)
    values, _, _, row = torch.embedding_bag(ordered, index, offsets, False, 2, False, None, True)
    row = torch.where(offsets.diff()[:, None] > 0, row, -1)
    if isnan.any():
        found = torch.nn.functional.embedding_bag(
            index, isnan.to(table.dtype), offsets, mode="sum", include_last_offset=True
        )
        values = torch.where(found > 0, torch.nan, values)
    return values, row
