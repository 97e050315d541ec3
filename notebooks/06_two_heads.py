# ---
# jupyter:
#   cpu_seconds: 12
# ---

# %% [markdown]
# # 6. Two heads: why a sigmoid, and why one mask per class?
#
# **The question.** Two small networks read the features of a box. One says *what* is in it, the
# other says *which pixels* belong to it. Why does the second one not decide the class as well?
#
# **Time.** About 25 minutes to read, a few seconds to run.
#
# **Data.** Synthetic shapes, and the small trained model in `data/tiny`. It knows discs, rectangles
# and triangles.
#
# **Before.** [Notebook 5](05_roi_align.ipynb) shows where the features of a box come from. You know
# the sigmoid and the softmax.

# %%
import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton's kernels run on the CPU

import math
from pathlib import Path

import figures as draw
import numpy as np
import torch
from exercises import two_heads as exercise

import accelerated
from accelerated import mask_head as fast_mask_head
from accelerated.verify import equality
from accelerated.verify.report import Report, check
from reference import box_head, checkpoint, config, grad_check, labels, mask_head
from reference import parameters as initial
from reference.activations import sigmoid, softmax
from reference.autodiff import Tape
from reference.conv import conv2d, conv_transpose2d
from reference.shapes import CLASS_NAMES, sample
from reference.structures import Stages

# %% [markdown]
# ## One pixel
#
# The mask head predicts, for every box, one map of 28 x 28 numbers per class: logits. The trained
# model has found a triangle. We take one pixel inside it, near its left corner, and turn its logits
# into probabilities in two ways: by a sigmoid for each class on its own, as Mask R-CNN does, and by
# a softmax over all of them.

# %%
model = checkpoint.load("data/tiny")
tiny = model.config
image = sample(1, 38)[0]
record = Stages()
[detections] = model.detect([image], record)
found = [CLASS_NAMES[label - 1] for label in detections.labels]
channels = ("background", *CLASS_NAMES)
triangle = found.index("triangle")
pixel = record.mask_logits[triangle, :, 14, 4]
UNIT = "probability, no unit"


def bars_of_a_pixel(raise_others_by):
    """Draw both readings of the pixel after changing the logits of disc and rectangle."""
    logits = pixel + raise_others_by * np.array([0, 1, 1, 0])
    figure, axes = draw.figure(1, 2, size=(10, 2.1))
    readings = {"softmax over all": softmax(logits), "a sigmoid for each": sigmoid(logits)}
    for panel, (title, values) in zip(axes, readings.items(), strict=True):
        title = f"{title}; disc and rectangle {raise_others_by:+g}"
        named = dict(zip(channels, values, strict=True))
        draw.bars(panel, named, title, unit=UNIT, marked=["triangle"], form="{:.2f}")
        panel.axvline(0.5, color=draw.QUIET, linestyle=(0, (4, 2)), zorder=0)
        panel.set(xlim=(0, 1.15))
    return figure


draw.explore(
    bars_of_a_pixel,
    "Three pairs of bar charts of one pixel of a triangle; a dashed line marks one half. Left, "
    "softmax: with the logits as predicted the triangle has the smallest share of the three "
    "classes; it passes one half only once the others are lowered by 3. Right, sigmoids: the bar "
    "of the triangle is well beyond one half and the same in all three, whatever the others do.",
    [{"raise_others_by": 0}, {"raise_others_by": -3}, {"raise_others_by": 3}],
    raise_others_by=(-8, 4, 0.5),
)
draw.say(
    "The logits of the pixel are "
    + ", ".join(f"{name} {value:.1f}" for name, value in zip(channels, pixel, strict=True))
    + ". Under the sigmoid the pixel belongs to the triangle with probability "
    f"{sigmoid(pixel)[3]:.2f}. Under the softmax it does with {softmax(pixel)[3]:.2f}, and the "
    "mask of the triangle would have a hole here. The model is sure that the pixel is part of an "
    "object. It is not sure of which class, and it need not be: the other head has decided that, "
    f"with a score of {detections.scores[triangle]:.2f}."
)

# %% [markdown]
# One thing must be said: this model was trained with sigmoids. A model that is trained with a
# softmax learns logits that suit a softmax. But then its mask head has to learn the classes too, at
# every pixel. We return to that.
#
# ## From a box to logits
#
# Both heads read features that RoIAlign has cut out of the pyramid: 7 x 7 cells for the box head,
# 14 x 14 for the mask head. In detection, the box head reads all proposals. The mask head reads
# only what is left after non-maximum suppression.

# %%
meaning = {
    "box_features": "what the box head reads, for every proposal",
    "class_logits": "background and 3 classes",
    "box_deltas": "4 numbers for each of these",
    "mask_features": "what the mask head reads, for every detection",
    "mask_logits": "a map for each of these",
}
computed = record.computed()
draw.table(
    {name: [" x ".join(map(str, computed[name].shape)), text] for name, text in meaning.items()},
    ["array", "shape", "what it is"],
)

# %% [markdown]
# The box head of this model: four convolutions, then a fully connected layer, then two linear
# layers, which share everything before them.

# %%
draw.source(box_head.four_conv_fc)

# %% [markdown]
# The mask head is a fully convolutional network [Mask R-CNN, figure 4]:

# %%
draw.source(mask_head.fcn)

# %% [markdown]
# ## Where the weights are
#
# The paper compares this network with a multilayer perceptron, a head of fully connected layers
# (its table 2, e). Count the weights of the paper's heads: 256 channels, 80 classes.

# %%
paper = config.preset("paper_r50_fpn")
mlp = config.override(paper, "mask_head.kind=mlp")
counted = {}
for prefix, head, setting in (
    ("box head", box_head, paper),
    ("mask head, FCN", mask_head, paper),
    ("mask head, MLP", mask_head, mlp),
):
    for name, shape in head.parameter_shapes(setting).items():
        part = name.split(".")[1].rstrip("1234") if ".conv" in name else name.split(".")[1]
        key = f"{prefix}: {'4 convolutions' if part == 'conv' else part}"
        counted[key] = counted.get(key, 0) + math.prod(shape) / 1e6
dense = [name for name in counted if "FCN" not in name]
figure, axes = draw.figure(size=(9, 4.6))
draw.bars(axes, counted, "weights of the heads", unit="millions", marked=dense)
draw.show(
    figure,
    "Horizontal bars of the number of weights by layer; fully connected layers are hatched. The "
    "largest are the first and the last layer of the MLP mask head, with over fifty million each; "
    "fc6 of the box head has over ten million; all bars of the convolutional mask head are short.",
)
total = {
    kind: sum(value for name, value in counted.items() if kind in name) for kind in ("FCN", "MLP")
}
draw.say(
    f"The convolutional mask head has {total['FCN']:.1f} million weights, the other one "
    f"{total['MLP']:.0f} million. A convolution uses a weight again at every cell. A fully "
    "connected layer has one for every pair of a cell and an output."
)

# %% [markdown]
# There is a second difference. A convolution keeps positions: move the features by one cell, and
# the mask moves by two pixels. A fully connected layer knows nothing of neighbours. We test this
# with random weights, without normalisation and away from the border.

# %%
generator = np.random.default_rng(0)
features = generator.standard_normal((1, 32, 14, 14))
rows = {}
for kind in ("fcn", "mlp"):
    setting = config.override(
        config.override(tiny, "mask_head.norm=none"), f"mask_head.kind={kind}"
    )
    weights = initial.initial_parameters(setting, generator)
    moved_after = np.roll(mask_head.forward(weights, features, setting), (2, 2), axis=(2, 3))
    moved_before = mask_head.forward(weights, np.roll(features, (1, 1), axis=(2, 3)), setting)
    inner = (..., slice(8, -6), slice(8, -6))
    rows[kind] = equality.difference(moved_before[inner], moved_after[inner]).relative
assert rows["fcn"] < 1e-12 and rows["mlp"] > 0.1
draw.table(
    {kind: [f"{value:.1e}" if value < 1e-9 else f"{value:.2f}"] for kind, value in rows.items()},
    ["mask head", "moving first against moving last: difference, relative to the largest logit"],
)

# %% [markdown]
# ## From 14 x 14 to 28 x 28
#
# A transposed convolution with a 2 x 2 kernel and stride 2 doubles the side. Each input cell
# $x_{ij}$ is multiplied by the whole kernel, and the four products become four output pixels:
#
# $$y_{2i + a,\, 2j + b} = \sum_c x_{c i j}\, w_{c a b}, \qquad a, b \in \{0, 1\}$$

# %%
cells, kernel = np.array([[1.0, 2, 0], [3, 5, 4]]), np.array([[1.0, 2], [3, 10]])
spread = conv_transpose2d(cells[None, None], kernel[None, None], stride=2)[0, 0]
figure = draw.equation(
    [(cells, "x, 2 x 3 cells"), "∗", (kernel, "w, 2 x 2"), "=", (spread, "y, 4 x 6 pixels")]
)
draw.box(figure.axes[0], (0.55, 0.55, 1.45, 1.45), draw.USED)
draw.box(figure.axes[4], (1.55, 1.55, 3.45, 3.45), draw.USED)
draw.show(
    figure,
    "A matrix of 2 by 3 numbers, a kernel of 2 by 2, and the result of 4 by 6, which consists of "
    "blocks of 2 by 2: each block is the kernel times one number of the input. A frame marks the "
    "number 5 and its block: 5, 10, 15 and 50.",
)
np.testing.assert_array_equal(spread, np.kron(cells, kernel))

# %% [markdown]
# Since the stride equals the kernel's side, the blocks do not overlap. It is called *transposed*
# because it is the transpose, as a matrix, of a convolution with stride 2: for all $x$ and $z$,
# $\langle \mathrm{deconv}(x), z\rangle = \langle x, \mathrm{conv}(z)\rangle$. So its backward is an
# ordinary convolution. With the trained weights:

# %%
weight = model.parameters["mask_head.deconv.weight"]
x, z = generator.standard_normal((1, 32, 14, 14)), generator.standard_normal((1, 32, 28, 28))
left = np.vdot(conv_transpose2d(x, weight, stride=2), z)
right = np.vdot(x, conv2d(z, weight, stride=2))
draw.say(f"{left:.3f} on the left, {right:.3f} on the right.")
np.testing.assert_allclose(left, right, rtol=1e-11)

# %% [markdown]
# ## All masks of one box
#
# The mask head does not know which class the box head will choose. It predicts a mask for each, and
# the one of the predicted class is used. Here are all of them for two detections.

# %%
figure, axes = draw.figure(2, 5, size=(10, 4.4))
for row, name in zip(axes, ("disc", "triangle"), strict=True):
    number = found.index(name)
    score, box = detections.scores[number], detections.boxes[number]
    draw.image(row[0], image, f"found: {name}, {score:.2f}")
    draw.box(row[0], box, draw.USED)
    for panel, channel, logits in zip(row[1:], channels, record.mask_logits[number], strict=True):
        mask = sigmoid(logits)
        drawn = draw.cells(panel, mask, channel, cmap=draw.MAGNITUDE, limits=(0, 1), grid=False)
        panel.set(xlabel="", ylabel="", xticks=[], yticks=[])
        if channel == name:
            draw.box(panel, (0.5, 0.5, 27.5, 27.5), draw.USED)
            panel.set(title=f"{channel}: used")
figure.colorbar(drawn, ax=axes[:, 4], label=UNIT, shrink=0.7)
draw.show(
    figure,
    "Two rows, for a disc and for a triangle: the image with the detected box, and four masks. The "
    "mask of the background is uniform at one half. The masks of the three classes look the same: "
    "three discs in the first row, three triangles in the second. The mask of the found class has "
    "a vermilion frame.",
)
rows, own = np.arange(len(found)), detections.labels
masks = record.mask_logits > 0
used, others = masks[rows, own], masks[:, 1]
overlap = (used & others).sum(axis=(1, 2)) / (used | others).sum(axis=(1, 2))
not_discs = own != 1
by_channel = np.moveaxis(record.mask_logits[triangle], 0, -1)
left_over = used[triangle] & (softmax(by_channel)[..., 3] >= 0.5)

# %%
draw.say(
    "The masks of the three classes are almost the same. The channel of the background has never "
    "been trained: in this layout it exists and nobody reads it. Take the disc's mask instead of "
    f"the right one, for the {not_discs.sum()} detections that are no discs: the two overlap with "
    f"a mean IoU of {overlap[not_discs].mean():.2f}. The mask head separates object from "
    "background, and for that it hardly needs the class. With sigmoids this is enough. A softmax "
    "divides each pixel among three nearly equal classes: of the "
    f"{used[triangle].sum()} pixels of the triangle's mask, {left_over.sum()} would keep a "
    "probability of one half or more."
)

# %% [markdown]
# ## The same pixel, learning
#
# During training the target of a pixel is $t = 1$ inside the object and $t = 0$ outside. With the
# sigmoid, only the channel $k$ of the true class has a loss [Mask R-CNN, §3]:
#
# $$L = -t \ln \sigma(x_k) - (1 - t) \ln\big(1 - \sigma(x_k)\big), \qquad
#   \frac{\partial L}{\partial x_k} = \sigma(x_k) - t$$
#
# With the softmax, which the paper compares, the channels share one probability:
#
# $$L = -\ln p_k, \qquad p = \mathrm{softmax}(x), \qquad
#   \frac{\partial L}{\partial x_j} = p_j - [j = k]$$
#
# where the class $k$ is replaced by the background if $t = 0$.

# %%
draw.source(mask_head.sigmoid_loss)
draw.source(mask_head.softmax_loss)

# %% [markdown]
# Both through the tape, for the pixel of the first picture, which lies inside a triangle. The
# formulas above must give the same.

# %%
by_softmax = config.override(tiny, "mask_head.loss=softmax")
one_pixel, label, inside = pixel.reshape(1, 4, 1, 1), np.array([3]), np.ones((1, 1, 1))


def gradient_of(setting):
    """Differentiate the mask loss of the pixel with respect to its logits -> [4]."""
    tape = Tape()
    variable = tape.variable(one_pixel)
    tape.backward(mask_head.loss(variable, label, inside, setting))
    return variable.grad.ravel()


gradients = {"softmax": gradient_of(by_softmax), "sigmoid": gradient_of(tiny)}
alone = np.array([0, 0, 0, 1])
np.testing.assert_allclose(gradients["sigmoid"], alone * (sigmoid(pixel) - 1), atol=1e-14)
np.testing.assert_allclose(gradients["softmax"], softmax(pixel) - alone, atol=1e-14)

figure, axes = draw.figure(1, 2, size=(10, 2.1))
for panel, (title, values) in zip(axes, gradients.items(), strict=True):
    named = dict(zip(channels, values, strict=True))
    unit = "gradient, per unit of the logit"
    draw.bars(panel, named, title, unit=unit, marked=["triangle"], form="{:.3f}")
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set(xlim=(-1.25, 1.25), xticks=[-1, -0.5, 0, 0.5, 1])
draw.show(
    figure,
    "The gradient at the four logits. Softmax: a long negative bar at the triangle and positive "
    "bars at disc and rectangle. Sigmoid: a short negative bar at the triangle, and exactly zero "
    "at all other channels.",
)
draw.say(
    f"For the sigmoid this pixel is nearly done: its gradient is {gradients['sigmoid'][3]:.2f}. "
    f"The softmax pulls at all channels: {gradients['softmax'][3]:.2f} at the triangle, "
    f"{gradients['softmax'][1]:+.2f} at the disc and {gradients['softmax'][2]:+.2f} at the "
    "rectangle. It makes the mask head learn what the box head knows already, 28 x 28 times."
)

# %% [markdown]
# Finite differences say the same, for 3 boxes with random logits and soft targets:

# %%
logits = generator.standard_normal((3, 4, 28, 28))
targets, some = generator.uniform(0, 1, (3, 28, 28)), np.array([1, 3, 2])
for name, setting in (("sigmoid", tiny), ("softmax", by_softmax)):
    error = grad_check.directional_error(
        lambda x, setting=setting: mask_head.loss(x, some, targets, setting).reshape(1),
        logits,
        generator=generator,
    )
    assert error < 1e-6
    draw.say(f"{name}: the gradient and finite differences agree to better than one in a million.")

# %% [markdown]
# ## One mask for all classes
#
# If the masks of the classes are so alike, one mask for all should do. That is the *class-agnostic*
# head. What changes is the table of channels, and nothing else:

# %%
agnostic = config.override(tiny, "mask_head.class_agnostic=true")
rows = {}
for name, setting in (
    ("sigmoid, a mask per class", tiny),
    ("sigmoid, class-agnostic", agnostic),
    ("softmax, a mask per class", by_softmax),
):
    layout = labels.mask_layout(setting)
    where = layout.column(np.arange(1, 4)).tolist()
    shapes = mask_head.parameter_shapes(setting)
    rows[name] = [layout.columns, *where, shapes["mask_head.logits.weight"][0] * 28 * 28]
draw.table(rows, ["mask head", "channels", *CLASS_NAMES, "logits per box"])

# %% [markdown]
# ## What the paper measured, and what we did
#
# Table 2 of the paper compares these choices on photographs. `maskrcnn ablate` repeats the
# comparisons on synthetic shapes; [its report](../docs/ablation.md) says how, and the next cell
# reads its table. The paper's numbers there are quoted from memory and have not been checked. The
# sizes of the differences cannot be compared, only which choice is better.

# %%
lines = Path("../docs/ablation.md").read_text(encoding="utf-8").splitlines()
parts = [[part.strip() for part in line.split("|")] for line in lines if line.startswith("|")]
reported = {part[2]: part[3:5] for part in parts if len(part) == 9}
PAIRS = (("softmax", "sigmoid"), ("MLP", "FCN"), ("class-agnostic", "class-specific"))
names = [name for pair in PAIRS for name in pair]
chosen = [pair[1] for pair in PAIRS]
theirs = {name: float(reported[name][0]) for name in names}
ours = {name: float(reported[name][1].split("±")[0]) for name in names}
figure, axes = draw.figure(1, 2, size=(10, 2.9))
titles = ("paper, photographs (from memory)", "this project, shapes")
for panel, values, title in zip(axes, (theirs, ours), titles, strict=True):
    draw.bars(panel, values, title, unit="mask AP, points", marked=chosen, form="{:.1f}")
draw.show(
    figure,
    "Two charts of mask AP for six variants in three pairs. The paper's choice, hatched, is the "
    "longer bar of each pair in both charts. The gap is widest between softmax and sigmoid and "
    "narrowest between class-agnostic and class-specific masks.",
)
gaps = [(theirs[b] - theirs[a], ours[b] - ours[a]) for a, b in PAIRS]
draw.say(
    "Gain of the paper's choice in points of mask AP, theirs and ours: "
    + "; ".join(
        f"{b} over {a}, {gap[0]:.1f} and {gap[1]:.1f}"
        for (a, b), gap in zip(PAIRS, gaps, strict=True)
    )
    + "."
)
assert all(gap > 0 for pair in gaps for gap in pair)

# %% [markdown]
# ## Check
#
# The same features through both heads, in PyTorch; the mask head once more on features that
# PyTorch and Triton pool for the first three detections; and the three mask losses with their
# gradients.

# %%
fast = accelerated.load("data/tiny").double().eval()
tolerance, rows = equality.REDUCTION["float64"], []
with torch.no_grad():
    fast_logits, fast_deltas = fast.box_head(torch.from_numpy(record.box_features))
    fast_masks = fast.mask_head(torch.from_numpy(record.mask_features))
for name, result in (
    ("class_logits", fast_logits),
    ("box_deltas", fast_deltas),
    ("mask_logits", fast_masks),
):
    rows.append(check(name, computed[name], {"torch": result}, tolerance))

network_boxes = torch.from_numpy(record.detections[0].boxes[:3])
maps = {level: torch.from_numpy(computed[f"P{level}"]) for level in (2, 3, 4, 5)}
results = {}
for fast.backend in ("torch", "triton"):
    where = network_boxes, torch.zeros(3, dtype=torch.long), tiny.mask_head.pooler
    with torch.no_grad():
        results[fast.backend] = fast.mask_head(fast.roi_features(maps, *where))
rows.append(check("mask_logits, pooled again", record.mask_logits[:3], results, tolerance))

# %%
for name, setting in (("sigmoid", tiny), ("softmax", by_softmax), ("class-agnostic", agnostic)):
    own = logits[:, : labels.mask_layout(setting).columns]
    tape = Tape()
    variable, tensor = tape.variable(own), torch.from_numpy(own).requires_grad_()
    expected = mask_head.loss(variable, some, targets, setting)
    tape.backward(expected)
    inputs = tensor, torch.from_numpy(some), torch.from_numpy(targets), setting
    result = fast_mask_head.loss(*inputs)
    result.backward()
    rows.append(check(f"loss, {name}", expected.value, {"torch": result}, tolerance))
    rows.append(check(f"its gradient, {name}", variable.grad, {"torch": tensor.grad}, tolerance))
Report.of("Two heads", rows)

# %% [markdown]
# ## Exercise
#
# Derive the gradient of $-\ln \mathrm{softmax}(x)_k$ with respect to $x$, and type it. Hint:
# $-\ln p_k = \ln \sum_j e^{x_j} - x_k$. Logits may be as large as 1000. The checker compares with
# finite differences.


# %%
def my_gradient(logits, column):
    """Logits [K] of one pixel, and the column of its class -> the gradient [K]."""
    return None  # your code


draw.say(exercise.check(my_gradient))

# %% [markdown]
# **Remember.**
#
# * The box head decides the class; the mask head separates object from background in the box.
# * With a sigmoid per class the two tasks do not disturb each other. With a softmax every pixel has
#   to decide the class again.
# * The masks of the classes are much alike, so one for all classes is almost as good.
# * Convolutions keep positions and need few weights. Fully connected layers do neither.
#
# **Next.** What the 28 x 28 target is, and what becomes of 28 x 28 numbers in the image:
# [Notebook 7: masks there and back](07_masks.ipynb).
