"""Exercise of notebook 11: the mask of a load."""

from collections.abc import Callable

import numpy as np
import torch
import triton
import triton.language as tl

from exercises import NOT_SOLVED, RIGHT, attempt, wrong

TILE = 8


def _load_kernel(x_ptr, out_ptr, height, width, stride, MASK: tl.constexpr, TILE: tl.constexpr):
    """One program per tile: loads it under the mask of the answer, and stores what it got."""
    ys = tl.program_id(0) * TILE + tl.arange(0, TILE)
    xs = tl.program_id(1) * TILE + tl.arange(0, TILE)
    offsets = ys[:, None] * stride + xs[None, :]
    tl.store(out_ptr + offsets, tl.load(x_ptr + offsets, MASK(ys, xs, height, width), 0.0))


# Interpreted on every machine.
with triton.knobs.runtime.scope():
    triton.knobs.runtime.interpret = True
    _load = triton.jit(_load_kernel)

# (height, width) of the map; the second is wider than high, the last fills its tiles.
SIZES = ((12, 12), (10, 20), (19, 13), (16, 8))


# Mistakes, most likely first: (hint, the mask).
MISTAKES = (
    (
        "every place of the tile is read, also those outside of the map",
        lambda ys, xs, h, w: (ys >= 0)[:, None] & (xs >= 0)[None, :],
    ),
    (
        "rows below the map are read: test ys too",
        lambda ys, xs, h, w: (ys >= 0)[:, None] & (xs < w)[None, :],
    ),
    (
        "columns to the right of the map are read: test xs too",
        lambda ys, xs, h, w: (ys < h)[:, None] & (xs >= 0)[None, :],
    ),
    (
        "one row and one column too many are read: the last index is the size minus 1",
        lambda ys, xs, h, w: (ys <= h)[:, None] & (xs <= w)[None, :],
    ),
    (
        "the last row and the last column are not read: an index below the size is inside",
        lambda ys, xs, h, w: (ys < h - 1)[:, None] & (xs < w - 1)[None, :],
    ),
    (
        "height and width are swapped: ys are rows, and there are `height` of them",
        lambda ys, xs, h, w: (ys < w)[:, None] & (xs < h)[None, :],
    ),
    (
        "a place must have its row and its column in the map: combine the two with &, not |",
        lambda ys, xs, h, w: (ys < h)[:, None] | (xs < w)[None, :],
    ),
    (
        "the mask is transposed: its first axis is y, so ys need [:, None] and xs [None, :]",
        lambda ys, xs, h, w: (ys < h)[None, :] & (xs < w)[:, None],
    ),
    (
        "counting y * width + x does not find the right edge: past it the next row begins",
        lambda ys, xs, h, w: ys[:, None] * w + xs[None, :] < h * w,
    ),
    (
        "the mask is inverted: True is where the load reads",
        lambda ys, xs, h, w: (ys >= h)[:, None] | (xs >= w)[None, :],
    ),
)


def check(answer: Callable) -> str:
    """Load maps that lie in poisoned memory, tile by tile, under the mask of `answer`."""
    for size in SIZES:
        read, reply = _read(answer, *size)
        if reply:
            return reply
        inside = np.zeros(read.shape, bool)
        inside[: size[0], : size[1]] = True
        if (read != inside).any():
            return wrong(_hint(read, inside, *size))
    return RIGHT


def _read(answer, height, width):
    """Return which places of the tiles were read, bool, and a reply if that is settled."""
    blank = []

    def noted(ys, xs, *size):
        mask = answer(ys, xs, *size)
        blank.append(mask is None)
        return ys[:, None] < 0 if mask is None else mask

    down, across = -(-height // TILE), -(-width // TILE)
    memory = torch.full((down * TILE, across * TILE), torch.nan)
    memory[:height, :width] = 1
    out = torch.zeros_like(memory)
    sizes = {"height": height, "width": width, "stride": memory.stride(0), "TILE": TILE}
    # A launch returns nothing, which `attempt` takes for a blank.
    _, reply = attempt(_load[(down, across)], memory, out, **sizes, MASK=noted)
    if reply == NOT_SOLVED and not any(blank):
        reply = None
    return (out != 0).numpy(), reply


def _hint(read, inside, height, width):
    """Name the mistake that explains what was read."""
    ys, xs = np.arange(read.shape[0]), np.arange(read.shape[1])
    for hint, mask in MISTAKES:
        tiles = [
            [mask(y, x, height, width) for x in xs.reshape(-1, TILE)] for y in ys.reshape(-1, TILE)
        ]
        if (np.block(tiles) == read).all():
            return hint
    y, x = (int(v) for v in np.argwhere(read != inside)[0])
    what = "is not read" if inside[y, x] else "is read"
    where = "inside" if inside[y, x] else "outside"
    return f"in a map of {height} x {width}, the place y = {y}, x = {x} {what}, and it is {where}"
