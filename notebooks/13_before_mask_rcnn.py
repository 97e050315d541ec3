# ---
# jupyter:
#   cpu_seconds: 45
# ---

# %% [markdown]
# # 13. What came before: DeepMask, SharpMask, Fast and Faster R-CNN
#
# **The question.** Which idea was added when, on the way to Mask R-CNN?
#
# **Time.** 30 minutes to read, under a minute to run: two small models are trained.
#
# **Data.** Synthetic shapes, and the small trained Mask R-CNN in `data/tiny`.
#
# **Before.** [Notebook 5](05_roi_align.ipynb) for RoIPool and RoIAlign, and
# [Notebook 6](06_two_heads.ipynb) for the mask head.

# %%
import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton's kernels run on the CPU

import json
import math
from collections import deque
from dataclasses import replace
from pathlib import Path

import figures as draw
import numpy as np
import torch
from exercises import before_mask_rcnn as exercise

from accelerated import deepmask as fast
from accelerated.verify import equality
from accelerated.verify.report import Report, check
from reference import (
    box_head,
    boxes,
    checkpoint,
    config,
    deepmask,
    grad_check,
    mask_rcnn,
    masks,
    nms,
    parameters,
    postprocess,
    shapes,
    transform,
    windows,
)
from reference.structures import Stages

# %% [markdown]
# In 2015 there were two roads. On one, networks put *boxes* around objects and named them. On the
# other, networks drew *masks* of objects without naming them. Mask R-CNN is where they meet. We
# walk the second road first, because it is hardly walked any more: DeepMask [Pinheiro et al. 2015]
# and SharpMask [Pinheiro et al. 2016]. Both are small here, and trained in this notebook.
#
# ## One window, two questions
#
# DeepMask sees one square window of the image at a time. It answers two questions. *Is there an
# object in the middle of the window, whole, and of the right size?* And *which pixels are it?* Move
# the window away from the object, and the first answer should change from yes to no:


# %%
def shapes_with(seed, index):
    """Paint an image of at most four shapes."""
    return shapes.sample(seed, index, max_objects=4)


image, truth, _, true_masks = shapes_with(1, 35)


def moved(shift, octaves):
    """The window of the small disc, moved by a part of its side and enlarged: [1, 4]."""
    middle = (truth[1:2, :2] + truth[1:2, 2:]) / 2
    side = np.ptp(windows.canonical(truth[1:2])[:, ::2], axis=1) * 2**octaves
    return windows.squares(middle + shift * side, side)


def window_of_an_object(shift, octaves):
    """Draw the window of the small disc after moving and enlarging it."""
    window = moved(shift, octaves)
    [label], _ = windows.label(window, truth)
    figure, (left, right) = draw.figure(1, 2, size=(3.33, 2.0))
    draw.image(left, image, "the image")
    draw.box(left, window[0], draw.USED)
    [pixels] = deepmask.cut(deepmask.normalized(image), window, 32)
    draw.image(right, pixels.transpose(1, 2, 0) + 0.5, f"label {label}")
    right.set(xlabel="x, window pixels", ylabel="y")
    return figure


draw.explore(
    window_of_an_object,
    "Three times an image of three shapes with a square window, and the window alone. In the first "
    "a disc is in the middle: label 1. The second has moved away from the middle a little: label "
    "-1. In the third the window is too large, and the disc small in it: label 0.",
    [
        {"shift": 0, "octaves": 0},
        {"shift": 0.1, "octaves": 0},
        {"shift": 0, "octaves": 1},
    ],
    shift=(0, 0.6, 0.02),
    octaves=(-1.2, 1.2, 0.1),
)

# %%
three = np.concatenate([moved(0, 0), moved(0.1, 0), moved(0, 1)])
assert windows.label(three, truth)[0].tolist() == [1, -1, 0]

# %% [markdown]
# Which label does a window get? The paper measures in sides of the window
# [Pinheiro et al. 2015 §3]. The window that *belongs* to an object is centred on its box, and the
# object takes 128 of 224 parts of its side. With a window of side $s$, of which the centre is
# $\delta$ sides away, and the window $s_o$ that belongs to the object,
#
# $$\text{fits: } \delta \le \tfrac{16}{224} \text{ and } \left|\log_2 \tfrac{s_o}{s}\right| \le
#   \tfrac14, \qquad
#   \text{far: } \delta \ge \tfrac{32}{224} \text{ or } \left|\log_2 \tfrac{s_o}{s}\right| \ge 1$$
#
# A window of label 1 fits an object, one of label 0 is far from all. What lies between is not used,
# as the anchors between the two thresholds of the RPN are not (notebook 2).

# %%
draw.source(windows.label)

# %% [markdown]
# The windows are cut out of the image by RoIAlign, which is just the operator for it: any square to
# 32 x 32 pixels. What lies outside of the image is grey.

# %%
draw.source(deepmask.cut)

# %%
maps, rows = deepmask.normalized(image), []
small = windows.squares(np.array([[40.3, 74.1], [1.2, 60.0]]), np.array([13.0, 9.5]))
tensors = torch.from_numpy(maps), torch.from_numpy(small)
results = {backend: fast.cut(*tensors, 8, backend) for backend in ("torch", "triton")}
tolerance = equality.arbitrary_boxes("float64", 128, 128)
rows.append(check("windows of 8 x 8", deepmask.cut(maps, small, 8), results, tolerance))

# %%
settings = config.DeepMask()
bank = deepmask.sample(0, 3200, settings, max_objects=4)
held_out = deepmask.sample(1, 200, settings, max_objects=4)
objects = held_out.labels == 1


def side_by_side(pictures, between):
    """Put pictures [N, H, W, ...] into one row, with two columns of a value between them."""
    empty = [(0, 0), (0, 0), (0, 2), *[(0, 0)] * (pictures.ndim - 3)]
    padded = np.pad(pictures.astype(float), empty, constant_values=between)
    return np.concatenate(list(padded), axis=1)[:, :-2]


figure, axes = draw.figure(2, 1, size=(10, 2.7))
for row, value in zip(axes, (1, 0), strict=True):
    chosen = bank.pixels[bank.labels == value][:12]
    strip = side_by_side(chosen.transpose(0, 2, 3, 1) + 0.5, between=1)
    draw.image(row, strip, f"label {value}", unit="window pixels")
    row.set(xlabel="" if value else row.get_xlabel(), ylabel="y", xticks=[], yticks=[0, 32])
axes[1].set(xlabel="twelve windows of 32 x 32 pixels each")
draw.show(
    figure,
    "Two rows of twelve windows. In the first row each window has a disc, rectangle or triangle in "
    "its middle, about half as large as the window. In the second row objects are cut off by the "
    "edge, too small, too large, or there is none.",
)
draw.say(
    f"{len(bank.labels)} windows to train on, of which {(bank.labels == 1).mean():.0%} fit an "
    f"object, and {len(held_out.labels)} windows of other images to judge by."
)

# %% [markdown]
# ## DeepMask
#
# Three convolutions, each of which halves the side, then a fully connected layer that turns the
# whole window into a *code* of 128 numbers. From this code come 8 x 8 mask logits and one score. No
# ReLU stands between the code and the mask: each of the 64 pixels is a linear function of all
# features of the window, and since these functions pass through 128 numbers, there are few weights.

# %%
draw.source(deepmask.forward)

# %% [markdown]
# With the label $y$, the logit $s$ of the score, the mask's logits $x_{ij}$ and its target
# $t_{ij}$, and the binary cross-entropy $\ell$, the loss of a window is [Pinheiro et al. 2015 §3]
#
# $$L = \lambda\, \ell(s, y) + \frac{y}{M^2} \sum_{ij} \ell(x_{ij}, t_{ij}), \qquad
#   \lambda = \tfrac{1}{32}, \quad M = 8$$
#
# The factor $y$ is the same idea as in Mask R-CNN: a window without an object teaches the score
# and not the mask. The target $t$ is the part of a cell that the object covers.

# %%
draw.source(deepmask.losses)

# %% [markdown]
# There is no backward to look at. Everything above is made of primitives that have one already, and
# the tape of notebook 8 does the rest. So we train.

# %%
adamw = config.Optimizer(
    kind="adamw",
    learning_rate=0.005,
    batch_size=16,
    warmup_iterations=20,
    weight_decay=1e-4,
    schedule="cosine",
)
sharp = replace(settings, refinement=(4, 16, 8))
start, log = deepmask.initial_parameters(sharp, np.random.default_rng(0)), []
for step in deepmask.train(start, bank, settings, adamw, 800):
    log.append(step[1])
weights, _ = step

# %%
means = {
    name: np.reshape([values[name] for values in log], (-1, 25)).mean(axis=1) for name in log[0]
}
means["score"] = means["score"] / settings.score_weight
figure, axes = draw.figure(size=(7, 2.8))
draw.curve(
    axes,
    np.arange(12.5, 800, 25),
    {"mask": means["mask"], "score, before its factor λ": means["score"]},
    "DeepMask learns: means over 25 steps",
    xlabel="step",
    ylabel="loss, no unit",
)
axes.set(ylim=(0, None))
draw.show(
    figure,
    "Two curves over eight hundred steps of training. The loss of the score falls steeply at first "
    "and stays noisy; the loss of the mask falls to less than half of its first value.",
)


# %%
def judge(model):
    """The IoU of every mask on held-out objects, and which of all scores are right."""
    score_logits, mask_logits = deepmask.forward(weights, held_out.pixels, model)
    found = deepmask.probabilities(mask_logits[objects], model) >= 0.5
    true = held_out.masks[objects] == 1
    overlap = (found & true).sum(axis=(1, 2)) / (found | true).sum(axis=(1, 2))
    return overlap, (score_logits > 0) == objects


coarse_iou, right = judge(settings)
mean_mask = bank.masks[bank.labels == 1].mean(axis=0) >= 0.5
true = held_out.masks[objects] == 1
blind = ((mean_mask & true).sum((1, 2)) / (mean_mask | true).sum((1, 2))).mean()
assert coarse_iou.mean() > 0.78 and right.mean() > 0.93
draw.say(
    f"On the windows held out, {right.mean():.1%} of the scores are right, and the masks have a "
    f"mean IoU of {coarse_iou.mean():.3f}. For comparison: a mask that ignores its window, the "
    f"mean of all masks, has {blind:.3f}."
)

# %% [markdown]
# ## All windows of an image
#
# In an image nobody says where the objects are. So DeepMask looks at windows everywhere: one every
# 1/14 of a side, as in the paper, and at sides that grow by $\sqrt 2$. In each it computes a score.

# %%
sides = tuple(32 * 2 ** (k / 2) for k in range(4))
everywhere = windows.grid(128, 128, sides, 1 / 14)
scores, found = deepmask.sweep(weights, image, everywhere, settings)
labels, _ = windows.label(everywhere, truth)
middles = (truth[:, :2] + truth[:, 2:]) / 2

figure, row = draw.figure(1, 5, size=(10, 2.5))
draw.image(row[0], image, "the image")
for axes, side in zip(row[1:], sides, strict=True):
    of_side = np.isclose(everywhere[:, 2] - everywhere[:, 0], side)
    count = math.isqrt(of_side.sum())
    title = f"side {side:.0f}: {of_side.sum():,}"
    score_map = scores[of_side].reshape(count, count)
    drawn = draw.cells(axes, score_map, title, cmap=draw.MAGNITUDE, limits=(0, 1), grid=False)
    axes.plot(*(middles.T / (side / 14)), "+", color="white", markersize=9)
    axes.set(xlabel="x, windows", ylabel="", yticks=[])
figure.colorbar(drawn, ax=row[-1], label="score, no unit", shrink=0.6)
draw.show(
    figure,
    "An image with a small disc, a triangle and a large disc, and four maps of scores, one per "
    "side of the windows, whose number is in the title. White crosses mark the objects. The first "
    "two maps are bright at the small disc and the triangle, the third at all three, the last most "
    "at the large disc. The rest is dark but for a few spots.",
)
high = labels[scores > 0.5]
draw.say(
    f"DeepMask has looked at {len(everywhere):,} windows of an image of 128 x 128 pixels, of which "
    f"{(labels == 1).sum()} fit an object. {len(high)} have a score above one half: "
    f"{(high == 1).sum()} that fit, {(high == -1).sum()} of those that nobody labelled, and "
    f"{(high == 0).sum()} that are far from all objects."
)

# %% [markdown]
# This is why proposals were slow. Every pixel of the image lies in many windows and goes through
# the network in each of them. An RPN gives as many answers, one for each anchor, but its
# convolutions read the image once.

# %%
model = checkpoint.load("data/tiny")
record = Stages()
[detections] = model.detect([image], record)
anchors = sum(len(level) for level in record.anchors)
reads = len(everywhere) * settings.window**2 / (128 * 128)
figure, (left, right_axes) = draw.figure(1, 2, size=(10, 1.7))
asked = {"DeepMask: windows": len(everywhere), "RPN of data/tiny: anchors": anchors}
draw.bars(left, asked, "answers per image", unit="count", form="{:.0f}")
draw.bars(
    right_axes,
    {"DeepMask": reads, "RPN": 1},
    "pixels that go through a trunk",
    unit="image sizes",
    marked=["DeepMask"],
    form="{:.0f}",
)
draw.show(
    figure,
    "Two bar charts. Left, the answers per image: DeepMask's windows and the RPN's anchors are "
    "some thousand each. Right, the pixels that go through the first convolution, in sizes of the "
    "image: several hundred for DeepMask, hatched, against one for the RPN.",
)
draw.say(
    f"Window by window, each pixel is read {reads:.0f} times. The authors knew, of course: they "
    "ran the trunk once per scale, over the whole image, and shared it among windows that "
    "overlap. What is left over is one code per window, and SharpMask's refinement of each."
)

# %% [markdown]
# ## SharpMask
#
# DeepMask's mask is a blob of 8 x 8 cells. The code of the window knows that there is a triangle,
# and about where, but not where its edges run to the pixel. The maps near the input know the edges,
# but not of which object. SharpMask [Pinheiro et al. 2016 §3] brings the two together: it walks
# back from the code towards the pixels, and at each step adds the trunk's map $F^i$ of that size.
#
# $$M^{i+1} = \mathrm{upsample}_2\Big(\mathrm{ReLU}\big(\mathrm{conv}(M^i) +
#   \mathrm{conv}(\mathrm{ReLU}(\mathrm{conv}(F^i)))\big)\Big)$$

# %%
draw.source(deepmask.refine)

# %% [markdown]
# As in the paper, DeepMask's weights are frozen: only the refinement is trained, and only on
# windows that fit an object. The score stays as it is.

# %%
with_object = deepmask.Windows(*(part[bank.labels == 1] for part in bank))
coarse, faster_adamw = weights, replace(adamw, learning_rate=0.01, batch_size=8)
steps = deepmask.train(coarse, with_object, sharp, faster_adamw, 800)
[(weights, _)] = deque(steps, maxlen=1)  # the last step
fine_iou, _ = judge(sharp)
unchanged = [np.array_equal(weights[name], coarse[name]) for name in coarse]
assert sum(unchanged) == len(deepmask.parameter_shapes(settings))
assert fine_iou.mean() > 0.86 and (fine_iou > coarse_iou).mean() > 0.9
draw.say(
    f"The mean IoU rises from {coarse_iou.mean():.3f} to {fine_iou.mean():.3f}, and "
    f"{(fine_iou > coarse_iou).mean():.0%} of the masks get better."
)

# %% [markdown]
# Where are they better? We sort the pixels by their distance from the true outline and count the
# wrong ones.


# %%
def to_outline(mask):
    """The distance of each pixel of a mask from its outline, in pixels: [S, S], above 0."""
    inside, outside = np.argwhere(mask), np.argwhere(~mask)
    squares = ((inside[:, None] - outside) ** 2).sum(axis=2)
    distance = np.zeros(mask.shape)
    distance[mask] = squares.min(axis=1) ** 0.5
    distance[~mask] = squares.min(axis=0) ** 0.5
    return distance - 0.5


distances = np.array([to_outline(mask) for mask in true])
rings = np.arange(5)
curves = {}
for name, of_model in (("DeepMask", settings), ("SharpMask", sharp)):
    logits = deepmask.forward(weights, held_out.pixels[objects], of_model)[1]
    wrong = (deepmask.probabilities(logits, of_model) >= 0.5) != true
    curves[name] = [100 * wrong[(distances >= d) & (distances < d + 1)].mean() for d in rings]
figure, axes = draw.figure(size=(7, 2.8))
title = f"{objects.sum()} held-out masks of 32 x 32 pixels"
label = "distance from the true outline, window pixels"
draw.curve(axes, rings + 0.5, curves, title, xlabel=label, ylabel="wrong pixels, %")
axes.set(ylim=(0, None))
draw.show(
    figure,
    "The share of wrong pixels against their distance from the true outline. Both curves are "
    "highest in the first pixel and close to zero from the third on. In the first two pixels "
    "SharpMask's lies at about half of DeepMask's.",
)
draw.say(
    f"Next to the outline {curves['DeepMask'][0]:.1f} % of DeepMask's pixels are wrong and "
    f"{curves['SharpMask'][0]:.1f} % of SharpMask's; between one and two pixels away, "
    f"{curves['DeepMask'][1]:.1f} % and {curves['SharpMask'][1]:.1f} %."
)

# %% [markdown]
# ## The picture to remember
#
# Seven objects, each in four rows: the window, DeepMask's blob, SharpMask's edge, and the mask that
# the trained Mask R-CNN finds in the whole image, cut out by the same window. All images are new to
# all three.

# %%
CHOSEN = [(0, 0), (17, 2), (9, 3), (13, 1), (3, 0), (39, 0), (178, 0)]


def of_mask_rcnn(image, box):
    """The mask of the detection that overlaps a box [1, 4] most, in the image: [1, 128, 128]."""
    record = Stages()
    model.detect([image], record)
    [found] = record.detections
    best = boxes.iou(box, found.boxes).argmax(axis=1)
    small = record.mask_probabilities[best], found.boxes[best]
    return masks.paste_probabilities(*small, 128, 128, convention="detectron2")


def four_rows(index, number):
    """The window of an object, the masks that three models find in it, and the true mask."""
    image, truth, _, true_masks = shapes_with(1, index)
    box = truth[[number]]
    window, pasted = windows.canonical(box), of_mask_rcnn(image, box)
    maps = np.concatenate([deepmask.normalized(image), true_masks[[number]], pasted])
    [*rgb, mask, last] = deepmask.cut(maps, window, 32)[0]
    both = [deepmask.sweep(weights, image, window, of)[1][0] for of in (settings, sharp)]
    return np.stack(rgb, axis=-1) + 0.5, *both, last, mask >= 0.5


columns = zip(*(four_rows(*chosen) for chosen in CHOSEN), strict=True)
pixels, *found_by, outlines = (np.array(column) for column in columns)
names = ("DeepMask, 2015", "SharpMask, 2016", "Mask R-CNN, 2017")
figure, axes = draw.figure(4, 1, size=(10, 6.6))
draw.image(axes[0], side_by_side(pixels, between=1), "window", unit="window pixels")
outline = side_by_side(outlines, between=0)
x, y = (np.arange(size) + 0.5 for size in outline.shape[::-1])
for row, probabilities, name in zip(axes[1:], found_by, names, strict=True):
    strip, colours = side_by_side(probabilities, between=np.nan), {"cmap": draw.MAGNITUDE}
    drawn = draw.cells(row, strip, name, limits=(0, 1), grid=False, **colours)
    row.contour(x, y, outline, [0.5], colors="white", linewidths=0.9)
for row in axes:
    row.set(xlabel="", ylabel="", xticks=[], yticks=[])
axes[-1].set(xlabel="seven windows of 32 x 32 pixels")
figure.colorbar(drawn, ax=axes[1:], label="probability, no unit", shrink=0.5)
draw.show(
    figure,
    "Seven objects in four rows, with thin true outlines. DeepMask's masks are blobs that round "
    "every corner. SharpMask's and Mask R-CNN's follow the edges. The last two are triangles half "
    "hidden by another object. All models find the first of them. In the last window DeepMask's "
    "blob covers a disc and the triangle; the other two mark the disc.",
)

# %%
overlaps = []
for probabilities in found_by:
    both = (probabilities >= 0.5) & outlines
    either = (probabilities >= 0.5) | outlines
    overlaps.append(both.sum(axis=(1, 2)) / either.sum(axis=(1, 2)))
draw.table(
    {name: [f"{value:.2f}" for value in row] for name, row in zip(names, overlaps, strict=True)},
    ["IoU of object", *range(1, 8)],
)
assert all(row[-1] < 0.5 and min(row[:-1]) > 0.7 for row in overlaps)

# %%
hidden, of_hidden, *_ = shapes_with(1, 178)
[found] = model.detect([hidden])
best = boxes.iou(of_hidden, found.boxes)[0].argmax()
draw.say(
    "Two triangles are half hidden. The sixth object is found by all three models, so hiding "
    "alone does no harm. In the last window the disc in front lies in the middle too, and all "
    "three fail. DeepMask and SharpMask cannot know which of the two is meant: they are asked for "
    "the object in the middle. Mask R-CNN is asked for a box, and its box head answers "
    f'"{shapes.CLASS_NAMES[found.labels[best] - 1]}" with a score of {found.scores[best]:.2f}. '
    "Its mask head draws the disc all the same. Not everything got better by changing roads."
)

# %% [markdown]
# ## The other road: boxes
#
# R-CNN (2013) took boxes from elsewhere and ran a network on each. The steps from there to Mask
# R-CNN can be taken one at a time with the switches of our configuration, on the same image:
#
# * **Fast R-CNN** [Girshick 2015]: the network runs once over the image, and RoIPool cuts every
#   given box out of its last map. Boxes still come from elsewhere: here from DeepMask, as they did
#   in the papers of DeepMask and SharpMask.
# * **Faster R-CNN** [Ren et al. 2015]: the boxes come from an RPN on the same maps.
# * **Mask R-CNN** [He et al. 2017]: RoIAlign instead of RoIPool, and a mask for every box.
#
# First the boxes of DeepMask: the windows with a score above one half, the boxes around their
# masks, and non-maximum suppression, which keeps the best of those that overlap.

# %%
likely = np.flatnonzero(scores > 0.5)
_, fine = deepmask.sweep(weights, image, everywhere[likely], sharp)
pasted = masks.paste(fine, everywhere[likely], 128, 128, convention="detectron2")


def around(mask):
    """The tight box of a mask [H, W] bool."""
    y, x = np.nonzero(mask)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


found_boxes = np.array([around(mask) for mask in pasted], dtype=float)
given = found_boxes[nms.nms(found_boxes, scores[likely], 0.5)]

# %%
without_masks = config.override(model.config, "mask_head.kind=none")
setting = config.override(without_masks, "box_head.pooler.operator=roi_pool")
kept = parameters.parameter_shapes(setting)
faster = mask_rcnn.MaskRCNN(setting, {name: model.parameters[name] for name in kept})
pyramid = mask_rcnn.features(
    faster.parameters,
    faster.batch([transform.prepare(image, None, setting.transform)[0]]),
    setting,
)


def fast_rcnn(rois):
    """Classify and refine boxes from elsewhere [R, 4]: one pooled map for each."""
    first, pooler = np.zeros(len(rois), dtype=int), setting.box_head.pooler
    x = mask_rcnn.roi_features(faster.parameters, pyramid, rois, first, pooler, setting)
    logits, deltas = box_head.forward(faster.parameters, x, setting)
    return postprocess.detections(logits, deltas, rois, (128, 128), setting)


systems = {
    f"Fast R-CNN: {len(given)} boxes given": fast_rcnn(given),
    "Faster R-CNN: RPN and RoIPool": faster.detect([image])[0],
    "Mask R-CNN": detections,
}
figure, row = draw.figure(1, 4, size=(10, 2.9))
draw.image(row[0], image, f"DeepMask: {len(given)} boxes, no class")
draw.boxes(row[0], given, np.ones(len(given)))
compared = {}
for axes, (name, results) in zip(row[1:], systems.items(), strict=True):
    sure = results.scores > 0.5
    draw.image(axes, image, name)
    for box, label in zip(results.boxes[sure], results.labels[sure], strict=True):
        draw.box(axes, box, draw.USED)
        plate = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        word = shapes.CLASS_NAMES[label - 1]
        axes.text(box[0], box[3] + 3, word, va="top", fontsize=8, bbox=plate)
    overlap = boxes.iou(truth, results.boxes[sure])
    compared[name] = [sure.sum(), *(f"{value:.2f}" for value in overlap.max(axis=1))]
for mask in detections.masks[detections.scores > 0.5]:
    draw.outline(row[-1], mask, draw.GRADIENT)
for axes in row[1:]:
    axes.set(ylabel="", yticks=[])
draw.show(
    figure,
    "Four copies of an image of two discs and a triangle. DeepMask: boxes around the objects and "
    "a few others, without names. Fast R-CNN and Faster R-CNN: one box with a name at each object, "
    "not quite in place. Mask R-CNN: boxes that fit better, and green outlines of the shapes.",
)
draw.table(compared, ["system", "sure detections", *(f"IoU, object {i}" for i in (1, 2, 3))])

# %% [markdown]
# This is no contest. The image was chosen because this Mask R-CNN makes no mistake on it, which is
# rare among images with so many objects. And its weights were trained with RoIAlign, so that
# RoIPool moves what the heads read. [Notebook 12](12_conventions.ipynb) shows how far. What the
# picture shows is the wiring: each step replaces one part and keeps the others.
#
# ## Time line
#
# A paper's number at arxiv.org begins with its year and month.

# %%
numbers = json.loads(Path("../docs/papers.json").read_text(encoding="utf-8"))["papers"]
STEPS = {
    "R-CNN": ("-", "a network on every given box"),
    "Fast R-CNN": ("given boxes, a class for each", "one pass per image; RoIPool"),
    "Faster R-CNN": ("one pass, RoIPool", "the boxes from an RPN on the same maps"),
    "DeepMask": ("windows everywhere", "a mask and a score, no class"),
    "SharpMask": ("DeepMask's trunk and score", "a way from the code back to the pixels"),
    "Feature Pyramid Networks": ("Faster R-CNN", "such a way back, once for the whole image"),
    "Mask R-CNN": ("Faster R-CNN, on a pyramid", "RoIAlign; a mask per class in each box"),
}
months = {name: f"{numbers[name][2:4]}/20{numbers[name][:2]}" for name in STEPS}
draw.table(
    {name: [months[name], *said] for name, said in STEPS.items()},
    ["paper", "month", "what it keeps", "what it adds"],
)

# %%
when = {name: 2000 + int(numbers[name][:2]) + int(numbers[name][2:4]) / 12 for name in STEPS}
LANES = {"DeepMask": 0, "SharpMask": 0, "Mask R-CNN": 1}
ABOVE = {"Fast R-CNN", "Feature Pyramid Networks"}
KEEPS = [
    *(("R-CNN", "Fast R-CNN"), ("Fast R-CNN", "Faster R-CNN"), ("DeepMask", "SharpMask")),
    *(("Faster R-CNN", "Feature Pyramid Networks"), ("SharpMask", "Feature Pyramid Networks")),
    *(("Feature Pyramid Networks", "Mask R-CNN"), ("Faster R-CNN", "Mask R-CNN")),
]
place = {name: (when[name], LANES.get(name, 2)) for name in STEPS}
figure, axes = draw.figure(size=(9.5, 2.9))
for before, after in KEEPS:
    bend = {"arrowstyle": "->", "color": draw.QUIET, "connectionstyle": "arc3,rad=-0.15"}
    axes.annotate("", place[after], place[before], arrowprops=bend)
for name, (x, y) in place.items():
    colour, marker = ((draw.SAMPLE, "o"), (draw.USED, "D"), (draw.ASKED, "s"))[y]
    axes.plot(x, y, marker, color=colour, markersize=8)
    text = {"xytext": (0, 20 if name in ABOVE else -17), "textcoords": "offset points"}
    label = f"{name.replace(' Pyramid', chr(10) + 'Pyramid')}\n{months[name]}"
    axes.annotate(label, (x, y), ha="center", va="center", fontsize=8, **text)
axes.set(title="what was kept from where", xlabel="year", xlim=(2013.6, 2017.7), ylim=(-0.7, 2.8))
axes.set_yticks([0, 1, 2], ["masks", "both", "boxes"])
axes.set_xticks(range(2014, 2018))
draw.show(
    figure,
    "A time line from 2013 to 2017 in three lanes. Boxes: R-CNN, Fast R-CNN, Faster R-CNN, "
    "Feature Pyramid Networks, each with an arrow to the next. Masks: DeepMask, with an arrow to "
    "SharpMask, which has one to Feature Pyramid Networks. Mask R-CNN comes last, in the lane of "
    "both, with arrows from Faster R-CNN and Feature Pyramid Networks.",
)

# %% [markdown]
# What is left of DeepMask in Mask R-CNN? The factor $y$ in its loss, the mask as a small square
# that is stretched over a box, and the separation of *which pixels* from *whether and what*. What
# is gone are the windows.
#
# ## Check
#
# The same weights in PyTorch, on eight windows: what RoIAlign cuts, the outputs, the losses, and
# the gradient of every parameter that is trained.

# %%
few, tolerance = deepmask.Windows(*(part[:8] for part in held_out)), equality.MODEL["float64"]
for name, of in (("DeepMask", settings), ("SharpMask", sharp)):
    used = {key: weights[key] for key in deepmask.parameter_shapes(of)}
    network = fast.Network(of).double()
    network.load_state_dict({key: torch.from_numpy(value) for key, value in used.items()})
    results = network(torch.from_numpy(few.pixels))
    outputs = deepmask.forward(used, few.pixels, of)
    for what, output, result in zip(("scores", "masks"), outputs, results, strict=True):
        rows.append(check(f"{name}: {what}", output, {"torch": result}, tolerance))
    values, gradients = deepmask.gradients(used, few, of)
    answers = torch.from_numpy(few.labels), torch.from_numpy(few.masks)
    found = fast.losses(*results, *answers, of)
    for what, value in values.items():
        rows.append(check(f"{name}: loss, {what}", value, {"torch": found[what]}, tolerance))
    sum(found.values()).backward()
    for what, value in gradients.items():
        grad = network.get_parameter(what).grad
        rows.append(check(f"{name}: {what}", value, {"torch": grad}, tolerance))
Report.of("DeepMask and SharpMask", rows)

# %% [markdown]
# And the gradients against finite differences along a random direction, for the parameters near the
# loss and for the first convolution alike:


# %%
def total(of, names):
    """The loss of the few windows as a function of the parameters `names`."""

    def loss(*arrays):
        given = weights | dict(zip(names, arrays, strict=True))
        values = deepmask.losses(
            *deepmask.forward(given, few.pixels, of), few.labels, few.masks, of
        )
        return values["score"] + values["mask"]

    return loss


errors = {}
for name, of in (("DeepMask", settings), ("SharpMask", sharp)):
    trained = deepmask.trained_parameters(of)
    arrays = [weights[key] for key in trained]
    generator = np.random.default_rng(0)
    errors[name] = grad_check.directional_error(
        total(of, trained), *arrays, generator=generator, step=1e-7
    )
    assert errors[name] < 1e-5
draw.say(f"Both gradients agree with finite differences to better than {1e-5:g}.")

# %% [markdown]
# ## Exercise: why class-agnostic?
#
# DeepMask predicts one mask for all classes, Mask R-CNN one for each. What would that have cost
# DeepMask? Count the parameters, weights and biases, of the whole DeepMask if it had a mask for
# each of $K$ classes, with all else as it is. `draw.source(deepmask.parameter_shapes)` shows the
# layers.


# %%
def my_count(settings, classes):
    """A `config.DeepMask`, without refinement, and K -> the number of parameters."""
    return None  # your code


draw.say(exercise.check(my_count))

# %% [markdown]
# The sizes of the paper: windows of 224 pixels, so masks of 56 x 56, from a code of 512 numbers.
# And Mask R-CNN's layer that makes the masks of all classes, a 1 x 1 convolution:

# %%
of_paper = config.DeepMask(window=224, hidden=512)
layer = math.prod(deepmask.parameter_shapes(of_paper)["mask.weight"])
per_class = {
    "DeepMask, fully connected": layer / 1e3,
    "Mask R-CNN, 1 x 1 convolution": config.preset("paper_r50_fpn").mask_head.channels / 1e3,
}
figure, axes = draw.figure(size=(8, 1.5))
title, unit = "weights of one more class of masks", "thousands"
draw.bars(axes, per_class, title, unit=unit, marked=["DeepMask, fully connected"], form="{:,.1f}")
draw.show(
    figure,
    "Two bars, the weights for the masks of one class. DeepMask's, hatched, is as long as the "
    "chart: more than a million and a half. Mask R-CNN's cannot be seen: a few hundred.",
)
draw.say(
    f"For the 80 classes of COCO, DeepMask's last layer would have {80 * layer / 1e6:.0f} million "
    f"weights instead of {layer / 1e6:.1f} million, and each class would have to learn its masks "
    "from its own windows alone. There is a second reason: what knows no classes can propose "
    "objects of classes that it has never seen."
)

# %% [markdown]
# **Remember.**
#
# * DeepMask asks every window of the image: is there an object, and which pixels are it? Its mask
#   is computed from one code of the window, so it is a blob.
# * SharpMask walks back from the code to the pixels, along the maps of the trunk, and finds the
#   edges. Feature pyramids do this once for the whole image.
# * Fast R-CNN reads the image once, Faster R-CNN finds its boxes itself, and Mask R-CNN puts a
#   mask into each box, with RoIAlign.
#
# **Next.** [Your own data](14_own_data.ipynb): from a folder of pictures to a report.
