"""Mask targets drawn from outlines in plain PyTorch, by COCO's rule (SPEC §10).

The rows of a column are the bits of a word. Where an edge passes a column, it flips all bits from
there on: an outline is the exclusive or of its edges, and an object the or of its outlines.

Legend: N images, V points, P outlines, G ground-truth slots, R rois, E edges of a RoI's object,
S columns.
"""

import torch

# Grid points per pixel on which COCO walks along an outline.
SCALE = 5
# Rows in a word.
WORD = 32
# Edges times columns held at a time.
CHUNK = 2**18


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
    """Return targets [R, size, size] in the dtype of `rois`, a chunk of RoIs at a time.

    points [N, V, 2] float64, rings [N, P + 1], parts [N, G + 1], rois [R, 4] float32 or float64.
    """
    out = rois.new_zeros(len(rois), size, size)
    image, slot = image_index.clamp(min=0)[:, None], matched.clamp(min=0)[:, None]
    begin = rings[image, parts[image, slot]]
    count = torch.where(valid[:, None], rings[image, parts[image, slot + 1]] - begin, 0)
    # Reading the longest outline costs nothing on a CPU and a synchronisation elsewhere.
    longest = points.shape[1] if rois.is_cuda else max(count.flatten().tolist(), default=0)
    if longest == 0:
        return out
    following = successors(rings, points.shape[1])
    edge, step = torch.arange(longest, device=rois.device), max(CHUNK // (longest * size), 1)
    for part in (slice(start, start + step) for start in range(0, len(rois), step)):
        exists = edge < count[part]
        start = torch.where(exists, begin[part] + edge, 0)
        end = following[image[part], start]
        corners = on_grid(points[image[part], torch.stack([start, end])], rois[part], size)
        passed, row = crossings(corners[0], corners[1], size)
        passed &= exists[..., None]
        # The last edge of an outline leads back to its first point.
        is_last, first = exists & (end <= start), (end - begin[part]).clamp(min=0)
        for top in range(0, size, WORD):
            flipped = (1 << WORD) - (1 << (row - top).clamp(0, WORD))
            drawn = union(torch.where(passed, flipped, 0), is_last, first)
            bit = torch.arange(min(WORD, size - top), device=rois.device)[:, None]
            out[part, top : top + WORD] = (drawn[:, None] >> bit & 1).to(out.dtype)
    return out


def successors(rings: torch.Tensor, count: int) -> torch.Tensor:
    """Return the point that follows each of `count` points along its outline [N, V]."""
    point = torch.arange(count, device=rings.device).expand(len(rings), count)
    ring = torch.searchsorted(rings, point.contiguous(), right=True) - 1
    ring = ring.clamp(max=rings.shape[1] - 2)
    first, end = rings.take_along_dim(ring, 1), rings.take_along_dim(ring + 1, 1)
    return torch.where(point + 1 < end, point + 1, first)


def on_grid(points: torch.Tensor, rois: torch.Tensor, size: int) -> torch.Tensor:
    """Round points [2, R, E, 2] to COCO's grid over the cells of rois [R, 4], in float64."""
    low, high = rois[:, None].double().split(2, dim=2)
    side = (high - low).clamp(min=0.1)
    # A number divided by a tensor would multiply the tensor's rounded reciprocal.
    scale = torch.full_like(side, size) / side
    return ((points - low) * scale * SCALE + 0.5).trunc()


def crossings(
    start: torch.Tensor, end: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return whether edges pass the centre of each column, and at which row: [R, E, S], both.

    start, end [R, E, 2] are on the grid. COCO steps along the longer side of an edge, from its
    lower end; the shorter coordinate is rounded at every step. Only the two steps at the crossing
    are computed here.
    """
    # A column is passed between two neighbouring points of the grid; this is the right one.
    right = torch.arange(size, dtype=start.dtype, device=start.device) * SCALE + 3
    (x1, y1), (x2, y2) = (p.unsqueeze(-1).unbind(-2) for p in (start, end))
    passed = (torch.minimum(x1, x2) < right) & (torch.maximum(x1, x2) >= right)
    wide = (x2 - x1).abs() >= (y2 - y1).abs()
    swap = torch.where(wide, x1 > x2, y1 > y2)
    x, y = torch.where(swap, x2, x1), torch.where(swap, y2, y1)
    dx, dy = torch.where(swap, x1, x2) - x, torch.where(swap, y1, y2) - y
    slope = torch.where(wide, dy, dx) / torch.where(wide, dx, dy).clamp(min=1)
    # Along x: the higher of the two points.
    along_x = (y + slope * (right - x - (slope >= 0).to(x.dtype)) + 0.5).trunc()
    # Along y: the first step at which x has passed is the nearest to the real crossing or the next.
    step = ((right - 0.5 - x) / slope).round()
    has_passed = (x + slope * step + 0.5 >= right) == (slope > 0)
    along_y = y + step - has_passed.to(y.dtype)
    row = torch.where(wide, along_x, along_y)
    row = torch.where(passed, row, 0).clamp(0, SCALE * size)
    return passed, (row.long() + 2) // SCALE


def union(words: torch.Tensor, is_last: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Combine the words of edges [R, E, S] to those of objects [R, S].

    is_last [R, E] marks the last edge of each outline, for which `first` [R, E] is its first edge.
    """
    total = torch.nn.functional.pad(words, (0, 0, 1, 0))
    step = 1
    while step < total.shape[1]:
        total = torch.cat([total[:, :step], total[:, step:] ^ total[:, :-step]], dim=1)
        step *= 2
    outlines = total[:, 1:] ^ total.take_along_dim(first[..., None], 1)
    outlines = torch.where(is_last[..., None], outlines, 0)
    while outlines.shape[1] > 1:
        half = outlines.shape[1] // 2
        rest = outlines[:, 2 * half :]
        outlines = torch.cat([outlines[:, :half] | outlines[:, half : 2 * half], rest], dim=1)
    return outlines[:, 0]
