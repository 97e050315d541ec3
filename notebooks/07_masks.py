# ---
# jupyter:
#   cpu_seconds: 19
# ---

# %% [markdown]
# # 7. Masks there and back: what is lost?
#
# **The question.** A mask of any size is squeezed into 28 x 28 numbers for training. In detection
# 28 x 28 numbers are stretched back over a box. What is lost on the way there and back, even if the
# network makes no mistake at all?
#
# **Time.** About 25 minutes to read, a few seconds to run.
#
# **Data.** One polygon, synthetic shapes, and 17 nuclei of a microscope picture.
#
# **Before.** [Notebook 5](05_roi_align.ipynb) explains RoIAlign and its two matrices.

# %%
import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton's kernels run on the CPU

import json
from pathlib import Path

import figures as draw
import numpy as np
import torch
from exercises import masks as exercise
from matplotlib.colors import to_rgb
from matplotlib.path import Path as Outline

from accelerated import masks as fast
from accelerated.data import rle
from accelerated.verify import equality
from accelerated.verify.report import Report, check
from reference import checkpoint, config, masks, roi_align, shapes
from reference.structures import Stages

# %% [markdown]
# ## One outline, there and back
#
# An annotator has clicked eleven points around an object in an image of 64 x 64 pixels. The library
# turns the outline into pixels. From these it makes the **target** of the mask head, 28 x 28
# numbers inside the object's box. Suppose the mask head predicts its target exactly. Then we paste
# the target back into the image, and count the pixels that are wrong.

# %%
points = [(9, 33), (14, 17), (30, 8), (47, 11), (57, 24), (52, 36), (38, 38), (44, 47), (38, 57)]
points = np.array([*points, (24, 55), (22, 44)]) + np.array([0.3, 0.45])
truth = masks.rasterize_polygon(points, 64, 64)
box = np.concatenate([points.min(axis=0), points.max(axis=0)])[None]
first = np.array([0])
detectron2 = config.preset("detectron2_r50_fpn")
HEADS = {
    "torchvision": config.preset("torchvision_r50_fpn").mask_head,
    # From the pixels, as the others; its default, the outline, comes later.
    "detectron2": config.override(detectron2, "mask_head.target=binary").mask_head,
    "tiny": config.preset("tiny").mask_head,
}
goal = {name: masks.targets(truth[None], first, box, head, 28) for name, head in HEADS.items()}
back = {
    name: masks.paste(goal[name], box, 64, 64, convention=head.paste)[0]
    for name, head in HEADS.items()
}


# %%
def draw_wrong(axes, mask, expected, title):
    """Draw the expected mask, and the pixels that a mask has in excess or lacks."""
    pixels = np.where(expected, 0.8, 0.25)[..., None].repeat(3, axis=2)
    pixels[mask & ~expected] = to_rgb(draw.USED)
    pixels[expected & ~mask] = to_rgb(draw.SAMPLE)
    draw.image(axes, pixels, title.format((mask != expected).sum()))
    y, x = np.nonzero(expected & ~mask)
    axes.plot(x + 0.5, y + 0.5, ".", color="white", markersize=2)


figure, axes = draw.figure(2, 3, size=(10, 6.9))
draw.cells(axes[0, 0], truth * 0.6 + 0.25, "the polygon and its pixels", limits=(0, 1), grid=False)
closed = np.concatenate([points, points[:1]])
axes[0, 0].plot(*closed.T, color=draw.SAMPLE, marker="o", markersize=4)
draw.box(axes[0, 0], box[0], draw.ASKED)
axes[0, 0].set(xlabel="x, pixels", ylabel="y, pixels")
for name, kind, panel in (("tiny", "soft", axes[0, 1]), ("detectron2", "binary", axes[0, 2])):
    title = f"{kind} target, 28 x 28"
    draw.cells(panel, goal[name][0], title, cmap=draw.MAGNITUDE, limits=(0, 1), unit="cells")
draw_wrong(axes[1, 0], back["torchvision"], truth, "back, torchvision: {} wrong")
draw_wrong(axes[1, 1], back["detectron2"], truth, "back, detectron2: {} wrong")
draw_wrong(axes[1, 2], back["tiny"], truth, "back, best of both: {} wrong")
for panel in axes[1]:
    panel.set(xlim=(5, 62), ylim=(62, 5))
draw.show(
    figure,
    "Top: a polygon with its pixels and its dashed box; its soft target, grey along the edge; its"
    " binary target, with stairs. Bottom: the mask pasted back by three conventions. Vermilion "
    "pixels are too many, blue ones with a dot are missing. torchvision adds a rim at the left "
    "and the top, detectron2 errs here and there along all edges, the third hardly errs.",
)

# %% [markdown]
# Three conventions, three results, and no network in between. The rest of this notebook explains
# where each pixel went. First, all combinations of a target and a way to paste it:


# %%
def iou_of(a, b):
    """IoU of masks [R, H, W] bool with masks [R, H, W] -> [R]."""
    return (a & b).sum(axis=(1, 2)) / (a | b).sum(axis=(1, 2))


objects = [shapes.sample(0, index)[1:] for index in range(30)]
rows = {}
for name, head in HEADS.items():
    kind = f"{head.target}, {'aligned' if head.target_aligned else 'half a pixel off'} ({name})"
    for way in ("torchvision", "detectron2"):
        one = masks.paste(goal[name], box, 64, 64, convention=way)
        found = []
        for boxes, _, known in objects:
            there = masks.targets(known, np.arange(len(boxes)), boxes, head, 28)
            found += [*iou_of(masks.paste(there, boxes, 128, 128, convention=way), known)]
        mean = np.mean(found)
        rows[f"{kind}; paste {way}"] = [f"{iou_of(one, truth[None])[0]:.3f}", f"{mean:.3f}"]
draw.table(rows, ["target; paste", "IoU of the polygon", f"mean IoU of {len(found)} shapes"])
draw.say(
    "These are upper limits for a head that returns its targets. AP counts matches up to an IoU of "
    "0.95, so some of the rows lose points before training begins."
)

# %% [markdown]
# ## From the mask to the target
#
# The paper defines the target as the intersection of a RoI with the mask of its object [Mask R-CNN,
# §3.1]. It does not say how to bring that to 28 x 28 numbers. Here it is RoIAlign of the mask, with
# enough samples in each bin that no pixel is missed.

# %%
draw.source(masks.targets)

# %% [markdown]
# So it is separable. With the interpolation matrices $A_y$ and $A_x$ of notebook 5 and the mask $M$
# of zeros and ones,
#
# $$T = A_y\, M\, A_x^{\mathsf T}.$$
#
# By hand:

# %%
x1, y1, x2, y2 = box[0]
a_y = roi_align.interpolation_matrix(y1, y2, 28, 64, 0, True)
a_x = roi_align.interpolation_matrix(x1, x2, 28, 64, 0, True)
by_hand = a_y @ truth.astype(float) @ a_x.T
np.testing.assert_allclose(by_hand, goal["tiny"][0], atol=1e-14)
mixed = (by_hand > 0) & (by_hand < 1)
np.testing.assert_array_equal(by_hand >= 0.5, goal["detectron2"][0])
draw.say(
    f"A cell is {(x2 - x1) / 28:.2f} pixels wide and {(y2 - y1) / 28:.2f} high. "
    f"{mixed.sum()} of the {mixed.size} cells lie on the edge: their value is neither 0 nor 1. The "
    "soft target keeps it, and with it the place of the edge inside the cell. The binary target, "
    "which asks whether the value is at least one half, forgets it."
)

# %% [markdown]
# ## From the polygon to pixels
#
# Which pixels does a polygon cover? The obvious answer is: those whose centre lies inside. COCO's
# answer is slightly different. It walks along the outline on a grid five times as fine, rounds, and
# flips everything below wherever it passes the centre of a column.

# %%
draw.source(masks.rasterize_polygon)

# %%
centres = np.stack(np.meshgrid(np.arange(64) + 0.5, np.arange(64) + 0.5), axis=-1)
inside = Outline(points).contains_points(centres.reshape(-1, 2)).reshape(64, 64)
figure, axes = draw.figure(1, 2, size=(9, 4.2))
draw_wrong(axes[0], truth, inside, "COCO's rule against centres: {} differ")
by_polygon = masks.polygon_targets([[points]], box, 28)[0].astype(bool)
by_mask = goal["detectron2"][0].astype(bool)
draw_wrong(axes[1], by_polygon, by_mask, "targets, polygon against mask: {} differ")
axes[1].set(xlabel="x, cells", ylabel="y, cells")
draw.show(
    figure,
    "Two masks with a few vermilion and blue cells along the edges. Left, the image's pixels: "
    "COCO's polygon has more at the right and fewer at the left than the pixels whose centre is "
    "inside. Right, 28 by 28 cells: the target drawn from the polygon against that of its pixels.",
)
draw.say(
    f"For this outline the answers differ in {(inside != truth).sum()} of {truth.sum()} pixels. "
    "Where an object has an outline, detectron2 by default draws the target from it, moved and "
    "scaled to 28 x 28, without the detour through pixels: its preset has the target "
    f"`{detectron2.mask_head.target}`. That differs in {(by_polygon != by_mask).sum()} of 784 cells"
    " from the binary target, which is left for objects whose mask came as pixels."
)

# %% [markdown]
# ## From 28 x 28 to the image
#
# Pasting is separable as well. Each pixel of the image asks for its position in the mask, and
# interpolates between the cells around it:
#
# $$u = \frac{x + \frac12 - x_1}{x_2 - x_1}\, S - \frac12, \qquad
#   \mathrm{out} = B_y\, M\, B_x^{\mathsf T}$$

# %%
draw.source(masks.paste_matrix)

# %% [markdown]
# Here is a mask of 3 x 3 cells, pasted over a box that is 5 pixels wide and 4 high:

# %%
little = np.array([[0, 1, 0.5], [1, 1, 1], [0, 1, 0]])
b_y = masks.paste_matrix(np.array([1.0]), np.array([5.0]), 3, 6, "detectron2")[0]
b_x = masks.paste_matrix(np.array([1.5]), np.array([6.5]), 3, 8, "detectron2")[0]
result = b_y @ little @ b_x.T
parts = [(b_y, "B_y [6, 3]"), "·", (little, "M [3, 3]"), "·", (b_x.T, "B_xᵀ [3, 8]"), "="]
figure = draw.equation([*parts, (result, "out [6, 8]")], form="{:.1f}")
draw.show(
    figure,
    "A matrix of 6 by 3 weights times a mask of 3 by 3 times a matrix of 3 by 8 weights equals a "
    "picture of 6 by 8 pixels. Each row of the first and each column of the third matrix has one "
    "or two weights; the border of the picture is empty.",
)
pasted = masks.paste_probabilities(
    little[None], np.array([[1.5, 1, 6.5, 5]]), 6, 8, convention="detectron2"
)
np.testing.assert_allclose(result, pasted[0], atol=1e-15)

# %% [markdown]
# ## Two ways to paste
#
# detectron2 asks at the centre of each pixel and lets the cells beyond the mask count zero.
# torchvision puts a border of zero cells around the mask, grows the box in proportion, and then
# **truncates it to whole pixels**. Paste a mask of ones along one axis, and look at the edge:

# %%
low, high = np.array([10.8]), np.array([22.3])
across = np.arange(8, 26) + 0.5
profiles = {
    way: masks.paste_matrix(low, high, 28, 26, way)[0].sum(axis=1)[8:]
    for way in ("detectron2", "torchvision")
}
figure, axes = draw.figure(size=(9, 3.2))
draw.curve(
    axes,
    across,
    profiles,
    "a mask of ones, pasted from 10.8 to 22.3",
    xlabel="centre of the pixel, pixels",
    ylabel="probability, no unit",
)
for line in axes.lines:
    line.set_drawstyle("steps-mid")
for edge in (low[0], high[0]):
    axes.axvline(edge, color=draw.ASKED, linestyle=(0, (4, 2)), linewidth=1)
axes.axhline(0.5, color=draw.QUIET, linewidth=1)
axes.set_xticks(range(8, 27, 2))
draw.show(
    figure,
    "Two stepped profiles that rise from 0 to 1 and fall again, with two dashed lines at the box's "
    "edges and a grey line at one half. torchvision's has one pixel more above one half on either "
    "side than detectron2's.",
)
kept = {way: across[profile >= 0.5] for way, profile in profiles.items()}
inside_box = across[(across >= low) & (across <= high)]
middle, half = (low + high) / 2, (high - low) / 2 * 30 / 28
start, end = np.trunc(middle - half)[0], np.trunc(middle + half)[0] + 1
cell = (end - start) / 30
assert np.array_equal(kept["detectron2"], inside_box)
draw.say(
    "Pixels with a probability of at least one half: "
    + "; ".join(f"{way}, centres {x[0]} to {x[-1]}" for way, x in kept.items())
    + ". At the very edge of the box the outermost cell has weight one half, so detectron2 keeps "
    "exactly the pixels whose centre is inside the box. torchvision's grown box, truncated, covers "
    f"the pixels from {start:.0f} to {end - 1:.0f}. Its 30 cells are spread over these, and the 28 "
    f"inner ones reach from {start + cell:.2f} to {end - cell:.2f}: not the box that was asked for."
)

# %% [markdown]
# The nuclei show how much this is in a real picture. We take the true masks, make soft targets, and
# paste these by both conventions.

# %%
nuclei = json.loads(Path("data/nuclei.json").read_text())["annotations"]
known = np.zeros((len(nuclei), 128, 128), bool)
for mask, item in zip(known, nuclei, strict=True):
    rle.decode_into(np.array(item["segmentation"]["counts"]), mask)
corners = np.array([item["bbox"] for item in nuclei], dtype=float)
corners[:, 2:] += corners[:, :2]
there = masks.targets(known, np.arange(len(known)), corners, HEADS["tiny"], 28)
both = {
    way: masks.paste(there, corners, 128, 128, convention=way)
    for way in ("torchvision", "detectron2")
}
differing = (both["torchvision"] != both["detectron2"]).sum(axis=(1, 2))
figure, axes = draw.figure(1, 2, size=(9, 4.4))
for panel, (way, found) in zip(axes, both.items(), strict=True):
    draw_wrong(panel, found.any(axis=0), known.any(axis=0), f"pasted by {way}: {{}} wrong")
draw.show(
    figure,
    "The masks of 17 nuclei pasted back by two conventions. Left, by torchvision's, nuclei have "
    "vermilion rims, pixels in excess, on several sides. Right, by detectron2's, no pixel is "
    "wrong.",
)
draw.say(
    f"The two differ in {differing.min()} to {differing.max()} pixels per nucleus, whose areas are "
    f"{known.sum(axis=(1, 2)).min()} to {known.sum(axis=(1, 2)).max()} pixels. Mean IoU with the "
    "true masks: "
    + ", ".join(f"{way} {iou_of(found, known).mean():.3f}" for way, found in both.items())
    + "."
)

# %% [markdown]
# ## How good can S x S be?
#
# The larger the object, the coarser its cells. We send single shapes of 12 to 256 pixels there and
# back, through 14 x 14, 28 x 28 and 56 x 56 cells. The targets are soft or binary, and aligned.
# They are pasted by detectron2's convention.


# %%
def ceiling(side, size, head, count=6):
    """Mean IoU after the way there and back, of `count` shapes of about `side` pixels."""
    reached, style = [], shapes.Style(radius=(0.25, 0.25))
    for index in range(count):
        window = {"height": max(2 * side, 24), "width": max(2 * side, 24)}
        _, boxes, _, known = shapes.sample(7, index, **window, max_objects=1, style=style)
        there = masks.targets(known, first, boxes, head, size)
        returned = masks.paste(there, boxes, *known.shape[1:], convention="detectron2")
        reached += [*iou_of(returned, known)]
    return np.mean(reached)


SIDES = [12, 16, 24, 32, 48, 64, 96, 128, 192, 256]
binary = config.override(config.preset("tiny"), "mask_head.target=binary").mask_head
curves = {
    f"{size} x {size}, {kind}": [ceiling(side, size, head) for side in SIDES]
    for kind, head in (("soft", HEADS["tiny"]), ("binary", binary))
    for size in (14, 28, 56)
}

# %%
figure, axes = draw.figure(1, 2, size=(10, 3.6), sharey=True)
for panel, kind in zip(axes, ("soft", "binary"), strict=True):
    shown = {name: values for name, values in curves.items() if kind in name}
    labels = {"xlabel": "side of the object, pixels", "ylabel": "mean IoU, no unit"}
    draw.curve(panel, SIDES, shown, f"{kind} targets: the best possible IoU", **labels)
    panel.axhline(0.95, color=draw.QUIET, linewidth=1)
    panel.set_xscale("log", base=2)
    panel.set_xticks([16, 32, 64, 128, 256], ["16", "32", "64", "128", "256"])
draw.show(
    figure,
    "Two charts of the best possible IoU over the size of an object. All curves start at 1, fall "
    "once the object is larger than its number of cells, and level off. With soft targets they "
    "stay above 0.98 for any number of cells; with binary ones 14 by 14 falls below a grey line "
    "at 0.95.",
)
at_128 = {name: values[SIDES.index(128)] for name, values in curves.items()}
draw.say(
    "For an object of 128 pixels: "
    + ", ".join(f"{name} {value:.3f}" for name, value in at_128.items())
    + ". The curves level off because the error is a fraction of a cell along the whole edge, and "
    "both the cells and the object grow together. Soft targets at 28 x 28 lose less than binary "
    "ones at 56 x 56."
)
assert at_128["28 x 28, soft"] > at_128["56 x 56, binary"]

# %% [markdown]
# ## Storing a mask: run lengths
#
# A mask of the image is long and dull: many equal pixels in a row. COCO stores the lengths of the
# runs. It goes **down the columns**, and the first run is background, so it may have length 0. By
# hand, on 4 x 3 pixels:

# %%
small = np.array([[0, 1, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0]], dtype=bool)
order = np.arange(12).reshape(3, 4).T
counts = rle.of_mask(small)
figure, axes = draw.figure(1, 2, size=(9, 2.5), width_ratios=(1, 3.2))
draw.cells(axes[0], small * 0.45 + 0.5, "the mask", limits=(0, 1), unit="pixels")
flat = small.T.reshape(1, -1)
title = "the same, column after column in one line, and its runs"
draw.cells(axes[1], flat * 0.45 + 0.5, title, limits=(0, 1), unit="pixels")
for (y, x), place in np.ndenumerate(order):
    axes[0].text(x + 0.5, y + 0.5, place, ha="center", va="center")
    axes[1].text(place + 0.5, 0.5, place, ha="center", va="center")
for end, count in zip(np.cumsum(counts), counts, strict=True):
    draw.box(axes[1], (end - count + 0.06, 0.04, end - 0.06, 0.96), draw.USED)
    axes[1].text(end - count / 2, 1.5, count, ha="center", color=draw.USED, weight="bold")
axes[1].set(ylim=(1.8, 0), yticks=[])
draw.show(
    figure,
    "Left, a mask of 4 by 3 pixels, numbered down the columns from 0 to 11. Right, the twelve "
    "pixels in that order in one line, with a frame around each run of equal pixels and its length "
    f"below: {', '.join(map(str, counts))}.",
)
text = rle.compress(counts)
draw.say(
    f"The counts are {counts.tolist()}, and {rle.area(counts)} pixels belong to the object: the "
    f"sum of every second count. Written as COCO's text, the counts are `{text.decode()}`."
)
assert np.array_equal(rle.decompress(text), counts)

# %%
lengths = [len(rle.compress(rle.of_mask(mask))) for mask in known]
draw.say(
    f"The {len(known)} nuclei have {known[0].size} pixels each. Their texts have "
    f"{min(lengths)} to {max(lengths)} characters, {np.mean(lengths):.0f} on average."
)

# %% [markdown]
# ## Check
#
# Polygons must be drawn exactly as pycocotools draws them, and run lengths must lead back to the
# same masks. Targets of PyTorch and Triton must be equal if binary or drawn from the polygon, and
# agree to rounding if soft.
# Pasted masks must be equal, pixel by pixel, by both conventions. They are those of the trained
# model on an image with five objects.

# %%
generator = np.random.default_rng(0)
for _ in range(100):
    corners_of_it = generator.uniform(-5, 45, (int(generator.integers(3, 8)), 2))
    expected = np.zeros((40, 30), bool)
    rle.decode_into(rle.decompress(rle.of_polygons([corners_of_it.ravel()], 40, 30)), expected)
    np.testing.assert_array_equal(masks.rasterize_polygon(corners_of_it, 40, 30), expected)

for mask in known:
    returned = np.zeros_like(mask)
    rle.decode_into(rle.decompress(rle.compress(rle.of_mask(mask))), returned)
    np.testing.assert_array_equal(returned, mask)

# %%
rows = []
boxes = corners[:4] + generator.uniform(-2, 2, (4, 4))
bits = torch.from_numpy(np.packbits(known[:4], axis=-1))[None]
index, valid = torch.arange(4), torch.ones(4, dtype=torch.bool)
for name, head in HEADS.items():
    expected = masks.targets(known[:4], np.arange(4), boxes, head, 28)
    inputs = bits, torch.zeros(4, dtype=torch.long), index, torch.from_numpy(boxes), valid, head, 28
    sizes = torch.tensor([[128, 128]])
    result = {way: fast.targets(*inputs, sizes=sizes, backend=way) for way in ("torch", "triton")}
    tolerance = 0 if head.target == "binary" else equality.POINTWISE["float64"]
    rows.append(check(f"targets, {name}", expected, result, tolerance))
around = box + generator.uniform(-4, 4, (4, 4))
expected = masks.polygon_targets([[points]] * 4, around, 28)
one = torch.from_numpy(points)[None], torch.tensor([[0, len(points)]]), torch.tensor([[0, 1]])
every = torch.zeros(4, dtype=torch.long)
inputs = *one, every, every, torch.from_numpy(around), valid, 28
result = {way: fast.polygon_targets(*inputs, backend=way) for way in ("torch", "triton")}
rows.append(check("targets, polygon", expected, result, 0))

# %%
model, record = checkpoint.load("data/tiny"), Stages()
model.detect([shapes.sample(1, 35)[0]], record)
found = record.mask_probabilities[:6], record.detections[0].boxes[:6]
for way in ("torchvision", "detectron2"):
    expected = masks.paste(*found, 128, 128, convention=way)
    tensors = [torch.from_numpy(x) for x in found]
    result = {
        name: fast.paste(*tensors, 128, 128, convention=way, backend=name)
        for name in ("torch", "triton")
    }
    rows.append(check(f"pasted masks, {way}", expected, result, 0))
Report.of("Masks there and back", rows)

# %% [markdown]
# ## Exercise
#
# Encode a mask as run lengths, COCO's way. The checker reads your counts with the library, for 200
# masks; some are empty, some full.


# %%
def my_runs(mask):
    """Mask [H, W] bool -> list of run lengths down the columns, the background first."""
    return None  # your code


draw.say(exercise.check(my_runs))

# %% [markdown]
# **Remember.**
#
# * A target is RoIAlign of the mask. Soft targets keep where the edge lies inside a cell.
# * Pasting is two matrices. Half a pixel in the box, or a truncation, moves the whole edge.
# * The conventions of target and paste decide over several hundredths of IoU before training
#   begins, and no error message says so.
# * Run lengths go down the columns and start with the background.
#
# **Next.** Now the losses of all heads flow back together:
# [Notebook 8: one training step](08_one_step.ipynb).
