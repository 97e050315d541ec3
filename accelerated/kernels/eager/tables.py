"""Features of all levels as rows of one table, channels last, and lists of its rows.

Legend: N images, R rois, C channels, L levels, E entries of all lists.
"""

from collections.abc import Iterator, Sequence

import torch
from torch.nn.functional import pad

# Channels of the table at a time: few enough to stay in a cache.
CHANNELS_AT_ONCE = 16


def accumulator(features: torch.Tensor) -> torch.dtype:
    """Return the dtype in which sums over `features` are computed."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def rows_of(features: Sequence[torch.Tensor]) -> list[int]:
    """Return how many rows of the table each level has, N * H_l * W_l."""
    return [len(x) * x.shape[2] * x.shape[3] for x in features]


def by_channels(
    features: Sequence[torch.Tensor], zero_row: bool
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield a slice of channels and their table; with `zero_row` it ends with a row of zeros.

    Without, a single channels-last map is its own table.
    """
    rows, channels = rows_of(features), features[0].shape[1]
    width, dtype = min(channels, CHANNELS_AT_ONCE), accumulator(features[0])
    last = features[0].permute(0, 2, 3, 1)
    if not zero_row and len(features) == 1 and last.is_contiguous() and last.dtype == dtype:
        yield slice(0, channels), last.flatten(0, 2)
        return
    buffer = features[0].new_zeros(sum(rows) + zero_row, width, dtype=dtype)
    for start in range(0, channels, CHANNELS_AT_ONCE):
        stop = min(start + CHANNELS_AT_ONCE, channels)
        table = buffer[:, : stop - start].contiguous()
        for x, part in zip(features, table[: sum(rows)].split(rows), strict=True):
            images, _, height, width = x.shape
            part = part.view(images, height, width, stop - start)
            part.copy_(x[:, start:stop].permute(0, 2, 3, 1))
        yield slice(start, stop), table


def whole(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the table of all channels, which ends with a row of zeros."""
    rows = [x.permute(0, 2, 3, 1).flatten(0, 2) for x in features]
    return pad(torch.cat(rows).to(accumulator(features[0])), (0, 0, 0, 1))


def choose(level_index: torch.Tensor, values: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
    """Return values[level_index[r]] [R] of a Python sequence, without a copy from the host."""
    out = torch.full_like(level_index, values[0], dtype=dtype)
    for level, value in enumerate(values[1:], 1):
        out = torch.where(level_index == level, value, out)
    return out


def first_rows(
    features: Sequence[torch.Tensor], image_index: torch.Tensor, level_index: torch.Tensor
) -> torch.Tensor:
    """Return the row of the table with the first feature of each RoI's image [R] int64."""
    rows = rows_of(features)
    level = choose(level_index, [sum(rows[:l]) for l in range(len(rows))], torch.int64)
    plane = choose(level_index, [x[0, 0].numel() for x in features], torch.int64)
    return level + image_index.clamp(min=0).long() * plane


def number_entries(counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Number the entries of consecutive lists that have `counts` entries.

    Returns the offsets of the lists [lists + 1], and for each entry its list and its position in
    that list, both [E]. Counts [2, 0, 1] give offsets [0, 2, 2, 3], lists [0, 0, 2] and positions
    [0, 1, 0].
    """
    counts = counts.flatten()
    offsets = pad(counts.cumsum(0), (1, 0))
    lists = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return offsets, lists, torch.arange(lists.shape[0], device=counts.device) - offsets[lists]
