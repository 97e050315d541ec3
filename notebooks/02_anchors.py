# ---
# jupyter:
#   cpu_seconds: 9
# ---

# %% [markdown]
# # 2. Anchors: who is asked, who answers
#
# **The question.** The network looks at thousands of fixed boxes, the anchors, and says of each
# whether it holds an object. Who tells it the right answers: which anchors are objects, which are
# background, and why is the answer of so many ignored?
#
# **Time.** Twenty minutes to read, less than half a minute to run.
#
# **Data.** Painted discs, rectangles and triangles, 128 x 128 pixels, whose true boxes are known.
#
# **Before.** Boxes and intersection over union (IoU), from [notebook 1](01_pixels_and_boxes.ipynb).

# %%
import figures as draw
import numpy as np
import torch
from exercises import anchors as exercise

from accelerated import anchors as fast_anchors
from accelerated import matcher as fast_matcher
from accelerated import rpn as fast_rpn
from accelerated.verify.equality import POINTWISE
from accelerated.verify.report import Report, check
from reference import anchors, boxes, matcher, rpn, sampler, shapes
from reference.config import preset

# %% [markdown]
# The settings are those of the paper with a feature pyramid: five maps, P2 to P6, of which each
# cell stands for 4 to 64 pixels of the image. `every` holds all anchors, [T, 4].

# %%
config = preset("paper_r50_fpn")
strides = [2**level for level in range(2, 7)]
sides = [(128 // stride, 128 // stride) for stride in strides]
levels = anchors.grid(sides, (128, 128), config.anchors, strides=strides)
every = np.concatenate(levels)
centres = (every[:, :2] + every[:, 2:]) / 2
rule = {"high": config.rpn.foreground_iou, "low": config.rpn.background_iou, "low_quality": True}
paper = rule | {"zero_iou": False}


def reasons(truths, rule=paper):
    """Say why each anchor has its label, given the true boxes [G, 4]."""
    return matcher.reasons(boxes.iou(truths, every), **rule)


# Colour says the label, the marker says the reason.
IGNORED = "#AA4499"
MARKS = {
    "below": {"marker": ".", "markersize": 3.5, "color": draw.QUIET},
    "between": {"marker": "o", "markersize": 7, "color": IGNORED, "fillstyle": "none"},
    "best of a truth": {"marker": "D", "markersize": 7, "color": draw.USED, "fillstyle": "none"},
    "above": {"marker": "s", "markersize": 8, "color": draw.USED},
}
NAMES = {
    "below": "background: IoU below 0.3",
    "between": "ignored: IoU between",
    "best of a truth": "object: the best of its truth",
    "above": "object: IoU 0.7 or more",
}


def mark(axes, chosen, reason, scale=1.0):
    """Draw the centres of the `chosen` anchors (bool [T]), each with the mark of its reason."""
    for name, style in MARKS.items():
        x, y = centres[chosen & (reason == name)].T
        named = {"label": NAMES[name]} if scale == 1 and len(x) else {}
        size = {"markersize": style["markersize"] * scale}
        axes.plot(x, y, linestyle="none", **style | size, **named)


def pale(axes, image, title):
    """Draw an image in few pale shades of grey, as a ground for marks."""
    draw.image(axes, 0.6 + 0.4 * np.round(image.mean(axis=2) / 255 * 12) / 12, title)
    axes.images[0].set_clim(0, 1)


# %% [markdown]
# ## One object, and everybody who is asked about it

# %%
disc_image, disc, _, _ = shapes.sample(1, 171)
disc_reason = reasons(disc)
is_p2 = np.arange(len(every)) < len(levels[0])
shape_of = np.arange(len(every)) % 3


def regions(axes, shape):
    """Shade where the centre of an anchor of P2 must lie for an IoU of 0.3, and of 0.7."""
    y, x = np.mgrid[0:128:0.25, 0:128:0.25]
    [cell] = anchors.cell_anchors((32.0,), (config.anchors.ratios[shape],), config.anchors)
    iou = boxes.iou(disc, np.stack([x, y, x, y], axis=-1) + cell)[:, 0]
    for low, high, colour, dash in ((0.3, 0.7, IGNORED, "dotted"), (0.7, 1.1, draw.USED, "solid")):
        axes.contourf(x, y, iou, [low, high], colors=[colour], alpha=0.13)
        axes.contour(x, y, iou, [low], colors=[colour], linestyles=[dash], linewidths=1.2)


made, grid = draw.figure(3, 2, size=(10, 7.2), width_ratios=(3, 1))
big = made.add_subplot(grid[0, 0].get_gridspec()[:, 0])
for axes in grid[:, 0]:
    axes.remove()
picture, wide, tall = grid[:, 1]
draw.image(picture, disc_image, "The image")
draw.box(picture, disc[0])
for axes, shape, title, scale in (
    (big, 1, "Square anchors of P2: a mark at the centre of each", 1),
    (wide, 0, "Wide anchors of P2", 0.4),
    (tall, 2, "Tall anchors of P2", 0.4),
):
    pale(axes, disc_image, title)
    regions(axes, shape)
    draw.box(axes, disc[0], label="true box" if scale == 1 else None)
    mark(axes, is_p2 & (shape_of == shape), disc_reason, scale)
    axes.set(xlim=(28, 114), ylim=(96, 10))
draw.legend(made)
draw.show(
    made,
    "The centres of all anchors of P2. Four filled squares in the middle of the dashed true box "
    "are labelled object. Around them lies a lens of 44 rings, the ignored anchors; all dots "
    "outside it are background. Wide and tall anchors have such a halo, too, but no core.",
)
counts = {name: int((disc_reason == name).sum()) for name in MARKS}
draw.say(
    f"{len(every)} anchors are asked about this one disc. {counts['above']} must answer "
    f"*object*, {counts['below']} must answer *background*, and {counts['between']} are ignored: "
    "whatever they answer, nobody corrects them."
)

# %% [markdown]
# A core, a halo, and the rest. The halo has a reason. An anchor in it holds a part of the disc and
# a good deal of what lies beside it. If it had to answer *object*, the network would learn
# to be content with half an object. If it had to answer *background*, the network would learn that
# the parts of a disc are not a disc. So it may answer what it likes.
#
# The rest of this notebook builds the picture: the anchors, the overlap, the rule, its exceptions,
# and the few anchors that are finally used.

# %% [markdown]
# ## An anchor is a size and a ratio
#
# An anchor of size $s$ and ratio $r$ has the width $w$ and the height $h$
#
# $$w = s / \sqrt{r}, \qquad h = s \sqrt{r}, \qquad\text{so that}\quad w h = s^2
# \quad\text{and}\quad h / w = r$$
#
# [Faster R-CNN §3.1.1]. The size is the square root of the area, and the ratio bends the square
# without changing its area. In code, for all sizes and ratios at once:

# %%
draw.source(anchors.cell_anchors)

# %% [markdown]
# Faster R-CNN has one map, and at each of its cells the nine boxes of three sizes and three ratios.
# Here they are, multiplied out again.

# %%
nine = anchors.cell_anchors((128.0, 256.0, 512.0), (0.5, 1.0, 2.0), config.anchors)
width, height = nine[:, 2] - nine[:, 0], nine[:, 3] - nine[:, 1]
rows = {
    str(i + 1): [f"{w:.2f}", f"{h:.2f}", f"{w * h:.0f} = {np.sqrt(w * h):.0f}²", f"{h / w:.1f}"]
    for i, (w, h) in enumerate(zip(width, height, strict=True))
}
draw.table(rows, ["anchor", "width", "height", "width x height", "height / width"])

# %% [markdown]
# A feature pyramid spreads the sizes over its levels instead [FPN §4.1]. Each level has one size,
# eight times its stride, and so three anchors at each cell.

# %%
made, (left, right) = draw.figure(1, 2, size=(10, 4.9))
styles = dict(zip((0.5, 1.0, 2.0), draw.SERIES, strict=False))
for box, w, h in zip(nine, width, height, strict=True):
    ratio = float(np.round(h / w, 1))
    colour, _, dash = styles[ratio]
    x, y = box[[0, 2, 2, 0, 0]], box[[1, 1, 3, 3, 1]]
    name = f"ratio {ratio}" if w * h > 500**2 else None
    left.plot(x, y, color=colour, linestyle=dash, label=name)
left.set(title="Faster R-CNN: nine anchors of one cell", xlim=(-380, 380), ylim=(380, -380))
left.set(xlabel="x from the centre, pixels", ylabel="y from the centre, pixels", aspect="equal")
pale(right, disc_image, "Pyramid: three anchors of one cell of P2, and a corner")
right.plot(*centres[is_p2].T, ".", color=draw.QUIET, markersize=3)
for cell in (16 * 32 + 18, 0):
    for box, (colour, _, dash) in zip(every[3 * cell : 3 * cell + 3], draw.SERIES, strict=False):
        right.plot(box[[0, 2, 2, 0, 0]], box[[1, 1, 3, 3, 1]], color=colour, linestyle=dash)
right.set(xlim=(-28, 128), ylim=(128, -28))
draw.legend(made)
draw.show(
    made,
    "Left: nine boxes around one point, in three sizes and three ratios, flat, square and upright. "
    "Right: the centres of all anchors of P2 as dots every 4 pixels, the three anchors of a cell "
    "in the middle, and those of the first cell, three quarters of which lie outside the image.",
)

# %% [markdown]
# ## The grid
#
# The anchors of a cell are the same boxes everywhere, moved to the cell's place: cell
# $(i, j)$ of a level with stride $S$ has its centre at $x = j S$, $y = i S$. torchvision and
# detectron2 add no half cell here, so the first cell's anchors are centred on the corner of the
# image (`anchors.offset` can move the grid). Faster R-CNN left out anchors that cross the border
# [Faster R-CNN §3.3]. With a pyramid they are kept [FPN §5.1].

# %%
draw.source(anchors.grid)

# %%
rows = {}
for level, stride, size, found in zip(
    range(2, 7), strides, config.anchors.sizes, levels, strict=True
):
    inside = (found >= 0).all(axis=1) & (found <= 128).all(axis=1)
    rows[f"P{level}"] = [
        stride,
        f"{size[0]:.0f}",
        len(found) // 3,
        len(found),
        int((~inside).sum()),
    ]
rows["all"] = ["", "", len(every) // 3, len(every), sum(row[4] for row in rows.values())]
draw.table(rows, ["level", "stride", "size", "cells", "anchors", "cross the border"])
large = sum(3 * -(-800 // stride) * -(-1344 // stride) for stride in strides)
draw.say(
    "A flattened index counts level, row, column, ratio, in this order. Our image is small. One of "
    f"800 x 1344 pixels, the usual size in COCO, has {large:,} anchors."
)

# %% [markdown]
# ## The rule
#
# Every anchor $a$ is compared with every truth $g$ [Faster R-CNN §3.1.2]:
#
# $$\text{label}(a) = \begin{cases}
# 1 & \max_g \text{IoU}(g, a) \ge 0.7, \text{ or } a \text{ is the best anchor of some } g\\
# 0 & \max_g \text{IoU}(g, a) < 0.3, \text{ and } a \text{ is the best anchor of none}\\
# -1 & \text{otherwise: ignored}
# \end{cases}$$
#
# The code first finds the reason, and reads the label off it.

# %%
draw.source(matcher.reasons)
draw.source(matcher.match)

# %% [markdown]
# By hand, on two truths and six anchors whose overlaps are given:

# %%
overlaps = np.array([[0.75, 0.50, 0.45, 0.10, 0.05, 0.00], [0.00, 0.00, 0.35, 0.35, 0.20, 0.00]])
why = matcher.reasons(overlaps, **paper)
label, matched = matcher.match(overlaps, **paper)
rows = {f"IoU with truth {name}": list(row) for name, row in zip("AB", overlaps, strict=True)}
rows |= {"reason": list(why), "label": list(label)}
rows["learns the box of"] = [
    "AB"[m] if one == 1 else "-" for one, m in zip(label, matched, strict=True)
]
draw.table(rows, ["", *(f"anchor {i}" for i in range(6))])
assert list(label) == [1, -1, 1, 1, 0, 0] and list(matched[label == 1]) == [0, 0, 1]

# %% [markdown]
# Truth B overlaps no anchor by much. Its best are anchors 2 and 3, which tie, and *both* become
# objects. Then look at the last row. Anchor 2 is an object because of B, but it overlaps A more, so
# it learns the box of A: B gave it the label, and A gives it the box. torchvision, detectron2 and
# maskrcnn-benchmark all do this, and so does this code.

# %% [markdown]
# ## Choose an anchor
#
# The sliders pick a column and a row of P2 and one of the three shapes. The flattened index is
# `(row * 32 + column) * 3 + shape`. Blue is what the anchor and the disc share.

# %%
iou_p2 = boxes.iou(disc, levels[0])[0]


def one_anchor(column, row, shape):
    """Draw an anchor of P2 with its overlap, its IoU and the reason for its label."""
    index = int((row * 32 + column) * 3 + shape)
    made, axes = draw.figure(size=(3.33, 3.8))
    pale(axes, disc_image, f"anchor {index}: IoU {iou_p2[index]:.3f}\n{NAMES[disc_reason[index]]}")
    low, high = np.maximum(every[index], disc[0])[:2], np.minimum(every[index], disc[0])[2:]
    if (low < high).all():
        draw.patch(axes, [*low, *high], draw.SAMPLE, alpha=0.35)
    draw.box(axes, every[index], draw.USED)
    draw.box(axes, disc[0])
    return made


draw.explore(
    one_anchor,
    "An anchor at three places. In the core it almost fills the dashed true box. Three cells to "
    "the left, both share less than half of their union. A tall one further off only touches it.",
    [
        {"column": 18, "row": 13, "shape": 1},
        {"column": 15, "row": 13, "shape": 1},
        {"column": 11, "row": 17, "shape": 2},
    ],
    column=(0, 31, 1),
    row=(0, 31, 1),
    shape=(0, 2, 1),
)
index = (13 * 32 + 15) * 3 + 1
x1, y1 = np.maximum(every[index], disc[0])[:2]
x2, y2 = np.minimum(every[index], disc[0])[2:]
shared, areas = (x2 - x1) * (y2 - y1), boxes.area(every[index]) + boxes.area(disc[0])
draw.say(
    "The middle one by hand: anchor and disc share "
    f"{x2 - x1:.0f} x {y2 - y1:.0f} = {shared:.0f} square pixels. Together they cover "
    f"{areas:.0f} - {shared:.0f} = {areas - shared:.0f}. "
    f"The IoU is {shared / (areas - shared):.3f}."
)
assert np.isclose(shared / (areas - shared), iou_p2[index], rtol=1e-12)

# %% [markdown]
# ## All levels, all shapes
#
# Now six objects of different sizes, and the anchors of the two levels that have something to say
# about them.

# %%
image, truths, _, _ = shapes.sample(1, 9)
reason = reasons(truths)
level_of = np.repeat(np.arange(5), [len(found) for found in levels])
made, grid = draw.figure(2, 3, size=(10, 7.2))
for level, row in enumerate(grid):
    for shape, axes in enumerate(row):
        pale(axes, image, f"P{level + 2}, {('wide', 'square', 'tall')[shape]}")
        for box in truths:
            draw.box(axes, box)
        mark(axes, (level_of == level) & (shape_of == shape), reason, 0.6)
        axes.set(**({} if level == 1 else {"xlabel": "", "xticks": []}))
        axes.set(**({} if shape == 0 else {"ylabel": "", "yticks": []}))
draw.show(
    made,
    "An image with six dashed true boxes, once for each shape on P2 and P3. On P2 a halo of rings "
    "lies in every box but the largest, which has its halo on P3. Square anchors have cores of "
    "filled squares, two on P2 and one on P3. Open diamonds mark the best anchors of the others.",
)
rest = level_of > 1
assert (reason[rest] == "below").all()
draw.say(
    f"The {rest.sum()} anchors of P4, P5 and P6 are all background: no object here is so large."
)
draw.table(
    {
        f"{np.sqrt(boxes.area(box)):.0f}": [
            f"{row.max():.3f}",
            f"P{level_of[row.argmax()] + 2}",
            int((row >= rule["high"]).sum()),
            int(((row == row.max()) & (reason == "best of a truth")).sum()),
        ]
        for box, row in zip(truths, boxes.iou(truths, every), strict=True)
    },
    ["size of the truth", "best IoU", "level", "anchors of IoU 0.7 or more", "anchors as its best"],
)

# %% [markdown]
# Three of the six truths have no anchor with an IoU of $0.7$. Without the exception for the best
# anchors they would have nobody to answer for them.

# %% [markdown]
# ## How many of each
#
# One image proves little. Here are the best overlaps of all anchors in forty images.

# %%
forty = [shapes.sample(1, index)[1] for index in range(40)]
all_reasons = np.concatenate([reasons(truths) for truths in forty])
best = np.concatenate([boxes.iou(truths, every).max(axis=0) for truths in forty])
made, axes = draw.figure(size=(9, 3.6))
edges = np.arange(51) / 50
for low, high, colour, hatch, name in (
    (0.0, 0.3, draw.QUIET, "", "below 0.3"),
    (0.3, 0.7, IGNORED, "..", "between"),
    (0.7, 1.0, draw.USED, "//", "0.7 or more"),
):
    part = best[(best >= low) & (best < high + (high == 1))]
    axes.hist(part, edges, color=colour, hatch=hatch, edgecolor="white", label=name)
axes.set(yscale="log", title=f"Best IoU of {len(best)} anchors in {len(forty)} images")
axes.set(xlabel="highest IoU with any truth, no unit", ylabel="anchors, logarithmic")
axes.legend()
draw.show(
    made,
    "A histogram on a logarithmic axis. The first bar, of anchors that touch no object or nearly "
    "none, is about ten times as high as its neighbour. From there the bars fall steadily: "
    "thousands below 0.3, hundreds around 0.5, and a few dozen at most from 0.7 on.",
)
share = {name: 100 * (all_reasons == name).mean() for name in MARKS}
draw.say(
    f"Of all anchors {share['below']:.1f} % are background, {share['between']:.1f} % are ignored, "
    f"{share['above']:.2f} % are objects because they overlap enough, and "
    f"{share['best of a truth']:.2f} % because they are the best that a truth has."
)

# %% [markdown]
# ## Why the best anchor counts, however bad it is
#
# The sizes of the anchors double from level to level. An object between two sizes fits neither.
# Take a square object, centred on a cell, which is the best place it can have, and let it grow.

# %%
size = np.geomspace(8, 180, 200)
square = 64 + size[:, None] / 2 * np.array([-1, -1, 1, 1])
ideal = boxes.iou(square, every).max(axis=1)
objects = np.concatenate(forty)
found = np.concatenate([boxes.iou(truths, every).max(axis=1) for truths in forty])
alone = found < rule["high"]
made, axes = draw.figure(size=(9, 4.2))
axes.plot(size, ideal, color="black", linewidth=1.2, label="a square object at the best place")
axes.axhline(rule["high"], color=draw.QUIET, linestyle="dotted", label="the threshold")
for chosen, (name, style) in ((alone, [*MARKS.items()][2]), (~alone, [*MARKS.items()][3])):
    points = np.sqrt(boxes.area(objects[chosen])), found[chosen]
    axes.plot(*points, linestyle="none", label=NAMES[name], **style | {"markersize": 5})
axes.set(xscale="log", xlim=(8, 180), ylim=(0, 1.03), title="The best anchor of every object")
axes.set_xticks(
    [8, 16, 32, 45, 64, 90, 128, 180], ["8", "16", "32", "45", "64", "90", "128", "180"]
)
axes.minorticks_off()
axes.set(xlabel="size of the object, square root of its area in pixels", ylabel="best IoU, no unit")
axes.legend(loc="lower right")
draw.show(
    made,
    "Best IoU against the size of the object. A black curve reaches 1 at 32, 64 and 128 pixels and "
    "falls to one half between them, at 45 and 90. The real objects lie on or below it. Most are "
    "open diamonds below the dotted threshold; filled squares lie on the humps.",
)
draw.say(
    f"Of {len(objects)} objects in forty images, {alone.sum()} have no anchor with an IoU of 0.7: "
    f"{100 * alone.mean():.0f} %. Without the exception nobody would learn to find them. With it, "
    "their best anchors are objects, and the network learns to correct the boxes."
)

# %% [markdown]
# An object smaller than the smallest anchor shows the rule for ties. An anchor that holds it
# whole has for its IoU the ratio of the two areas, wherever it lies and whatever its shape. All of
# them should tie. Do they?

# %%
small_image, small, _, _ = shapes.sample(1, 210)
small_reason, [overlap] = reasons(small), boxes.iou(small, every)
holds = (every[:, :2] <= small[0, :2]).all(axis=1) & (every[:, 2:] >= small[0, 2:]).all(axis=1)
made, row = draw.figure(1, 3, size=(10, 3.9))
for shape, axes in enumerate(row):
    pale(axes, small_image, f"P2, {('wide', 'square', 'tall')[shape]}")
    draw.box(axes, small[0], label="true box" if shape == 0 else None)
    x, y = centres[is_p2 & holds & (shape_of == shape)].T
    axes.plot(x, y, "x", color="black", markersize=4, label="holds the object whole")
    mark(axes, is_p2 & (shape_of == shape), small_reason, 1 if shape == 0 else 0.99)
    axes.set(xlim=(20, 80), ylim=(85, 25))
draw.legend(made)
draw.show(
    made,
    "The centres of the anchors of P2 around a small dashed box, once per shape. Crosses mark the "
    "anchors that hold it whole: blocks of 3 rows of 8, 5 of 5, and 9 of 2. Only one row of the "
    "wide ones and all of the tall ones carry a diamond as well, and are objects.",
)
tied, whole = int((small_reason == "best of a truth").sum()), is_p2 & holds
draw.say(
    f"The object has {boxes.area(small[0]):.0f} square pixels and an anchor of P2 {32**2}, so "
    f"{whole.sum()} anchors have an IoU of {overlap[whole].max():.4f}. In exact arithmetic they "
    f"would all be objects. In float64, only {tied} are."
)
assert np.allclose(overlap[whole], boxes.area(small[0]) / 32**2, rtol=1e-12)

# %% [markdown]
# The areas of wide and tall anchors are products of rounded square roots. Some come out a last
# digit below those of the squares, the IoU comes out a last digit higher, and `==` means equal to
# the last digit. A rule with ties is a promise about rounding: two implementations agree only if
# they compute the IoU in the same order. These two do, and the check below requires equal labels.

# %% [markdown]
# ## A trap: a truth that overlaps nothing
#
# *The best anchor of a truth is an object, and so are all that tie with it.* Now let a truth have
# no area. Data sets hold such boxes: a polygon of two points, a slip of the mouse. Its IoU with
# every anchor is 0. The best IoU is 0. Every anchor ties for it.

# %%
flat = np.array([[100.0, 20.0, 100.0, 40.0]])
cases = {
    "the disc": (disc, paper),
    "the disc and a flat box": (np.concatenate([disc, flat]), paper),
    "the same, zero_iou=True": (np.concatenate([disc, flat]), rule | {"zero_iou": True}),
}
is_object = {
    name: int(np.isin(reasons(*case), ("above", "best of a truth")).sum())
    for name, case in cases.items()
}
made, axes = draw.figure(size=(9, 2.4))
title = f"Anchors labelled object, of {len(every)}"
draw.bars(axes, is_object, title, unit="anchors", marked=["the same, zero_iou=True"], form="{:.0f}")
draw.show(
    made,
    "Three bars: four anchors are objects for the disc, four for the disc and a box without area, "
    "and all anchors once an IoU of zero counts as a best one. The last bar is hatched.",
)
turned = is_object["the same, zero_iou=True"] - is_object["the disc"]
draw.say(
    "torchvision and detectron2 count a best IoU of 0. With their rule, one flat box turns the "
    f"other {turned} anchors into objects as well. Nothing fails, and the loss stays finite. Here "
    "the rule is a switch, `rpn.zero_iou_matches`, and a target with a flat box is refused before "
    "it comes so far."
)

# %% [markdown]
# ## Few are chosen
#
# Even now there are far more background anchors than others, and a network that always answers
# *background* would be right almost always. So a training step uses 256 anchors of an image at
# most, of which at most half are objects [Faster R-CNN §3.1.3]. If there are fewer objects,
# background fills the rest.

# %%
draw.source(sampler.sample)

# %% [markdown]
# Chance enters as a list of priorities, a random number per anchor, and the smallest are taken.
# This is the same as drawing anchors at random. But a list can be handed to two implementations,
# which then choose the same anchors.

# %%
priorities = np.random.default_rng(0).random((1, len(every)))
answers = rpn.targets(every, [truths], priorities, config.rpn)
labels, sampled, deltas = answers.labels[0], answers.sampled[0], answers.deltas[0]
made, row = draw.figure(1, 2, size=(10, 5.3))
for axes, values, title in (
    (row[0], labels, "Labels of all anchors on P2 and P3"),
    (row[1], sampled, "The anchors that the loss uses"),
):
    pale(axes, image, title)
    for value, style in ((0, {"color": draw.SAMPLE, "marker": "."}), (1, MARKS["above"])):
        x, y = centres[(values == value) & (level_of < 2)].T
        name = "object" if value else "background"
        axes.plot(x, y, linestyle="none", label=name, **style | {"markersize": 5})
    for box in truths:
        draw.box(axes, box)
draw.legend(made)
draw.show(
    made,
    "Twice the image with six dashed boxes. Left, blue dots of background anchors cover everything "
    "outside the objects, and squares of objects lie within some boxes. Right, all the squares are "
    "still there, but the dots are thinned out to a sprinkle.",
)
draw.table(
    {
        name: [int((labels == value).sum()), int((sampled == value).sum()) if value >= 0 else 0]
        for name, value in (("object", 1), ("background", 0), ("ignored", -1))
    },
    ["label", "anchors", "used by the loss"],
)
draw.say(
    f"Objects were {100 * (labels == 1).mean():.1f} % of the anchors and are "
    f"{100 * (sampled == 1).sum() / (sampled >= 0).sum():.1f} % of those that are used. "
    f"{100 * (sampled < 0).mean():.0f} % of all anchors teach nothing in this step. In the next "
    "step, other priorities choose other background."
)

# %% [markdown]
# An anchor that is an object learns two things: to answer *object*, and by how much to move and
# stretch itself to become its truth. These four numbers are `deltas`, and
# [notebook 3](03_rpn.ipynb) is about them.
#
# ## Check
#
# The oracle in NumPy beside the accelerated implementation in PyTorch. The anchors agree to the
# last digits, and labels, matches and samples exactly. The sixty images include one without any
# object and the small object with its ties. Two hundred random tables of overlaps hold more ties.

# %%
generator = np.random.default_rng(1)
many = [shapes.sample(2, index)[1] for index in range(58)] + [small, np.zeros((0, 4))]
draws = generator.random((len(many), len(every)))
expected = rpn.targets(every, many, draws, config.rpn)

# Fixed shapes: truths are padded to the same number, and `valid` tells which are real.
padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(b) for b in many], batch_first=True)
valid = torch.arange(padded.shape[1]) < torch.tensor([[len(b)] for b in many])
double = {"dtype": torch.float64}
grids = fast_anchors.grid(sides, (128, 128), config.anchors, strides=strides, **double)
actual = fast_rpn.targets(torch.cat(grids), padded, valid, torch.from_numpy(draws), config.rpn)
rows = [
    check("anchors", every, {"torch": torch.cat(grids)}, POINTWISE["float64"]),
    check("labels of 60 images", expected.labels, {"torch": actual.labels}, 0),
    check("sampled anchors", expected.sampled, {"torch": actual.sampled}, 0),
]

tables = generator.integers(0, 11, (200, 5, 40)) / 10
for zero_iou in (False, True):
    case = rule | {"zero_iou": zero_iou}
    oracle = np.stack([matcher.match(table, **case) for table in tables], axis=1)
    theirs = fast_matcher.match(torch.from_numpy(tables), torch.ones(200, 5).bool(), **case)
    name = f"labels and matches with ties, zero_iou={zero_iou}"
    rows.append(check(name, oracle, {"torch": torch.stack(theirs)}, 0))
Report.of("Anchors and their labels", rows)

# %% [markdown]
# ## Exercise
#
# Write the rule. It takes the overlaps of G truths with T anchors and returns a label for every
# anchor: 1 for an object, 0 for background, -1 for ignored. The best anchors of every truth are
# objects, and all that tie with them, but never with an IoU of 0. There may be no truth at all.


# %%
def my_labels(iou, high, low):
    """Overlaps [G, T] and the two thresholds -> labels [T] in {1, 0, -1}."""
    return None  # your code


draw.say(exercise.check(my_labels))

# %% [markdown]
# **Remember.**
#
# * An anchor is a size and a ratio at a cell. Nothing about it is learned.
# * IoU decides: $0.7$ and more is an object, below $0.3$ is background, between them is ignored.
# * The best anchors of every truth are objects however little they overlap, or most objects would
#   have none. Ties count, so rounding counts.
# * The loss uses a few hundred anchors of an image and forgets the rest.
#
# **Next.** [What the network answers](03_rpn.ipynb): from a number per anchor to proposals, and
# non-maximum suppression box by box.
