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

# Features along a tile's side, RoIs in a word of marks and words in a group, bins in one product of
# tensor cores, RoIs that are ordered at a time.
TILE, WORD, CHUNK, ORDERED = 8, 32, 16, 1024

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

    count       R
    groups      of words of marks that one tile has, summed over the images
    word_pairs  (tile, word) that mark any RoI
    pairs       (tile, RoI) of RoIs that reach a tile
    chunks      of CHUNK bins near the tile, summed over the pairs
    mark_steps  of WORD tiles, summed over the RoIs: the tiles that they reach
    """

    count: int
    groups: int
    word_pairs: int
    pairs: int
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
    # Numbers of a tile and of a word of its image, unique over levels and images.
    tile = ((image[roi].astype(int) * len(STRIDES) + level[roi]) * 1000 + y) * 1000 + x
    word = roi % case.rois // WORD
    starts = case.rois * np.arange(case.images + 1) // WORD + np.arange(case.images + 1)
    reached = np.bincount(roi, minlength=len(boxes))
    return Visits(
        count=len(boxes),
        groups=int((-(-np.diff(starts) // WORD)).sum()),
        word_pairs=len(np.unique(tile * 10**6 + word)),
        pairs=len(roi),
        chunks=int((-(-rows * columns // CHUNK)).sum()),
        mark_steps=int((-(-reached // WORD)).sum()),
    )


def _along(start, length, size, largest, bins):
    """Return along one axis whether RoIs reach tiles, and the bins near them, [R, T] each."""
    first = TILE * np.arange(-(-largest // TILE))
    start, length, size = start[:, None], length[:, None], size[:, None]
    end, side = start + length, length / bins
    upper = np.clip(np.floor(start), 0, size - 1) // TILE
    lower = np.clip(np.floor(end) + 1, 0, size - 1) // TILE
    reached = (upper <= first // TILE) & (first // TILE <= lower)
    reached &= (end >= -1.5) & (start <= size + 0.5)
    lowest = np.clip(np.floor((first - 1 - start) / side - 0.01), 0, bins)
    highest = np.clip(np.floor((first + TILE - start) / side + 0.01), -1, bins - 1)
    return reached, np.maximum(highest + 1 - lowest, 0).astype(int)


# Each function returns how often the kernel's levels are visited, the whole grid together, from
# the outside in: programs first.


def forward(code: Code, v: Visits) -> list[int]:
    """A program per row of bins walks two samples down and two across, whichever is unrolled."""
    programs = int(np.prod(code.grid))
    return [programs, 2 * programs, 4 * programs]


def order(code: Code, v: Visits) -> list[int]:
    """A program per image walks all RoIs, twice."""
    programs = int(np.prod(code.grid))
    return [programs, programs * -(-v.count // ORDERED)]


def mark(code: Code, v: Visits) -> list[int]:
    """A program per RoI sets its bit in the tiles that it reaches, some at a time."""
    return [int(np.prod(code.grid)), v.mark_steps]


def backward(code: Code, v: Visits) -> list[int]:
    """A program per tile and channels: groups of words, words, RoIs, products of some bins each."""
    tiles, blocks = code.grid[:2]
    counted = tiles * v.groups, v.word_pairs, v.pairs, v.chunks
    return [int(np.prod(code.grid)), *(blocks * n for n in counted)]


COUNTED: dict[str, Callable[[Code, Visits], list[int]]] = {
    "_roi_align_forward_kernel": forward,
    "_roi_order_kernel": order,
    "_roi_align_mark_kernel": mark,
    "_roi_align_mean_backward_kernel": backward,
}


def instructions(code: Code, v: Visits) -> int:
    """Return the instructions that all warps of a launch execute.

    ValueError for a kernel whose loops are nested otherwise than COUNTED says.
    """
    counted, levels = COUNTED[code.kernel](code, v), code.levels
    # Two samples each way may be unrolled.
    if len(counted) != len(levels) and code.kernel != "_roi_align_forward_kernel":
        nest = ", ".join(loop.name for loop in code.loops if loop.depth)
        raise ValueError(
            f"{code.kernel} has {len(levels) - 1} nested loops ({nest}), not {len(counted) - 1}:"
            " count its visits in accelerated/experiments/compiled_visits.py"
        )
    return code.warps * sum(n * each for n, each in zip(counted, levels, strict=False))


@dataclass
class Work:
    """A part of a workload: forward, mark (with ordering), or backward, which contains mark.

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
        executed = [instructions(code[kernel], counted) for kernel in COUNTED]
        ours_forward, marks, total = executed[0], sum(executed[1:3]), sum(executed[1:])
        for part, ours in (("forward", ours_forward), ("mark", marks), ("backward", total)):
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
