# ---
# jupyter:
#   cpu_seconds: 34
# ---

# %% [markdown]
# # 8. One training step: from five losses to the first convolution
#
# **The question.** The mask loss looks at 28 x 28 pixels of a few boxes: how does it reach the very
# first convolution of the network, and is the gradient that arrives there right?
#
# **Time.** 35 minutes to read, half a minute to run.
# **Data.** The small trained model of `data/tiny` and one image of shapes that it has not seen.
# **Before.** [RoIAlign](05_roi_align.ipynb) and [Two heads](06_two_heads.ipynb). The chain rule.

# %%
import os

# Triton's kernels then run on a CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

from collections import Counter

import figures as draw
import numpy as np
from exercises import one_step as exercise

import accelerated
from accelerated.verify import report, training
from reference import autodiff, box_head, boxes, checkpoint, conv, mask_head, optimizer, rpn, shapes
from reference import losses as elementary
from reference.labels import mask_layout
from reference.mask_rcnn import MaskRCNN
from reference.structures import Stages, Target

# %%
model = checkpoint.load("data/tiny")  # in float64
image, *objects = shapes.sample(seed=1, index=64)
target = Target(*objects)
batch = [image], [target]
names = [shapes.CLASS_NAMES[label - 1] for label in target.labels]
draw.say(f"The image has {len(names)} objects: {', '.join(names)}. {model}.")

# %% [markdown]
# ## Five losses, five places
#
# A training step computes five losses. Two belong to the region proposal network (RPN), three to
# the heads [Faster R-CNN §3.1.2, equation 1; Mask R-CNN §3]:
#
# $$ L = L_{\text{objectness}} + L_{\text{rpn box}} + L_{\text{class}} + L_{\text{box}}
#      + L_{\text{mask}} $$
#
# Each says, with its gradient, which numbers of the feature maps should change. Here are the five
# gradients at the same map, P2, the finest of the pyramid: where does each loss arrive?

# %%
arrived, priorities = {}, None
for name in ("rpn_objectness", "rpn_box", "class", "box", "mask"):
    record = Stages()
    taped = model.taped(*batch, priorities, record, np.random.default_rng(0))
    priorities = taped.priorities
    taped.tape.backward(taped.losses[name])
    arrived[name] = record, taped.variables

samples = record.samples[0]
objects = samples.labels > 0
shown, axes = draw.figure(2, 3, size=(10, 6.6))
draw.image(axes[0, 0], image, "the image and its objects")
for box in target.boxes:
    draw.box(axes[0, 0], box, draw.ASKED)
for panel, (name, (stages, _)) in zip(axes.flat[1:], arrived.items(), strict=True):
    strength = np.linalg.norm(stages.P2.grad[0], axis=0)
    title = f"{name}: up to {strength.max():.1e}"
    draw.cells(panel, strength, title, cmap=draw.MAGNITUDE, grid=False, unit="cells of P2")
    used = {"class": samples.rois, "box": samples.rois[objects], "mask": samples.rois[objects]}
    frames = used.get(name, samples.rois[:0]) / 4
    draw.boxes(panel, frames, np.full(len(frames), 0.25 if name == "class" else 0.5), "white")
draw.show(
    shown,
    "An image of five objects and five heat maps of gradients at P2. Both losses of the RPN reach a"
    " few cells at the smallest object. The class loss reaches many sampled RoIs, on objects and"
    " beside them, the box loss those on objects. The mask loss is brightest on the rectangle,"
    " inside RoIs of the disc beside it.",
)

# %% [markdown]
# The colour is the norm over the channels, and each map has its own scale. White frames are the
# regions of interest (RoIs) that a loss uses:
#
# * The **RPN's losses** ask anchors, and each anchor has its own cell. P2 has the smallest anchors,
#   so mostly the smallest object is asked about here. The others belong to coarser maps.
# * The **class loss** reads all sampled RoIs, background too.
# * The **box loss** reads the RoIs that are objects.
# * The **mask loss** reads them again. It is strongest on the rectangle, in RoIs of the disc to its
#   left: there the network cannot tell whose pixels these are.

# %% [markdown]
# ## Forward, on a tape
#
# How can a number know where it came from? The reference writes down every call of the forward: the
# function, its arguments and its result. This list is the *tape*.

# %%
record = Stages()
tape, variables, losses, _ = model.taped(*batch, priorities, record)
calls = tape.names()
draw.say(f"The tape holds {len(calls)} calls, from `{calls[0]}` to `{calls[-1]}`:")
draw.table({name: [count] for name, count in Counter(calls).most_common()}, ["call", "times"])

# %% [markdown]
# Anything that is not on the tape is a constant for the backward: the image, the anchors, the
# targets, and which anchors and RoIs were drawn at random. `pool` is RoIAlign on the right level.
# Keep an eye on what is missing: no call makes *proposals*.

# %% [markdown]
# ## The ledger: who pays what
#
# Every loss is a sum. Which anchor, RoI or pixel pays which part of it?

# %%
value, config = autodiff.detached, model.config
flat = rpn.flatten(value(record.rpn_logits), value(record.rpn_deltas))
asked = record.rpn_sampled, record.rpn_target_deltas
heads = value(record.class_logits), value(record.box_deltas)
masks = value(record.mask_logits), samples.labels[objects], record.mask_targets
addends = (
    *rpn.addends(*flat, *asked, config.rpn),
    *box_head.addends(*heads, samples.labels, samples.deltas, config),
    mask_head.addends(*masks, config),
)
paid = dict(zip(losses, addends, strict=True))
rows = {}
for name, parts in paid.items():
    each = parts.reshape(len(parts), -1).sum(axis=1)
    largest = np.sort(each)[::-1].cumsum()
    half = int(np.argmax(largest >= each.sum() / 2)) + 1
    assert np.isclose(each.sum(), value(losses[name]), rtol=1e-12)
    rows[name] = [f"{each.sum():.4f}", len(each), half]
total = sum(parts.sum() for parts in paid.values())
draw.table(
    rows | {"sum": [f"{total:.4f}", "", ""]},
    ["loss", "value", "anchors or RoIs that pay", "half of it is paid by"],
)

# %%
shown, (left, right) = draw.figure(1, 2, size=(10, 4))
draw.image(left, image, "RoIs, the darker the more they pay")
pays = paid["class"] / paid["class"].max()
draw.boxes(left, samples.rois, 0.15 + 0.85 * pays, "black")
draw.ledger(
    right,
    paid["class"],
    objects,
    f"class loss of {len(objects)} RoIs: {paid['class'].sum():.3f}",
    unit="part of the loss, no unit",
    label="RoI of an object",
)
draw.show(
    shown,
    "Left: the image with the sampled RoIs as frames, darker where they pay more of the class loss."
    " Right: a bar for each RoI by falling size. A few bars hold most of the sum; hatched bars are"
    " RoIs of objects.",
)

# %% [markdown]
# A trained network pays little for most RoIs: it is right about them, and they hardly move it. A
# few doubtful ones decide where it goes next.
#
# For masks, look at the pixels. Here are the four RoIs that pay most, each with the loss of its
# 28 x 28 pixels and the outline of the true mask:

# %%
pixels = paid["mask"]
worst = np.argsort(-pixels.sum(axis=(1, 2)), kind="stable")[:4]
shown, row = draw.figure(1, 4, size=(10, 3.1))
for axes, r in zip(row, worst, strict=True):
    name = shapes.CLASS_NAMES[samples.labels[r] - 1]
    title = f"{name}: {pixels[r].sum():.3f} of {pixels.sum():.3f}"
    draw.cells(axes, pixels[r], title, cmap=draw.MAGNITUDE, grid=False, unit="mask pixels")
    draw.outline(axes, record.mask_targets[r] >= 0.5)
draw.show(
    shown,
    "Four heat maps of 28 by 28 pixels, the mask loss of four RoIs, with the outline of the true"
    " mask. The inside of the objects is dark. In three RoIs of the disc the pixels to the right of"
    " its outline are bright: the neighbouring rectangle.",
)

# %% [markdown]
# ## Backward: the tape, read in reverse
#
# By the chain rule, if $y = f(x)$ and $G = \partial L / \partial y$ is known, then
# $\partial L / \partial x = J^{\mathsf T} G$, where $J$ is the Jacobian of $f$. So the tape is
# read from its end, and every call turns the gradient of its result into those of its arguments. A
# value that was used twice receives both:

# %%
draw.source(autodiff.Tape.backward)

# %% [markdown]
# Each function has its backward next to it, derived by hand. None forms a Jacobian. Here are two of
# them. The first is where the mask's gradient starts: the loss of a pixel with logit $x$ and target
# $t$ is $-t \ln \sigma(x) - (1 - t) \ln (1 - \sigma(x))$, and its derivative is just how wrong
# the probability is, $\sigma(x) - t$.

# %%
draw.source(elementary.binary_cross_entropy_backward)

# %% [markdown]
# The second is that of a convolution, which is linear in its input and in its weight. The gradient
# of the input spreads $G$ with the same kernel; that of the weight correlates $G$ with the input.

# %%
draw.source(conv.conv2d_backward)

# %% [markdown]
# ## The way of the mask loss
#
# Now follow one loss all the way: from the logits of a mask to the first convolution.

# %%
mask, weights = arrived["mask"]
r = worst[0]
box = samples.rois[objects][r]
channel = mask_layout(config).column(samples.labels[objects][r])
logits = mask.mask_logits.grad[r, channel]
kernels = weights["backbone.conv1.weight"].grad[:, 0]  # red channel, [16, 7, 7]
side = kernels.shape[-1]
kernels = kernels.reshape(4, 4, side, side).swapaxes(1, 2).reshape(4 * side, 4 * side)
shown, row = draw.figure(1, 5, size=(10, 2.7))
stations = (
    ("1. mask logits", logits, draw.SIGNED, "mask pixels"),
    ("2. RoI features", np.linalg.norm(mask.mask_features.grad[r], axis=0), None, "bins"),
    ("3. map P2", np.linalg.norm(mask.P2.grad[0], axis=0), None, "cells"),
    ("4. map C2", np.linalg.norm(mask.C2.grad[0], axis=0), None, "cells"),
    ("5. conv1, 16 kernels", kernels, draw.SIGNED, "weights"),
)
for axes, (title, grad, cmap, unit) in zip(row, stations, strict=True):
    draw.cells(axes, grad, title, cmap=cmap or draw.MAGNITUDE, grid=False, unit=unit)
for axes in row[2:4]:
    draw.box(axes, box / 4, "white")
for axes in row[1:]:
    axes.set(ylabel="", yticks=[])
for edge in range(side, 4 * side, side):
    row[4].axhline(edge, color="black", linewidth=0.6)
    row[4].axvline(edge, color="black", linewidth=0.6)
draw.show(
    shown,
    "Five pictures of the mask loss's gradient: 28 by 28 logits of one RoI, dark red over the"
    " neighbouring object; its 14 by 14 bins; the maps P2 and C2, where all RoIs of objects add,"
    " with this RoI as a white box; and the sixteen 7 by 7 kernels of the first convolution.",
)

# %% [markdown]
# 1. **Logits.** $\sigma(x) - t$ at each pixel, divided by the number of pixels: red asks for less,
#    blue for more. Only the channel of the true class has a gradient. The others are not asked:
#    classes do not compete [Mask R-CNN §3].
# 2. **RoI features.** Back through the four convolutions of the mask head, to 14 x 14 bins.
# 3. **P2.** RoIAlign spreads each bin over its cells, with the weights of the forward. This is the
#    step from "a RoI" back to "the image": all RoIs add here.
# 4. **C2.** Through the convolutions of the pyramid the gradient reaches the backbone, and leaves
#    the boxes a little, by the size of the kernels.
# 5. **conv1.** Every place of the image uses the same kernels, so each weight receives a sum over
#    the whole image.
#
# The same for all losses, as norms of the gradients. A dash: the loss does not depend on it.

# %%
fields = ["mask_logits", "mask_features", "class_logits", "box_deltas", "box_features"]
fields += ["P2", "P3", "P4", "P5", "C2", "C3", "C4", "C5"]


def norm(grad):
    """The L2 norm of a gradient as text, or a dash."""
    return "-" if grad is None or not grad.any() else f"{np.linalg.norm(grad):.2g}"


rows = {name: [norm(getattr(s, name).grad) for s, _ in arrived.values()] for name in fields}
first = [variables["backbone.conv1.weight"].grad for _, variables in arrived.values()]
draw.table(rows | {"conv1.weight": map(norm, first)}, ["gradient of", *arrived])

# %% [markdown]
# All five arrive at `conv1`. None reaches into the branch of another, and the heads, whose boxes
# are small, read nothing but P2. The gradient of the sum is the sum of the five gradients:

# %%
result = model.gradients(*batch, priorities)
apart = np.abs(sum(first) - result.gradients["backbone.conv1.weight"]).max()
relative = apart / np.abs(result.gradients["backbone.conv1.weight"]).max()
assert relative < 1e-12
draw.say(f"The sum of the five and the gradient of the sum differ by less than {1e-12:g}.")

# %% [markdown]
# ## Is it right? Walk downhill
#
# A gradient makes a promise. If all weights $w$ move by $-t\,g$, the loss starts to fall with the
# slope $-\lVert g \rVert^2$:
#
# $$ L(w - t\,g) = L(w) - t\,\lVert g \rVert^2 + O(t^2) $$
#
# The left side needs only forward passes. So walk, and compare with the line:

# %%
gradients = result.gradients
held = [
    rpn.Proposals(*image) for image in zip(record.proposals, record.proposal_scores, strict=True)
]


def walk(step, part="", proposals=None):
    """The sum of the losses after the weights whose names start with `part` moved by -step g."""
    chosen = {name: g for name, g in gradients.items() if name.startswith(part)}
    moved = {name: model.parameters[name] - step * g for name, g in chosen.items()}
    there = MaskRCNN(config, model.parameters | moved)
    return float(sum(there.losses(*batch, priorities, proposals=proposals).values()))


def promised(part=""):
    """The slope that the gradient promises."""
    return -sum(np.vdot(g, g) for name, g in gradients.items() if name.startswith(part))


steps = np.linspace(0, 0.01, 21)
start = walk(0)
shown, axes = draw.figure(size=(7.5, 4))
tangent = start + promised() * steps
free = [walk(step) for step in steps]
still = [walk(step, proposals=held) for step in steps]
axes.plot(steps, tangent, color="black", linestyle=(0, (4, 2)), label="promised by the gradient")
axes.plot(steps, still, color=draw.SAMPLE, marker="o", label="forward, same proposals")
axes.plot(steps, free, "x", color=draw.USED, label="forward, new proposals")
axes.set(title="all weights move against the gradient", xlabel="length of the step t, no unit")
axes.set(ylabel="sum of the five losses")
axes.legend()
draw.show(
    shown,
    "The sum of the losses against the length of the step. With the same proposals the points start"
    " on the dashed straight line and bend away above it. With new proposals at every step the"
    " crosses jump up and down, mostly far below the line.",
)

# %% [markdown]
# The blue points do what a gradient promises: they leave along the line, and bend. The crosses do
# not. There the moved network makes its own proposals, as it does in a training. The difference
# between the two is worth a section of its own.

# %% [markdown]
# ## The gradient nobody takes
#
# The RPN moves its anchors to make proposals. The heads read the maps inside those proposals. So
# the losses of the heads depend on the box layer of the RPN, `rpn.deltas`: another delta, another
# proposal, another class loss. With weights $w$ and proposals $p(w)$, the slope has two parts:
#
# $$ \frac{\mathrm{d} L}{\mathrm{d} w} = \frac{\partial L}{\partial w}
#    + \frac{\partial L}{\partial p} \, \frac{\partial p}{\partial w} $$
#
# The tape has no call for the second part. Proposals are taken as constants, a choice that Faster
# R-CNN calls *approximate joint training* [Faster R-CNN §3.2].
#
# So there is a gradient that nobody takes. Is it large? Measure the slope with two forward passes,
# one step of $h = 10^{-7}$ to each side, and compare it with the promise.

# %%
h, rows, slopes = 1e-7, {}, {}
parts = {
    "all weights": "",
    "the heads alone": ("box_head", "mask_head"),
    "rpn.deltas alone": "rpn.deltas",
}
for name, part in parts.items():
    free, still = (
        (walk(h, part, proposals) - walk(-h, part, proposals)) / (2 * h)
        for proposals in (None, held)
    )
    slopes[name] = promised(part), free, still
    rows[name] = [f"{slope:.5g}" for slope in slopes[name]]
draw.table(
    rows,
    [
        "what moves",
        "promised by the gradient",
        "measured, proposals free",
        "measured, proposals held",
    ],
)

# %%
assert all(abs(still - gradient) < 1e-6 * abs(gradient) for gradient, _, still in slopes.values())
gradient, free, _ = slopes["all weights"]
draw.say(
    f"With the proposals held still, measurement and gradient agree in every row, to better than"
    f" {1e-6:g}. With the proposals free, they differ by {abs(free / gradient - 1):.1%} for all"
    " weights."
)
gradient, free, _ = slopes["rpn.deltas alone"]
assert free > 0 > gradient
draw.say(
    "Along `rpn.deltas` alone they do not even agree in sign: the gradient promises"
    f" {gradient:.4f}, and the measured slope is {free:+.4f}. The step that should lower the loss"
    " raises it."
)

# %% [markdown]
# The gradient is right. It is the gradient of another function: of the loss in which proposals do
# not depend on weights. The heads have no such difference, since no proposal depends on them.
#
# Drawn for `rpn.deltas` alone, near the start and a little further away:

# %%
part = "rpn.deltas"
shown, pair = draw.figure(1, 2, size=(10, 4.2))
for axes, reach in zip(pair, (1e-4, 1e-3), strict=True):
    steps = np.linspace(-reach, reach, 21)
    free = [walk(step, part) - start for step in steps]
    still = [walk(step, part, held) - start for step in steps]
    axes.plot(
        steps,
        promised(part) * steps,
        color="black",
        linestyle=(0, (4, 2)),
        label="promised by the gradient",
    )
    axes.plot(steps, still, "o", color=draw.SAMPLE, markerfacecolor="none", label="proposals held")
    axes.plot(steps, free, "x", color=draw.USED, label="proposals free")
    axes.ticklabel_format(scilimits=(-3, 3))
    axes.set(title=f"rpn.deltas moves, t up to {reach:g}", xlabel="length of the step t, no unit")
    axes.set(ylabel="change of the sum of the losses")
draw.legend(shown)
draw.show(
    shown,
    "The change of the loss while rpn.deltas moves. Left, near 0: with proposals held it falls"
    " along the dashed line of the gradient, with proposals free it rises. Right, ten times"
    " further: with proposals free it drops suddenly on the left side, hundreds of times as far as"
    " it changes elsewhere.",
)

# %% [markdown]
# What jumps on the right? Non-maximum suppression (NMS) decides by a threshold, and a threshold has
# no slope. Compare the proposals at the start with those behind the jump:

# %%
behind = Stages()
moved = {name: model.parameters[name] + 1e-3 * g for name, g in gradients.items() if part in name}
MaskRCNN(config, model.parameters | moved).losses(*batch, priorities, behind)
# The deltas do not change the scores, so a score identifies its proposal.
before, after = record.proposal_scores[0], behind.proposal_scores[0]
through = np.flatnonzero(~np.isin(after, before))
pushed = np.count_nonzero(after != before) - len(through)
rois = behind.samples[0].rois
others = np.count_nonzero(boxes.iou(rois, samples.rois).max(axis=1) < 0.99)
assert len(through) == 1
draw.say(
    f"One step too long, and another proposal gets through NMS, in place {through[0]} of"
    f" {len(after)}. It pushes {pushed} others down by one place, and the last one out. The random"
    f" numbers of the sampling belong to places, so {others} of the {len(rois)} sampled RoIs are"
    f" now others, and the loss jumps by {walk(-1e-3, part) - start:+.3f}."
)

# %% [markdown]
# A difference quotient across such a jump measures nothing. This is why a test of the gradient
# needs a short step and held proposals, and why a wrong backward is easily taken for "numerical
# noise":

# %%
rows = {}
for h in (1e-4, 1e-5, 1e-6, 1e-7):
    free, still = ((walk(h, "", p) - walk(-h, "", p)) / (2 * h) for p in (None, held))
    error = abs(still / promised() - 1)
    rows[f"{h:g}"] = [
        f"{free:.4g}",
        f"{still:.4g}",
        f"{error:.0e}" if error > 1e-7 else "below 1e-07",
    ]
draw.table(rows, ["step h", "slope, proposals free", "slope, held", "error, held"])
draw.say(f"The gradient promises {promised():.4g} for all weights.")

# %% [markdown]
# With held proposals the error should fall with $h^2$. It does not: somewhere a ReLU switches on or
# off, and there the loss has a kink. The agreement is complete only when $h$ is shorter than the
# distance to the nearest kink.

# %% [markdown]
# ## One step
#
# Training does not walk along $-g$. The optimizer first limits the joint norm of all gradients,
# then AdamW divides each by its usual size, and moves the weight [AdamW, algorithm 2].

# %%
settings = config.optimizer
rate = settings.learning_rate / settings.batch_size  # for one image
clipped, norm_of_all = optimizer.clip(gradients, settings.clip_gradient_norm)
parameters, state = optimizer.step(model.parameters, clipped, optimizer.State(), rate, settings)
after = MaskRCNN(config, parameters).losses(*batch, priorities)
rows = {n: [f"{float(result.losses[n]):.4f}", f"{float(v):.4f}"] for n, v in after.items()}
rows["sum"] = [f"{start:.4f}", f"{float(sum(after.values())):.4f}"]
draw.table(rows, ["loss", "before", "after one step"])
draw.say(
    f"The norm of all gradients is {norm_of_all:.3f}, below the limit of"
    f" {settings.clip_gradient_norm:g}. The learning rate is {rate:g}."
)

# %% [markdown]
# ## Check: three implementations
#
# The same weights, image and random numbers in NumPy, PyTorch and Triton: the losses, the gradient
# of every parameter, and the weights after the step. An interpreted kernel is slow, so this step
# has four RoIs, and other losses than the one above.

# %%
twin = accelerated.load("data/tiny")
whole = training.compare(twin, *batch, rois=4)
assert whole.passed, whole.summary
chosen = [*losses, "backbone.conv1.weight", "fpn.lateral2.weight", "rpn.deltas.weight"]
chosen += ["box_head.fc6.weight", "mask_head.logits.weight"]
sections = {
    section: [row for row in rows if row.name in chosen] for section, rows in whole.sections.items()
}
draw.say(whole.summary + " Some of them:")
report.Report(whole.title, sections, whole.skipped)

# %% [markdown]
# ## Exercise
#
# The two box losses use the smooth L1 loss of the difference $d$ [Fast R-CNN §2.3, equation 3],
# with the point $\beta$ where the parabola goes over into a line:
#
# $$ \mathrm{smooth}_{L_1}(d) = \begin{cases} d^2 / (2 \beta) & |d| < \beta \\
#    |d| - \beta / 2 & \text{otherwise} \end{cases} $$

# %%
draw.source(elementary.smooth_l1)

# %% [markdown]
# Write its backward. The checker puts it on the tape and compares it with finite differences.


# %%
def my_smooth_l1_backward(grad_out, difference, beta):
    """grad_out and difference of one shape, beta > 0 -> gradient of the difference."""
    return None  # your code


draw.say(exercise.check(my_smooth_l1_backward))

# %% [markdown]
# **Remember.**
#
# * The tape is a list of calls. The backward reads it in reverse, and each call turns the gradient
#   of its result into those of its arguments.
# * Each loss arrives somewhere else: the RPN's at cells, the class loss at all sampled RoIs, box
#   and mask loss at those of objects. RoIAlign carries the gradient of a RoI back to the map.
# * The gradient of Mask R-CNN takes proposals as constants. Finite differences agree with it only
#   if the proposals are held still.
# * A threshold, such as that of NMS, makes the loss jump; there is no gradient for that.
#
# **Next.** [Training](09_training.ipynb): many such steps, in NumPy and in PyTorch.
