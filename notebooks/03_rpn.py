# ---
# jupyter:
#   cpu_seconds: 18
# ---

# %% [markdown]
# # 3. RPN: from a number per anchor to proposals
#
# **The question.** The region proposal network (RPN) gives every anchor one number, *how likely are
# you an object?*, and four corrections. How do thousands of answers become a short list of good
# boxes, and what does non-maximum suppression (NMS) do, box by box?
#
# **Time.** Thirty minutes to read, less than half a minute to run.
#
# **Data.** Painted shapes, 128 x 128 pixels, and the small model that was trained on such images.
#
# **Before.** [Notebook 2](02_anchors.ipynb): anchors, their order, and their labels.

# %%
import os

os.environ["TRITON_INTERPRET"] = "1"

import figures as draw
import numpy as np
import torch
from exercises import rpn as exercise
from matplotlib.patches import ConnectionPatch

from accelerated import box_coder as fast_box_coder
from accelerated import nms as fast_nms
from accelerated import rpn as fast_rpn
from accelerated.verify.equality import POINTWISE
from accelerated.verify.report import Report, check
from reference import box_coder, boxes, checkpoint, losses, matcher, nms, rpn, shapes
from reference.activations import sigmoid
from reference.config import preset
from reference.structures import Stages

# %% [markdown]
# The model looks at an image, and `record` keeps what it computes on the way. The answers of all
# levels are flattened into the order of the anchors: level, row, column, ratio.

# %%
model = checkpoint.load("data/tiny")
settings = model.config.rpn


def ask(image):
    """Ask the trained RPN about an image: its logits [T], deltas [T, 4], and the record."""
    record = Stages()
    model.detect([image], record)
    [logits], [deltas] = rpn.flatten(record.rpn_logits, record.rpn_deltas)
    return logits, deltas, record


image, truths, _, _ = shapes.sample(1, 33)
logits, deltas, record = ask(image)
anchors = np.concatenate(record.anchors)
level = np.repeat(np.arange(5), [len(found) for found in record.anchors])
decoded = box_coder.decode(deltas, anchors, settings.box_weights)
clipped = boxes.clip(decoded, 128, 128)

# %% [markdown]
# ## Suppression, box by box
#
# The picture to remember comes first. It starts with the fourteen best boxes of one level, numbered
# by falling score. The image holds four objects.

# %%
on_p3 = np.flatnonzero(level == 1)
rows = on_p3[nms.top_k(logits[on_p3], 14)]
few, scores = clipped[rows], logits[rows]
remover = nms.suppressed_by(few, scores, settings.nms_iou)
kept = np.flatnonzero(remover < 0)

# Vermilion stays, purple goes (and is struck through), grey waits.
GOES = "#AA4499"
BOW = {"arrowstyle": "-", "connectionstyle": "arc3,rad=-0.5", "linewidth": 1}


def faded(image):
    """Fade an image to few pale colours, as a ground for boxes."""
    return 0.6 + 0.4 * np.round(image / 255 * 10) / 10


def outline(axes, box, colour, width):
    """Draw the outline of a box xyxy."""
    x1, y1, x2, y2 = box
    axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=colour, linewidth=width)


def places(axes, best, before):
    """Draw the boxes in the image while `best` removes others; the boxes `before` stay."""
    for i in np.flatnonzero((remover < 0) | (remover > best)):
        outline(axes, few[i], draw.QUIET, 1)
    for i in np.flatnonzero(remover == best):
        outline(axes, few[i], GOES, 1.3)
        axes.plot(few[i][[0, 2]], few[i][[3, 1]], color=GOES, linewidth=1.3)
    for i in before:
        outline(axes, few[i], draw.USED, 4.5 if i == best else 2)
        tag = {"facecolor": draw.USED, "edgecolor": "none", "pad": 1.5}
        axes.text(*few[i][:2], f" {i} ", color="white", fontsize=9, bbox=tag, clip_on=True)


def ladder(axes, best, before):
    """Draw the scores as rungs. A rung that goes is struck through and tied to `best`."""
    gone, now = np.isin(remover, before), remover == best
    colours = np.where(now, GOES, np.where(gone, "#DDDDDD", draw.QUIET))
    colours[before] = draw.USED
    axes.barh(range(len(few)), scores, color=colours, height=0.65)
    axes.hlines(np.flatnonzero(gone), -0.4, scores[gone] + 0.6, color="black", linewidth=1)
    for i in np.flatnonzero(now):
        ends = (scores[best], best), (scores[i] + 0.6, i)
        axes.add_patch(ConnectionPatch(*ends, "data", "data", **BOW))


def frame(title, best, before, view):
    """Draw one step: the boxes in the `view` (left, right, top, bottom), and the ladder."""
    made, (left, right) = draw.figure(1, 2, size=(5, 3.4), width_ratios=(2.1, 1))
    draw.image(left, faded(image), title)
    places(left, best, before)
    ladder(right, best, before)
    left.set(xlim=view[:2], ylim=(view[3], view[2]))
    right.set(title="Scores, best first", xlabel="logit, no unit", ylabel="box")
    right.set(ylim=(13.6, -0.6), xlim=(-0.5, 12))
    right.set_yticks(range(14), [str(i) for i in range(14)], fontsize=9)
    return made


# -2 removes nobody, 14 has nobody left to remove.
frames = [frame("Before: fourteen boxes", -2, kept[:0], (0, 128, 0, 128))]
for step, best in enumerate(kept):
    x, y = (few[best][:2] + few[best][2:]) / 2
    half = 0.8 * (few[best][2:] - few[best][:2]).max()
    title = f"Step {step + 1}: box {best} removes {(remover == best).sum()}"
    frames.append(frame(title, best, kept[: step + 1], (x - half, x + half, y - half, y + half)))
frames.append(frame(f"After: boxes {', '.join(map(str, kept))}", 14, kept, (0, 128, 0, 128)))
draw.strip(
    frames,
    "Six frames, each with boxes in the image and their scores as a ladder. In four of them the "
    "best box that is left is drawn thick. The boxes that overlap it too much are struck through, "
    "and curved lines tie their rungs to its rung. In the end each of the four objects has a box.",
)

# %% [markdown]
# The rule fits into a sentence: **keep the best box, drop what overlaps it, repeat**. Box 1 has the
# second highest score, but it shows the same object as box 0, and goes. Box 10 has a low score and
# stays, because no better box shows its object. NMS compares boxes with boxes only. It knows
# nothing of objects.
#
# The rest of this notebook follows the answers from the feature maps to that picture, and beyond
# it to the list of proposals.

# %% [markdown]
# ## A number per anchor
#
# The same small network slides over all five maps [Faster R-CNN §3.1]: a 3 x 3 convolution, then
# two 1 x 1 convolutions. One gives a logit for each of the three anchors of a cell, the other four
# deltas for each.

# %%
draw.source(rpn.head)
draw.table(
    {
        f"P{i + 2}": [record_of.shape for record_of in maps] + [maps[0].size]
        for i, maps in enumerate(zip(record.rpn_logits, record.rpn_deltas, strict=True))
    },
    ["level", "logits", "deltas", "anchors"],
)

# %% [markdown]
# Where does the trained network say *object*? A cell shows the highest of its three probabilities.

# %%
made, grid = draw.figure(2, 3, size=(10, 6.4))
draw.image(grid[0, 0], image, "The image and its true boxes")
for box in truths:
    draw.box(grid[0, 0], box)
for axes, found, name in zip(grid.ravel()[1:], record.rpn_logits, "23456", strict=True):
    probability = sigmoid(found[0].max(axis=0))
    drawn = draw.cells(axes, probability, f"P{name}", cmap=draw.MAGNITUDE, limits=(0, 1))
    ticks = range(0, len(probability) + 1, -(-len(probability) // 8))
    axes.set(xticks=ticks, yticks=ticks)
draw.colour_bar(grid[1, 2], drawn, "probability, no unit")
draw.show(
    made,
    "An image with four boxes, and five maps of 32, 16, 8, 4 and 2 cells a side, dark for no and "
    "bright for object. P2 is dark. P3 has bright spots in the middle of the four objects. P4 is "
    "bright in the upper and left part where the larger objects lie. P5 and P6 are dark.",
)
yes = np.bincount(level[logits > 0], minlength=5)
draw.say(
    f"{(logits > 0).sum()} of {len(logits)} anchors have a probability above one half: "
    + ", ".join(f"{count} on P{i + 2}" for i, count in enumerate(yes))
    + ". Four objects need four boxes. The others are repetitions, and NMS is there to remove them."
)

# %% [markdown]
# ## Four corrections
#
# An anchor stands on a grid and has one of three shapes, so it never fits exactly. The deltas
# $(d_x, d_y, d_w, d_h)$ move and stretch it [R-CNN §C, eqs. (1) to (4)]:
#
# $$x = x_a + d_x\, w_a, \quad y = y_a + d_y\, h_a, \quad w = w_a\, e^{d_w}, \quad
# h = h_a\, e^{d_h}$$
#
# with centres $x, y$ and sides $w, h$. The index $a$ stands for the anchor. A shift is a fraction
# of the anchor's side and a stretch is a factor, so a delta does to a large anchor what it does to
# a small one. `encode` is the way back, from a box to its deltas.

# %%
draw.source(box_coder.decode)
draw.source(box_coder.encode)

# %% [markdown]
# By hand, for the anchor of the highest logit:

# %%
first = int(logits.argmax())
(x1, y1, x2, y2), (dx, dy, dw, dh) = anchors[first], deltas[first]
x, y, w, h = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
hand = {
    "centre x": [x, dx, f"{x:.2f} + {dx:.3f} x {w:.2f}", x + dx * w],
    "centre y": [y, dy, f"{y:.2f} + {dy:.3f} x {h:.2f}", y + dy * h],
    "width": [w, dw, f"{w:.2f} x exp({dw:.3f})", w * np.exp(dw)],
    "height": [h, dh, f"{h:.2f} x exp({dh:.3f})", h * np.exp(dh)],
}
draw.table(
    {name: [f"{a:.2f}", f"{d:.3f}", how, f"{b:.2f}"] for name, (a, d, how, b) in hand.items()},
    ["", "anchor, pixels", "delta", "by hand", "box, pixels"],
)
x, y, w, h = (row[3] for row in hand.values())
assert np.allclose(decoded[first], [x - w / 2, y - h / 2, x + w / 2, y + h / 2], rtol=1e-12)

# %% [markdown]
# **Move the sliders.** They correct an anchor of P4 in the middle of the image. Below it is the
# factor by which its sides grow. The exponential function is dangerous: an untrained network may
# answer anything, and $e^{100}$ is more than float32 can hold. So $d_w$ and $d_h$ end at
# $\ln(1000/16)$, where a side has grown from 16 pixels to 1000, and no object is larger. Shrinking
# has no limit, for it overflows nothing.

# %%
limit = float(box_coder.MAX_LOG_SCALE)
middle = anchors[level == 2][(4 * 8 + 4) * 3 + 1]
axis = np.linspace(-1, 6, 141)
moved = box_coder.decode(np.stack([0 * axis, 0 * axis, axis, axis], axis=-1), middle, (1,) * 4)
factors = (moved[:, 2] - moved[:, 0]) / (middle[2] - middle[0])


def correct(dx, dy, dw, dh):
    """Draw the anchor with its deltas applied, and the growth of its sides."""
    made, (above, below) = draw.figure(2, 1, size=(3.33, 5.4), height_ratios=(2, 1))
    draw.image(above, faded(image), f"dx {dx:g}, dy {dy:g}, dw {dw:g}, dh {dh:g}")
    draw.box(above, box_coder.decode([dx, dy, dw, dh], middle, (1,) * 4), draw.USED)
    draw.box(above, middle)
    below.plot(axis, factors, color="black", linewidth=1.2)
    for delta, marker, colour in ((dw, "o", draw.USED), (dh, "^", draw.SAMPLE)):
        below.plot(delta, np.interp(delta, axis, factors), marker, color=colour, markersize=8)
    below.set(title="dot: width, triangle: height", ylabel="factor, no unit")
    below.set(xlabel="dw or dh, no unit")
    return made


draw.explore(
    correct,
    "Three corrections of a dashed anchor. First it moves right by half its width. Then it becomes "
    "wider and lower. In the last one dw is 5, beyond the limit, and the box is so wide that it "
    "leaves the image on both sides. Curves below show growth, flat beyond the limit.",
    [
        {"dx": 0.5, "dy": 0.0, "dw": 0.0, "dh": 0.0},
        {"dx": 0.0, "dy": 0.0, "dw": 0.4, "dh": -0.8},
        {"dx": 0.0, "dy": 0.25, "dw": 5.0, "dh": 0.0},
    ],
    dx=(-1, 1, 0.05),
    dy=(-1, 1, 0.05),
    dw=(-1, 6, 0.1),
    dh=(-1, 6, 0.1),
)
draw.say(f"The limit is {limit:.3f}, and the factor there is {np.exp(limit):.1f}.")
assert np.isclose(factors.max(), 1000 / 16, rtol=1e-12)

# %% [markdown]
# ## Why 10, 10, 5, 5 in the second head, and 1 here
#
# The box head corrects the proposals once more, with the same four deltas. There they are
# multiplied by the weights (10, 10, 5, 5), here by 1. Let us measure what both have to learn: the
# spread of the deltas from the anchors that are objects to their truths, and from the proposals
# that overlap a truth by half or more.

# %%
thirty = [shapes.sample(1, index)[:2] for index in range(30)]
answers = [ask(picture)[:2] for picture, _ in thirty]
lists = {"anchors": [], "proposals": []}
for (_, found), (some_logits, some_deltas) in zip(thirty, answers, strict=True):
    [proposed] = rpn.proposals(
        some_logits[None], some_deltas[None], record.anchors, [(128, 128)], settings, training=True
    )
    for name, candidates, high, low, exception in (
        ("anchors", anchors, settings.foreground_iou, settings.background_iou, True),
        ("proposals", proposed.boxes, 0.5, 0.5, False),
    ):
        overlaps = boxes.iou(found, candidates)
        label, matched = matcher.match(overlaps, high, low, exception, zero_iou=False)
        chosen = label == 1
        lists[name].append(box_coder.encode(found[matched[chosen]], candidates[chosen], (1,) * 4))
spread = {name: np.concatenate(parts).std(axis=0) for name, parts in lists.items()}
weights = np.array(model.config.box_head.box_weights)
draw.table(
    {
        "anchors to truths (RPN)": [f"{v:.2f}" for v in spread["anchors"]],
        "proposals to truths (box head)": [f"{v:.2f}" for v in spread["proposals"]],
        "weights of the box head": [f"{v:.0f}" for v in weights],
        "proposals to truths, times weights": [f"{v:.2f}" for v in spread["proposals"] * weights],
    },
    ["standard deviation of", "dx", "dy", "dw", "dh"],
)

# %% [markdown]
# A shift has a spread of about a tenth and a stretch one of about a fifth, and 10 and 5 are the
# inverses of these. With the weights, all four targets of the box head have a spread of about one.
# That is where they come from: Fast R-CNN brought its targets to unit variance
# [Fast R-CNN §2.3], and the weights (10, 10, 5, 5) are what remains of that.
#
# The RPN's targets are just as small, but its weights are 1. Its loss makes up for that. Smooth L1
# is quadratic up to $\beta$ and straight beyond:
#
# $$\ell_\beta(u) = \begin{cases} u^2 / 2\beta & |u| < \beta\\ |u| - \beta/2 & \text{otherwise}
# \end{cases} \qquad\text{so that}\qquad \ell_\beta(\omega u) = \omega\, \ell_{\beta/\omega}(u)$$
#
# For a shift, the box head of the paper's settings has $\omega = 10$ and $\beta = 1$, which is ten
# times the loss of $\beta = 1/10$. The RPN has $\omega = 1$ and $\beta = 1/9$. The bend lies at
# nearly the same error, and only the height differs.

# %%
paper = preset("paper_r50_fpn")
error = np.linspace(-0.5, 0.5, 101)
omega = paper.box_head.box_weights[0]
curves = {
    "RPN": losses.smooth_l1(error, paper.rpn.smooth_l1_beta),
    f"box head, divided by {omega:.0f}": losses.smooth_l1(
        omega * error, paper.box_head.smooth_l1_beta
    )
    / omega,
    "box head with the RPN's weight of 1": losses.smooth_l1(error, paper.box_head.smooth_l1_beta),
}
made, axes = draw.figure(size=(8, 3.6))
draw.curve(
    axes,
    error,
    curves,
    "Smooth L1 of an error in dx",
    xlabel="error of dx, no unit",
    ylabel="loss, no unit",
)
draw.show(
    made,
    "Loss against the error of a shift. The curves of the RPN and of the box head, divided by ten, "
    "lie nearly on each other: a small bowl with straight arms. With a weight of one the box head "
    "would see a wide flat bowl, and errors of this size would hardly count.",
)

# %% [markdown]
# ## From all anchors to the proposals
#
# Five things happen, in this order: decode, take the best of each level, clip to the image and drop
# boxes that have become too short, suppress within each level, and keep the best of what is left.

# %%
draw.source(rpn.survivors)

# %%
left = rpn.survivors(decoded, logits, level, (128, 128), settings, training=False)
steps = {
    "all anchors": len(logits),
    f"top {settings.pre_nms_top_n_test} of each level": len(left.top_k),
    "long enough": len(left.sized),
    "not suppressed": len(left.unsuppressed),
    f"top {settings.post_nms_top_n_test}: the proposals": len(left.kept),
}
made, axes = draw.figure(size=(9, 2.8))
last = list(steps)[-1]
draw.bars(axes, steps, "What each step leaves", unit="boxes", marked=[last], form="{:.0f}")
draw.show(
    made,
    "Five bars that become shorter: all anchors, the best of each level, those long enough, those "
    "not suppressed, and the proposals. The largest cut is the first one, and no box is too short.",
)
sides = (clipped[left.top_k, 2:] - clipped[left.top_k, :2]).min()
draw.say(
    f"Here the shortest side is {sides:.1f} pixels, so no box falls to the third step. It is there "
    "for a box that lies outside the image: clipping leaves nothing of it. The paper's numbers are "
    f"{paper.rpn.pre_nms_top_n_test} of each level before suppression and "
    f"{paper.rpn.post_nms_top_n_test} proposals after it. Training keeps more than detection, "
    f"{paper.rpn.post_nms_top_n_train} of them."
)

# %% [markdown]
# The picture at the beginning shows one of these steps, suppression, on one level. Here are its
# code and its fourteen boxes as a table.

# %%
draw.source(nms.suppressed_by)
iou = boxes.iou(few, few)
draw.table(
    {
        str(i): [f"{scores[i]:.2f}", "stays", "-"]
        if remover[i] < 0
        else [f"{scores[i]:.2f}", f"removed by {remover[i]}", f"{iou[i, remover[i]]:.3f}"]
        for i in range(len(few))
    },
    ["box", "logit", "what happens", "IoU with it"],
)
assert (iou[np.arange(14), remover][remover >= 0] > settings.nms_iou).all()
assert (iou[np.ix_(kept, kept)] - np.eye(len(kept)) <= settings.nms_iou).all()

# %% [markdown]
# NMS makes no promise about objects. The fifteenth box of this level shows the upper disc once
# more. Its IoU with box 6 is below the threshold, so it stays. Such repetitions are left to the box
# head, which ends with a stricter NMS of its own.

# %%
fifteen = clipped[on_p3[nms.top_k(logits[on_p3], 15)]]
again = boxes.iou(fifteen[14:], fifteen[kept])[0]
draw.say(f"Its IoU with boxes {', '.join(map(str, kept))}: {', '.join(f'{v:.3f}' for v in again)}.")
assert again.max() <= settings.nms_iou

# %% [markdown]
# ## Ties
#
# Two boxes have equal scores. Which one stays? Equal scores are no rare accident. The score may be
# the probability, as in torchvision, and in float32 the probabilities of all large logits are
# exactly 1. Here are three copies of one box, of which box 1 has the highest logit.

# %%
same = np.array([[10.0, 10.0, 40.0, 40.0]] * 3)
high_logits = np.array([18.0, 20.0, 19.0], dtype=np.float32)
ways = {"logit": high_logits, "probability, float32": sigmoid(high_logits)}
draw.table(
    {
        name: [*(f"{v:.7g}" for v in values), ", ".join(map(str, nms.nms(same, values, 0.7)))]
        for name, values in ways.items()
    },
    ["score", "box 0", "box 1", "box 2", "stays"],
)
assert nms.nms(same, ways["logit"], 0.7) == 1
assert nms.nms(same, ways["probability, float32"], 0.7) == 0

# %% [markdown]
# By its logit, box 1 is the best. By their probabilities all are equal, and the **lower index**
# stays. Any rule would do, but there has to be one: a sort that promises no order among equals may
# answer differently on another processor or on a GPU. `top_k` sorts stably, here and in the
# accelerated implementation.

# %%
draw.source(nms.top_k)

# %% [markdown]
# ## Each level for itself
#
# `batched_nms` suppresses within a group, and for the RPN a group is a level. The same object may
# therefore keep a box on P3 and another one on P4, as in this image of two objects.

# %%
two, _, _, _ = shapes.sample(1, 26)
two_logits, two_deltas, _ = ask(two)
two_boxes = box_coder.decode(two_deltas, anchors, settings.box_weights)
sure = np.flatnonzero(two_logits > 0)
case = boxes.clip(two_boxes[sure], 128, 128), two_logits[sure], settings.nms_iou
apart, together = nms.suppressed_by(*case, level[sure]), nms.suppressed_by(*case)
made, axes = draw.figure(size=(6.4, 5.6))
draw.image(axes, faded(two), "The boxes that each level leaves")
for i in np.flatnonzero(apart < 0):
    x1, y1, x2, y2 = case[0][i]
    colour, _, dash = draw.SERIES[level[sure[i]] - 1]
    style = {"color": colour, "linestyle": dash, "label": f"P{level[sure[i]] + 2}"}
    axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], **style)
    if together[i] >= 0:
        axes.plot(
            [x1, x2], [y2, y1], color=GOES, linewidth=2, label="would go if all levels competed"
        )
draw.legend(made)
draw.show(
    made,
    "An image of two objects with the boxes of probability above one half that suppression leaves: "
    "some of P3, others of P4. One of them is struck through, because a box of the other level has "
    "a higher score and nearly the same place.",
)
draw.say(
    f"Each level for itself leaves {(apart < 0).sum()} of these boxes, all together would leave "
    f"{(together < 0).sum()}. The difference is small: a level has one size of anchor, so boxes of "
    "two levels are rarely alike. And levels that need not wait for each other can run in parallel."
)
assert (together < 0).sum() < (apart < 0).sum()

# %% [markdown]
# ## What it is good for
#
# How well are the objects covered? For every object of thirty images, the best IoU that any anchor
# has, that any decoded box has, and that is left among the proposals.

# %%
stages = {"anchors": [], "decoded boxes": [], "proposals": []}
for (_, found), (some_logits, some_deltas) in zip(thirty, answers, strict=True):
    every = boxes.clip(box_coder.decode(some_deltas, anchors, settings.box_weights), 128, 128)
    [proposed] = rpn.proposals(
        some_logits[None], some_deltas[None], record.anchors, [(128, 128)], settings, training=False
    )
    for name, candidates in zip(stages, (anchors, every, proposed.boxes), strict=True):
        stages[name].extend(boxes.iou(found, candidates).max(axis=1))
thresholds = np.linspace(0.4, 1, 61)
covered = {
    name: [100 * np.mean(np.array(values) >= t) for t in thresholds]
    for name, values in stages.items()
}
made, axes = draw.figure(size=(8, 3.8))
draw.curve(
    axes,
    thresholds,
    covered,
    f"Recall: {len(stages['anchors'])} objects in {len(thirty)} images",
    xlabel="IoU that is asked for, no unit",
    ylabel="objects covered, percent",
)
draw.show(
    made,
    "Share of objects that have a box of at least the given IoU. The curve of the anchors falls "
    "steeply from 0.5 on. Those of the decoded boxes and of the proposals stay near 100 percent up "
    "to 0.7 and fall later, the proposals a little below.",
)
recall = {name: 100 * np.mean(np.array(values) >= 0.7) for name, values in stages.items()}
draw.say(
    f"At an IoU of 0.7, {recall['anchors']:.0f} % of the objects are covered by an anchor, "
    f"{recall['decoded boxes']:.0f} % by one of {len(anchors)} decoded boxes, and "
    f"{recall['proposals']:.0f} % by one of {settings.post_nms_top_n_test} proposals. The deltas "
    "make the boxes good, and NMS makes the list short, at a small price."
)

# %% [markdown]
# No gradient passes through this choice. The heads are trained on the proposals as if these were
# given from outside, and [notebook 8](08_one_step.ipynb) shows what that means.
#
# ## Check
#
# The oracle beside PyTorch and beside the Triton kernel, which a CPU runs here in Triton's
# interpreter: suppression in twenty small sets full of ties, where the kept indices must be equal,
# the whole way from logits to proposals, and the coder of boxes there and back.

# %%
generator = np.random.default_rng(0)
corner, side = generator.integers(0, 8, (240, 2)), generator.integers(1, 8, (240, 2))
sets = np.concatenate([corner, corner + side], axis=1).astype(float)
case = sets, generator.integers(0, 5, 240) / 4, np.arange(240) // 12
tensors = [torch.from_numpy(part) for part in case]
fast = {b: fast_nms.batched_nms(*tensors, 0.3, backend=b) for b in ("torch", "triton")}
checks = [check("kept of twenty sets with ties", nms.batched_nms(*case, 0.3), fast, 0)]

tensors = [torch.from_numpy(part[None]) for part in (logits, deltas)]
rest = [torch.from_numpy(found) for found in record.anchors], torch.tensor([[128, 128]]), settings
fast = {
    b: fast_rpn.proposals(*tensors, *rest, training=False, backend=b) for b in ("torch", "triton")
}
proposed = {b: found.boxes[0][found.valid[0]] for b, found in fast.items()}
checks.append(check("proposals", clipped[left.kept], proposed, POINTWISE["float64"]))

targets, starts = generator.uniform(2, 100, (2, 1000, 2, 2)).cumsum(axis=2).reshape(2, 1000, 4)
heads_weights = (10.0, 10.0, 5.0, 5.0)
coded = box_coder.encode(targets, starts, heads_weights)
assert np.abs(box_coder.decode(coded, starts, heads_weights) / targets - 1).max() < 1e-12
far = generator.normal(0, 4, (1000, 4))
theirs = [torch.from_numpy(part) for part in (targets, starts, far)]
fast = {"torch": fast_box_coder.encode(*theirs[:2], heads_weights)}
checks.append(check("deltas of 1000 boxes", coded, fast, POINTWISE["float64"]))
fast = {"torch": fast_box_coder.decode(theirs[2], theirs[1], settings.box_weights)}
reached = box_coder.decode(far, starts, settings.box_weights)
checks.append(check("boxes of deltas beyond the limit", reached, fast, POINTWISE["float64"]))
Report.of("From answers to proposals", checks)

# %% [markdown]
# ## Exercise
#
# Write non-maximum suppression. The boxes come in any order. Return the indices of those that stay,
# by falling score. Among equal scores the lower index comes first. Only an IoU *above* the
# threshold removes a box. You may use `boxes.iou(a, b)`: [A, 4], [B, 4] -> [A, B].


# %%
def my_nms(boxes_in, scores, threshold):
    """Boxes [R, 4], scores [R] and a threshold -> indices [D] of the boxes that stay."""
    return None  # your code


draw.say(exercise.check(my_nms))

# %% [markdown]
# **Remember.**
#
# * A logit and four deltas per anchor. Deltas are relative to the anchor, and stretching has a
#   limit.
# * Keep the best box, drop what overlaps it, repeat. A box that is gone removes nobody.
# * The best of each level, then suppression within each level, then the best of all.
# * Equal scores need a rule: the lower index comes first.
# * The weights (10, 10, 5, 5) bring the targets to a spread of one. They belong to the bend of the
#   loss, $\beta$.
#
# **Next.** [Backbone and pyramid](04_backbone_and_pyramid.ipynb): the maps on which all this
# stands, and which of them a box reads.
