# ---
# jupyter:
#   cpu_seconds: 42
# ---

# %% [markdown]
# # 12. The same weights, three conventions
#
# **The question.** Two people implement Mask R-CNN from the paper, and both are right. They load
# the same weights and show them the same image. Why do they get different boxes and masks?
#
# **Time.** 30 minutes to read, half a minute to run.
# **Data.** Synthetic images of 151 x 190 pixels, and the small trained model in `data/tiny`.
# **Before.** [RoIAlign](05_roi_align.ipynb) for the half pixel, [masks](07_masks.ipynb) for
# pasting, and [the RPN](03_rpn.ipynb) for the weights of the deltas.

# %%
import figures as draw
import numpy as np
import torch
from exercises import conventions as exercise
from exercises.conventions import first_difference
from IPython.display import display
from matplotlib.colors import to_rgb

import accelerated
from accelerated.verify.equality import MODEL
from accelerated.verify.report import Report, check
from reference import average_precision, boxes, checkpoint, config, shapes
from reference.mask_rcnn import MaskRCNN
from reference.structures import Stages, Target

# %% [markdown]
# A *convention* is a choice that the paper does not make, and that everybody who writes code must
# make. Each one is a field of `reference/config.py`, which we call a *switch*. The weights know
# nothing of it: the same numbers can be run under any setting. But they were trained under one.
#
# We flip one switch at a time, leave the weights as they are, and look.

# %%
model = checkpoint.load("data/tiny")


def flipped(*switches):
    """The same weights, with some fields of the configuration changed."""
    settings = model.config
    for switch in switches:
        settings = config.override(settings, switch)
    return MaskRCNN(settings, model.parameters)


def outputs(network, image):
    """Everything that one detection computes, {stage: value}, and what comes out."""
    record = Stages()
    [found] = network.detect([image], record=record)
    return record.computed() | vars(found)


# %% [markdown]
# ## One triangle, seven switches
#
# The picture to remember. Each column is the same weights on the same image. Orange pixels belong
# to the triangle under one setting, and not under the other.

# %%
IN_BOTH_HEADS = {
    "RoIPool": ["operator=roi_pool"],
    "RoIWarp": ["operator=roi_warp"],
    "no half pixel": ["aligned=false"],
    "every cell sampled": ["sampling_ratio=0"],
}
SWITCHES = {
    name: [f"{head}.pooler.{field}" for head in ("box_head", "mask_head") for field in fields]
    for name, fields in IN_BOTH_HEADS.items()
} | {
    "torchvision's pasting": ["mask_head.paste=torchvision"],
    "channels reversed": ["transform.channel_order=bgr"],
    "RPN weights of 10, 5": ["rpn.box_weights=[10, 10, 5, 5]"],
    "box weights of 1": ["box_head.box_weights=[1, 1, 1, 1]"],
    "rounded anchors": ["anchors.rounding=true"],
}


def partners(before, after):
    """Pair what two outputs found of one object -> rows of both, and how many remain alone."""
    overlap = boxes.iou(before["boxes"], after["boxes"])
    overlap = overlap * (before["labels"][:, None] == after["labels"])
    sure = before["scores"] > 0.5
    alike = sure & (overlap.max(axis=1, initial=0) > 0.5)
    return np.flatnonzero(alike), overlap.argmax(axis=1)[alike], (sure & ~alike).sum()


def draw_change(axes, before, after, title):
    """Draw a mask as it was, and the pixels that are new, or lost: these in a chequered pattern."""
    pixels = np.where(before, 0.95, 0.3)[..., None].repeat(3, axis=2)
    chequered = np.indices(before.shape).sum(axis=0) % 2 == 0
    pixels[after & ~before | before & ~after & chequered] = to_rgb(draw.USED)
    draw.image(axes, pixels, f"{title}: {np.count_nonzero(before ^ after)}")


# %%
image = shapes.sample(1, 0, height=151, width=190)[0]
trained = outputs(model, image)
after = {name: outputs(flipped(*switches), image) for name, switches in SWITCHES.items()}
figure, axes = draw.figure(2, 4, size=(10, 5))
draw.image(axes[0, 0], image, "as it was trained")
draw.outline(axes[0, 0], trained["masks"][0], draw.ASKED)
new_scores = {}
for panel, name in zip(axes.ravel()[1:], list(SWITCHES)[:7], strict=True):
    [row, *_], [other, *_], _ = partners(trained, after[name])
    draw_change(panel, trained["masks"][row], after[name]["masks"][other], name)
    new_scores[name] = after[name]["scores"][other]
for panel in axes.ravel():
    panel.set(xlim=(24, 92), ylim=(134, 72))
draw.show(
    figure,
    "Eight pictures of one triangle. The first shows the image with the outline of the mask. In the"
    " other seven the mask is light. The pixels that one switch changes are orange, and chequered"
    " if they are lost. The titles count them: hundreds for RoIPool, RoIWarp and the half pixel, a"
    " rim for pasting, a handful for the number of samples.",
)
draw.say(
    f"The triangle stays a triangle in all of them. Its score, {trained['scores'][0]:.2f} as"
    f" trained, lies between {min(new_scores.values()):.2f} and {max(new_scores.values()):.2f}. A"
    " list of classes and scores looks as if nothing were wrong. The masks tell."
)

# %% [markdown]
# Without the half pixel, the triangle moves to the upper left. Every sample is taken half a
# *feature* pixel further to the lower right, so its content appears that much too far to the upper
# left. [Notebook 5](05_roi_align.ipynb) explains the convention. By how much should the mask move?


# %%
def centre(mask):
    """The mean position of a mask's pixels, (x, y)."""
    return np.argwhere(mask).mean(axis=0)[::-1] + 0.5


mask_only = outputs(flipped("mask_head.pooler.aligned=false"), image)
dx, dy = centre(mask_only["masks"][0]) - centre(trained["masks"][0])
scale = image.shape[1] / model.config.transform.max_size
draw.say(
    f"The triangle is pooled from P2, where half a feature pixel is 2 pixels of the network's input"
    f" and {2 * scale:.1f} of this image. With the half pixel missing in the mask head alone, the"
    f" centre of the mask moves by {dx:.1f} along x and {dy:.1f} along y, and the box stays."
)

# %% [markdown]
# ## All switches of three presets
#
# A *preset* is a full set of choices. Three of them reproduce torchvision, detectron2 and the paper
# with a ResNet-50 and a pyramid. These are the fields in which the three differ. The first part of
# a name is the stage.


# %%
def fields(values, prefix=""):
    """Flatten a nested configuration to {"rpn.nms_iou": 0.7, ...}."""
    flat = {}
    for name, value in values.items():
        inner = isinstance(value, dict)
        flat |= fields(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return flat


def written(value):
    """Write a value of a field with few digits."""
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(written, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


presets = ("torchvision_r50_fpn", "detectron2_r50_fpn", "paper_r50_fpn")
columns = [fields(config.to_dict(config.preset(name))) for name in presets]
ours = fields(config.to_dict(model.config))
different = {
    name: [column[name] for column in columns]
    for name in ours
    if len({written(column[name]) for column in columns}) > 1
}
draw.table(
    {name: [*map(written, row), written(ours[name])] for name, row in different.items()},
    ["field", "torchvision", "detectron2", "paper", "the trained model"],
)
draw.say(f"They differ in {len(different)} of {len(ours)} fields.")

# %% [markdown]
# None of these choices is wrong. But a model must be run with the choices of its training.
#
# ## Flip each of them alone
#
# Now we go through the table. Each field gets a value that the trained model does not have, from
# one of the three columns. Three groups are left out:
#
# * fields that only training reads: targets, losses, the optimizer and the counts for training,
# * `mean`, `std` and `pixel_scale`, which belong to the weights and go with the order of the
#   channels,
# * `background`, the class that comes first or last. It decides the shape of the last layers, so
#   the weights no longer fit, and the model refuses them:

# %%
try:
    flipped("background=last")
except ValueError as refusal:
    draw.say(f"`{str(refusal)[:120]} ...`")

# %%
IN_TRAINING = ("optimizer", "smooth_l1", "normalizer", "_train", "target", "matches")
OF_THE_WEIGHTS = ("mean", "std", "pixel_scale", "background")
tried = {}


def assignment(name, value):
    """Write a field and its value as `override` reads them."""
    return f"{name}={'null' if value is None else str(value).lower()}"


for name, values in different.items():
    if not any(word in name for word in IN_TRAINING) and name.split(".")[-1] not in OF_THE_WEIGHTS:
        tried[name] = assignment(name, next(value for value in values if value != ours[name]))
two = [shapes.sample(1, index, height=151, width=190)[0] for index in (0, 9)]
befores = [trained, outputs(model, two[1])]
afters = {name: [outputs(flipped(s), image) for image in two] for name, s in tried.items()}

# %% [markdown]
# For every object with a score above one half we look for the same object in the other output. Its
# box has moved by the largest change of a corner, and its mask has changed in so many pixels. The
# *first stage* is the first entry of the record that is not equal, bit for bit.


# %%
def compare(befores, afters):
    """Mean move of the boxes, mean and largest change of the masks in pixels, objects lost."""
    moved, changed, alone = [], [], 0
    for before, after in zip(befores, afters, strict=True):
        rows, others, lost = partners(before, after)
        moved += list(np.abs(before["boxes"][rows] - after["boxes"][others]).max(axis=1))
        changed += list((before["masks"][rows] ^ after["masks"][others]).sum(axis=(1, 2)))
        alone += lost
    return [f"{np.mean(moved):.2f}", f"{np.mean(changed):.1f}", max(changed), alone]


def first_stage(befores, afters):
    """The first stage that differs in any image."""
    firsts = [first_difference(*pair) for pair in zip(befores, afters, strict=True)]
    found = [name for name in befores[0] if name in firsts]
    return found[0] if found else None


firsts = {tried[name]: first_stage(befores, found) for name, found in afters.items()}
active = {name: found for name, found in afters.items() if firsts[tried[name]]}
HEADS = ["first stage that differs", "boxes moved, px", "masks changed, px", "at most", "lost"]
draw.table(
    {tried[n]: [firsts[tried[n]], *compare(befores, found)] for n, found in active.items()},
    ["switch", *HEADS],
)
quiet = ", ".join(f"`{switch}`" for switch, stage in firsts.items() if stage is None)
draw.say(f"Nothing at all changes with {quiet}.")

# %% [markdown]
# Read the table from the bottom up.
#
# * *Pasting* is the last step. No stage before it can notice.
# * A switch of the *mask head* changes masks and leaves the boxes alone, as the masks are computed
#   from the final boxes.
# * A switch of the *box head* moves the boxes, and the masks with them.
# * A switch of the *transform* changes the very first array, and then everything.
# * Some switches change a number and no result. `rpn.nms_score=logit` ranks by the logit instead of
#   the probability, which grows with it, so the order stays.
#
# And the silent ones? They need a case that did not occur here. `anchors.order` matters if a level
# has several sizes, `anchors.stride` if a map's side does not divide the image's,
# `backbone.stride_in_1x1` in a ResNet-50, whose blocks have such a layer, and `level_epsilon` for a
# box exactly at the bound of two levels. The rest is about boxes without area, or of exactly the
# smallest side. Silent on two images does not mean silent on all.

# %% [markdown]
# ## Check
#
# Flipping a switch must do the same in both implementations. Here are NumPy and PyTorch under every
# setting that changed something: boxes and scores, and the masks pixel by pixel.

# %%
fast = accelerated.load("data/tiny").double().eval()
fast.backend = "torch"
settings = {tried[name]: ([tried[name]], found[0]) for name, found in active.items()}
settings |= {name: (switches, after[name]) for name, switches in SWITCHES.items()}
rows, masks = [], {"NumPy": [], "torch": []}
for name, (switches, ours_found) in settings.items():
    fast.config = flipped(*switches).config
    [found] = fast.detect([image])
    both = np.column_stack([ours_found["boxes"], ours_found["scores"]])
    theirs = torch.column_stack([found.boxes, found.scores])
    rows.append(check(f"boxes and scores, {name}", both, {"torch": theirs}, MODEL["float64"]))
    masks["NumPy"].append(ours_found["masks"])
    masks["torch"].append(found.masks.numpy(force=True))
everything, theirs = (np.concatenate(part) for part in masks.values())
rows.append(check("masks of all settings", everything, {"torch": theirs}, 0))
display(Report.of("One switch at a time", rows))

# %% [markdown]
# ## What it costs: average precision
#
# A moved pixel may or may not matter for the score that papers report.
# [Average precision](10_average_precision.ipynb) (AP) compares all detections with the truth. We
# take the switches of the first picture, and two more.

# %%
samples = [shapes.sample(1, index, height=151, width=190) for index in range(12)]
truths = [Target(*sample[1:]) for sample in samples]


def precision(*switches):
    """AP of boxes, of masks and of the boundaries of masks, in percent."""
    network, kinds = flipped(*switches), ("box", "mask", "boundary")
    found = [network.detect([sample[0]])[0] for sample in samples]
    return [100 * average_precision.summary(truths, found, kind)["AP"] for kind in kinds]


scores = {"as it was trained": precision()}
scores |= {name: precision(*switches) for name, switches in SWITCHES.items()}
figure, axes = draw.figure(1, 2, size=(10, 4))
for panel, kind, column in zip(axes, ("boxes", "masks"), (0, 1), strict=True):
    values = {name: three[column] for name, three in scores.items()}
    lower = [name for name, ap in values.items() if ap < values["as it was trained"] - 5]
    draw.bars(panel, values, f"AP of {kind}", unit="AP, percent", marked=lower, form="{:.0f}")
axes[1].tick_params(labelleft=False)
draw.show(
    figure,
    "Two charts with a bar per switch, for boxes and for masks. Orange, hatched bars are more than"
    " five points below the model as it was trained: RoIPool, RoIWarp, the missing half pixel and"
    " both kinds of box weights. Pasting, sampling, channels and rounded anchors cost little.",
)

# %%
mask_ap = {name: three[1] for name, three in scores.items()}
order = sorted(SWITCHES, key=mask_ap.get)
draw.say(
    f"The masks score {mask_ap['as it was trained']:.0f} as trained. The costliest switches are"
    f" {', '.join(f'{name} ({mask_ap[name]:.0f})' for name in order[:5])}. The cheapest are"
    f" {', '.join(f'{name} ({mask_ap[name]:.0f})' for name in order[5:])}. On {len(samples)} images"
    " a difference of a point or two is noise."
)

# %% [markdown]
# Be careful with what this says. It does *not* say that RoIWarp or the old half pixel is so much
# worse. The weights were trained with RoIAlign and the half pixel, and every other choice surprises
# them. A model that is trained with a convention learns to live with it, as far as it can.
# [The ablation](../docs/ablation.md) trains a model for each RoI operator.
#
# Nor does it say that the order of the channels does not matter. The colours of these shapes are
# random, and those of photographs are not.
#
# The two box weights show this best. The head learned to predict deltas that are multiplied by 10
# and 5. Dividing them by 1 moves each box ten times too far. The RPN's deltas were learned with 1,
# and dividing them by 10 hardly moves the anchors. Both are one number in a configuration, and the
# classes still look right.

# %% [markdown]
# ## Three conventions
#
# Now all at once: the same weights with every switch of the table set as in torchvision, as in
# detectron2, and as in the paper. Only the order of the channels stays, as it belongs to the
# weights. The *boundary* AP counts what lies near the outline alone, which no large inside can
# outweigh [Boundary IoU, Cheng et al. 2021].

# %%
whole = {
    name: [assignment(field, column[field]) for field in tried if "channel" not in field]
    for name, column in zip(("torchvision", "detectron2", "the paper"), columns, strict=True)
}
rows = {"as it was trained": scores["as it was trained"]}
rows |= {f"all of {name}": precision(*switches) for name, switches in whole.items()}
alone = [f"{head}.pooler.aligned=false" for head in ("box_head", "mask_head")]
rows |= {f"{switch} alone": precision(switch) for switch in alone}
draw.table(
    {name: [f"{ap:.1f}" for ap in three] for name, three in rows.items()},
    ["conventions", "box AP", "mask AP", "boundary AP"],
)
best, torchvision, detectron2, _, box_half, mask_half = rows.values()
assert all(abs(a - b) < 3 for a, b in zip(best, detectron2, strict=True))
assert torchvision[2] < 2 and mask_half[2] < 2 and mask_half[0] == best[0]
draw.say(
    f"Under detectron2's conventions the model is as good as it was. Under torchvision's, the"
    f" boundary AP falls from {best[2]:.0f} to {torchvision[2]:.1f}. Nearly all of that is the half"
    f" pixel. In the box head alone it costs {best[0] - box_half[0]:.0f} points of box AP, in the"
    f" mask head alone {best[1] - mask_half[1]:.0f} points of mask AP and the whole boundary."
)

# %% [markdown]
# This holds for weights that were trained with the half pixel. A shift that is the same for every
# object can be learned: weights that were trained without it draw everything half a cell further to
# the lower right, and nobody notices until they are run under the other convention.

# %% [markdown]
# ## What the paper leaves open
#
# Here is what the paper says [Mask R-CNN §3, §3.1] where implementations part, and what it does not
# say. The last two columns are read from the presets.

# %%
OPEN = {
    "mask_head.pooler.aligned": ("bilinear samples, no rounding", "is a cell's centre at 0 or 1/2"),
    "mask_head.pooler.sampling_ratio": ("four samples per bin; it hardly matters", "in large bins"),
    "mask_head.target": ("the part of the mask in the RoI", "soft or not; from pixels or outlines"),
    "mask_head.paste": ("resized to the RoI, 1 from 0.5 on", "between which pixels"),
    "transform.size_rounding": ("the shorter side becomes 800", "how is the other one rounded"),
    "transform.interpolation": ("images are resized", "by which filter"),
    "anchors.rounding": ("anchors as in the pyramid's paper", "may a corner be a fraction"),
    "box_head.pooler.level_epsilon": ("the level by log2 of the size", "which, exactly at a bound"),
    "box_head.smooth_l1_beta": ("the loss of Fast R-CNN", "where it bends, for these weights"),
}
draw.table(
    {name: [*text, *map(written, different[name][:2])] for name, text in OPEN.items()},
    ["field", "the paper says", "open", "torchvision", "detectron2"],
)

# %% [markdown]
# The mask's target has three conventions. It is the mean of the mask's pixels in each cell
# (`soft`), or that mean rounded to 0 or 1 (`binary`), or the annotation's outline is drawn anew in
# the cells of the RoI, without the pixels in between (`polygon`).
# [Notebook 7](07_masks.ipynb) compares them.
#
# The weights 10 and 5 do not stand in the paper either. Fast R-CNN divides its targets by their
# standard deviations [Fast R-CNN §2.3], which were about a tenth and a fifth. The numbers passed
# from code to code. The [specification](../docs/SPEC.md) lists every such detail with its source.
#
# So two implementations can both follow the paper and differ. If you must find out where, do what
# we did here. Give both the same weights and the same image, record every stage, and look at the
# *first* one that differs. What comes later differs because of it.

# %% [markdown]
# ## Exercise
#
# Five pairs of outputs. On one side is the model as it was trained, on the other the same weights
# with one switch flipped. Name the switch. These are the candidates:

# %%
draw.say("\n".join(f"* `{name}`" for name in exercise.CHOICES))

# %%
pairs, scene = exercise.pairs(), exercise.image()
figure, axes = draw.figure(2, 3, size=(10, 6.6))
draw.image(axes[0, 0], scene, "the image")
rows = {}
for i, (panel, (before, changed)) in enumerate(zip(axes.ravel()[1:], pairs, strict=True)):
    mine, theirs, lost = partners(before, changed)
    union = [
        found["masks"][chosen].any(axis=0)
        for found, chosen in zip((before, changed), (mine, theirs), strict=True)
    ]
    draw_change(panel, *union, f"pair {i}")
    by = np.abs(before["scores"][mine] - changed["scores"][theirs]).max()
    rows[i] = [*compare([before], [changed]), f"{by:.2f}", len(changed["scores"])]
for panel in axes.ravel():
    panel.set(xlim=(12, 160), ylim=(149, 0))
draw.show(
    figure,
    "An image with six objects, and five panels with the masks of five of them. In each, the pixels"
    " that one switch changes are orange, chequered if they are lost. In pair 1 all masks shift to"
    " the upper left, in pair 4 they gain a rim of one pixel, in the others single edges move.",
)
draw.table(rows, ["pair", *HEADS[1:], "scores changed, at most", "detections"])
draw.say(f"As it was trained, the model finds {len(pairs[0].before['scores'])}.")

# %% [markdown]
# Pictures and numbers leave two or three candidates for most pairs. `pairs[0].before` and
# `pairs[0].after` hold all stages of both sides, as in [notebook 0](00_one_image.ipynb):
# `pairs[0].after["proposals"]`, for example. `first_difference(*pairs[0])` names the first that
# differs. It narrows the choice, and the picture does the rest.

# %%
my_switches = None  # your answer: a list of five names, copied from the candidates

draw.say(exercise.check(my_switches))

# %% [markdown]
# **Remember.**
#
# * The weights do not say under which conventions they were trained. The configuration must.
# * Most switches move nothing or a rim of pixels. The RoI operator, the half pixel and the weights
#   of the boxes break a model.
# * Classes and scores hide such mistakes, and boxes and masks show them. Look at a picture.
# * To find a difference, compare stage by stage, and mend the first that differs.
#
# **Next.** [What came before](13_before_mask_rcnn.ipynb): DeepMask, SharpMask, and Fast and Faster
# R-CNN.
