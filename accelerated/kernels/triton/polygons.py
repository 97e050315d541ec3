# Triton compiles these functions: blocks of numbers and constants, not the types that Python sees.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
"""Triton kernel of mask targets drawn from outlines, by COCO's rule (SPEC §10).

The rows of a column are the bits of a word. Where an edge passes a column, it flips all bits from
there on: an outline is the exclusive or of its edges, and an object the or of its outlines. No
outline is walked; each pair of an edge and a column is computed by itself, in float64.

Legend: N images, V points, P outlines, G ground-truth slots, R rois.
"""

import torch
import triton
import triton.language as tl

# Grid points per pixel on which COCO walks along an outline.
SCALE = tl.constexpr(5)
# Rows in a word.
WORD = tl.constexpr(32)
# Edges at a time.
EDGES = 32


@triton.jit
def _truncate(x):
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))


@triton.jit
def _corner(point_ptr, exists, x1, y1, scale_x, scale_y):
    """Load points and round them to COCO's grid over the cells of a RoI: x, y, each [EDGES, 1]."""
    x = (tl.load(point_ptr, exists, 0.0) - x1) * scale_x * SCALE + 0.5
    y = (tl.load(point_ptr + 1, exists, 0.0) - y1) * scale_y * SCALE + 0.5
    return _truncate(x)[:, None], _truncate(y)[:, None]


@triton.jit
def _crossings(x1, y1, x2, y2, SIZE: tl.constexpr, COLUMNS: tl.constexpr):
    """Whether edges pass the centre of each column, and at which row: [EDGES, COLUMNS], both.

    COCO steps along the longer side of an edge, from its lower end; the shorter coordinate is
    rounded at every step. Only the two steps at the crossing are computed here.
    """
    # A column is passed between two neighbouring points of the grid; this is the right one.
    right = (tl.arange(0, COLUMNS) * SCALE + 3).to(tl.float64)[None, :]
    passed = (tl.minimum(x1, x2) < right) & (tl.maximum(x1, x2) >= right)
    wide = tl.abs(x2 - x1) >= tl.abs(y2 - y1)
    swap = tl.where(wide, x1 > x2, y1 > y2)
    x, y = tl.where(swap, x2, x1), tl.where(swap, y2, y1)
    dx, dy = tl.where(swap, x1, x2) - x, tl.where(swap, y1, y2) - y
    slope = tl.where(wide, dy, dx) / tl.maximum(tl.where(wide, dx, dy), 1.0)
    # Along x: the higher of the two points.
    along_x = _truncate(y + slope * (right - x - (slope >= 0).to(tl.float64)) + 0.5)
    # Along y: the first step at which x has passed is the nearest to the real crossing or the next.
    inverse = 1.0 / tl.where(slope == 0, 1.0, slope)
    step = tl.floor((right - 0.5 - x) * inverse + 0.5)
    has_passed = (x + slope * step + 0.5 >= right) == (slope > 0)
    along_y = y + step - has_passed.to(tl.float64)
    row = tl.where(passed, tl.where(wide, along_x, along_y), 0.0)
    row = tl.minimum(tl.maximum(row, 0.0), 1.0 * SCALE * SIZE)
    return passed, (row.to(tl.int32) + 2) // SCALE


@triton.jit
def _polygon_targets_kernel(
    points_ptr,  # [N, V, 2] float64, contiguous
    rings_ptr,  # [N, P + 1] int64
    parts_ptr,  # [N, G + 1] int64
    image_index_ptr,  # [R] int64
    matched_ptr,  # [R] int64
    rois_ptr,  # [R, 4], contiguous
    valid_ptr,  # [R] uint8
    out_ptr,  # [R, SIZE, SIZE]
    V,
    P,
    G,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    EDGES: tl.constexpr,
):
    """One program per RoI and word of rows, of which 28 x 28 cells have one.

    Walks the outlines of the RoI's object, a block of edges at a time against all columns, and
    writes zeros and ones.
    """
    roi, top = tl.program_id(0).to(tl.int64), tl.program_id(1) * WORD
    drawn = tl.zeros((COLUMNS,), tl.int32)
    if tl.load(valid_ptr + roi) != 0:
        x1 = tl.load(rois_ptr + roi * 4).to(tl.float64)
        y1 = tl.load(rois_ptr + roi * 4 + 1).to(tl.float64)
        narrowest, size = tl.full([], 0.1, tl.float64), tl.full([], SIZE, tl.float64)
        scale_x = size / tl.maximum(tl.load(rois_ptr + roi * 4 + 2).to(tl.float64) - x1, narrowest)
        scale_y = size / tl.maximum(tl.load(rois_ptr + roi * 4 + 3).to(tl.float64) - y1, narrowest)
        image = tl.load(image_index_ptr + roi)
        part_ptr = parts_ptr + image * (G + 1) + tl.load(matched_ptr + roi)
        for ring in range(tl.load(part_ptr), tl.load(part_ptr + 1)):
            ring_ptr = rings_ptr + image * (P + 1) + ring
            first, end = tl.load(ring_ptr), tl.load(ring_ptr + 1)
            outline = tl.zeros((COLUMNS,), tl.int32)
            for start in range(first, end, EDGES):
                point = start + tl.arange(0, EDGES)
                following = tl.where(point + 1 < end, point + 1, first)
                from_ptr = points_ptr + (image * V + point) * 2
                to_ptr = points_ptr + (image * V + following) * 2
                from_x, from_y = _corner(from_ptr, point < end, x1, y1, scale_x, scale_y)
                to_x, to_y = _corner(to_ptr, point < end, x1, y1, scale_x, scale_y)
                passed, row = _crossings(from_x, from_y, to_x, to_y, SIZE, COLUMNS)
                shift = tl.maximum(row - top, 0)
                passed = passed & (point < end)[:, None] & (shift < WORD)
                flipped = tl.where(passed, -1 << tl.minimum(shift, WORD - 1), 0)
                outline ^= tl.xor_sum(flipped, 0)
            drawn |= outline
    row, column = tl.arange(0, WORD)[:, None], tl.arange(0, COLUMNS)[None, :]
    inside = (drawn[None, :] >> row) & 1
    out = out_ptr + (roi * SIZE + top + row) * SIZE + column
    tl.store(out, inside.to(out_ptr.dtype.element_ty), (top + row < SIZE) & (column < SIZE))


def targets(
    points: torch.Tensor,
    rings: torch.Tensor,
    parts: torch.Tensor,
    image_index: torch.Tensor,
    matched: torch.Tensor,
    rois: torch.Tensor,
    valid: torch.Tensor,
    size: int,
) -> torch.Tensor:
    """Return targets [R, size, size] in the dtype of `rois`.

    points [N, V, 2] float64, rings [N, P + 1], parts [N, G + 1], rois [R, 4] float32 or float64.
    """
    out = rois.new_empty(len(rois), size, size)
    if len(rois) == 0:
        return out
    _polygon_targets_kernel[(len(rois), triton.cdiv(size, WORD.value))](
        points.contiguous(),
        rings.contiguous(),
        parts.contiguous(),
        image_index.long().contiguous(),
        matched.long().contiguous(),
        rois.contiguous(),
        valid.contiguous().view(torch.uint8),
        out,
        points.shape[1],
        rings.shape[1] - 1,
        parts.shape[1] - 1,
        SIZE=size,
        COLUMNS=triton.next_power_of_2(size),
        EDGES=EDGES,
        num_warps=4,
        # Coordinates round as in the other implementations.
        enable_fp_fusion=False,
    )
    return out
