# ---
# jupyter:
#   cpu_seconds: 38
# ---

# %% [markdown]
# # 5. RoIPool, RoIWarp, RoIAlign: one box, moved by an eighth of a pixel
#
# **The question.** The network reads a fixed grid of numbers for every box, but the corners of a
# box lie *between* the cells of the feature map: where do the numbers come from?
#
# **Time.** 30 minutes to read, half a minute to run.
# **Data.** One microscope picture of cell nuclei, 128 x 128 pixels; no model.
# **Before.** [Pixels and boxes](01_pixels_and_boxes.ipynb): pixel $i$ covers $[i, i + 1)$, so its
# centre is at $i + 0.5$. You know what a convolution and a feature map are.

# %%
import os

# Triton's kernels then run on a CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

import figures as draw
import numpy as np
import torch
from exercises import roi_align as exercise
from PIL import Image

from accelerated import roi_align as fast_align
from accelerated import roi_pool as fast_pool
from accelerated import roi_warp as fast_warp
from accelerated.verify import report
from accelerated.verify.equality import POINTWISE
from reference import box_head, config, grad_check, pooler
from reference import roi_align as align
from reference import roi_pool as pool
from reference import roi_warp as warp
from reference.rois import whole_pixels

# %% [markdown]
# A *region of interest* (RoI) is a box in which the network suspects an object. Three operators
# turn a RoI into a grid of numbers. Each divides the box into bins and gives one number per bin:
#
# | operator | first used in | the corners of the box | the number of a bin |
# |---|---|---|---|
# | RoIPool | Fast R-CNN, 2015 | rounded to whole cells, and again for each bin | its largest cell |
# | RoIWarp | Multi-task Network Cascades, 2016 | rounded to whole cells | the mean of samples |
# | RoIAlign | Mask R-CNN, 2017 | left where they are | the mean of samples |
#
# In this notebook one box lies on one map, and has 3 x 3 bins. The map is the brightness of a
# picture, averaged over 4 x 4 pixels: its *stride* is 4, and one cell is one *feature pixel*.

# %%
image = np.asarray(Image.open("data/nuclei.png"))
features = image.mean(axis=2).reshape(1, 1, 32, 4, 32, 4).mean(axis=(3, 5))  # [N, C, H, W]
box = np.array([29.0, 23.0, 51.5, 45.0])  # x1, y1, x2, y2 in pixels of the image
limits = (0, 180)  # black and white in the drawings
grid = {"output_size": 3, "spatial_scale": 1 / 4}
sampled = grid | {"sampling_ratio": 2}
operators = {
    "RoIPool": lambda x, rois, index: pool.roi_pool(x, rois, index, **grid),
    "RoIWarp": lambda x, rois, index: warp.roi_warp(x, rois, index, **sampled),
    "RoIAlign": lambda x, rois, index: align.roi_align(x, rois, index, **sampled, aligned=True),
}
draw.say(f"The box {box} is {box / 4} in feature pixels: no corner lies on an edge of a cell.")

# %% [markdown]
# ## Two staircases and a line
#
# Slide the box to the right, two cells far, in steps much smaller than a cell. What should happen
# to the number of the middle bin?
#
# A *ramp* shows it best: a map whose cells hold their own $x$. If the box moves by $d$ cells, what
# lies under it grows by $d$. So the number should grow by $d$ too: a straight line.

# %%
ramp = np.broadcast_to(np.arange(32.0) + 0.5, (1, 1, 32, 32))
shifts = np.arange(129) / 64
moved = box + 4 * shifts[:, None] * [1, 0, 1, 0]
of_one_image = np.zeros(len(moved), int)


def change(x):
    """By how much the middle bin changes while the box moves, per operator."""
    middle = {name: f(x, moved, of_one_image)[:, 0, 1, 1] for name, f in operators.items()}
    return {name: values - values[0] for name, values in middle.items()}


shown, (where, on_ramp, on_image) = draw.figure(1, 3, size=(10, 3.9))
draw.cells(where, ramp[0, 0], "a ramp: every cell holds its x", limits=(-8, 17))
draw.box(where, box / 4, draw.ASKED, bins=3, label="the box")
draw.box(where, moved[-1] / 4, draw.USED, bins=3, label="two cells on")
for x in range(5, 17, 2):
    where.text(x + 0.5, 4.5, f"{ramp[0, 0, 0, x]}", ha="center", va="center", fontsize=8)
where.annotate("", (11, 12.6), (9, 12.6), arrowprops={"arrowstyle": "-|>", "lw": 1.6})
where.set(xlim=(5, 17), ylim=(14.5, 3.5))
by = "the box moved by, feature pixels"
on_ramp.plot(shifts, shifts, color="black", linewidth=7, alpha=0.15, label="as far as the box")
draw.curve(
    on_ramp,
    shifts,
    change(ramp),
    "the middle bin, on the ramp",
    xlabel=by,
    ylabel="change, cells",
)
draw.curve(
    on_image,
    shifts,
    change(features),
    "the middle bin, on the nuclei",
    xlabel=by,
    ylabel="change, brightness 0..255",
)
draw.legend(shown, columns=6)
draw.show(
    shown,
    "Left: a ramp with a box of nine bins and the same box two cells to the right. Middle: the"
    " change of the middle bin while the box moves there. RoIPool and RoIWarp stand still and then"
    " jump, RoIAlign follows the movement on a straight line. Right: the same on the nuclei.",
)

# %%
lag = {name: np.abs(values - shifts).max() for name, values in change(ramp).items()}
draw.table(
    {name: [f"{d:.3f}", f"{d * 4:.2f}", f"{d * 32:.1f}"] for name, d in lag.items()},
    ["operator", "largest error, cells", "in image pixels, stride 4", "stride 32"],
)
assert lag["RoIAlign"] < 1e-12 and min(lag["RoIPool"], lag["RoIWarp"]) > 0.3

# %% [markdown]
# While a staircase stands still, the network cannot know that the box has moved: two different
# boxes give it the same numbers. For a class that does not matter much, as a cat that is moved by a
# few pixels is still a cat. A mask has to tell which pixels belong to the cat, and is then wrong
# by up to that many pixels. The coarser the map, the worse: each error is multiplied by the stride.
#
# The effect on trained models is measured in [the ablation](../docs/ablation.md), rows (c) and (d).

# %% [markdown]
# ## What each operator reads
#
# The same box on the nuclei. The dashed box is asked for; the solid one is what an operator makes
# of it.


# %%
def reads(axes, name):
    """Draw what an operator reads of the map for the box."""
    whole, exact = whole_pixels(box[None], 1 / 4)[0], box / 4
    used = exact if name == "RoIAlign" else whole
    draw.cells(axes, features[0, 0], f"{name}: what it reads", limits=limits)
    draw.box(axes, used, draw.USED, bins=0 if name == "RoIPool" else 3, label="box that is used")
    draw.box(axes, exact, draw.ASKED, label="box that is asked for")
    if name != "RoIPool":
        axis = {"bins": 3, "sampling_ratio": 2, "aligned": name == "RoIAlign"}
        x, y = (align.sample_positions(used[i], used[i + 2], **axis) for i in (0, 1))
        draw.samples(axes, x, y)
    axes.set(xlim=(5, 16), ylim=(14, 4))


shown, (above, below) = draw.figure(2, 3, size=(10, 6), height_ratios=(2, 1))
for name, top, bottom in zip(operators, above, below, strict=True):
    reads(top, name)
    out = operators[name](features, box[None], np.array([0]))[0, 0]
    draw.numbers(bottom, out, "output, brightness 0..255", cmap=draw.BRIGHTNESS, limits=limits)
rows, columns = pool.bins(box[None], (32, 32), **grid)
draw.bins(above[0], rows[0], columns[0])
taken = pool.roi_pool_with_argmax(features, box[None], np.array([0]), **grid)[1].ravel()
style = {"color": draw.SAMPLE, "marker": "s", "linestyle": "", "markeredgecolor": "white"}
above[0].plot(taken % 32 + 0.5, taken // 32 + 0.5, label="cell that is taken", **style)
draw.legend(shown)
draw.show(
    shown,
    "Three copies of a grey map with one nucleus and the same dashed box. RoIPool uses a larger box"
    " of whole cells with overlapping dotted bins, and takes one cell of each. RoIWarp places a"
    " grid of 6 by 6 samples on the larger box, RoIAlign on the box itself. Below: the nine numbers"
    " of each.",
)

# %% [markdown]
# **RoIPool rounds twice** [Fast R-CNN §2.1]. First it rounds the corners of the box to whole cells,
# and the last cell belongs to it:

# %%
draw.source(whole_pixels)

# %% [markdown]
# Then it divides this box into bins, and rounds each bin outwards to whole cells, so that a cell
# may belong to two bins:

# %%
x1, y1, x2, y2 = box / 4
left, top, right, bottom = whole_pixels(box[None], 1 / 4)[0]
bins_x, bins_y = ([f"{a} to {b}" for a, b in edges[0]] for edges in (columns, rows))
draw.table(
    {
        "x": [f"{x1} to {x2}", f"{left:g} to {right:g}", *bins_x],
        "y": [f"{y1} to {y2}", f"{top:g} to {bottom:g}", *bins_y],
    },
    ["axis", "box", "rounded box", "bin 0", "bin 1", "bin 2"],
)

# %% [markdown]
# **RoIWarp rounds once**: the box, but not its bins. In each bin it takes the mean of 2 x 2
# samples. It follows the old convention without the half pixel, which has its own section below, so
# its samples lie half a cell too far down and to the right in their bins. Look for it in the
# picture.
#
# **RoIAlign rounds nothing** [Mask R-CNN §3]. It keeps the corners of the box and of the bins, and
# its samples lie evenly in each bin.

# %% [markdown]
# ## One sample, four neighbours
#
# A sample lies between four cell centres. Each of the four gives a part of its value, its *weight*.
# The nearer a centre, the larger its weight: it is the area of the rectangle between the sample and
# the centre *diagonally opposite*. The four rectangles fill a square of side 1, so the weights add
# to 1.

# %%
axis = {"bins": 3, "sampling_ratio": 2, "aligned": True}
xs = align.sample_positions(box[0] / 4, box[2] / 4, **axis)
ys = align.sample_positions(box[1] / 4, box[3] / 4, **axis)
x, y = xs[0, 1], ys[0, 1]  # the second sample of the first bin, in both directions
left, right, weight_left, weight_right = align.neighbours(x, 32)
top, bottom, weight_top, weight_bottom = align.neighbours(y, 32)
weights = {
    (top, left): weight_top * weight_left,
    (top, right): weight_top * weight_right,
    (bottom, left): weight_bottom * weight_left,
    (bottom, right): weight_bottom * weight_right,
}
shown, axes = draw.figure(size=(5.4, 5))
draw.cells(axes, features[0, 0], "a sample: the weight of a centre is the opposite area")
for ((row, column), weight), (colour, *_) in zip(weights.items(), draw.SERIES, strict=False):
    opposite = left + right - column + 0.5, top + bottom - row + 0.5
    draw.patch(axes, (x + 0.5, y + 0.5, *opposite), colour, alpha=0.8)
    axes.plot(column + 0.5, row + 0.5, "o", color=colour, markeredgecolor="white", markersize=14)
    at = (column + 0.5, row + (0.22 if row == top else 0.78))
    text = f"{features[0, 0, row, column]:.1f}, weight {weight:.3f}"
    axes.text(*at, text, ha="center", va="center", bbox={"fc": "white", "lw": 0, "pad": 2})
axes.plot(x + 0.5, y + 0.5, "*", color="white", markeredgecolor="black", markersize=18)
axes.set(xlim=(left - 0.2, right + 1.2), ylim=(bottom + 1.2, top - 0.2))
draw.show(
    shown,
    "Four cells and a star between their centres. The square between the centres is cut at the star"
    " into four rectangles, each in the colour of the centre diagonally opposite. At each centre"
    " stand its brightness and its weight.",
)
value = sum(features[0, 0, row, column] * weight for (row, column), weight in weights.items())
draw.say(
    f"The sample lies at column {x:.4f}, row {y:.4f} in index coordinates, in which whole numbers"
    f" are centres. Its value is {value:.3f}; the weights add to {sum(weights.values()):.6f}."
)

# %% [markdown]
# This is *bilinear interpolation*: linear along $x$, linear along $y$. For one axis, with
# $l = \lfloor y \rfloor$ and $f = y - l$,
#
# $$ X(y) = (1 - f)\, X_l + f\, X_{l + 1}. $$
#
# The code of the neighbours, one axis at a time, and that of the positions of the samples:

# %%
draw.source(align.neighbours)
draw.source(align.sample_positions)

# %% [markdown]
# In words: divide the box into equal bins, divide each bin into $g$ equal parts, and put a sample
# in the middle of each part.

# %% [markdown]
# ## All samples at once: two small matrices
#
# The samples form a grid, and the weight of a cell is a product of a weight along $y$ and a weight
# along $x$. So rows and columns can be treated one after the other: one matrix averages the rows of
# the map, another its columns [SPEC §1].
#
# $$ \mathrm{out} = A_y\, X\, A_x^{\mathsf T} $$

# %%
A_x = align.interpolation_matrix(box[0] / 4, box[2] / 4, 3, 32, 2, True)
A_y = align.interpolation_matrix(box[1] / 4, box[3] / 4, 3, 32, 2, True)
(columns,), (rows,) = (np.nonzero(A.any(axis=0)) for A in (A_x, A_y))
X = features[0, 0][np.ix_(rows, columns)]
out = A_y[:, rows] @ X @ A_x[:, columns].T
shown = draw.equation(
    [
        (A_y[:, rows], f"A_y: rows {rows[0]} to {rows[-1]}"),
        "·",
        (X, f"X: columns {columns[0]} to {columns[-1]}"),
        "·",
        (A_x[:, columns].T, "transposed A_x"),
        "=",
        (out, "out"),
    ]
)
draw.show(
    shown,
    "A matrix of 3 rows times the window of the map that has a weight times a matrix of 3 columns"
    " equals the 3 by 3 output. Each row of the first matrix holds weights of three or four"
    " neighbouring rows of the map.",
)
oracle = operators["RoIAlign"](features, box[None], np.array([0]))[0, 0]
draw.say(
    f"Every row of A_y adds to {A_y.sum(axis=1).round(6)}, so a bin is a weighted mean of cells."
    f" The product is the operator's output: {np.allclose(out, oracle, rtol=1e-12, atol=0)}."
)

# %% [markdown]
# ## How many samples: the sampling ratio
#
# `sampling_ratio` is $g$, the number of samples per bin *and axis*: 2 means 2 x 2 samples in a bin,
# the four of the paper. It is fixed, so in a large bin the samples lie far apart, and cells between
# them are never read. With 0, every box gets its own $g$ on each axis: the side of a bin in cells,
# rounded up to a whole number, so that neighbouring samples are at most one cell apart.

# %%
large = np.array([[22.0, 18.0, 103.0, 99.0]])
shown, row = draw.figure(1, 3, size=(10, 3.7))
for axes, ratio in zip(row, (1, 2, 0), strict=True):
    call = grid | {"sampling_ratio": ratio, "aligned": True}
    ones = np.ones((1, 1, 3, 3))
    weight = align.roi_align_backward(ones, features, large, np.array([0]), **call)[0, 0]
    g = align.sample_positions(*large[0, ::2] / 4, 3, ratio, True).shape[1]
    title = f"ratio {ratio}: {g} x {g} per bin, {np.count_nonzero(weight)} cells read"
    draw.cells(axes, weight, title, cmap=draw.MAGNITUDE)
    draw.box(axes, large[0] / 4, draw.USED, bins=3)
    axes.set(xlim=(4, 27), ylim=(26, 3))
draw.show(
    shown,
    "The weight of every cell in the output, for one large box. With ratio 1, nine separate spots"
    " of four cells are bright; with ratio 2, thirty-six spots with dark gaps; with ratio 0, the"
    " whole box is covered evenly.",
)

# %%
exact = align.roi_align(features, large, np.array([0]), **grid, sampling_ratio=64, aligned=True)
rows = {}
for ratio in (1, 2, 4, 0):
    out = align.roi_align(
        features, large, np.array([0]), **grid, sampling_ratio=ratio, aligned=True
    )
    g = align.sample_positions(*large[0, ::2] / 4, 3, ratio, True).shape[1]
    rows[f"{ratio}"] = [g * g, f"{np.abs(out - exact).max():.2f}"]
draw.table(
    rows, ["sampling ratio", "samples per bin", "largest difference to 64 x 64 samples, 0..255"]
)

# %% [markdown]
# The paper found that neither the number of samples nor their exact places matter much
# [Mask R-CNN §3], *as long as nothing is rounded*. The reason is the pyramid: it gives a large box
# to a coarse map, so bins stay small. See the section on 7 x 7 below.

# %% [markdown]
# ## Outside the map
#
# A box may hang over the border of the image. What does a sample read that lies outside?
#
# Take five cells, and move a sample over them, from beyond one end to beyond the other:

# %%
five = np.array([3.0, 1.0, 4.0, 2.0, 5.0])
positions = np.linspace(-1.6, 5.6, 721)
lower, upper, weight_lower, weight_upper = align.neighbours(positions, 5)
value = weight_lower * five[lower] + weight_upper * five[upper]
shown, axes = draw.figure(size=(8, 3.6))
axes.bar(np.arange(5) + 0.5, five, width=1, color="#D8D8D8", edgecolor="white", label="cell")
axes.plot(np.arange(5) + 0.5, five, "o", color="black", label="centre of a cell")
axes.plot(positions + 0.5, value, color=draw.SAMPLE, linewidth=2, label="what a sample reads")
for place, side, text in ((-0.5, "left", " index -1"), (5.5, "right", "index 5 ")):
    axes.axvline(place, color=draw.USED, linestyle="--")
    axes.text(place, 5.55, text, ha=side, color=draw.USED)
axes.set(ylim=(0, 6), xlim=(-1.3, 6.3), xticks=range(-1, 7))
axes.set(
    title="five cells, and a sample that moves over them",
    ylabel="value, no unit",
    xlabel="place, feature pixels",
)
draw.legend(shown)
draw.show(
    shown,
    "Grey bars show five cells, a blue line what a sample reads. Between centres it is straight."
    " From the outer centres to half a cell beyond the edge of the map it stays level; beyond the"
    " dashed lines at -0.5 and 5.5 it is 0.",
)
places = np.array([-1.01, -1, -0.4, 0, 1.25, 4, 4.6, 5, 5.01])
table = {}
for position, *read in zip(places, *align.neighbours(places, 5), strict=True):
    low, high, weight_low, weight_high = read
    text = f"{weight_low:.2f} X[{low}] + {weight_high:.2f} X[{high}]"
    table[f"{position:g}"] = [f"{position + 0.5:g}", text]
draw.table(table, ["index", "place in the drawing", "the sample is"])

# %% [markdown]
# There are three zones, on each axis by itself:
#
# 1. **Between the outer centres** a sample reads its two neighbours.
# 2. **Beyond an outer centre**, up to one cell, it reads that outer cell alone. So index $-1$ is
#    still inside, exactly as index $H$ is, the number of cells. Both lie half a cell outside the
#    edge of the map.
# 3. **Further out** the sample is 0. It still counts in the mean of its bin: the divisor stays
#    $g_y g_x$.
#
# On a map of ones, each number of the output is the share of the bin's samples that are not 0:

# %%
hanging = np.array([[-22.0, -7.0, 14.0, 29.0]])
flat = np.ones((1, 1, 32, 32))
shown, (left, right) = draw.figure(1, 2, size=(8, 3.8))
draw.cells(left, flat[0, 0], "a box that hangs over the corner", limits=(0, 1.3))
draw.box(left, hanging[0] / 4, draw.USED, bins=3)
x, y = (align.sample_positions(*hanging[0, i::2] / 4, 3, 2, True).ravel() for i in (0, 1))
draw.samples(left, x, y, label="sample that reads the map")
weight_x, weight_y = (np.add(*align.neighbours(axis, 32)[2:]) for axis in (x, y))
at_y, at_x = np.nonzero(np.outer(weight_y, weight_x) == 0)
left.plot(x[at_x] + 0.5, y[at_y] + 0.5, "x", color=draw.USED, label="sample that is 0")
left.set(xlim=(-6, 7), ylim=(9, -3))
share = align.roi_align(flat, hanging, np.array([0]), **sampled, aligned=True)[0, 0]
draw.numbers(
    right, share, "output on a map of ones, no unit", form="{:.2f}", limits=(0, 1), size=10
)
draw.legend(shown)
draw.show(
    shown,
    "Left: a box of nine bins with 36 samples hangs over the upper left corner of a map. Samples"
    " more than half a cell outside are crosses, all others dots. Right: the output on a map of"
    " ones: 0 where all samples are crosses, 1 where all are dots, parts between.",
)
draw.say(
    f"One column of samples lies at x = {x[3] + 0.5:g}: outside the map, but less than half a cell,"
    " so it reads the first column of cells."
)

# %% [markdown]
# ## Half a pixel
#
# Cell $i$ covers $[i, i + 1)$, so its number stands for its centre, $i + 0.5$. In index coordinates
# the centre is $i$. A place $c$ is therefore the index $c - 0.5$, and this half has to be
# subtracted *once*. The first code of RoIAlign forgot it. `aligned=True` subtracts it;
# `aligned=False` keeps the old behaviour, for the sake of old weights.

# %%
place = 1.3
shown, rows = draw.figure(2, 1, size=(8, 4.4))
for axes, aligned in zip(rows, (True, False), strict=True):
    index = place - 0.5 if aligned else place
    lower, upper, weight_lower, weight_upper = align.neighbours(np.array(index), 4)
    for i in range(4):
        draw.patch(axes, (i, 0, i + 1, 1), "#D8D8D8" if i % 2 else "#ECECEC", alpha=1)
        axes.text(i + 0.5, 0.28, f"X[{i}]", ha="center", va="center")
    for i, weight in ((lower, weight_lower), (upper, weight_upper)):
        axes.plot([place, i + 0.5], [0.9, 0.5], color=draw.SAMPLE, linewidth=8 * weight)
        axes.plot(i + 0.5, 0.5, "o", color="black")
        axes.text(i + 0.5, 0.1, f"weight {weight:.1f}", ha="center", va="center", color=draw.SAMPLE)
    axes.plot(place, 0.9, "*", color=draw.USED, markersize=16, markeredgecolor="white")
    title = f"aligned={aligned}: place {place} is index {index:.1f}"
    axes.set(xlim=(0, 4), ylim=(0, 1), title=title, xlabel="place, feature pixels", yticks=[])
draw.show(
    shown,
    "Two rows of four cells with a star at place 1.3. Above, aligned: lines lead from the star to"
    " the centres at 0.5 and 1.5 on both sides of it. Below, not aligned: lines lead to the centres"
    " at 1.5 and 2.5, both to the right of the star.",
)

# %% [markdown]
# Without the half, every sample reads half a cell too far to the lower right. On the ramp this is
# the same number for every box:

# %%
old = align.roi_align(ramp, moved, of_one_image, **sampled, aligned=False)
new = align.roi_align(ramp, moved, of_one_image, **sampled, aligned=True)
[half] = np.unique((old - new).round(9))
draw.say(
    f"`aligned=False` minus `aligned=True` is {half:g} cells, in every bin of {len(moved)} boxes."
)
draw.table(
    {f"P{level}": [2**level, f"{half * 2**level:g}"] for level in (2, 3, 4, 5)},
    ["map", "stride", "the shift in image pixels"],
)
assert half == 0.5

# %% [markdown]
# A network that is trained with the shift learns to undo it, on average. Weights and convention
# belong together: weights that were trained with one lose masks with the other, which
# [Three conventions](12_conventions.ipynb) shows.

# %% [markdown]
# ## Mean or maximum
#
# Two ideas are mixed in the table at the top: *where* to read, and *how* to make one number of it.
# RoIAlign with `aggregate="max"` takes the largest sample instead of the mean. The staircase does
# not come back, so it was the rounding, not the maximum, that made it:

# %%
ways = {
    "RoIAlign, mean": align.roi_align(ramp, moved, of_one_image, **sampled, aligned=True),
    "RoIAlign, maximum": align.roi_align(
        ramp, moved, of_one_image, **sampled, aligned=True, aggregate="max"
    ),
    "RoIPool, maximum": pool.roi_pool(ramp, moved, of_one_image, **grid),
}
centre = (moved[:, 0] + moved[:, 2]) / 8
shown, axes = draw.figure(size=(7, 3.6))
over = {name: out[:, 0, 1, 1] - centre for name, out in ways.items()}
draw.curve(
    axes, shifts, over, "on the ramp: output minus the centre of the bin", xlabel=by, ylabel="cells"
)
draw.legend(shown)
draw.show(
    shown,
    "The output of the middle bin minus the centre of the bin. The mean is level at 0, the maximum"
    " of the samples level a little higher, and RoIPool is a sawtooth that jumps up and falls.",
)
quarter = over["RoIAlign, maximum"][0]
side = (box[2] - box[0]) / 4 / 3
draw.say(
    f"The maximum is higher by {quarter:.3f} cells, a quarter of the bin's side of {side:.3f}: that"
    " is where the right samples of the bin lie."
)
assert np.ptp(over["RoIAlign, maximum"]) < 1e-9

# %% [markdown]
# ## Why 7 x 7
#
# The head of the network needs one size for all boxes, since its first layer is fully connected.
# Why just 7? Fast R-CNN reused the trained layers of VGG-16, whose last map has 7 x 7 cells
# [Fast R-CNN §2.1]. The pyramid makes it a good choice: it gives a box to the map on which the box
# is neither small nor large [FPN §4.2, equation 1].

# %%
tv = config.preset("torchvision_r50_fpn")
sides = np.linspace(56, 895, 840)
level = pooler.assign(np.outer(sides, [0, 0, 1, 1]), tv.box_head.pooler)
cells = sides / 2.0**level
shown, axes = draw.figure(size=(8, 3.4))
for number in np.unique(level):
    name = {f"P{number}": cells[level == number]}
    axes.plot(sides[level == number], *name.values(), color=draw.SAMPLE, linewidth=2)
    middle = np.median(sides[level == number])
    axes.text(middle, 30, *name, ha="center")
axes.set(
    title="how many cells a square box measures on its map", xlabel="side of the box, image pixels"
)
axes.set(ylabel="side of the box, cells", ylim=(0, 33), yticks=[0, 7, 14, 21, 28])
axes.grid(axis="y", alpha=0.4)
draw.show(
    shown,
    "A sawtooth: the side of a box in cells against its side in image pixels. On P2, P3, P4 and P5"
    " the line rises from 14 to 28 cells and falls back to 14 where the next map takes over.",
)
draw.say(
    f"A box measures {cells.min():.0f} to {cells.max():.0f} cells on its map. Seven bins hold"
    f" {cells.min() / 7:.0f} to {cells.max() / 7:.0f} cells each, and two samples per axis, which"
    " read two cells each, still reach all of them."
)

# %% [markdown]
# A finer grid would repeat what neighbouring bins say, and it costs: the first layer multiplies
# every number of the grid with every one of its outputs.

# %%
rows = {}
for bins in (1, 3, 7, 14):
    changed = config.override(tv, f"box_head.pooler.output_size={bins}")
    outputs, inputs = box_head.parameter_shapes(changed)["box_head.fc6.weight"]
    rows[f"{bins} x {bins}"] = [f"{14 / bins:g} to {28 / bins:g}", inputs, f"{outputs * inputs:,}"]
draw.table(rows, ["grid", "cells per bin", "numbers per RoI", "weights of the first layer"])

# %% [markdown]
# The mask branch uses 14 x 14 bins, since it draws 28 x 28 pixels and has only convolutions, whose
# weights do not depend on the size [Mask R-CNN, figure 4].

# %% [markdown]
# ## Backward: where the gradient goes
#
# In training, the loss says how each number of the output should change: the gradient $G$. The
# operator has to pass that on to the cells. What a cell gave in the forward, it gets back in the
# backward, with the same weight:
#
# $$ \mathrm{out} = A_y\, X\, A_x^{\mathsf T} \quad\Rightarrow\quad
#    \frac{\partial L}{\partial X} = A_y^{\mathsf T}\, G\, A_x $$
#
# A gradient of 1 on the middle bin alone lands here:

# %%
G = np.zeros((1, 1, 3, 3))
G[0, 0, 1, 1] = 1
zero = np.array([0])
back = {
    "RoIPool": pool.roi_pool_backward(G, features, box[None], zero, **grid),
    "RoIWarp": warp.roi_warp_backward(G, features, box[None], zero, **sampled),
    "RoIAlign": align.roi_align_backward(G, features, box[None], zero, **sampled, aligned=True),
}
middle = (2 * box + box[[2, 3, 0, 1]]) / 12  # a third of the way from each corner to the other
shown, row = draw.figure(1, 3, size=(10, 3.9))
for axes, (name, grad) in zip(row, back.items(), strict=True):
    title = f"{name}: the cells add to {grad.sum():.2f}"
    draw.cells(axes, grad[0, 0], title, cmap=draw.MAGNITUDE, limits=(0, 0.4))
    draw.write(axes, grad[0, 0], form="{:.3f}")
    draw.box(axes, box / 4, draw.ASKED, label="box that is asked for")
    draw.box(axes, middle, draw.GRADIENT, label="its middle bin")
    axes.set(xlim=(7, 13.25), ylim=(11.75, 5.5))
draw.legend(shown)
draw.show(
    shown,
    "Where a gradient of one on the middle bin goes. RoIPool gives all of it to a single cell."
    " RoIWarp and RoIAlign spread it over three or four rows and columns; that of RoIAlign lies"
    " around the middle of the box, that of RoIWarp further down and to the right.",
)

# %%
draw.source(align.roi_align_backward)

# %% [markdown]
# Three things to know about it:
#
# * **Nothing is lost inside.** The weights of a sample add to 1, so the cells receive in total what
#   the output had. Outside the map it is lost, like the sample:

# %%
ones = np.ones((1, 1, 3, 3))
lost = align.roi_align_backward(ones, features, hanging, zero, **sampled, aligned=True)
draw.say(
    f"The box over the corner: nine outputs with a gradient of 1 each, and the cells receive"
    f" {lost.sum():.2f}, the sum of the shares above, {share.sum():.2f}."
)
assert np.isclose(lost.sum(), share.sum(), rtol=1e-12)

# %% [markdown]
# * **Overlapping boxes add.** A cell that two boxes read receives both gradients.
# * **The box gets none.** The operator treats the corners as constants. RoIAlign could be
#   differentiated with respect to them, since it is piecewise smooth in the corners, but Mask R-CNN
#   does not do it: the box learns from its own loss. What that leaves out is measured in
#   [One training step](08_one_step.ipynb).
#
# Is the backward right? Two tests need no second implementation. The *adjoint test* compares
# $\langle A x, w \rangle$ with $\langle x, A^{\mathsf T} w \rangle$ for random $x$ and $w$, which
# must be equal for a linear operator. *Finite differences* move the map a little along a random
# direction and compare the change of the output with the gradient's prediction.

# %%
generator = np.random.default_rng(0)
noise = generator.standard_normal((1, 3, 16, 12))  # [N, C, H, W], not square
anywhere = np.sort(generator.uniform(-20, 90, (40, 2, 2)), axis=1).reshape(40, 4)
halves = np.sort(generator.integers(-3, 18, (8, 2, 2)) + 0.5, axis=1).reshape(8, 4) * 4
rois, index = np.concatenate([anywhere, halves]), np.zeros(48, int)
rows = {}
for name, f in operators.items():
    against = {"generator": generator}
    differences = grad_check.directional_error(lambda x, f=f: f(x, rois, index), noise, **against)
    adjoint = grad_check.adjoint_error(lambda x, f=f: f(x, rois, index), noise, **against)
    assert differences < 1e-8 and adjoint < 1e-12
    rows[name] = ["yes", "yes"]
draw.table(rows, ["operator", "adjoint test to 1e-12", "finite differences to 1e-8"])

# %% [markdown]
# RoIPool is not linear, but it passes the adjoint test too: its maximum picks cells, and a picked
# cell has weight 1.

# %% [markdown]
# ## Check: three implementations
#
# NumPy, PyTorch and Triton, forward and gradient: 40 random boxes, some far outside the map, and 8
# whose corners lie exactly on half a cell, where RoIPool and RoIWarp have to round. Bins and map
# are not square, so that a swap of $x$ and $y$ could not hide. The Triton kernels are the same that
# run on a GPU, here interpreted on the CPU.

# %%
shape = {"output_size": (2, 3), "spatial_scale": 1 / 4}
shape_sampled = shape | {"sampling_ratio": 2}
cases = {
    "RoIPool": (pool.roi_pool, pool.roi_pool_backward, fast_pool.roi_pool, shape),
    "RoIWarp": (warp.roi_warp, warp.roi_warp_backward, fast_warp.roi_warp, shape_sampled),
    "RoIAlign": (
        *(align.roi_align, align.roi_align_backward, fast_align.roi_align),
        shape_sampled | {"aligned": True},
    ),
}
incoming = generator.standard_normal((48, 3, 2, 3))


def accelerated(function, keywords, backend):
    """Return output and gradient of an accelerated operator."""
    x = torch.from_numpy(noise.copy()).requires_grad_()
    boxes, images = torch.from_numpy(rois), torch.from_numpy(index)
    out = function(x, boxes, images, **keywords, backend=backend)
    out.backward(torch.from_numpy(incoming))
    return out, x.grad


rows, tolerance = [], POINTWISE["float64"]
for name, (forward, backward, fast, keywords) in cases.items():
    out = forward(noise, rois, index, **keywords)
    grad = backward(incoming, noise, rois, index, **keywords)
    ours = {b: accelerated(fast, keywords, b) for b in ("torch", "triton")}
    rows.append(report.check(f"{name}, output", out, {b: r[0] for b, r in ours.items()}, tolerance))
    rows.append(
        report.check(f"{name}, gradient", grad, {b: r[1] for b, r in ours.items()}, tolerance)
    )
report.Report.of("48 boxes, float64", rows)

# %% [markdown]
# ## Drag it yourself
#
# With a running kernel, the sliders below move the box by parts of a cell. Without one, the picture
# shows three positions. In a browser, the [playground](playground.html) needs no kernel at all:
# drag the box, choose a bin, and see which cells it reads and where its gradient goes.


# %%
def at(right, down):
    """Draw the three operators with the box moved, and their outputs."""
    rois = (box + 4 * np.array([right, down, right, down]))[None]
    shown, row = draw.figure(1, 4, size=(10, 2.7), width_ratios=(1.25, 1, 1, 1))
    draw.cells(row[0], features[0, 0], f"right {right:g}, down {down:g}", limits=limits)
    draw.box(row[0], rois[0] / 4, draw.ASKED, bins=3)
    row[0].set(xlim=(5, 16), ylim=(14, 4))
    for axes, (name, f) in zip(row[1:], operators.items(), strict=True):
        values = f(features, rois, np.array([0]))[0, 0]
        draw.numbers(axes, values, name, cmap=draw.BRIGHTNESS, limits=limits, form="{:.1f}")
    return shown


draw.explore(
    at,
    "The box on the nucleus and the nine numbers of each operator, with the box where it was, and"
    " an eighth and a quarter of a cell further right. RoIAlign's numbers change every time, those"
    " of RoIPool and RoIWarp only in the last step.",
    [{"right": shift, "down": 0} for shift in (0, 1 / 8, 1 / 4)],
    right=(-1, 1, 1 / 8),
    down=(-1, 1, 1 / 8),
)

# %% [markdown]
# ## Exercise
#
# Write RoIAlign for one channel and one box with loops over bins and samples: `aligned=True`, mean.
# The box is in pixels of the image. Use what the sections above say about samples outside the map.


# %%
def my_roi_align(feature, box, output_size, spatial_scale, sampling_ratio):
    """feature [H, W], box (x1, y1, x2, y2), sampling_ratio > 0 -> [output_size, output_size]."""
    return None  # your code


draw.say(exercise.check(my_roi_align))

# %% [markdown]
# **Remember.**
#
# * Rounding a box makes staircases: the number stands still while the box moves. RoIAlign rounds
#   nothing and follows the box exactly.
# * A sample reads its four neighbours; the weights are the opposite areas. All samples together are
#   $A_y X A_x^{\mathsf T}$, and the gradient is $A_y^{\mathsf T} G A_x$.
# * The value of a cell stands at its centre. Without the half pixel everything shifts by half a
#   cell, which is half a stride in the image.
# * Outside the map a sample repeats the outermost cell for half a cell beyond the edge, and is 0
#   further out, but still counts in the mean.
#
# **Next.** [Two heads, five levels](06_two_heads.ipynb): what the network does with these numbers.
