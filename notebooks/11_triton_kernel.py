# ---
# jupyter:
#   cpu_seconds: 13
# ---

# %% [markdown]
# # 11. The Triton kernel, read on a CPU
#
# **The question.** On a GPU, RoIAlign is computed by thousands of copies of one short program. What
# does one of them do, and which bytes of memory does it touch?
#
# **Time.** Forty minutes to read, a quarter of a minute to run. No GPU is needed.
# **Data.** A map of random numbers, and the measurements of this project on a GPU.
# **Before.** [RoIAlign](05_roi_align.ipynb): bins, samples, four neighbours, two weights per axis.

# %%
import os

# Triton's kernels then run on a CPU, program after program, in an interpreter.
os.environ["TRITON_INTERPRET"] = "1"

import json
import math
from pathlib import Path

import addresses
import figures as draw
import numpy as np
import torch
import triton
import triton.language as tl
from exercises import triton_kernel as exercise
from matplotlib.colors import ListedColormap

from accelerated import roi_align as fast
from accelerated.kernels.triton import roi_align as forward_kernels
from accelerated.kernels.triton import roi_align_backward as backward_kernels
from accelerated.kernels.triton import sampling, tiles
from accelerated.verify.equality import POINTWISE
from accelerated.verify.report import Report, check
from reference import roi_align as align

# %% [markdown]
# ## Memory, line by line
#
# A GPU is fast at arithmetic and slow at fetching. It fetches memory in *lines* of 128 bytes: who
# asks for one number gets a line of 32. So the first question to a kernel is not what it computes,
# but which lines it needs.
#
# Here is a small map: 8 channels of 16 x 16 cells, numbers of 4 bytes. A box with 3 x 3 bins lies
# on it, and one program computes one row of bins, for all channels. The map can be stored in two
# ways. *Channels-first* (NCHW) stores one channel after the other, and each of them row by row.
# *Channels-last* (NHWC) stores one cell after the other, and each of them with all its channels.

# %%
generator = torch.Generator().manual_seed(0)
features = torch.randn(1, 8, 16, 16, generator=generator)
rois, of_image_0 = torch.tensor([[37.0, 46.0, 82.0, 93.0]]), torch.tensor([0])
grid = {"output_size": 3, "spatial_scale": 1 / 8, "sampling_ratio": 2, "aligned": True}
layouts = {
    "channels-first": features,
    "channels-last": features.to(memory_format=torch.channels_last),
}
LINE, SECTOR = 128, 32  # bytes


def touched(programs, *chosen):
    """Return the offsets in bytes of all numbers that the chosen programs (default: all) load."""
    some = [load for program in chosen or programs for load in programs[program]]
    return np.unique(np.concatenate([load.offsets[load.mask] for load in some]))


def page(axes, offsets, size, title):
    """Draw memory as a page with a line of 128 bytes per row, and the numbers that are read."""
    cells = np.zeros((size // LINE, LINE // 4))
    cells[np.unique(offsets // LINE)] = 1
    cells.reshape(-1)[offsets // 4] = 2
    axes.pcolormesh(cells, cmap=PAGE, vmin=0, vmax=2)
    axes.set(title=title, xlabel="place within the line, numbers", ylim=(len(cells), 0))
    axes.set(ylabel="line of memory", xticks=range(0, 33, 8), yticks=range(0, 65, 8))


FETCHED = "#F3CDB4"
PAGE = ListedColormap(["#F2F2F2", FETCHED, draw.USED])
programs = {name: addresses.loads(x, rois, of_image_0, **grid)[0] for name, x in layouts.items()}
reads = {name: touched(some, (1, 0)) for name, some in programs.items()}
lines = {name: np.unique(offsets // LINE) for name, offsets in reads.items()}
x1, y1, x2, y2 = rois[0].numpy() / 8
shown, row = draw.figure(1, 3, size=(10, 5.2), width_ratios=(1.25, 1, 1))
on_map = np.zeros((16, 16))
plane = features[0, 0].numel() * 4
on_map.reshape(-1)[reads["channels-first"][reads["channels-first"] < plane] // 4] = 2
draw.cells(row[0], on_map, "the map, and what one program reads of it", cmap=PAGE, limits=(0, 2))
draw.box(row[0], (x1, y1, x2, y2), draw.ASKED, bins=3, label="box with 3 x 3 bins")
xs, ys = (align.sample_positions(a, b, 3, 2, True) for a, b in ((x1, x2), (y1, y2)))
draw.samples(row[0], xs, ys[1], label="samples of the middle row of bins")
row[0].grid(which="minor", color="#BBBBBB", linewidth=0.4)
row[0].set(xticks=range(0, 17, 4), yticks=range(0, 17, 4))
for axes, (name, offsets) in zip(row[1:], reads.items(), strict=True):
    page(axes, offsets, features.nbytes, f"{name}: {len(lines[name])} of 64 lines")
for colour, label in ((draw.USED, "number that is read"), (FETCHED, "fetched with it")):
    row[1].plot([], [], "s", color=colour, markersize=9, label=label)
draw.legend(shown)
draw.show(
    shown,
    "Left: a map of 16 by 16 cells with a box of 3 by 3 bins; three rows of cells around its middle"
    " row of bins are read, and no others. Middle: memory, channels-first, as a"
    " page of 64 lines: a small comb in two lines of every channel. Right: channels-last: three"
    " solid blocks that fill most of their lines.",
)
each = {name: 4 * len(reads[name]) / len(lines[name]) for name in layouts}
first, last = layouts
draw.say(
    f"Both times the program reads {len(reads[last])} numbers. Channels-first they lie in"
    f" {len(lines[first])} lines, of each of which {each[first]:.0f} bytes are used on average."
    f" Channels-last they lie in {len(lines[last])}, and {each[last]:.0f} bytes of each are used."
)

# %% [markdown]
# These addresses are measured, not derived. Triton's interpreter runs the kernel on the CPU, and
# `addresses.py` watches what it loads. (For that it wraps a function that is private to Triton. If
# a later Triton has changed it, the addresses are computed from the strides. A test makes sure that
# both ways agree.)

# %% [markdown]
# ## The grid of programs
#
# In Triton one writes the program for *one* piece of the output, and launches it many times. Each
# copy asks for its number, `program_id`, and chooses its piece accordingly. The copies run in any
# order, many at a time, and cannot talk to each other. Here a piece is one row of bins of one RoI,
# for up to 256 channels:

# %%
draw.excerpt(forward_kernels, "r, p = tl.program_id(0)", "c = tl.program_id(1)")


def piece(program, block, bins, channels):
    """Say which part of the output a program computes."""
    low, high = addresses.CHANNELS * block, min(addresses.CHANNELS * (block + 1), channels)
    return program // bins, program % bins, f"{low} to {high - 1}"


chosen = [(0, 0), (1, 0), (6, 0), (7, 0), (6999, 0)]
draw.table(
    {f"program {ids}": piece(*ids, 7, 256) for ids in chosen},
    ["1000 RoIs, 7 x 7 bins, 256 channels", "RoI", "row of bins", "channels"],
)
blocks = {channels: math.ceil(channels / addresses.CHANNELS) for channels in (256, 1024)}
draw.say(
    f"That makes {1000 * 7} x {blocks[256]} = {1000 * 7 * blocks[256]:,} programs. An H200 has 132"
    f" processors for them, so each of these works through {1000 * 7 * blocks[256] / 132:.0f} on"
    f" average. A map of 1024 channels, as in a network without a pyramid, has {blocks[1024]}"
    f" blocks of channels and so {1000 * 7 * blocks[1024]:,} programs."
)

# %% [markdown]
# `q` and `c` are not numbers but *blocks* of numbers, and all of a block is computed at once, as in
# NumPy. The size of a block is a power of 2: seven bins need a block of eight, and the three bins
# of the picture a block of four. The last place of the block belongs to a bin that does not exist.
# Its positions and weights are computed like all others, but it must neither read nor store.

# %% [markdown]
# ## The kernel in four pieces
#
# The oracle computes $A_y X A_x^{\mathsf T}$ for one RoI after the other [SPEC §1]. The kernel has
# no matrices. It walks over the samples, and adds four neighbours with their weights.
#
# **First: where the bins lie.** An RoI is scaled to the map and shifted by half a pixel; the length
# of each axis is divided by the number of bins. Sampling ratio 0 means as many samples as the bin
# is long in cells, rounded up.

# %%
draw.excerpt(sampling, "def samples_of(", "return start, side, samples_of")

# %% [markdown]
# **Second: a sample, on one axis.** The same position as in the oracle, in the same order of
# operations, so that both round alike; then the two neighbours and their weights. (Division by 2
# or 4 is written as a multiplication: with powers of 2 both are exact.)

# %%
draw.excerpt(sampling, "def position_of(", "return lower, upper")
draw.source(align.sample_positions)
draw.source(align.neighbours)

# %% [markdown]
# `i` is a number, and `p` may be a number or a block: `sample` does not care. The kernel calls it
# with its one row of bins, and with the block of all columns of bins.
#
# **Third: four neighbours.** A corner is a block of bins and channels. Its pointers are an outer
# sum: a pointer per channel plus an offset per bin. `tl.fma` multiplies and adds in one
# instruction, which rounds once.

# %%
draw.excerpt(forward_kernels, "def _add_corner(", "return tl.fma(")
draw.excerpt(forward_kernels, "mask = (q < P_W)", "mask = (q < P_W)")

# %% [markdown]
# `tl.load(pointers, mask, other)` fetches where the mask is true, and gives `other` elsewhere. This
# mask has three tasks. It leaves out the bin that does not exist. It stops at the last channel,
# behind which the memory may belong to somebody else. And it does not read a feature whose weight
# is 0: were it NaN, then $0 \cdot \mathrm{NaN} = \mathrm{NaN}$ would spoil a bin to which it does
# not belong.
#
# **Fourth: the walk.** Two loops over the samples of a bin, a sum, and at the end the mean.
# `_add_samples` calls `_add_corner` four times. (With `MAXIMUM`, the largest sample is kept.)

# %%
draw.excerpt(forward_kernels, "for i in range(grid_y", "tl.store(out_ptr + offset")

# %% [markdown]
# A plain RoIAlign has six loops: over RoIs, channels, rows and columns of bins, and two over
# samples. RoIs, rows and blocks of channels have become programs; columns and the channels of a
# block have become blocks. Only the loops over samples are left.

# %% [markdown]
# ## Inside one program
#
# The interpreter is Python, so a kernel can print. This small kernel calls the project's `axis` and
# `sample` for the columns of our box, with its block of four bins:


# %%
@triton.jit
def columns(x1, x2, width, BINS: tl.constexpr, BLOCK: tl.constexpr):
    """Print the samples of all bins of a row."""
    q = tl.arange(0, BLOCK)
    start, side, grid, _ = sampling.axis(x1, x2, x2 >= x1, BINS, 2, True)
    print("start", start, "side of a bin", side)
    for j in range(2):
        left, right, weight_left, _ = sampling.sample(start, side, grid, q, j, width, 2)
        print(f"sample {j}: left cell", left, "right cell", right, "weight of left", weight_left)


columns[(1,)](float(x1), float(x2), 16, BINS=3, BLOCK=4)
expected = align.neighbours(xs, 16)[0]
draw.say(
    "The oracle's left cells, a row per bin: "
    + ", ".join(str(row.tolist()) for row in expected)
    + ". The fourth bin is the one that does not exist."
)

# %% [markdown]
# ## The same on a map of real size
#
# The small map was made for the picture. The largest map of a pyramid has 256 channels of 200 x 336
# cells. How much of what is fetched does one program use there, with 7 x 7 bins? A GPU can also
# fetch a quarter of a line, a *sector* of 32 bytes, so the table has both.

# %%
real = torch.empty(1, 256, 200, 336, device="meta")  # shape and strides, no memory
seven = {"output_size": 7, "spatial_scale": 1 / 4, "sampling_ratio": 2}
orders = {"channels-first": torch.contiguous_format, "channels-last": torch.channels_last}
rows = {}
for width, height in ((24, 32), (100, 80), (224, 160)):
    box = torch.tensor([[301.0, 202.0, 301.0 + width, 202.0 + height]])
    row = rows[f"{width} x {height}"] = []
    for order in orders.values():
        some = addresses.computed(real.to(memory_format=order), box, of_image_0, **seven)
        offsets = touched(some, (3, 0))
        for size in (LINE, SECTOR):
            fetched = len(np.unique(offsets // size)) * size
            row.append(f"{100 * 4 * len(offsets) / fetched:.0f} %")
draw.table(
    rows,
    ["box, pixels", *(f"{name}, {what}" for name in orders for what in ("of lines", "of sectors"))],
)

# %% [markdown]
# Channels-last, all that is fetched is used, because the channels of a cell are neighbours in
# memory. Channels-first it depends on the box: a small one needs few cells of a row, and a large
# one leaves cells out between its samples. Other programs can use the rest of a line if it is still
# in the cache when they come to it. What the combs really cost, only a measurement can tell.

# %% [markdown]
# ## Backward: who adds up?
#
# In the forward, programs write to different places. In the backward, a cell receives from every
# RoI that has read it. The obvious way is to *scatter*: each RoI adds its shares to the cells, and
# hardware makes sure that no addition is lost (*atomic* addition). But then chance decides which
# comes first, and in floating-point arithmetic the order changes the sum.
#
# Forty overlapping RoIs, and the cell that most of them have read. Its shares, each from the
# oracle, added in four thousand random orders, in float32:

# %%
dice = np.random.default_rng(0)
corner, sides = dice.uniform(5, 60, (40, 2)), dice.uniform(20, 60, (40, 2))
many = np.concatenate([corner, corner + sides], axis=1)
x, incoming = np.zeros((1, 1, 16, 16)), dice.standard_normal((40, 1, 3, 3))
shares = np.stack(
    [
        align.roi_align_backward(incoming[[r]], x, many[[r]], np.zeros(1, int), **grid)[0, 0]
        for r in range(40)
    ]
)
busiest = np.unravel_index(np.argmax((shares != 0).sum(axis=0)), x.shape[2:])
addends = shares[:, *busiest]
addends = addends[addends != 0].round(6).astype(np.float32)
exact = addends.astype(float).sum()
sums = [np.add.accumulate(dice.permutation(addends))[-1] for _ in range(4000)]
values, counts = np.unique(sums, return_counts=True)
in_order = np.add.accumulate(addends)[-1]
shown, axes = draw.figure(size=(8, 3.2))
axes.bar((values - exact) * 1e7, counts, width=0.25, color=draw.QUIET, label="random order")
mine = values == in_order
axes.bar((values[mine] - exact) * 1e7, counts[mine], width=0.25, color=draw.USED, hatch="//",
         edgecolor="white", label="what the order of the RoIs gives")  # fmt: skip
axes.set(title=f"the sum of the same {len(addends)} numbers, in {len(sums)} orders", yscale="log")
axes.set(xlabel="sum minus the exact sum, units of 1e-7", ylabel="how often, orders")
axes.legend()
draw.show(
    shown,
    "A bar chart: the same float32 numbers, added in random orders, give many different sums around"
    " the exact one, those near it most often. One bar is hatched: the sum in the order of the"
    " RoIs.",
)
draw.say(f"{len(addends)} shares have {len(values)} different sums.")
assert len(values) > 5

# %% [markdown]
# None of these sums is wrong. But a training that adds in another order every time ends with other
# weights every time. And who compares two runs to find a mistake cannot know whether a difference
# means anything.
#
# The kernel does not scatter, it *gathers*. One program owns a tile of 8 x 8 cells and a block of
# channels: 256 where gradients have 16 bits, and 128 in float32. It looks up which RoIs reach the
# tile, adds their shares in the order of the RoIs, and writes each gradient once. Nobody else
# writes there. The sum is the same in every run.

# %% [markdown]
# ## Who reaches my tile?
#
# If every tile asked all thousand RoIs, most would say no. It is the other way round: a kernel that
# runs before has one program per RoI, which marks the tiles that its RoI reaches. A mark is one
# bit: bit $r$ of the tile's word says whether RoI $r$ reaches it.

# %%
draw.excerpt(tiles, "top, left = top // TILE", "tl.atomic_or(")

# %% [markdown]
# Many programs set bits of the same word, so this is atomic too. But *or* is not a sum of rounded
# numbers: the word is the same in whatever order its bits are set. (`place` numbers the RoIs of
# each image, so that words hold RoIs of one image only. With one image it is $r$.)
#
# Here are a map of 24 x 32 cells, twelve tiles, and six RoIs. (The bits are the oracle's. Those of
# the kernel may name an RoI too many, which then adds 0.)

# %%
six = [
    [2, 2, 9, 7],
    [5, 4, 20, 14],
    [18, 1, 30, 7],
    [21, 9, 27, 22],
    [6, 11, 18, 23],
    [9, 9, 14, 13],
]
six = np.array(six) + 0.3
blank, one_each = np.zeros((1, 1, 24, 32)), np.ones((1, 1, 7, 7))
on_grid = {"output_size": 7, "spatial_scale": 1.0, "sampling_ratio": 2, "aligned": True}
reached = np.stack(
    [
        align.roi_align_backward(one_each, blank, roi[None], np.zeros(1, int), **on_grid)[0, 0] != 0
        for roi in six
    ]
)
bits = reached.reshape(6, 3, 8, 4, 8).any(axis=(2, 4))
words = (bits << np.arange(6)[:, None, None]).sum(axis=0)
shown, axes = draw.figure(size=(7.2, 5.4))
draw.cells(axes, np.kron(words > 0, np.ones((8, 8))), "tiles of 8 x 8 cells and their words", cmap=
           ListedColormap(["white", "#EEF3F7"]), limits=(0, 1), grid=False)  # fmt: skip
colours = [*(colour for colour, *_ in draw.SERIES), draw.QUIET]
for r, (roi, colour) in enumerate(zip(six, colours, strict=True)):
    draw.box(axes, roi, colour)
    axes.text(roi[0] + 0.3, roi[1] + 0.9, f"RoI {r}", color=colour, fontsize=9, fontweight="bold")
for (i, j), word in np.ndenumerate(words):
    plate = {"facecolor": "white", "edgecolor": "none", "pad": 2}
    place = {"ha": "right", "fontsize": 11, "family": "monospace", "bbox": plate}
    axes.text(8 * j + 7.7, 8 * i + 7.5, f"{word:06b}", **place)
axes.set(xticks=range(0, 33, 8), yticks=range(0, 25, 8))
axes.grid(color="black", linewidth=0.8)
draw.show(
    shown,
    "Twelve tiles with six boxes of different sizes. In the corner of each tile stand six binary"
    " digits, from RoI 5 on the left to RoI 0 on the right; a digit is 1 if the box reaches the"
    " tile. The second tile of the middle row is reached by RoIs 1, 4 and 5: its word is 110010.",
)

# %% [markdown]
# A word holds 32 RoIs, so a thousand RoIs are 32 words per tile, and many of these may be 0. The
# kernel that gathers looks at 32 words together, and notes in the bits of `marked` which are not 0.
# Then it walks over the bits that are set, from the lowest up: over those of `marked`, and within a
# word over its RoIs. So it visits the RoIs in their order:

# %%
draw.excerpt(
    backward_kernels, "while marked != 0:", "start_y, side_y, start_x, side_x = _load_bins"
)
draw.excerpt(tiles, "def lowest_bit(", ">> 23) - 127")

# %% [markdown]
# Two tricks with bits. `word & -word` keeps the lowest bit only, and `word & (word - 1)` removes
# it. The *index* of a single bit is its logarithm, and a float32 stores just that: its exponent,
# plus 127, stands above its 23 lower bits. For the word of the tile that most RoIs reach:

# %%
word, rows = int(words.max(initial=0, where=bits.sum(axis=0) == bits.sum(axis=0).max())), {}
while word:
    lowest = word & -word
    exponent = np.float32(lowest).view(np.int32) >> 23
    rows[f"{word:06b}"] = [f"{lowest:06b}", exponent, exponent - 127, f"{word & (word - 1):06b}"]
    word &= word - 1
draw.table(rows, ["word", "lowest bit", "exponent of its float32", "RoI", "word without it"])

# %% [markdown]
# ## One product of matrices
#
# For each of these RoIs the program adds $A_y^{\mathsf T} G A_x$, restricted to its tile. For 256
# channels that would be 256 pairs of small products. But the weights of all channels are the same.
# So write the 64 cells of the tile below each other, and the bins too: the weight that bin
# $(p, q)$ gives to cell $(y, x)$ is a product of two, and all of them make one matrix,
#
# $$W_{(y, x), (p, q)} = A_y[p, y] \; A_x[q, x], \qquad \text{gradient of the tile} = W\,G,$$
#
# in which $G$ has a row per bin and a column per channel. For products of matrices a GPU has
# *tensor cores*, which are many times as fast as the rest of it. The program takes sixteen bins at
# a time, and only bins that are near its tile:

# %%
draw.excerpt(backward_kernels, "def _sums_of_weights(", "return weight")
draw.excerpt(
    backward_kernels, "for number in range(0, bins, K):", "total = tl.dot(high, grad, total)"
)

# %% [markdown]
# Both factors of such a product have the same number of bits. Gradients of 16 bits would ask for
# weights of 16 bits, which are too coarse. So a weight is then the sum of two numbers (`SPLIT`):
# the rounded weight, and what rounding took away. Each has its product. In float32, whose branch is
# left out here, Triton splits both factors, and adds three products (`tf32x3`).
#
# With the oracle's matrices, for the tile that most RoIs reach, and one of these:

# %%
i, j = np.unravel_index(bits.sum(axis=0).argmax(), words.shape)
r = int(np.flatnonzero(bits[:, i, j])[1])
x1, y1, x2, y2 = six[r]
a_y = align.interpolation_matrix(y1, y2, 7, 24, 2, True)[:, 8 * i : 8 * i + 8]
a_x = align.interpolation_matrix(x1, x2, 7, 32, 2, True)[:, 8 * j : 8 * j + 8]
weights = np.kron(a_y, a_x).T
bin_grad = np.random.default_rng(3).standard_normal((1, 5, 7, 7))
five = np.zeros((1, 5, 24, 32))
expected = align.roi_align_backward(bin_grad, five, six[[r]], np.zeros(1, int), **on_grid)
product = weights @ bin_grad.reshape(5, 49).T
in_tile = expected[0, :, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8].reshape(5, 64).T
np.testing.assert_allclose(product, in_tile, atol=1e-14)
near = weights.any(axis=0)
draw.say(
    f"RoI {r}: $W$ has {weights.shape[0]} x {weights.shape[1]} numbers. Of the bins"
    f" {near.sum()} reach the tile. Of their {weights[:, near].size} weights"
    f" {100 * (weights[:, near] == 0).mean():.0f} % are 0, and are multiplied all the same: a loop"
    " that leaves them out cannot use tensor cores. $W\\,G$ is the oracle's gradient in this tile."
)

# %% [markdown]
# ## How fast could it be?
#
# A launch has to fetch its inputs, store its outputs, and do its arithmetic. A GPU has a bandwidth
# and a peak of arithmetic, so there is a time that no kernel can beat. The *roofline* shows both
# limits: operations per byte to the right, operations per second upwards. To the left of the bend
# bandwidth is the lower roof, to the right of it arithmetic.
#
# The least number of bytes and operations follows from the shapes. Forward: every map is read once,
# the output is written once, and each sample takes four multiplications and four additions per
# channel. Backward: the same numbers, with reading and writing exchanged.

# %%
# Bytes per second, and operations per second in float32, from the vendor's data sheets.
PEAKS = {"NVIDIA H100 80GB HBM3": (3.35e12, 67e12), "NVIDIA H200": (4.8e12, 67e12)}
BYTES = {"float32": 4, "float16": 2}
text = Path("../benchmarks/results/cuda.jsonl").read_text()
measured = [json.loads(line) for line in text.splitlines()]
device = measured[-1]["device"]
bandwidth, peak = PEAKS[device]
# The last row of every case counts.
newest = {
    (row["operator"], row["dtype"], row["layout"], row["backend"]): row
    for row in measured
    if row["device"] == device and "p50_ms" in row
}


def work(row):
    """Return the bytes and the operations of a launch: maps "2x256x200x336, 1000 rois 7x7"."""
    maps, pooled = row["shape"].split(", ")
    channels = int(maps.split("x")[1])
    count, _, bins = pooled.split(" ")
    outputs = int(count) * channels * math.prod(map(int, bins.split("x")))
    cells = sum(math.prod(map(int, one.split("x"))) for one in maps.split(" + "))
    return BYTES[row["dtype"]] * (cells + outputs), outputs * 4 * (4 + 4)


ways, libraries = ("forward", "backward"), ("triton", "torchvision")
kinds = [(f"roi_align_{way}", who) for who in libraries for way in ways]
cases = [(dtype, layout) for dtype in BYTES for layout in ("nchw", "channels_last")]
shown, axes = draw.figure(size=(7.5, 4.3))
intensity = np.geomspace(0.5, 100, 50)
axes.plot(intensity, np.minimum(intensity * bandwidth, peak) / 1e12, "k-", label="roof")
axes.text(0.62, bandwidth / 1e12, f"{bandwidth / 1e12:g} TB/s", ha="right", fontsize=9)
axes.text(25, peak * 1.12 / 1e12, f"{peak / 1e12:g} TFLOP/s", fontsize=9)
shares = {}
for (operator, who), (colour, marker, _) in zip(kinds, draw.SERIES, strict=False):
    rows = [newest[operator, *case, who] for case in cases]
    amounts = np.array([work(row) for row in rows])
    seconds = np.array([row["p50_ms"] for row in rows]) / 1000
    shares[operator, who] = amounts[:, 0] / seconds / bandwidth
    name = f"{who}, {operator.removeprefix('roi_align_')}"
    axes.loglog(amounts[:, 1] / amounts[:, 0], amounts[:, 1] / seconds / 1e12, marker, color=colour,
                label=name, markersize=7)  # fmt: skip
axes.set(title=f"RoIAlign, 1000 RoIs of 7 x 7 bins, 256 channels: {device}")
axes.set(xlabel="operations per byte", ylabel="1e12 operations per second", xlim=(0.4, 120))
axes.legend(loc="lower right")
draw.show(
    shown,
    "A roofline: a slope that turns into a level. The points of RoIAlign, Triton's and"
    " torchvision's, forward and backward, stand far left of the bend in two columns, float32 and"
    " float16, and all of them below the slope.",
)

# %% [markdown]
# All points stand left of the bend, so arithmetic is not the limit. How near do they come to the
# bandwidth?

# %%
rows = {}
for (operator, who), share in shares.items():
    times = [newest[operator, *case, who]["p50_ms"] for case in cases]
    row = [f"{t:.2g} ms, {100 * s:.0f} %" for t, s in zip(times, share, strict=True)]
    rows[f"{who}, {operator.removeprefix('roi_align_')}"] = row
names = [f"{dtype}, {'channels-first' if x == 'nchw' else 'channels-last'}" for dtype, x in cases]
draw.table(rows, ["time, share of the bandwidth", *names])
wide, narrow = (newest["roi_align_forward", dtype, "nchw", "triton"] for dtype in BYTES)
swapped = newest["roi_align_forward", "float32", "channels_last", "triton"]
gather, scatter = (newest["roi_align_backward", *cases[0], who]["p50_ms"] for who in libraries)
draw.say(
    f"In float32 the bytes alone would take {work(wide)[0] / bandwidth * 1000:.2f} ms. In float16"
    f" they are half, and the forward takes {narrow['p50_ms'] / wide['p50_ms']:.1f} times as long"
    " as in float32. The combs of the first picture: channels-first, it takes"
    f" {wide['p50_ms'] / swapped['p50_ms']:.1f} times as long as channels-last, in float32."
    " In the backward, torchvision scatters with atomic additions and takes"
    f" {scatter / gather:.1f} times as long as the gather. (Medians of one run of `make gpu`, with"
    f" the kernels of commit {wide['commit']}; those that are printed above may be newer."
    " Launches as short as these vary between runs.)"
)

# %% [markdown]
# So bandwidth is not what these kernels wait for, either: if it were, half the bytes would take
# half the time. The roofline cannot tell what it is. The code suggests where to look. The forward
# loads many small pieces, most cells several times, and each load waits for the addresses to be
# computed. In the backward a tile walks its RoIs one after the other, and works out the weights of
# their bins anew.

# %% [markdown]
# ## Check: forward and gradient
#
# The same kernels in the interpreter, in float64, against the oracle. One RoI lies inside the map,
# two reach over its border, and one has no area. Both layouts.

# %%
four = np.array([[37.0, 46, 82, 93], [-20, -9, 31, 60], [60, 60, 160, 140], [50, 30, 50, 70]])
index = np.array([0, 1, 1, 0])
double = np.random.default_rng(1).standard_normal((2, 5, 16, 13))
incoming = np.random.default_rng(2).standard_normal((4, 5, 3, 3))
out = align.roi_align(double, four, index, **grid)
grad = align.roi_align_backward(incoming, double, four, index, **grid)
rows = []
for name, layout in orders.items():
    results = {}
    for backend in ("torch", "triton"):
        leaf = torch.from_numpy(double).to(memory_format=layout, copy=True).requires_grad_()
        tensors = torch.from_numpy(four), torch.from_numpy(index)
        result = fast.roi_align(leaf, *tensors, **grid, backend=backend)
        result.backward(torch.from_numpy(incoming))
        results[backend] = result, leaf.grad
    for i, (what, oracle) in enumerate((("output", out), ("gradient", grad))):
        ours = {backend: pair[i] for backend, pair in results.items()}
        rows.append(check(f"{what}, {name}", oracle, ours, POINTWISE["float64"]))
Report.of("4 RoIs, float64", rows)

# %% [markdown]
# ## Exercise
#
# A program loads a tile of 8 x 8 cells: rows `ys` and columns `xs`, two blocks of 8 indices. At the
# right and lower edge the tile may reach beyond the map, and there the memory is poisoned with NaN.
# Write the mask for `tl.load`. Blocks are compared and combined as in NumPy: `<`, `&`, `[:, None]`.


# %%
def my_mask(ys, xs, height, width):
    """Indices ys [8] and xs [8], size of the map -> mask [8, 8], true where the map is."""
    return None  # your code


draw.say(exercise.check(my_mask))

# %% [markdown]
# **Remember.**
#
# * One program computes one piece: a row of bins of one RoI, for a block of channels. Its number
#   says which piece.
# * Memory is fetched by the line. It matters in how many lines the numbers lie, more than how many
#   numbers a program reads.
# * A mask keeps a load inside the map, and away from features without a weight.
# * The backward gathers instead of scattering: every gradient has one owner, who adds in a fixed
#   order. So every run gives the same bits.
# * The roofline is counted from shapes. It says how fast a kernel could be at best.
#
# **Next.** [The same weights, three conventions](12_conventions.ipynb): why two correct
# implementations disagree.
