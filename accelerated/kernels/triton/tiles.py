# Triton compiles these functions: blocks of numbers and constants, not the types that Python sees.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false
"""Which RoIs reach which tiles of features, for backwards without atomic additions.

A backward gathers: one program per tile adds the shares of the RoIs that reach it. Before it, two
kernels run. `_roi_order_kernel` gives every RoI a place: RoIs of an image get places one after the
other, in their order, beginning at a multiple of WORD. Then a kernel of the operator marks, for
every RoI, the tiles that it reaches. Bit b of word w of a tile is the RoI with place w WORD + b.
Words of a tile hold RoIs of its image only. Bits are set by an atomic OR, which has no order.

Legend: N images, R rois, L levels, T tiles of an image, W words of all images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from accelerated.kernels.triton.sampling import size_of, whole

# Tiles are TILE x TILE features.
TILE = 8
# RoIs per word.
WORD = 32
# RoIs that `_roi_order_kernel` looks at together.
RANKED_AT_ONCE = 1024


@triton.jit(do_not_specialize=["count"])
def _roi_order_kernel(
    image_index_ptr,  # [R] int
    places_ptr,  # [R] int32
    first_words_ptr,  # [N + 1] int32
    count,  # R
    WORD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per image and one for the end: writes its first word and its RoIs' places.

    An image n with S RoIs in earlier images starts at word S // WORD + n, behind all their words.
    """
    image = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    earlier = 0
    for base in range(0, count, BLOCK):
        other = tl.load(image_index_ptr + base + lanes, base + lanes < count, -1)
        earlier += tl.sum(((other >= 0) & (other < image)).to(tl.int32), axis=0)
    word = earlier // WORD + image
    tl.store(first_words_ptr + image, word)
    place = word * WORD
    for base in range(0, count, BLOCK):
        other = tl.load(image_index_ptr + base + lanes, base + lanes < count, -1)
        mine = (other == image).to(tl.int32)
        tl.store(places_ptr + base + lanes, place + tl.cumsum(mine, axis=0) - 1, mine != 0)
        place += tl.sum(mine, axis=0)


@triton.jit
def locate_tile(tile, maps, TILE: tl.constexpr):
    """Level, first row and first column of a tile of an image, and the number of its tiles."""
    _, heights, widths, _, _, _, _ = maps
    level, first, end = 0, 0, 0
    tiles_across = 1
    for l in tl.static_range(0, len(heights)):
        across = tl.cdiv(whole(widths[l]), TILE)
        level = tl.where(tile >= end, l, level)
        first = tl.where(tile >= end, end, first)
        tiles_across = tl.where(tile >= end, across, tiles_across)
        end += tl.cdiv(whole(heights[l]), TILE) * across
    tile -= first
    return level, tile // tiles_across * TILE, tile % tiles_across * TILE, end


@triton.jit
def mark_tiles(
    marks_ptr, place, level, top, bottom, left, right, maps, TILE: tl.constexpr, WORD: tl.constexpr
):
    """Set the bit of a place in the tiles of a level with rows top..bottom, columns left..right."""
    _, heights, widths, _, _, _, _ = maps
    first, end = 0, 0
    for l in tl.static_range(0, len(heights)):
        first = tl.where(level == l, end, first)
        end += tl.cdiv(whole(heights[l]), TILE) * tl.cdiv(whole(widths[l]), TILE)
    _, width = size_of(maps, level)
    top, left = top // TILE, left // TILE
    columns = right // TILE - left + 1
    tiles = (bottom // TILE - top + 1) * columns
    marks_ptr += (place // WORD).to(tl.int64) * end + first
    for base in range(0, tiles, WORD):
        k = base + tl.arange(0, WORD)
        tile = (top + k // columns) * tl.cdiv(width, TILE) + left + k % columns
        tl.atomic_or(marks_ptr + tile, 1 << place % WORD, k < tiles, sem="relaxed")


@triton.jit
def marked_words(marks_ptr, base, end, tiles, WORD: tl.constexpr):
    """One bit for each of the words base .. base + WORD - 1 before `end` that marks an RoI.

    marks_ptr points to the tile's word 0; its words are `tiles` apart.
    """
    lanes = tl.arange(0, WORD)
    words = base + lanes
    marks = tl.load(marks_ptr + words.to(tl.int64) * tiles, words < end, 0)
    return tl.sum((marks != 0).to(tl.int32) << lanes, axis=0)


@triton.jit
def lowest_bit(word):
    """The index of the lowest bit set among 32."""
    lowest = (word & -word).to(tl.uint32, bitcast=True)
    return (lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


class Marks(NamedTuple):
    """What a backward's kernels need to visit the RoIs of a tile in their order."""

    # [R] int32: where each RoI stands.
    places: torch.Tensor
    # [W WORD] int32: the RoI at each place; written by the kernel that marks.
    order: torch.Tensor
    # [N + 1] int32: the first word of each image, and one past the last.
    first_words: torch.Tensor
    # [W, T] int32: bits.
    words: torch.Tensor


def tiles_of(tensors: Sequence[torch.Tensor]) -> int:
    """Return T, the number of tiles of one image on all levels."""
    return sum(triton.cdiv(x.shape[2], TILE) * triton.cdiv(x.shape[3], TILE) for x in tensors)


def empty_marks(image_index: torch.Tensor, images: int, tiles: int) -> Marks:
    """Return Marks with the places of RoIs that belong to image_index [R], and no bit set."""
    count, device = len(image_index), image_index.device
    words = count // WORD + images
    integers = {"dtype": torch.int32, "device": device}
    marks = Marks(
        torch.empty(count, **integers),
        torch.empty(words * WORD, **integers),
        torch.empty(images + 1, **integers),
        torch.zeros(words, tiles, **integers),
    )
    _roi_order_kernel[(images + 1,)](
        image_index, marks.places, marks.first_words, count, WORD=WORD, BLOCK=RANKED_AT_ONCE
    )
    return marks
