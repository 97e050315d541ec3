# ---
# jupyter:
#   cpu_seconds: 8
# ---

# %% [markdown]
# # 1. Pixels and boxes: where is pixel 3?
#
# **The question.** Where is pixel 3, and how wide is a box from 3 to 7?
#
# **Time.** About 20 minutes to read, a few seconds to run.
#
# **Data.** Numbers, and one synthetic image.
#
# **Before.** Python and NumPy. [Notebook 0](00_one_image.ipynb) shows what boxes are for.

# %%
from dataclasses import replace

import figures as draw
import numpy as np
import torch
from exercises import pixels_and_boxes as exercise
from IPython.display import display

from accelerated import boxes as fast_boxes
from accelerated import transform as fast_transform
from accelerated.verify.equality import POINTWISE
from accelerated.verify.report import Report, check
from reference import boxes, masks, shapes, transform
from reference.config import preset
from reference.structures import Target

# %% [markdown]
# ## Two rulers
#
# A row of ten pixels, and a box from 3 to 7. Two people measure it, and both are sure.

# %%
row = np.array([[225, 232, 228, 205, 210, 206, 212, 230, 226, 229]], np.uint8)
figure, (upper, lower) = draw.figure(2, 1, size=(9.5, 4.4))
rulers = (
    (upper, 7, "a ruler of lengths: 7 - 3", "4 pixels wide"),
    (lower, 8, "a ruler of names: 7 - 3 + 1", "5 pixels wide"),
)
for axes, last, title, width in rulers:
    draw.image(axes, np.stack([row] * 3, axis=2), title)
    axes.vlines(range(1, 10), 0, 1, color="white", linewidth=1)
    draw.patch(axes, (3, 0, last, 1), draw.USED, alpha=0.35)
    draw.box(axes, (3, 0.03, last, 0.97), draw.ASKED)
    for i in range(10):
        axes.text(i + 0.5, 0.3, f"pixel {i}", ha="center", va="center")
    draw.samples(axes, np.arange(10), np.array([0]))
    axes.text((3 + last) / 2, 0.78, width, ha="center", va="center", weight="bold")
    axes.set(ylabel="", yticks=[], aspect="auto")
upper.set_xticks(range(11))
upper.set_xlabel("x in pixels: 3 is the left edge of pixel 3, its centre is at 3.5")
lower.set_xticks(np.arange(10) + 0.5, [str(i) for i in range(10)])
lower.set_xlabel("number of a pixel, no unit: 3 is the whole of pixel 3")
draw.show(
    figure,
    "The same row of ten pixels twice, with a dot at the centre of each. On the upper ruler the"
    " numbers stand at the edges of the pixels, and the box from 3 to 7 covers four pixels, 3 to 6."
    " On the lower ruler the numbers stand at the centres, and the box covers five, 3 to 7.",
)

# %% [markdown]
# Both are right. The upper ruler measures *where*: pixel $i$ covers the interval $[i, i + 1)$, and
# a number may lie anywhere in it. The lower one counts *which*: a number is the name of a whole
# pixel, and "from 3 to 7" includes both. Early datasets named the first and the last pixel of an
# object, and the code of the R-CNN family computed with `x2 - x1 + 1` for years.
#
# This project uses the upper ruler everywhere, as COCO does, and torchvision and detectron2:
#
# * a box is $(x_1, y_1, x_2, y_2)$ in continuous pixels, and $x_2 - x_1$ wide,
# * the value of pixel $i$ stands at its centre, $i + \tfrac{1}{2}$,
# * no "+1" appears in any width, height or area.
#
# The same rule holds for maps, in cells instead of pixels, and the drawings of all notebooks obey
# it.
#
# ## Area and overlap by counting
#
# Two boxes on a small grid, A and B. Their *intersection over union*, IoU, decides nearly
# everything in this project: which anchor is an object, which box is a duplicate, which detection
# is right.
#
# $$\mathrm{IoU}(A, B) = \frac{|A \cap B|}{|A \cup B|}$$

# %%
first, second = np.array([1.0, 1, 6, 5]), np.array([3.0, 3, 9, 6])
centre_y, centre_x = np.mgrid[0:9, 0:12] + 0.5


def covered(box):
    """The pixels of the grid whose centre lies in a box, [9, 12] bool."""
    x1, y1, x2, y2 = box
    return (x1 <= centre_x) & (centre_x < x2) & (y1 <= centre_y) & (centre_y < y2)


def edges(axes, width, height):
    """Draw the edges of all pixels."""
    style = {"color": draw.QUIET, "linewidth": 0.5, "alpha": 0.6}
    axes.vlines(range(width + 1), 0, height, **style)
    axes.hlines(range(height + 1), 0, width, **style)


def counts(a, b):
    """The pixels that two sets share, those of both together, and the quotient."""
    return (a & b).sum(), (a | b).sum(), (a & b).sum() / (a | b).sum()


def overlap(right, down):
    """Draw both boxes, the second one moved, with the numbers of pixels that they cover."""
    moved = second + np.array([right, down, right, down])
    a, b = covered(first), covered(moved)
    figure, axes = draw.figure(size=(3.3, 3.0))
    paint = np.where(a & b, 0.25, np.where(a | b, 0.75, 1))
    title = "shared {} of {}: IoU {:.2f}".format(*counts(a, b))
    draw.cells(axes, paint, title, limits=(0, 1), unit="pixels")
    draw.box(axes, first, draw.ASKED, label="A")
    draw.box(axes, moved, draw.USED, label="B")
    edges(axes, 12, 9)
    return figure


draw.explore(
    overlap,
    "A grid of pixels with a dashed box A and a solid box B, three times. Pixels of one box are"
    " grey, those of both are dark. B covers a corner of A; moved to the left and up it covers most"
    " of A; moved to the right, both only touch and share nothing.",
    [{"right": 0, "down": 0}, {"right": -2, "down": -2}, {"right": 3, "down": 0}],
    right=(-3, 3, 1),
    down=(-3, 3, 1),
)

# %%
a, b = covered(first), covered(second)
shared, together, quotient = counts(a, b)
by_formula = boxes.iou(first[None], second[None])[0, 0]
draw.table(
    {
        "area of A": [a.sum(), f"{boxes.area(first):g}"],
        "area of B": [b.sum(), f"{boxes.area(second):g}"],
        "intersection": [shared, "-"],
        "union": [together, "-"],
        "IoU": [f"{quotient:.6f}", f"{by_formula:.6f}"],
    },
    ["quantity", "pixels counted", "by the functions"],
)
assert boxes.area(first) == a.sum() and by_formula == quotient

# %% [markdown]
# Counting works as long as the corners are whole numbers. The functions subtract instead of
# counting, and so work for any numbers. They compute all pairs of two lists of boxes at once.

# %%
draw.source(boxes.area)
draw.source(boxes.iou)

# %% [markdown]
# Two lines deserve a look. `np.maximum(..., 0)` cuts off negative sides: without it, two boxes that
# miss each other both ways would have a side of $-3$ and one of $-3$, and share nine pixels. And
# `where=intersection > 0` keeps two boxes without area from dividing 0 by 0.


# %% [markdown]
# ## What the +1 does to small boxes
#
# Is one pixel worth a dispute? Take a square of side $s$, and move it by a quarter of its side. The
# two squares share three quarters of each; the IoU is the same for every $s$. With "+1" it is not,
# since both squares grow by a pixel.

# %%
sides = np.array([2.0, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64])
zero = np.zeros_like(sides)
square = np.stack([zero, zero, sides, sides], axis=1)
moved = square + np.stack([sides / 4, zero, sides / 4, zero], axis=1)
plus = np.array([0, 0, 1, 1])
lengths = np.diag(boxes.iou(square, moved))
with_plus = np.diag(boxes.iou(square + plus, moved + plus))

figure, axes = draw.figure(size=(7, 3.4))
series = {"x2 - x1": lengths, "x2 - x1 + 1": with_plus}
title = "a square and itself, moved by a quarter of its side"
draw.curve(axes, sides, series, title, xlabel="side s, pixels", ylabel="IoU, no unit")
axes.set_xscale("log", base=2)
axes.set_xticks([2, 4, 8, 16, 32, 64], ["2", "4", "8", "16", "32", "64"])
axes.axhline(0.7, color=draw.QUIET, linewidth=1, linestyle=(0, (1, 3)))
axes.text(
    64, 0.703, "an anchor is an object from here on", ha="right", va="bottom", color="#555555"
)
draw.show(
    figure,
    "IoU over the side of a square. Without the +1 it is level. With it, it starts higher, crosses"
    " a dotted line at the threshold for objects, and comes down to the other as squares grow.",
)
draw.say(
    f"Without the +1 the IoU is {lengths[0]:.3f} for every side. With it, it is {with_plus[0]:.3f}"
    f" for a side of {sides[0]:g} pixels and {with_plus[-1]:.3f} for {sides[-1]:g}. A threshold"
    " that was chosen on large boxes means something else on small ones. And a box of no width gets"
    f" an area: {boxes.area(np.array([5.0, 5, 5, 5]) + plus):g} square pixel."
)
assert np.ptp(lengths) < 1e-12 and with_plus[0] > with_plus[-1]

# %% [markdown]
# ## Half a pixel kept, half a pixel lost
#
# An image is enlarged four times, and its boxes with it: every coordinate times 4. Does the object
# still lie in its box? Pixel $i$ of the new image has its centre at $i + \tfrac12$. Divided by 4,
# that is a place in the old image, and to become an index again it loses half a pixel:
#
# $$ \text{index} = \big(i + \tfrac12\big) \cdot \frac{\text{old}}{\text{new}} - \tfrac12 $$
#
# It is tempting to write just `i * old / new`.

# %%
draw.source(transform.bilinear)

# %%
old_row = np.zeros((1, 12))
old_row[0, 4:8] = 1  # an object on the box from 4 to 8
new_places = np.arange(48) * 12 / 48
kept = transform.bilinear(old_row, 48, axis=1)
lost = np.interp(new_places, np.arange(12), old_row[0])[None]


def middle(values):
    """The centre of brightness of a row [1, W], in pixels."""
    return float(((np.arange(values.shape[1]) + 0.5) * values[0]).sum() / values.sum())


figure, parts = draw.figure(3, 1, size=(9.5, 4.3))
titles = "the image", "four times as large, with the half pixel", "four times as large, without it"
for axes, values, title in zip(parts, (old_row, kept, lost), titles, strict=True):
    scale = values.shape[1] / 12
    draw.cells(axes, values, f"{title}: the middle is at {middle(values):.2f}", unit="pixels")
    draw.box(axes, np.array([4 * scale, 0.06, 8 * scale, 0.94]), draw.USED)
    axes.plot([middle(values)], [0.5], "o", color=draw.SAMPLE, markeredgecolor="white")
    axes.set(ylabel="", yticks=[], aspect="auto")
draw.show(
    figure,
    "A dark row with a bright object, in an orange box, and a dot at the middle of its brightness."
    " Below, the row enlarged fourfold: with the half pixel the object lies in the middle of its"
    " enlarged box, without it the object and its dot lie too far to the left.",
)

# %%
rows = {}
for factor in (2, 4, 8):
    places = np.arange(12 * factor) / factor
    right = middle(transform.bilinear(old_row, 12 * factor, axis=1)) - 6 * factor
    wrong = middle(np.interp(places, np.arange(12), old_row[0])[None]) - 6 * factor
    rows[f"{factor} times"] = [f"{abs(right):.2f}", f"{-wrong:.2f}", f"{(factor - 1) / 2:.2f}"]
    assert abs(right) < 1e-12 and np.isclose(-wrong, (factor - 1) / 2)
draw.table(rows, ["enlarged", "off, with the half pixel", "off, without", "(factor - 1) / 2"])

# %% [markdown]
# Without the half pixel the object moves to the left by (factor - 1) / 2 pixels, and up as far,
# while its box stays. The same half distinguishes RoIAlign from its first version. There it is half
# a cell of a feature map, that is, half a *stride* of the image: [notebook 5](05_roi_align.ipynb).
#
# ## How large is "800 pixels"?
#
# Before the network sees an image, its short side is brought to 800 pixels, unless its long side
# would exceed 1333 [Mask R-CNN §3.1]. Two libraries follow this sentence and round differently:

# %%
draw.source(transform.resized_shape)

# %%
torchvision = preset("torchvision_r50_fpn").transform
detectron = preset("detectron2_r50_fpn").transform
rows, moved_by = {}, {}
for height, width in ((480, 640), (427, 640), (640, 425), (612, 612), (370, 1224)):
    sizes = [transform.resized_shape(height, width, 800, t) for t in (torchvision, detectron)]
    corner = np.array([[0.0, 0, width, height]])
    new = [
        transform.scale_boxes(corner, (height, width), size, t)[0, 2:]
        for size, t in zip(sizes, (torchvision, detectron), strict=True)
    ]
    moved_by[height, width] = np.abs(new[0] - new[1]).max()
    texts = [f"{h} x {w}" for h, w in sizes]
    rows[f"{height} x {width}"] = [*texts, f"{moved_by[height, width]:.1f}"]
draw.table(rows, ["image, h x w", "torchvision", "detectron2", "corner moved by, pixels"])
draw.say(
    f"{sum(moved > 0.5 for moved in moved_by.values())} of these five come out differently, by a"
    " pixel. That is nothing for an image, and everything for a test that compares two"
    " implementations: one pixel shifts every feature. Both ways are fields of the configuration,"
    " and [notebook 12](12_conventions.ipynb) looks at all of them."
)

# %% [markdown]
# ## Normalised, resized, padded
#
# This is the whole way of an image into the network: its colours are normalised, it is resized, its
# boxes are scaled by the same factors, and zeros are added to the right and below until both sides
# are multiples of 32. The largest stride of the backbone is 32, and so every map has a whole number
# of cells.

# %%
tiny = preset("tiny").transform
picture, true_boxes, labels, true_masks = shapes.sample(0, 4, height=100, width=76)
target = Target(true_boxes, labels, true_masks)
prepared, prepared_target = transform.prepare(picture, target, tiny)
padded = transform.pad([prepared], tiny.size_divisor)[0]

figure, (left, right) = draw.figure(1, 2, size=(8, 3.9))
draw.image(left, picture, "as it comes in, 0 to 255")
drawn = draw.cells(right, padded[0], "as the network sees it, red", cmap=draw.SIGNED, grid=False)
draw.colour_bar(right, drawn, "standard deviations")
for at in range(32, 128, 32):
    right.axvline(at, color="black", linewidth=0.5)
    right.axhline(at, color="black", linewidth=0.5)
for axes, scaled in ((left, true_boxes), (right, prepared_target.boxes)):
    for box in scaled:
        draw.box(axes, box, draw.ASKED)
right.set(xlabel="x, pixels", ylabel="y, pixels")
draw.show(
    figure,
    "On the left an image with its dashed boxes. On the right its red channel, enlarged and"
    " normalised, with the same boxes enlarged and a grid of lines every 32 pixels. To the right of"
    " the image is a white strip of zeros, up to the last line.",
    colours=256,
)
draw.table(
    {
        "as it comes in": [picture.shape, f"{picture.min():g} to {picture.max():g}"],
        "prepared": [prepared.shape, f"{prepared.min():.2f} to {prepared.max():.2f}"],
        "padded": [padded.shape, f"{padded.min():.2f} to {padded.max():.2f}"],
    },
    ["image", "shape", "values"],
    text=True,
)

# %% [markdown]
# Zero is not black here. After the normalisation zero is the mean colour of the training images, so
# the padding looks like a wall of average grey. The detections are later clipped to the image
# without its padding, and divided by the factors that the boxes were multiplied with.
#
# ## From an outline to pixels to a box
#
# Annotators click polygons. A mask is a decision for each pixel, in or out; a pixel has no half.

# %%
polygon = np.array([[1.5, 1.2], [9.4, 3.0], [7.2, 6.6], [3.0, 6.1]])
drawn_mask = masks.rasterize_polygon(polygon, 8, 11)
ys, xs = np.nonzero(drawn_mask)
tight = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])

figure, axes = draw.figure(size=(7.5, 5))
draw.cells(axes, np.where(drawn_mask, 0.8, 1), "outline, pixels, box", limits=(0, 1), unit="pixels")
edges(axes, 11, 8)
axes.plot(*np.append(polygon, polygon[:1], axis=0).T, color=draw.SAMPLE, label="outline")
axes.plot(xs + 0.5, ys + 0.5, ".", color=draw.SAMPLE, markersize=4, label="centre of a pixel in it")
draw.outline(axes, drawn_mask, draw.USED, label="mask")
draw.box(axes, tight, draw.ASKED, label="tight box of the mask")
draw.legend(figure)
draw.show(
    figure,
    "A grid of 11 by 8 pixels. A blue polygon of four corners; the pixels that belong to it are"
    " grey with a dot, and their orange outline is a staircase along the polygon. A dashed box"
    " touches the staircase on all four sides.",
)
x1, y1, x2, y2 = polygon.min(axis=0).tolist() + polygon.max(axis=0).tolist()
draw.say(
    f"The polygon reaches from ({x1:g}, {y1:g}) to ({x2:g}, {y2:g}); the tight box of its"
    f" {drawn_mask.sum()} pixels is {tight.tolist()}. Look at the code: the last column is"
    f" {xs.max()}, the box ends at {tight[2]}. This +1 is right. It turns the *name* of the last"
    " pixel into the *place* where that pixel ends."
)

# %% [markdown]
# ## Check
#
# A thousand boxes go to the size of the network and back. Then both implementations prepare the
# same image, by the conventions of both libraries: pixels, boxes and masks.

# %%
generator = np.random.default_rng(0)
corners = generator.uniform(0, 100, (1000, 2, 2))
many = np.sort(corners, axis=1).reshape(1000, 4)
old_size, new_size = (427, 640), (800, 1199)
for name, convention in (("torchvision", torchvision), ("detectron2", detectron)):
    there = transform.scale_boxes(many, old_size, new_size, convention)
    back = transform.scale_boxes(there, new_size, old_size, convention)
    error = np.abs(back - many).max()
    assert error < (1e-4 if convention.ratio_dtype == "float32" else 1e-12)
    draw.say(f"{name}, ratios in {convention.ratio_dtype}: back to within {error:.0e} pixels.")

# %%
tolerance, rows = POINTWISE["float64"], []
pairs = {"boxes.iou": ("iou", (many[:500], many[500:])), "boxes.area": ("area", (many,))}
for name, (function, inputs) in pairs.items():
    ours = getattr(fast_boxes, function)(*map(torch.from_numpy, inputs))
    rows.append(check(name, getattr(boxes, function)(*inputs), {"torch": ours}, tolerance))
for name, convention in (("torchvision", torchvision), ("detectron2", detectron)):
    small = replace(convention, min_size=(64,), max_size=80)
    image, of_reference = transform.prepare(picture, target, small)
    ours, packed = fast_transform.prepare(picture, target, small, dtype=torch.float64)
    unpacked = np.unpackbits(packed.masks.numpy(), axis=2)[:, :, : image.shape[2]]
    rows += [
        check(f"{name}: image", image, {"torch": ours}, tolerance),
        check(f"{name}: boxes", of_reference.boxes, {"torch": packed.boxes}, tolerance),
        check(f"{name}: masks", of_reference.masks, {"torch": unpacked}, 0),
    ]
display(Report.of("boxes and images, float64", rows))

# %% [markdown]
# ## Exercise
#
# Write IoU for one pair of boxes. Three lines are enough. Boxes may be empty or inverted
# ($x_2 < x_1$, which data contain more often than one thinks); such a box covers nothing.


# %%
def my_iou(a, b):
    """Boxes a [4] and b [4], xyxy -> their intersection over union, a number in [0, 1]."""
    return None  # your code


draw.say(exercise.check(my_iou))

# %% [markdown]
# **Remember.**
#
# * Pixel $i$ covers $[i, i + 1)$, its value stands at $i + \tfrac12$, and a box from 3 to 7 is 4
#   pixels wide.
# * A "+1" belongs only where the name of a pixel becomes a place, at the end of a mask.
# * Resizing without the half pixel moves the image by (factor - 1) / 2 pixels and leaves the boxes
#   behind.
# * Rounding a size, or a ratio in float32, is harmless for an image and fatal for a comparison.
#
# **Next.** [Anchors](02_anchors.ipynb): thousands of boxes, and the IoU that decides which of them
# are asked.
