"""A model of RoIAlign's work: how often each loop of its kernels is visited, times its code.

Counts follow the kernels' own rules over random RoIs, in float64. A kernel's warps execute as many
instructions as its loops' visits times their instructions in sm_90 code; slow paths of divisions
are not counted, both sides of a branch are. What is counted says nothing about waiting: a time
needs a GPU.

Legend: R RoIs, P pooled size, T tiles along one axis, L levels.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from accelerated.experiments.compiled_code import Code
from accelerated.experiments.compiled_launches import (
    CHANNELS,
    DTYPES,
    HEIGHT,
    STRIDES,
    WIDTH,
    Case,
    pooler_of,
    regions,
)

# Features along a tile's side, RoIs in a word of marks, bins in one product of tensor cores.
TILE, WORD, CHUNK = 8, 32, 16

# H100 SXM: instructions per second if every scheduler issues one in each cycle, which no program
# reaches, and the bytes per second that a copy moves.
ISSUE_RATE, COPY_RATE = 132 * 4 * 1.755e9, 2.8e12

# Warp instructions of torchvision 0.29.1's own sm_90 code, float32, by images, RoIs an image and
# bins: its loops counted like ours. The backward moreover adds atomically.
TORCHVISION = {
    ("forward", 2, 500, 7): 247e6,
    ("backward", 2, 500, 7): 318e6,
    ("backward", 16, 512, 7): 2608e6,
}
ATOMICS = {(2, 500, 7): 200e6}


@dataclass
class Visits:
    """What RoIs ask of tiles of features.

    count        R
    words        words of marks of a tile if they mark the RoIs of the whole batch
    image_words  if they mark the RoIs of the tile's image
    pairs        (tile, RoI) of RoIs that reach a tile
    word_pairs   (tile, word of the batch) that mark any
    rows, bins   of bins, and bins, summed over the pairs: those near the tile
    chunks       of CHUNK bins, summed over the pairs
    mark_steps   of 32 tiles, summed over the RoIs: the tiles that they reach
    """

    count: int
    words: int
    image_words: int
    pairs: int
    word_pairs: int
    rows: int
    bins: int
    chunks: int
    mark_steps: int


def visits(case: Case) -> Visits:
    """Count the visits of a case of RoIAlign."""
    boxes, image, level = (x.double().numpy() for x in regions(case))
    aligned, level = pooler_of(case).aligned, level.astype(int)
    stride = np.array(STRIDES)[level]
    boxes = boxes / stride[:, None] - (0.5 if aligned else 0.0)
    axes = []
    for low, high, side in ((1, 3, HEIGHT), (0, 2, WIDTH)):
        length = boxes[:, high] - boxes[:, low]
        length = length if aligned else np.maximum(length, 1.0)
        sizes = side // np.array(STRIDES)
        axes.append(_along(boxes[:, low], length, sizes[level], sizes.max(), case.bins))
    (reached_y, bins_y), (reached_x, bins_x) = axes
    roi, y, x = np.nonzero(reached_y[:, :, None] & reached_x[:, None, :])
    rows, columns = bins_y[roi, y], bins_x[roi, x]
    # A tile's number, unique over levels and images.
    tile = ((image[roi].astype(int) * len(STRIDES) + level[roi]) * 1000 + y) * 1000 + x
    reached = np.bincount(roi, minlength=len(boxes))
    return Visits(
        count=len(boxes),
        words=-(-len(boxes) // WORD),
        image_words=-(-case.rois // WORD),
        pairs=len(roi),
        word_pairs=len(np.unique(tile * 10**6 + roi // WORD)),
        rows=int(rows.sum()),
        bins=int((rows * columns).sum()),
        chunks=int((-(-rows * columns // CHUNK)).sum()),
        mark_steps=int((-(-reached // 32)).sum()),
    )


def _along(start, length, size, largest, bins):
    """Return along one axis whether RoIs reach tiles, and the bins near them, [R, T] each."""
    first = TILE * np.arange(-(-largest // TILE))
    start, length, size = start[:, None], length[:, None], size[:, None]
    end, side = start + length, length / bins
    reached = (end >= -1) & (start <= size) & (first < size)
    reached &= np.minimum(np.floor(start), size - 1) < first + TILE
    reached &= np.maximum(np.floor(end) + 1, 0) >= first
    lowest = np.clip(np.floor((first - 1 - start) / side - 0.01), 0, bins)
    highest = np.clip(np.floor((first + TILE - start) / side + 0.01), -1, bins - 1)
    return reached, np.maximum(highest + 1 - lowest, 0).astype(int)


# Each function returns how often the kernel's levels are visited, the whole grid together, from
# the outside in: programs first.


def forward(code: Code, v: Visits) -> list[int]:
    """A program per row of bins walks two samples down and two across, whichever is unrolled."""
    programs = int(np.prod(code.grid))
    return [programs, 2 * programs, 4 * programs]


def mark_by_tile(code: Code, v: Visits) -> list[int]:
    """A program per tile and words of RoIs."""
    return [int(np.prod(code.grid))]


def mark_by_roi(code: Code, v: Visits) -> list[int]:
    """A program per RoI sets its bit in the tiles that it reaches, 32 at a time."""
    return [int(np.prod(code.grid)), v.mark_steps]


def backward_by_bin(code: Code, v: Visits) -> list[int]:
    """A program per tile and channels: groups of words, words, RoIs, rows of bins, bins."""
    programs, blocks = int(np.prod(code.grid)), code.grid[1]
    groups = programs * -(-v.words // WORD)
    return [programs, groups, *(blocks * n for n in (v.word_pairs, v.pairs, v.rows, v.bins))]


def backward_by_chunk(code: Code, v: Visits) -> list[int]:
    """A program per tile and channels: words of its image, RoIs, products of 16 bins each."""
    programs, blocks = int(np.prod(code.grid)), code.grid[1]
    return [programs, programs * v.image_words, blocks * v.pairs, blocks * v.chunks]


# The designs of each kernel that the model knows; the depth of a kernel's loops tells which it is.
DESIGNS: dict[str, list[Callable[[Code, Visits], list[int]]]] = {
    "_roi_align_forward_kernel": [forward],
    "_roi_align_mark_kernel": [mark_by_tile, mark_by_roi],
    "_roi_align_mean_backward_kernel": [backward_by_bin, backward_by_chunk],
}


def instructions(code: Code, v: Visits) -> int:
    """Return the instructions that all warps of a launch execute.

    ValueError for a kernel whose loops are nested as in none of DESIGNS.
    """
    levels = code.levels
    for design in DESIGNS.get(code.kernel, []):
        counted = design(code, v)
        if len(counted) == len(levels) or (design is forward and len(levels) < len(counted)):
            return code.warps * sum(n * each for n, each in zip(counted, levels, strict=False))
    nest = ", ".join(loop.name for loop in code.loops if loop.depth)
    raise ValueError(
        f"{code.kernel}: no design in accelerated/experiments/compiled_visits.py has"
        f" {len(levels) - 1} nested loops; count the visits of: {nest}"
    )


@dataclass
class Work:
    """A direction of RoIAlign, `mark` or `total` of a workload.

    ours         warp instructions
    torchvision  of its float32 code, None where not counted
    atomics      of torchvision's, besides
    issue_ms     milliseconds at the highest rate of issue
    copy_ms      milliseconds of moving features and outputs once
    """

    case: str
    part: str
    ours: int
    torchvision: float | None
    atomics: float | None
    issue_ms: float
    copy_ms: float


def model(cases: Iterable[Case], rows: Iterable[Code]) -> list[Work]:
    """Return the work of each case from its sm_90 code among `rows`; "backward" contains "mark"."""
    rows, found = list(rows), []
    for case in cases:
        counted, key = visits(case), (case.images, case.rois, case.bins)
        code = {row.kernel: row for row in rows if row.case == str(case) and row.chip == 90}
        executed = {kernel: instructions(code[kernel], counted) for kernel in DESIGNS}
        ours_forward, mark, mean = executed.values()
        for part, ours in (("forward", ours_forward), ("mark", mark), ("backward", mean + mark)):
            found.append(
                Work(
                    str(case),
                    part,
                    ours,
                    TORCHVISION.get((part, *key)),
                    ATOMICS.get(key) if part == "backward" else None,
                    1000 * ours / ISSUE_RATE,
                    0.0 if part == "mark" else 1000 * copied(case) / COPY_RATE,
                )
            )
    return found


def copied(case: Case) -> int:
    """Return the bytes of all features and all outputs, each once."""
    features = sum((HEIGHT // stride) * (WIDTH // stride) for stride in STRIDES) * case.images
    outputs = case.images * case.rois * case.bins**2
    return (features + outputs) * CHANNELS * DTYPES[case.dtype].itemsize
