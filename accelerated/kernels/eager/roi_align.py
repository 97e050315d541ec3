"""RoIAlign in plain PyTorch: the interpolation matrix from features to bins, as a sparse product.

The matrix lists for every bin the rows of the feature table that it reads, and their weights;
`embedding_bag` multiplies. The backward is the same product with the list sorted by feature. On a
CPU the lists are compact; on a GPU, which must not be asked for counts, they are padded. A maximum
has one matrix for each sample of a bin.

Legend: R rois, C channels, P bins of an axis, T taps of a bin, E entries of the matrix.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import embedding_bag, pad

from accelerated.kernels.arguments import Sampling
from accelerated.kernels.eager import tables
from accelerated.kernels.eager.sampling import axis, clamp


class Taps(NamedTuple):
    """The pixels that each bin reads along one axis; taps 2 i and 2 i + 1 belong to sample i.

    index    [R, P, T]  int64
    weight   [R, P, T]  0 for samples outside the map, and for those that an RoI does not have
    samples  [R]        how many samples each bin of the RoI has
    """

    index: torch.Tensor
    weight: torch.Tensor
    samples: torch.Tensor


class Matrix(NamedTuple):
    """A sparse matrix by rows, one row per bin, one column per row of the feature table.

    index    [E]         column of each entry
    weight   [E]
    offsets  [rows + 1]  first entry of each row
    """

    index: torch.Tensor
    weight: torch.Tensor
    offsets: torch.Tensor


def forward(
    features: list[torch.Tensor], sampling: Sampling, out: torch.Tensor, number: torch.Tensor | None
) -> None:
    """Fill `out` [R, C, P_h, P_w] with means; given `number`, with maxima and their samples."""
    fixed, size = _fixed_shapes(sampling), out.shape[2:].numel()
    if not fixed:
        # Level by level, so that a channels-last map is read where it lies.
        order = sampling.level_index.argsort(stable=True)
        sampling = sampling._replace(
            rois=sampling.rois[order],
            image_index=sampling.image_index[order],
            level_index=sampling.level_index[order],
        )
    matrices = _matrices(features, sampling, number is None, fixed)
    parts = [(slice(None), features, matrices)]
    if not fixed:
        parts = _by_level(features, sampling.level_index, matrices, size)
    for rois, maps, part in parts:
        rows = rois if fixed else order[rois]
        for channels, table in tables.by_channels(maps, zero_row=fixed):
            if number is None:
                values = _times(part[0][0], table)
            else:
                values, which = _largest(part, table)
                _put(number, rows, channels, which)
            _put(out, rows, channels, values)


def mean(features: list[torch.Tensor], sampling: Sampling) -> torch.Tensor:
    """Return the means that `forward` writes, [R, C, P_h, P_w], by what torch.export can record.

    That is: without writes in place, and with shapes that depend on the data only if sampling is
    adaptive.
    """
    [(matrix, _)] = _matrices(features, sampling, True, sampling.sampling_ratio > 0)
    values = _product(matrix, tables.whole(features))
    bins = (len(sampling.rois), *sampling.output_size, -1)
    return values.view(bins).permute(0, 3, 1, 2).to(features[0].dtype)


def backward(
    grad_out: torch.Tensor,
    number: torch.Tensor | None,
    sampling: Sampling,
    grads: list[torch.Tensor],
) -> None:
    """Fill `grads`, a tensor per level, from grad_out [R, C, P_h, P_w]; `number` of the forward."""
    rows = tables.rows_of(grads)
    matrices = _matrices(grads, sampling, number is None, _fixed_shapes(sampling))
    matrices = [_transposed(matrix, sum(rows)) for matrix, _ in matrices]
    for channels, grad in tables.by_channels([grad_out], zero_row=False):
        if number is None:
            table = _times(matrices[0], grad)
        else:
            which = number[:, channels].permute(0, 2, 3, 1).flatten(0, 2)
            table = grad.new_zeros(sum(rows) + 1, grad.shape[1])
            for k, matrix in enumerate(matrices):
                table += _times(matrix, grad * (which == k))
        for level, part in zip(grads, table[:-1].split(rows), strict=True):
            images, _, height, width = level.shape
            level[:, channels] = part.view(images, height, width, -1).permute(0, 3, 1, 2)


def _put(out, rows, channels, values):
    """Write the values [bins, channels] of the RoIs `rows` into out [R, C, P_h, P_w]."""
    values = values.view(-1, *out.shape[2:], values.shape[1]).to(out.dtype)
    out.permute(0, 2, 3, 1)[rows, ..., channels] = values


def _by_level(features, level_index, matrices, size):
    """Yield the RoIs of each level that has some, its map, and their rows of the matrices.

    level_index [R] rises; an RoI has `size` bins. Columns count from the level's first feature.
    """
    counts = torch.bincount(level_index, minlength=len(features)).tolist()
    roi, column = 0, 0
    for x, count, rows in zip(features, counts, tables.rows_of(features), strict=True):
        bins = slice(roi * size, (roi + count) * size)
        if count:
            part = [
                (_rows(m, bins, column), which if which is None else which[bins])
                for m, which in matrices
            ]
            yield slice(roi, roi + count), [x], part
        roi, column = roi + count, column + rows


def _rows(matrix, rows, column):
    """Return some rows of the matrix; columns are counted from `column`."""
    offsets = matrix.offsets[rows.start : rows.stop + 1]
    first, last = offsets[[0, -1]].tolist()
    index, weight = matrix.index[first:last] - column, matrix.weight[first:last]
    return Matrix(index, weight, offsets - first)


def _fixed_shapes(sampling):
    """Tell whether shapes may not depend on data: on a GPU, except with adaptive sampling."""
    return sampling.rois.is_cuda and sampling.sampling_ratio > 0


def _matrices(features, sampling, mean, fixed_shapes):
    """Return pairs of a matrix from features to bins, and which bins it applies to.

    The mean has one, for all bins; a maximum has one per sample, for the bins that have the sample.
    """
    rois, level_index = sampling.rois, sampling.level_index
    height, width = (
        tables.choose(level_index, [x.shape[dim] for x in features], torch.int64) for dim in (2, 3)
    )
    valid = (sampling.image_index >= 0) & rois.isfinite().all(1)
    scale = tables.choose(level_index, sampling.scales, rois.dtype)
    x1, y1, x2, y2 = (torch.where(valid[:, None], rois, 0) * scale[:, None]).unbind(1)
    ys = _taps(y1, y2, valid, height, sampling.output_size[0], sampling)
    xs = _taps(x1, x2, valid, width, sampling.output_size[1], sampling)
    first_row = tables.first_rows(features, sampling.image_index, level_index)
    dtype = tables.accumulator(features[0])

    def product(y, x):
        if fixed_shapes:
            return sparse_padded(y, x, first_row, width, dtype, sum(tables.rows_of(features)))
        return sparse_compact(y, x, first_row, width, dtype)

    if mean:
        # On a GPU, adding up by index would not be deterministic.
        merge = not fixed_shapes and not rois.is_cuda
        return [(product(_mean(ys, merge), _mean(xs, merge)), None)]
    bins = sampling.output_size[0] * sampling.output_size[1]
    return [
        (
            product(_sample(ys, i), _sample(xs, j)),
            ((i < ys.samples) & (j < xs.samples)).repeat_interleave(bins),
        )
        for i in range(ys.index.shape[2] // 2)
        for j in range(xs.index.shape[2] // 2)
    ]


def _taps(low, high, valid, size, bins, sampling):
    """Return the Taps of all samples along one axis, from the ends of the RoIs in its pixels."""
    start, side, grid = axis(low, high, bins, sampling.sampling_ratio, sampling.aligned)
    grid = torch.where(valid, grid, 0)
    most = sampling.sampling_ratio
    if most <= 0:
        most = grid.max().clamp(min=1).long().item() if len(grid) else 1
        # Where torch.export records the operator, this is a symbol.
        torch._check(most >= 1)
    corner = torch.arange(bins, device=low.device, dtype=low.dtype)
    sample = torch.arange(most, device=low.device, dtype=low.dtype)
    first = start[:, None] + corner * side[:, None]
    inside = (sample + 0.5) * side[:, None] / grid.clamp(min=1)[:, None]
    size = size[:, None, None]
    position, on_map = clamp(first[:, :, None] + inside[:, None, :], size)
    on_map = on_map & (sample < grid[:, None])[:, None, :]
    lower = position.long()
    fraction = position - lower
    index = torch.stack([lower, torch.minimum(lower + 1, size - 1)], -1)
    weight = torch.stack([1 - fraction, fraction], -1) * on_map[..., None]
    return Taps(index.flatten(2), weight.flatten(2), grid)


def _sample(taps, i):
    """Return the Taps of sample i of every bin."""
    return Taps(
        taps.index[:, :, 2 * i : 2 * i + 2], taps.weight[:, :, 2 * i : 2 * i + 2], taps.samples
    )


def _mean(taps, merge):
    """Return the Taps of each bin's mean; merged, no pixel occurs twice in a bin."""
    index, weight, samples = taps
    weight = weight / samples.clamp(min=1)[:, None, None]
    if merge:
        index, order = index.sort(dim=-1, stable=True)
        slot = pad((index.diff(dim=-1) != 0).cumsum(-1), (1, 0))
        weight = torch.zeros_like(weight).scatter_add(-1, slot, weight.gather(-1, order))
        index = torch.zeros_like(index).scatter(-1, slot, index)
    return Taps(index, weight, samples)


def sparse_compact(
    y: Taps, x: Taps, first_row: torch.Tensor, width: torch.Tensor, dtype: torch.dtype
) -> Matrix:
    """Return the matrix of all bins without entries of weight 0; the number of entries is data.

    first_row [R] is the table's row of the first feature of each RoI's image, width [R] its width.

    An RoI of 2 x 2 bins on a map three pixels wide: the bins of y read row 0 and row 1, those of x
    half of columns 0 and 1, and all of column 2. The bins in row-major order, separated by bars:

        index    0  1 | 2 | 3  4 | 5        feature (y, x) is row 3 y + x of the table
        weight   ½  ½ | 1 | ½  ½ | 1
        offsets  0      2   3      5   6
    """
    index_y, weight_y, first_y, count_y = _packed(_row_index(y, first_row, width), y.weight)
    index_x, weight_x, first_x, count_x = _packed(x.index, x.weight)
    counts = count_y[:, :, None] * count_x[:, None, :]
    offsets, bins, position = tables.number_entries(counts)
    taps_x = count_x[:, None, :].expand_as(counts).flatten()[bins]
    row = first_y[:, :, None].expand_as(counts).flatten()[bins] + position // taps_x
    column = first_x[:, None, :].expand_as(counts).flatten()[bins] + position % taps_x
    weight = weight_y.to(dtype)[row] * weight_x.to(dtype)[column]
    return Matrix((index_y[row] + index_x[column]).int(), weight, offsets.int())


def sparse_padded(
    y: Taps,
    x: Taps,
    first_row: torch.Tensor,
    width: torch.Tensor,
    dtype: torch.dtype,
    zero_row: int,
) -> Matrix:
    """Return the matrix of all bins with T_y T_x entries each, whatever the data.

    Entries of weight 0 read `zero_row`, a row of zeros, so that no NaN gets in. The example of
    `sparse_compact`, with two taps per bin and axis and the row of zeros Z:

        index    0  1  Z  Z | 2  Z  Z  Z | 3  4  Z  Z | 5  Z  Z  Z
        weight   ½  ½  0  0 | 1  0  0  0 | ½  ½  0  0 | 1  0  0  0
        offsets  0            4            8            12           16
    """
    index = _row_index(y, first_row, width)[:, :, None, :, None] + x.index[:, None, :, None, :]
    weight = y.weight.to(dtype)[:, :, None, :, None] * x.weight.to(dtype)[:, None, :, None, :]
    index = torch.where(weight != 0, index, zero_row)
    taps, bins = y.index.shape[2] * x.index.shape[2], len(y.index) * index.shape[1] * index.shape[2]
    offsets = torch.arange(bins + 1, device=index.device, dtype=torch.int32) * taps
    return Matrix(index.flatten().int(), weight.flatten(), offsets)


def _row_index(y, first_row, width):
    """Return the table's row of the first pixel of each row that the taps `y` read [R, P, T]."""
    return first_row[:, None, None] + y.index * width[:, None, None]


def _packed(index, weight):
    """Drop taps of weight 0: index and weight [E], each bin's first tap and their count [R, P]."""
    used = weight != 0
    kept = used.flatten().nonzero()[:, 0]
    counts = used.sum(-1)
    first = counts.flatten().cumsum(0).view_as(counts) - counts
    return index.flatten()[kept], weight.flatten()[kept], first, counts


def _transposed(matrix, rows):
    """Return the matrix by its `rows` + 1 columns; the entries of a column keep their order."""
    bins = torch.arange(len(matrix.offsets) - 1, device=matrix.index.device, dtype=torch.int32)
    bins = bins.repeat_interleave(matrix.offsets.diff(), output_size=len(matrix.index))
    index, order = matrix.index.sort(stable=True)
    columns = torch.arange(rows + 2, device=index.device, dtype=index.dtype)
    offsets = torch.searchsorted(index, columns, out_int32=True)
    return Matrix(bins[order], matrix.weight[order], offsets)


def _times(matrix, table):
    """Multiply the sparse matrix by the dense `table`; adds in the order of the entries."""
    if len(matrix.index) == 0:
        return table.new_zeros(len(matrix.offsets) - 1, table.shape[1])
    return _product(matrix, table)


def _product(matrix, table):
    return embedding_bag(
        matrix.index,
        table,
        matrix.offsets,
        mode="sum",
        per_sample_weights=matrix.weight,
        include_last_offset=True,
    )


def _largest(matrices, table):
    """Return the first maximum over each bin's samples, and its index; NaN is larger than all."""
    best = table.new_zeros(len(matrices[0][0].offsets) - 1, table.shape[1])
    number = torch.full_like(best, -1, dtype=torch.int32)
    for k, (matrix, exists) in enumerate(matrices):
        values = _times(matrix, table)
        larger = (number < 0) | (values > best) | (values.isnan() & ~best.isnan())
        larger = larger & exists[:, None]
        best, number = torch.where(larger, values, best), torch.where(larger, k, number)
    return best, number
