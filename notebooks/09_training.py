# ---
# jupyter:
#   cpu_seconds: 50
# ---

# %% [markdown]
# # 9. Training
#
# **The question.** A training is the same step, over and over. Do NumPy and PyTorch, which share no
# line of it, learn the same?
#
# **Time.** 30 minutes to read, one minute to run.
# **Data.** Images of shapes, painted when they are needed, and the trained model of `data/tiny`.
# **Before.** [One training step](08_one_step.ipynb): five losses, their gradients, one update.

# %%
import itertools

import figures as draw
import numpy as np
from exercises import training as exercise

from accelerated.verify import report, training
from accelerated.verify.equality import MODEL
from reference import average_precision, checkpoint, optimizer, shapes, train
from reference.config import override, preset
from reference.mask_rcnn import MaskRCNN
from reference.parameters import initial_parameters
from reference.structures import Stages, Target

# %% [markdown]
# The preset `tiny` learns shapes in four minutes. One minute is all we have, so here is a smaller
# one still. `override` changes one field of a configuration at a time:

# %%
tiny = preset("tiny")
small = tiny
rows = {}
for change in exercise.SETTINGS:
    small = override(small, change)
    field, _, value = change.partition("=")
    part, _, name = field.partition(".")
    rows[field] = [getattr(getattr(tiny, part), name), value]
draw.table(rows, ["field", "tiny", "here"])


def new_model(config):
    """A model with random weights, and the generator that drew them."""
    generator = np.random.default_rng(0)
    return MaskRCNN(config, initial_parameters(config, generator)), generator


model, _ = new_model(small)
draw.say(f"Its weights are random. {model}.")

# %% [markdown]
# ## Two curves, one upon the other
#
# Forty steps of two images each, by NumPy and by PyTorch. Both start from the same weights and see
# the same images. Chance enters a step in one place, when anchors and RoIs are sampled, and both
# get the same random numbers for it. Everything else they compute on their own: forward, five
# losses, backward, clipping, AdamW. Everything is in float64.

# %%
pairs = list(training.train(small, 40, batch_size=2))
by_numpy = np.array([list(pair.numpy.values()) for pair in pairs])  # [steps, losses]
by_torch = np.array([list(pair.torch.values()) for pair in pairs])

# %% [markdown]
# And once more by NumPy alone, with one tiny change: *one* weight of the first convolution is moved
# to the next number that float64 can hold.

# %%
twin, generator = new_model(small)
kernel = twin.parameters["backbone.conv1.weight"].copy()
kernel.flat[0] = np.nextafter(kernel.flat[0], np.inf)
twin.parameters |= {"backbone.conv1.weight": kernel}
again = train.train(twin, train.shape_batches(0, 2), iterations=40, generator=generator)
by_nudged = np.array([list(step.losses.values()) for step in again])


# %%
def distance(losses):
    """The largest relative difference of the five losses from NumPy's, for each step."""
    return np.abs(losses / by_numpy - 1).max(axis=1)


steps = np.arange(1, 41)
tolerance = MODEL["float64"]
shown, (above, below) = draw.figure(2, 1, size=(8, 6.4), height_ratios=(3, 2))
above.plot(steps, by_numpy.sum(axis=1), color=draw.SERIES[1][0], alpha=0.5, linewidth=8)
above.plot(steps, by_torch.sum(axis=1), color="black", linewidth=1.4)
above.lines[0].set_label("NumPy")
above.lines[1].set_label("PyTorch")
above.set(title="the sum of the five losses", xlabel="step", ylabel="loss, no unit", ylim=(0, None))
far = {
    "PyTorch": distance(by_torch),
    "NumPy, one weight moved by its last bit": distance(by_nudged),
}
# A logarithmic axis has no 0.
far = {name: np.maximum(values, 1e-17) for name, values in far.items()}
draw.curve(
    below, steps, far, "how far from NumPy", xlabel="step", ylabel="relative difference, no unit"
)
below.axhline(tolerance, color=draw.QUIET, linestyle=":")
below.text(40, 1.6 * tolerance, "tolerance of the project", ha="right", color=draw.QUIET)
below.set(yscale="log", ylim=(3e-17, 1e-7))
below.lines[0].set_color("black")
below.legend(loc="upper left", ncols=2)
above.legend()
draw.show(
    shown,
    "Above: a broad pale line, the loss of NumPy over 40 steps, and a thin black one, that of"
    " PyTorch, exactly in its middle. Both jump up and down and fall. Below: their relative"
    " difference, which starts at 1e-16 and stays below 1e-11. That of NumPy with one weight moved"
    " by its last bit rises too, to somewhat less.",
)

# %% [markdown]
# The curves jump because every step sees other images. They jump *together*, and to see any
# difference one has to look at its logarithm. It starts at the rounding error of float64, about
# $10^{-16}$.
#
# ### Check: every loss of every step

# %%
names = list(pairs[0].numpy)
rows = [
    report.check(f"{name}, {len(pairs)} steps", mine, {"PyTorch": theirs}, tolerance)
    for name, mine, theirs in zip(names, by_numpy.T, by_torch.T, strict=True)
]
worst = max(pair.difference for pair in pairs)
assert worst < tolerance
draw.say(f"No loss of any step differs by more than {tolerance:g} of its value.")
report.Report.of("NumPy against PyTorch, float64", rows)

# %% [markdown]
# ## Why the distance grows
#
# The two never disagree about what to compute, but they add in another order, and in floating point
# $(a + b) + c$ is not quite $a + (b + c)$. So they differ in the last bit from the first step on. A
# step is a function of the weights, and it stretches differences: nearby weights give a slightly
# different gradient, so the next weights lie slightly further apart. Forty steps later the last
# bit has become hundreds or thousands of last bits, depending on the processor.
#
# Is that all, or does PyTorch make some small mistake of its own? This is what the second curve is
# for. It is NumPy against NumPy, and it grows too, from a single last bit. PyTorch may lie above
# it. It rounds in its own way in every step, and not in one weight of the first. And AdamW divides
# a gradient by its own size. Where all terms of a gradient cancel, rounding is all that is left of
# it, and AdamW enlarges it.

# %%
late = {name: np.exp(np.log(values[-10:]).mean()) for name, values in far.items()}
bits = {name: value / 1.1e-16 for name, value in late.items()}
other, nudged = bits.values()
assert min(other, nudged) > 10 and 0.01 < other / nudged < 100
draw.say(
    "In the last ten steps both distances are, on average, more than ten times the last bit, and"
    " less than a hundred times each other."
)

# %% [markdown]
# It follows that nobody can promise the same weights at the end of a long training, not even with
# the same program on another processor. What can be promised is each *single* step, and that is
# what the tests of this project do. In float32 the distance starts a billion times higher. There
# comes a step in which two proposals, or two anchors, swap their places, and from there on the
# curves go separate ways, each as good as the other.

# %% [markdown]
# ## The loop
#
# This is all of it:

# %%
draw.source(train.train)
draw.source(train.step)

# %% [markdown]
# One thing in it is new, the *learning rate*: how far a step goes. It changes during the training.

# %%
draw.source(optimizer.learning_rate)

# %% [markdown]
# Three rules, in this order:
#
# 1. **Linear scaling.** Twice as many images, twice the rate [Large Minibatch SGD §2.1]. The
#    gradient is a mean over images, and a mean over more of them is more reliable.
# 2. **Warm-up.** The rate rises from almost 0 during the first steps. In them the network changes
#    fast, so a gradient is soon out of date, and the optimizer's running means are still empty
#    [Large Minibatch SGD §2.2].
# 3. **Schedule.** Later the rate falls, in steps or along a cosine. Each batch pulls the weights
#    somewhere else, and the smaller the rate, the less they are thrown about.

# %%
paper, torchvision = preset("paper_r50_fpn").optimizer, preset("torchvision_r50_fpn").optimizer
whole = 160_000
shown, (left, middle, right) = draw.figure(1, 3, size=(10, 3.3))
rates = [optimizer.learning_rate(small.optimizer, i, 120, 1) for i in range(120)]
left.plot(range(120), rates, color=draw.SAMPLE)
left.set(title="here: 120 steps, AdamW", xlabel="step", ylabel="learning rate, no unit")
iterations = np.arange(0, whole, 100)
rates = [optimizer.learning_rate(paper, i, whole, 16) for i in iterations]
middle.plot(iterations / 1000, rates, color=draw.SAMPLE)
middle.set(title="paper: SGD, 16 images", xlabel="step, thousands", ylabel="learning rate, no unit")
iterations = np.arange(0, 1400, 2)
begin = {
    name: [optimizer.learning_rate(settings, i, whole, 16) for i in iterations]
    for name, settings in {"paper's preset": paper, "torchvision": torchvision}.items()
}
draw.curve(
    right,
    iterations,
    begin,
    "two warm-ups",
    xlabel="step",
    ylabel="learning rate, no unit",
    markers=False,
)
for axes in (left, middle, right):
    axes.set_ylim(bottom=0)
draw.show(
    shown,
    "Three plots of the learning rate. Left, this notebook: up during ten steps, level, and two"
    " drops to a fifth each. Middle, the paper: level, and one drop to a tenth after three quarters"
    " of 160 thousand steps. Right, the first 1400 steps: one warm-up starts at a third, the other"
    " near 0.",
)

# %% [markdown]
# ## One image, learned by heart
#
# The first thing to try with a new model is not a data set but *one* image. If it cannot learn that
# by heart, something is broken, and it takes seconds to find out.

# %%
image, *objects = shapes.sample(seed=1, index=46, height=64, width=64)
target = Target(*objects)
batches = itertools.repeat(([image], [target]))
learner, generator = new_model(small)
history, seen, asked = [], {}, {}


def look_at(count):
    """Keep what the model detects after `count` steps, and the RoIs: objects, all, box loss."""
    record = Stages()
    losses = learner.losses([image], [target], None, record, np.random.default_rng(1))
    asked[count] = np.count_nonzero(record.roi_labels[0]), len(record.roi_labels[0]), losses["box"]
    seen[count] = learner.detect([image])[0]


look_at(0)
for step in train.train(learner, batches, iterations=120, generator=generator):
    history.append(step)
    if len(history) in (20, 60, 120):
        look_at(len(history))


# %%
def mask_ap(found):
    """The mask AP of the detections in this one image."""
    return average_precision.summary([target], [found], "mask")["AP"]


shown, row = draw.figure(1, 4, size=(10, 3.1))
for axes, (count, found) in zip(row, seen.items(), strict=True):
    sure = np.flatnonzero(found.scores > 0.5)
    draw.image(axes, image, f"{count} steps: {len(sure)} objects")
    for i in sure[::-1]:
        draw.outline(axes, found.masks[i])
        if len(sure) < 6:
            name = f"{shapes.CLASS_NAMES[found.labels[i] - 1]} {found.scores[i]:.2f}"
            style = {"bbox": {"facecolor": "white", "linewidth": 0, "pad": 1}, "fontsize": 8}
            x, y = found.boxes[i].reshape(2, 2).mean(axis=0)
            axes.text(x, y, name, ha="center", va="center", **style)
    axes.set(ylabel="", yticks=[])
draw.show(
    shown,
    "One image of a triangle, a rectangle and a disc, four times. Without training no object is"
    " found. After 20 steps many ragged outlines lie over each other, after 60 the right objects"
    " appear with some twins, after 120 exactly three with clean outlines and scores near one.",
    colours=256,
)
draw.table(
    {
        count: [np.count_nonzero(found.scores > 0.5), f"{mask_ap(found):.1f}"]
        for count, found in seen.items()
    },
    ["steps", "detections above one half", "mask AP"],
)

# %% [markdown]
# Where does it start? Before the first step the model knows nothing, and its losses say so. A yes
# or no question that is answered with probability one half costs $\ln 2$, and a choice among three
# classes and background $\ln 4$:

# %%
first = history[0].losses
draw.table(
    {
        "rpn_objectness": [f"{first['rpn_objectness']:.3f}", f"ln 2 = {np.log(2):.3f}"],
        "class": [f"{first['class']:.3f}", f"ln 4 = {np.log(4):.3f}"],
        "mask": [f"{first['mask']:.3f}", f"ln 2 = {np.log(2):.3f}"],
    },
    ["loss", "in the first step", "of somebody who knows nothing"],
)
for name, value in (("rpn_objectness", 2), ("class", 4), ("mask", 2)):
    assert abs(first[name] - np.log(value)) < 0.05, name

# %% [markdown]
# Anything else in the first step is a hint that something is wrong: a class loss of 4 says that the
# model is sure of the wrong classes before it has seen one.

# %%
curves = {name: np.array([float(step.losses[name]) for step in history]) for name in names}
shown, (left, right) = draw.figure(1, 2, size=(10, 3.8))
for axes, chosen in ((left, ("rpn_objectness", "class", "mask")), (right, ("rpn_box", "box"))):
    some = {name: curves[name] for name in chosen}
    draw.curve(
        axes, range(1, 121), some, " and ".join(chosen), xlabel="step", ylabel="loss, no unit"
    )
left.set_title("what it is, and where")
right.set_title("how the boxes should move")
draw.show(
    shown,
    "Left: objectness falls to near 0 within 15 steps, the class loss unsteadily, the mask loss"
    " slowly and steadily. Right: the box loss rises during the first 15 steps to more than twice"
    " its start, then falls. The box loss of the RPN stays near 0.",
)

# %% [markdown]
# **A loss that rises is not always bad.** Why does the box loss rise? It is a mean over all sampled
# RoIs, and only those that are objects pay:

# %%
draw.table(
    {
        count: [objects, sampled, f"{box:.2f}", f"{box * sampled / objects:.1f}"]
        for count, (objects, sampled, box) in asked.items()
    },
    ["steps", "RoIs that are objects", "RoIs sampled", "box loss", "box loss per object's RoI"],
)
assert asked[20][0] >= 2 * asked[0][0]

# %% [markdown]
# At the start few RoIs are objects, and three of these are the true boxes themselves, which need no
# correction. As the RPN learns, its proposals take their place, and suddenly there is something to
# correct. In this network one part chooses the questions that another part has to answer. Compare
# detections, not losses.

# %% [markdown]
# ## Three learning rates
#
# The same image, the same weights, three rates: a tenth of the one above, the one above, and forty
# times as much. What goes wrong first?


# %%
def start(rate):
    """Train 30 steps at another rate: losses [30, 5], norms, relative moves, last detections."""
    model, generator = new_model(override(small, f"optimizer.learning_rate={rate}"))
    run = train.train(model, batches, iterations=120, generator=generator)
    losses, norms, moves, weights = [], [], [], model.parameters
    for step in itertools.islice(run, 30):
        losses.append([float(value) for value in step.losses.values()])
        norms.append(step.norm)
        moved = {name: model.parameters[name] - weights[name] for name in step.gradients}
        moves.append(optimizer.clip(moved, 0)[1] / optimizer.clip(weights, 0)[1])
        weights = model.parameters
    return np.array(losses), norms, moves, model.detect([image])[0]


runs = {f"{rate:g}": start(rate) for rate in (0.0005, 0.005, 0.2)}

# %%
shown, axes = draw.figure(1, 5, size=(10, 3.3))
for i, (panel, name) in enumerate(zip(axes, names, strict=True)):
    some = {rate: losses[:, i] for rate, (losses, *_) in runs.items()}
    draw.curve(
        panel, range(1, 31), some, name, xlabel="step", ylabel="loss, no unit", markers=False
    )
    panel.set(yscale="log", ylim=(5e-4, 200))
    panel.minorticks_off()
    for level in (0.001, 0.01, 0.1, 1, 10, 100):
        panel.axhline(level, color=draw.QUIET, linewidth=0.3)
    if i:
        panel.set(ylabel="", yticks=[])
draw.legend(shown)
draw.show(
    shown,
    "Five panels, one per loss, each with three lines on a logarithmic axis. At the lowest rate all"
    " lines stay almost level. At the middle rate objectness and mask loss fall. At the highest"
    " rate the box loss of the RPN, the class loss and the box loss shoot up within five steps and"
    " come back only partly.",
)

# %%
draw.table(
    {
        rate: [
            f"{max(moves):.1%}",
            f"{max(norms):.0f}",
            f"{losses[:, 2].max():.1f}",
            f"{losses[-1].sum():.1f}",
            np.count_nonzero(found.scores > 0.5),
            f"{mask_ap(found):.1f}",
        ]
        for rate, (losses, norms, moves, found) in runs.items()
    },
    [
        "rate",
        "longest step, part of all weights",
        "largest norm of the gradient",
        "largest class loss",
        "sum of the losses, step 30",
        "detections above one half",
        "mask AP",
    ],
)
low, good, high = runs.values()
assert high[0][:6, 2].max() > 3 * high[0][0, 2] and good[0][:, 2].max() < 2 * good[0][0, 2]
assert high[0][-1].sum() < good[0][-1].sum() and mask_ap(high[3]) < mask_ap(good[3])

# %% [markdown]
# AdamW divides each gradient by its usual size, so a step moves *every* weight by about the rate,
# however small its gradient is. That makes a rate easy to judge: compare it with the weights, as
# the second column does. One or two in a hundred is brisk. When a third of the weights is replaced
# in one step, the next gradient belongs to another network. Limiting the norm of the gradient does
# not help, since AdamW divides by it again.
#
# **What breaks first** are the answers without a limit: the class and box outputs, and the boxes of
# the RPN. A probability is wrong by 1 at most, but the loss is its logarithm. The mask loss hardly
# shows it, because it looks only at objects, whose class it is told.
#
# **The sum of the losses does not show it in the end.** After 30 steps it is even the lowest of the
# three. The network has found an answer that costs little and needs no eyes: *nothing is here*. The
# last two columns give it away.

# %% [markdown]
# With SGD, as in the paper, the same mistake looks different. Its step is proportional to the
# gradient, so larger losses make larger steps, and the weights leave for infinity within a dozen
# of them. A loss that becomes NaN is the most common sign of a rate that is too high
# ([Failure zoo](15_failure_zoo.ipynb)).

# %% [markdown]
# ## After the training: where it still fails
#
# The model in `data/tiny` has had 1200 steps of four images. Let it look at images that it has not
# seen, and sort every true object by what became of it:
#
# * **found**: a detection of its class, with a score above one half, covers it (mask IoU of one
#   half or more);
# * **other class**: such a detection, but of another class;
# * **missed**: none.

# %%
grown = checkpoint.load("data/tiny")
fates = []


def fate(overlap, right):
    """What became of an object, from its IoU with all detections and which are of its class."""
    if overlap[right].max(initial=0) >= 0.5:
        return "found"
    return "other class" if overlap[~right].max(initial=0) >= 0.5 else "missed"


cases = {}
for index in range(24):
    picture, *objects = shapes.sample(seed=1, index=index)
    truth, found = Target(*objects), grown.detect([picture])[0]
    cases[index] = picture, truth, found
    against = average_precision.compare(truth, found, "mask")
    sure = found.scores > 0.5
    for i, label in enumerate(truth.labels):
        result = fate(against.iou[sure, i], found.labels[sure] == label)
        fates.append((result, label, truth.masks[i].sum()))

results = ("found", "other class", "missed")


def count(condition):
    """How many of the objects that satisfy a condition had each fate."""
    return [sum(f[0] == result and bool(condition(f)) for f in fates) for result in results]


kinds = {name: lambda f, c=c: f[1] == c for c, name in enumerate(shapes.CLASS_NAMES, 1)}
sizes = {
    "below 400 pixels": lambda f: f[2] < 400,
    "400 pixels or more": lambda f: f[2] >= 400,
}
every = {"all": lambda _: True}
draw.table(
    {name: count(test) for name, test in (every | kinds | sizes).items()}, ["objects", *results]
)

# %%
shown, row = draw.figure(1, 5, size=(10, 3.4))
for axes, (index, i) in zip(row, ((7, 0), (20, 3), (12, 1), (21, 4), (9, 1)), strict=True):
    picture, truth, found = cases[index]
    overlap = average_precision.compare(truth, found, "mask").iou[:, i] * (found.scores > 0.5)
    best = overlap.argmax()
    name = shapes.CLASS_NAMES[found.labels[best] - 1]
    answer = f"{name} {found.scores[best]:.2f}, IoU {overlap[best]:.2f}"
    title = f"a {shapes.CLASS_NAMES[truth.labels[i] - 1]}\n"
    draw.image(axes, picture, title + (answer if overlap[best] > 0.1 else "nothing"))
    draw.outline(axes, truth.masks[i], draw.ASKED, label="the object")
    if overlap[best] > 0.1:
        draw.outline(axes, found.masks[best], draw.USED, label="what covers most of it")
    x, y = truth.boxes[i].reshape(2, 2).mean(axis=0).clip(34, 94)
    axes.set(xlim=(x - 34, x + 34), ylim=(y + 34, y - 34), yticks=[], ylabel="")
draw.legend(shown)
draw.show(
    shown,
    "Five true outlines in black and detections in vermilion. A disc with another object on it is"
    " half covered. A rectangle on a disc is part of the disc's mask. A small rectangle is called a"
    " triangle. A triangle on top of another has a ragged mask. A small green disc beside a green"
    " rectangle has none.",
    colours=256,
)

# %% [markdown]
# Small objects fail more often than large ones. Beyond that, most failures have to do with one
# object on top of another, or beside one of its colour. Two objects that share most of their box
# share most of their features too, and must share them with whatever else is in the box.

# %% [markdown]
# ## Exercise
#
# Find the learning rate that learns the image above in the fewest steps. Learned means here: the
# mean of the last five mask losses is below one half. The checker trains at your rate, at a quarter
# of it and at four times as much, up to 20 steps each, which takes some seconds. A rate that is at
# least as fast as both, give or take a step, is right.

# %%
my_rate = None  # your number

draw.say(exercise.check(my_rate))

# %% [markdown]
# **Remember.**
#
# * NumPy and PyTorch take the same steps. Rounding makes them part, slowly, and it makes NumPy part
#   from itself just as fast.
# * The rate rises during the warm-up, is proportional to the number of images, and falls later.
# * Learn one image by heart before you learn a data set. The first losses should be those of
#   somebody who knows nothing.
# * A loss may rise because a better part of the network asks harder questions. Compare detections.
# * A rate that is too high shows in the class and box losses first, and in what is detected.
#
# **Next.** [Average precision](10_average_precision.ipynb): how detections are compared.
