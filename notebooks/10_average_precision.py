# ---
# jupyter:
#   cpu_seconds: 16
# ---

# %% [markdown]
# # 10. Average precision, match by match
#
# **The question.** A paper reports a mask AP of `35.7` percent [Mask R-CNN, table 1]. What was
# counted to get this number, and which mistakes of a model change it?
#
# **Time.** Thirty minutes to read, a quarter of a minute to run.
# **Data.** One microscope picture of cell nuclei, painted shapes, and the small model that was
# trained on such shapes.
# **Before.** [Pixels and boxes](01_pixels_and_boxes.ipynb): the IoU of two boxes. And that a
# detection is a box, a mask, a class and a score.

# %%
import json
from pathlib import Path

import figures as draw
import numpy as np
from exercises import average_precision as exercise
from PIL import Image

from accelerated.data import rle
from accelerated.engine import evaluate
from accelerated.verify.report import Report, check
from reference import average_precision as ap
from reference import checkpoint, shapes
from reference.structures import Detections, Target

# %% [markdown]
# To understand a score one needs a detector that makes mistakes. Here is one: our small model knows
# discs, rectangles and triangles of many colours, and has never seen a nucleus. It is asked about a
# picture of nuclei all the same, and whatever it finds counts as a nucleus.

# %%
model = checkpoint.load("data/tiny")
image = np.asarray(Image.open("data/nuclei.png"))
annotations = json.loads(Path("data/nuclei.json").read_text())["annotations"]


def decoded(annotation):
    """Return the mask [H, W] of an annotation."""
    mask = np.zeros(image.shape[:2], bool)
    rle.decode_into(np.array(annotation["segmentation"]["counts"]), mask)
    return mask


corners = np.array([annotation["bbox"] for annotation in annotations], float)
corners[:, 2:] += corners[:, :2]  # COCO stores x, y, width and height
masks = np.stack([decoded(annotation) for annotation in annotations])
truth = Target(corners, np.ones(len(masks), int), masks)
[found] = model.detect([image])
classes, found.labels = found.labels, np.ones(len(found.labels), int)
draw.say(
    f"The picture shows {len(truth.boxes)} nuclei. The model reports {len(found.scores)} objects,"
    f" with scores from {found.scores[0]:.2f} down to {found.scores[-1]:.2f}."
)

# %% [markdown]
# ## The ladder
#
# Here is the whole method in one picture. Go through the detections from the highest score down,
# one rung of the ladder after the other. If a detection covers a nucleus by half or more, and no
# detection above it has taken this nucleus, a line ties it to the nucleus: it is *right*. Otherwise
# it is *wrong*. After each rung, note two shares:
#
# $$ \text{precision} = \frac{\text{right ones so far}}{\text{rungs so far}}, \qquad
#    \text{recall} = \frac{\text{right ones so far}}{\text{nuclei in the picture}} $$
#
# The curve through these points is drawn on the right, and AP is the area under it.

# %%
RIGHT, WRONG = draw.SAMPLE, draw.USED
MARKS = {True: ("o", RIGHT, "right"), False: ("x", WRONG, "wrong")}
overlaps = ap.compare(truth, found, "mask")
at_50 = ap.matches([overlaps], 1, thresholds=[0.5])
# Letters for the nuclei: first those that are found, in the order of the rungs.
order = [g for g in at_50.truths[0] if g >= 0]
order += [g for g in range(len(masks)) if g not in order]
letter = dict(zip(order, "ABCDEFGHIJKLMNOPQ", strict=True))
negative, bottom = 255 - image // 2, len(found.scores) - 1


def ladder(axes, matched, count):
    """Draw the best `count` detections as rungs, and lines from the right ones to their nuclei."""
    at = dict(zip(letter, np.linspace(0, bottom, len(letter)), strict=True))
    for g, name in letter.items():
        axes.text(1.75, at[g], name, ha="center", va="center", fontsize=9, fontweight="bold")
    for i, (score, g) in enumerate(zip(matched.scores[:count], matched.truths[0], strict=False)):
        marker, colour, _ = MARKS[bool(g >= 0)]
        axes.barh(i, score, color=colour, alpha=1 if g >= 0 else 0.45, height=0.7)
        axes.plot(-0.09, i, marker, color=colour, markersize=4.5)
        axes.plot([score, 1.66], [i, at.get(g, np.nan)], color=RIGHT, linewidth=1)
    axes.set(xlim=(-0.15, 1.85), ylim=(bottom + 0.7, -0.7), xticks=[0, 0.5, 1])
    axes.set_yticks(range(0, bottom + 1, 2), range(1, bottom + 2, 2), fontsize=8)


def plane(axes, matched, count):
    """Draw precision and recall after each of the best `count` rungs, and AP as an area."""
    curve, right = ap.precision_recall(matched), matched.truths[0] >= 0
    axes.fill_between(ap.RECALLS, curve.interpolated[0], color="#D8E8F3", label="AP, the area")
    recall, precision = curve.recall[0, :count], curve.precision[0, :count]
    axes.plot(recall, precision, color=draw.QUIET, linewidth=0.8, zorder=1)
    for is_right, (marker, colour, name) in MARKS.items():
        at = recall[(right == is_right)[:count]], precision[(right == is_right)[:count]]
        axes.plot(*at, marker, color=colour, label=name, markersize=5.5)
    axes.set(xlim=(0, 1), ylim=(0, 1.05), xlabel="recall, no unit", ylabel="precision, no unit")


shown, (left, middle, right) = draw.figure(1, 3, size=(10, 5.4), width_ratios=(1.25, 0.9, 1.05))
draw.image(left, negative, f"{len(masks)} nuclei, {len(found.scores)} detections")
for i in np.argsort(at_50.truths[0] >= 0, kind="stable"):
    role = RIGHT if at_50.truths[0, i] >= 0 else WRONG
    draw.outline(left, found.masks[at_50.rows[i]], role)
for g, name in letter.items():
    x, y = (truth.boxes[g, :2] + truth.boxes[g, 2:]) / 2
    left.text(x, y, name, ha="center", va="center", fontsize=9, fontweight="bold")
ladder(middle, at_50, 99)
middle.set(title="rungs, and the nuclei they take", xlabel="score, no unit", ylabel="rung")
plane(right, at_50, 99)
right.set(title="precision and recall after each rung")
curve = ap.precision_recall(at_50)
for i in (*range(9), len(found.scores) - 1):
    at = curve.recall[0, i], curve.precision[0, i]
    right.annotate(i + 1, at, (4, 3), textcoords="offset points", fontsize=9)
draw.legend(shown)
draw.show(
    shown,
    "Left: nuclei with letters, in negative, and the outlines of all detections. Middle: a ladder"
    " of bars by falling score; a line leads from each right detection to the letter of its"
    " nucleus, and the wrong ones carry a cross. Right: precision against recall after each rung."
    " It rises with each right one and falls with each wrong one.",
)
ap_50 = curve.interpolated.mean()
right_ones = int((at_50.truths[0] >= 0).sum())
draw.say(
    f"{right_ones} of {len(found.scores)} rungs are right, and {len(masks) - right_ones} of"
    f" {len(masks)} nuclei are missed. The shaded area is AP = {ap_50:.3f}."
)

# %% [markdown]
# ## Rung by rung
#
# The same detections, each in its own window, with the nucleus that it overlaps most. Look at the
# ones that are wrong. Most of them are not nonsense.


# %%
def window(axes, i):
    """Draw rung i: its outline, and dashed that of the nucleus it overlaps most."""
    row, g = at_50.rows[i], at_50.truths[0, i]
    nearest = int(overlaps.iou[row].argmax())
    x, y = (found.boxes[row, :2] + found.boxes[row, 2:]) / 2
    axes.imshow(negative, extent=(0, 128, 128, 0))
    axes.contour(np.arange(128) + 0.5, np.arange(128) + 0.5, masks[nearest], [0.5], colors="black",
                 linestyles=[(0, (3, 1.5))], linewidths=1.2)  # fmt: skip
    draw.outline(axes, found.masks[row], RIGHT if g >= 0 else WRONG)
    axes.set(xlim=(x - 19, x + 19), ylim=(y + 19, y - 19))
    sign, size = "✓" if g >= 0 else "✗", {"fontsize": 9}
    axes.set_title(f"{i + 1} {sign} {letter[nearest]} {overlaps.iou[row, nearest]:.2f}", **size)


shown, grid = draw.figure(4, 8, size=(10, 5.9))
for i, axes in enumerate(grid.ravel()):
    window(axes, i)
    axes.axis("off")
draw.show(
    shown,
    "Thirty-two windows by falling score, each with the outline of a detection and the dashed one"
    " of the nucleus it overlaps most. Titles: rung, tick or cross, letter, IoU. The right ones"
    " follow their nucleus roughly. Of the wrong ones, some hold two nuclei, and many fit as well"
    " as the right one above them.",
)
best = overlaps.iou[at_50.rows].max(axis=1)
wrong = at_50.truths[0] < 0
takers = {g: i for i, g in enumerate(at_50.truths[0]) if g >= 0}
nearest = overlaps.iou[at_50.rows].argmax(axis=1)
duplicates = np.flatnonzero(wrong & (best >= 0.5))
named = classes[at_50.rows]
mixed = sum(named[i] != named[takers[nearest[i]]] for i in duplicates)
draw.say(
    f"Of the {wrong.sum()} wrong ones, {len(duplicates)} cover a nucleus by half or more, but a"
    " detection of higher score has taken it: they are *duplicates*. The other"
    f" {(wrong & (best < 0.5)).sum()} cover no nucleus by half. {mixed} of the duplicates were"
    " called another shape than the detection that took their nucleus."
)

# %% [markdown]
# Most duplicates come from the classes. The model suppresses overlapping boxes within *one* class,
# and a nucleus may look a little like a triangle and a little like a disc. AP is strict about it:
# one object, one detection. All others on it are wrong, however well they fit.

# %% [markdown]
# ## What covers what
#
# "Covers" means the IoU of two masks, $A$ and $B$, or of two boxes:
#
# $$ \mathrm{IoU}(A, B) = \frac{|A \cap B|}{|A \cup B|} $$
#
# From here on nobody looks at the picture. All that AP knows of it is this matrix, with a row per
# detection and a column per nucleus, the scores, and the areas.

# %%
shown, axes = draw.figure(size=(10, 5.6))
matrix = overlaps.iou[at_50.rows][:, order]
drawn = draw.cells(axes, matrix, "IoU of every detection and every nucleus", cmap=draw.MAGNITUDE)
draw.colour_bar(axes, drawn, "IoU of the masks, no unit")
for i, g in enumerate(at_50.truths[0]):
    if g >= 0:
        draw.box(axes, (order.index(g), i, order.index(g) + 1, i + 1), draw.USED)
for (i, g), value in np.ndenumerate(matrix):
    if value >= 0.1:
        ink = {"color": "black" if value > 0.45 else "white", "ha": "center", "va": "center"}
        axes.text(g + 0.5, i + 0.5, f"{value:.2f}", fontsize=8, **ink)
axes.set(xlabel="nucleus", ylabel="rung", aspect="auto")
axes.grid(visible=False, which="major")
axes.set_xticks(np.arange(17) + 0.5, letter.values())
axes.set_yticks(np.arange(0, 32, 2) + 0.5, range(1, 33, 2))
draw.show(
    shown,
    "A matrix of 32 rungs and 17 nuclei, dark where detection and nucleus do not touch. A row has"
    " one to three bright cells. Frames mark the matches, which descend from the upper left to the"
    " lower right. Bright cells below a frame are duplicates. Five columns have no frame.",
)

# %% [markdown]
# ## The rule of matching
#
# One rung after the other, and never back:

# %%
draw.source(ap.match)

# %% [markdown]
# An object that was annotated is called a *truth*. The code decides four things:
#
# * A detection may take a truth if their IoU is at least the threshold (`lowest`). Exactly the
#   threshold is enough.
# * A truth can be taken once (`taken`). A detection whose favourite is gone tries the next best.
# * Among several truths it takes the one of highest IoU, and the last of equal ones (`best`).
# * Rows are visited once, in the order of the scores. A detection never takes a truth away from one
#   of higher score, even if it fits better.
#
# (`crowd` and `ignored` come later in this notebook.) The last rule makes the matching *greedy*. It
# does not look for the best pairing of all:

# %%
small = np.array([[0.60, 0.55], [0.70, 0.00]])
[taken] = ap.match(small, np.zeros(2, bool), np.zeros(2, bool), [0.5])
draw.table(
    {
        f"rung {i + 1}": [*(f"{v:.2f}" for v in row), "none" if g < 0 else "XY"[g]]
        for i, (row, g) in enumerate(zip(small, taken, strict=True))
    },
    ["", "IoU with X", "IoU with Y", "takes"],
)
assert taken.tolist() == [0, -1]

# %% [markdown]
# Rung 1 takes X, which it fits best, so nothing is left for rung 2, and Y is missed. Had rung 1
# taken Y, both would be right. COCO accepts this: the rule is simple, and whether a detection is
# right does not depend on those of lower score. Among equal scores the one that the model lists
# first comes first.

# %% [markdown]
# ## Stricter, and stricter
#
# With a threshold of one half, an outline that is far off still counts. Ask for more: one slider
# sets the number of rungs that are drawn, the other the IoU that a match needs.


# %%
def at(rungs, iou):
    """Draw the ladder and the plane for so many rungs and a threshold."""
    matched = ap.matches([overlaps], 1, thresholds=[iou])
    shown, (above, below) = draw.figure(2, 1, size=(3.33, 6.4), height_ratios=(1.4, 1))
    ladder(above, matched, int(rungs))
    plane(below, matched, int(rungs))
    above.set(
        title=f"{rungs:g} rungs, IoU at least {iou:g}", xlabel="score, no unit", ylabel="rung"
    )
    below.set(title=f"AP of all rungs: {ap.precision_recall(matched).interpolated.mean():.3f}")
    return shown


draw.explore(
    at,
    "Three ladders with their precision and recall. First the best ten rungs at IoU 0.5: five are"
    " right. Then all rungs at 0.5: the curve reaches a recall of 0.7. Then all at 0.75: two right"
    " ones are left, and the shaded area is nearly gone.",
    [{"rungs": 10, "iou": 0.5}, {"rungs": 32, "iou": 0.5}, {"rungs": 32, "iou": 0.75}],
    rungs=(1, 32, 1),
    iou=(0.5, 0.95, 0.05),
)

# %% [markdown]
# Each threshold matches on its own, from the beginning. So a duplicate can become right where more
# is asked for, if it fits better than the detection that took its nucleus:

# %%
half, strict = ap.matches([overlaps], 1, thresholds=[0.5, 0.85]).truths
for i in np.flatnonzero((half < 0) & (strict >= 0)):
    draw.say(
        f"Rung {i + 1} is a duplicate at 0.5, where rung {takers[strict[i]] + 1} takes"
        f" {letter[strict[i]]} with an IoU of {best[takers[strict[i]]]:.2f}. At 0.85 it is right,"
        f" with an IoU of {best[i]:.2f}."
    )
assert ((half < 0) & (strict >= 0)).any()

# %% [markdown]
# ## From the curve to a number
#
# The curve is a zigzag. One more rule makes sure that it only falls: at each recall, take the
# *highest* precision that is reached there or at any higher recall. This is the upper edge of the
# shaded area. AP is the mean of its height at 101 recalls: 0, 1 %, 2 %, and so on to 100 %.

# %%
draw.source(ap.precision_recall)

# %% [markdown]
# By hand: only a right one leads to a higher recall. So each right one contributes its own stretch
# of the 101 recalls, and as the height of this stretch the highest precision from there on.

# %%
rungs = np.flatnonzero(at_50.truths[0] >= 0)
recall, precision = curve.recall[0, rungs], curve.precision[0, rungs]
stretch = np.diff(np.searchsorted(ap.RECALLS, recall, side="right"), prepend=0)
highest = [precision[k:].max() for k in range(len(rungs))]
draw.table(
    {
        f"{rung + 1}": [f"{r:.3f}", f"{k + 1} / {rung + 1} = {p:.3f}", f"{h:.3f}", n]
        for k, (rung, r, p, h, n) in enumerate(
            zip(rungs, recall, precision, highest, stretch, strict=True)
        )
    },
    ["right rung", "recall", "precision", "highest from here on", "of the 101 recalls"],
)
by_hand = np.dot(highest, stretch) / 101
draw.say(
    f"The other {101 - stretch.sum()} recalls are never reached and count 0. Multiply the last two"
    f" columns, add: {by_hand * 101:.2f}. Divide by 101: AP = {by_hand:.4f}."
)
assert np.isclose(by_hand, ap_50, rtol=1e-12)

# %% [markdown]
# ## What AP does not see
#
# Change the detections, and see what AP makes of it:


# %%
def altered(scores, junk=()):
    """Return the AP at 0.5 of the detections with other scores, and wrong ones of scores `junk`."""
    count, nowhere = len(junk), np.zeros((len(junk), 128, 128), bool)
    nowhere[:, 100:125, 5:30] = True
    boxes = np.concatenate([found.boxes, np.tile([5, 100, 30, 125], (count, 1))])
    labels = np.ones(len(boxes), int)
    changed = Detections(boxes, np.append(scores, junk), labels, np.append(found.masks, nowhere, 0))
    one = ap.matches([ap.compare(truth, changed, "mask")], 1, thresholds=[0.5])
    return ap.precision_recall(one).interpolated.mean()


scores = found.scores
changes = {
    "as they are": altered(scores),
    "every score squared": altered(scores**2),
    "every score divided by 10": altered(scores / 10),
    "60 wrong ones, score 0.01": altered(scores, [0.01] * 60),
    "1 wrong one, score 0.4": altered(scores, [0.4]),
    "1 wrong one, score 0.99": altered(scores, [0.99]),
    "3 wrong ones, score 0.99": altered(scores, [0.99] * 3),
}
shown, axes = draw.figure(size=(8, 3.2))
same = [name for name, value in changes.items() if value == changes["as they are"]]
draw.bars(axes, changes, "AP after a change of the detections", unit="AP at IoU 0.5, no unit",
          marked=[name for name in changes if name not in same])  # fmt: skip
draw.show(
    shown,
    "Seven bars. Squaring the scores, dividing them by ten, or adding sixty wrong detections of low"
    " score leaves AP where it was. Hatched: one wrong detection in the middle lowers it a little,"
    " one at the top more, and three at the top by a third.",
)
assert len(same) == 4

# %% [markdown]
# Only the *order* of the scores counts. AP cannot tell whether nine in ten detections of a score of
# 90 % are right. Wrong ones below the last right one cost nothing: that is why models are evaluated
# with as many detections as are allowed, a hundred per picture and class, however low their scores.
# A wrong one at the very top costs most, because it lowers the precision of all that follow.
#
# To *use* a model, one has to choose a score below which detections are dropped. AP gives no
# advice.

# %% [markdown]
# ## Who is not counted
#
# Some truths need not be found. They are *ignored*, and a detection that takes one is neither right
# nor wrong.
#
# **Crowds.** Where objects are too many to be outlined one by one, COCO's annotators outline the
# whole region and mark it as a crowd. Any number of detections may take it. No single object can
# have a high IoU with the whole region, so a crowd is compared by the share of the *detection* that
# lies in it. Suppose that nobody had separated the three nuclei at the bottom of the picture:

# %%
heap = [g for g, box in enumerate(truth.boxes) if box[1] > 105 and box[0] > 50]
single = [g for g in range(len(masks)) if g not in heap]
merged = np.concatenate([masks[single], masks[heap].any(axis=0, keepdims=True)])
low, high = truth.boxes[heap, :2].min(axis=0), truth.boxes[heap, 2:].max(axis=0)
merged_boxes = np.concatenate([truth.boxes[single], [[*low, *high]]])
with_crowd = Target(merged_boxes, np.ones(len(merged), int), merged)
flags = np.arange(len(merged)) == len(single)
rows = {}
names = ", ".join(sorted(letter[g] for g in heap))
for name, target, crowd in (
    (f"{names}: three nuclei", truth, None),
    (f"{names}: one object", with_crowd, None),
    (f"{names}: a crowd", with_crowd, flags),
):
    one = ap.matches([ap.compare(target, found, "mask", crowd)], 1, thresholds=[0.5])
    ok = (one.truths[0] >= 0) & ~one.ignored[0]
    bad = (one.truths[0] < 0) & ~one.ignored[0]
    score = ap.precision_recall(one).interpolated.mean()
    rows[name] = one.count, ok.sum(), bad.sum(), one.ignored.sum(), f"{score:.3f}"
draw.table(rows, ["annotated as", "to find", "right", "wrong", "ignored", "AP at 0.5"])

# %% [markdown]
# **Sizes.** The AP of small objects ignores all truths that are not small, and with them every
# detection that takes one. A detection without a truth is ignored if it is not small itself. Small
# means up to 32 x 32 pixels, medium up to 96 x 96, large more. All these nuclei are small, so this
# needs other pictures: painted shapes, which the model does know.

# %%
samples = [shapes.sample(1, index) for index in range(20)]
truths = [Target(*rest) for _, *rest in samples]
detections = [model.detect([picture])[0] for picture, *_ in samples]
compared = {
    kind: [ap.compare(a, b, kind) for a, b in zip(truths, detections, strict=True)]
    for kind in ("box", "mask", "boundary")
}
rows = {}
for size in ("all", "small", "medium"):
    one = ap.matches(compared["mask"], 3, size, thresholds=[0.5])
    ok = (one.truths[0] >= 0) & ~one.ignored[0]
    bad = (one.truths[0] < 0) & ~one.ignored[0]
    score = ap.precision_recall(one).interpolated.mean()
    rows[size] = one.count, ok.sum(), bad.sum(), one.ignored.sum(), f"{score:.3f}"
draw.table(rows, ["triangles", "to find", "right", "wrong", "ignored", "AP at 0.5"])
found_all, bad, last = rows["all"][1], rows["all"][2], rows["all"][4]
draw.say(
    f"Here is what AP does not see, once more: {found_all} triangles are found, {bad} detections"
    f" are wrong, and AP is {last}. The wrong ones have low scores."
)

# %% [markdown]
# ## The mean over thresholds and classes
#
# Every class has a ladder of its own, with its detections in all pictures on it, and so a curve and
# an AP of its own. COCO averages over ten thresholds and over the classes. The mean of this matrix
# is what a paper calls AP:

# %%
table = np.stack(
    [
        ap.precision_recall(ap.matches(compared["mask"], label)).interpolated.mean(axis=1)
        for label in (1, 2, 3)
    ]
)
shown, axes = draw.figure(size=(8, 2.6))
draw.numbers(axes, table, "AP of every class at every threshold", form="{:.2f}", limits=(0, 1))
axes.set(xlabel="threshold, IoU of the masks, no unit", ylabel="class")
axes.set_xticks(range(10), [f"{t:.2f}" for t in ap.THRESHOLDS])
axes.set_yticks(range(3), [f"{name}s" for name in shapes.CLASS_NAMES])
draw.show(
    shown,
    "A matrix of three classes and ten thresholds, with numbers of 0.84 to 0.99 on the left. They"
    " hardly fall up to a threshold of 0.7, then faster, and lie between 0.05 and 0.2 at 0.95.",
)
numbers = {kind: ap.summary(truths, detections, kind) for kind in compared}
draw.say(
    f"The mean of the thirty numbers is {table.mean():.4f}, and `summary` says"
    f" {numbers['mask']['AP']:.4f}. The model knows where the objects are: at 0.5 its AP is"
    f" {table[:, 0].mean():.2f}. Hardly any outline is good to 5 % of the area: at 0.95 AP is"
    f" {table[:, -1].mean():.2f}."
)
assert np.isclose(table.mean(), numbers["mask"]["AP"], rtol=1e-12)

# %% [markdown]
# One AP can stand for two very different models: one that finds few objects and outlines them well,
# and one that finds all and outlines them badly. AP50 and AP75, the means over the classes at one
# threshold, tell them apart.

# %% [markdown]
# ## Box, mask, boundary
#
# COCO compares boxes, or masks. In a large object a mask can be wrong all along its outline and
# still have a high IoU, as most pixels lie inside. *Boundary IoU* compares only the pixels of
# either mask that are near its outline, and counts the smaller of this and the IoU of the masks
# [Boundary IoU, Cheng et al., 2021]. Near means up to 2 % of the picture's diagonal.
#
# Let a detector be perfect but for one thing: all it draws is too far to the right.


# %%
def moved(mask, by):
    """Return masks [G, H, W] shifted to the right, without what leaves the picture."""
    return np.pad(mask, ((0, 0), (0, 0), (by, 0)))[:, :, : mask.shape[2]]


def tight(mask):
    """Return the boxes of masks, none of them empty."""
    edges = [rle.bounds(rle.of_mask(one), one.shape[0]) for one in mask]
    return np.array(edges, float).reshape(-1, 4)


def centre(mask):
    """Return the middle of the pixels of a mask [H, W]: row, column."""
    return tuple(int(v) for v in np.argwhere(mask).mean(axis=0).round())


def drawn_from(mask, labels):
    """Return masks as detections that are sure of themselves."""
    kept = mask.any(axis=(1, 2))
    return Detections(tight(mask[kept]), np.ones(kept.sum()), labels[kept], mask[kept])


shifts = range(9)
lines = {kind: [] for kind in compared}
for by in shifts:
    perfect = [drawn_from(moved(t.masks, by), t.labels) for t in truths]
    for kind, line in lines.items():
        line.append(ap.summary(truths, perfect, kind)["AP"])

large = [mask for t in truths for mask in t.masks if tight(mask[None])[0, 2] < 116]
solid = [mask for mask in large if mask[centre(mask)] & ~ap.boundary(mask[None])[0][centre(mask)]]
one = max(solid, key=np.sum)[None]
shown, (left, middle, right) = draw.figure(1, 3, size=(10, 3.9), width_ratios=(1, 1, 1.2))
for axes, part, name in ((left, one, "mask"), (middle, ap.boundary(one), "boundary")):
    there = moved(part, 4)[0]
    iou = (part[0] & there).sum() / (part[0] | there).sum()
    draw.cells(axes, 1.0 * part[0] + there, f"{name}: IoU {iou:.2f} after 4 pixels", unit="pixels",
               cmap="Greys", limits=(0, 3), grid=False)  # fmt: skip
    draw.outline(axes, one[0], draw.ASKED, label="truth")
    draw.outline(axes, moved(one, 4)[0], draw.USED, label="moved by 4 pixels")
    x1, y1, x2, y2 = tight(one)[0]
    axes.set(xlim=(x1 - 4, x2 + 8), ylim=(y2 + 6, y1 - 6))
draw.curve(right, list(shifts), lines, "AP of a detector that is off to the right",
           xlabel="shift, pixels", ylabel="AP, no unit")  # fmt: skip
shown.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=2)
draw.show(
    shown,
    "Left: an object and the same moved by four pixels; the common part is dark, and is most of it."
    " Middle: the two bands along the outlines have little in common. Right: AP against the shift."
    " The line of the boxes falls slowest, that of the masks faster, and the boundaries' is at zero"
    " after three pixels.",
)
three = {kind: line[2] for kind, line in lines.items()}
draw.say(
    "Two pixels too far to the right: "
    + ", ".join(f"{kind} AP {value:.2f}" for kind, value in three.items())
    + "."
)

# %% [markdown]
# A single pixel can do it, too. Flip one pixel of a perfect mask, far outside the object or in its
# middle:

# %%
inside = centre(one[0])
outside = tuple(
    0 if v > size / 2 else size - 1 for v, size in zip(inside, one[0].shape, strict=True)
)
whole = Target(tight(one), np.ones(1, int), one)
rows = {}
for name, pixel in (("none", None), ("far outside", outside), ("in the middle", inside)):
    flipped = one.copy()
    if pixel:
        flipped[0, *pixel] ^= True
    ious = [ap.compare(whole, drawn_from(flipped, whole.labels), kind).iou for kind in compared]
    rows[name] = [f"{iou.item():.3f}" for iou in ious]
draw.table(rows, ["flipped pixel", *(f"IoU of {kind}" for kind in compared)])

# %% [markdown]
# A stray pixel means nothing to the mask, but the box has to reach for it. A missing pixel inside
# means nothing to the box, but it has an outline of its own, and all that is near an outline
# belongs to the boundary. A model has a box AP and a mask AP, and each is blind to the other's
# mistakes.

# %% [markdown]
# ## Twelve numbers
#
# An evaluation prints twelve numbers. Half of them are AR, *average recall*: the share of truths
# that are found in the end, averaged over thresholds and classes. Wrong detections do not count
# there, so AR states how many detections per picture and class were allowed.

# %%
meaning = {
    "AP": "mean over thresholds and classes",
    "AP50": "at IoU 0.5 only",
    "AP75": "at IoU 0.75 only",
    "APs": "small objects, up to 32 x 32 pixels",
    "APm": "medium objects",
    "APl": "large objects, over 96 x 96 pixels",
    "AR1": "recall with the best detection of each class in a picture",
    "AR10": "recall with the best ten",
    "AR100": "recall with the best hundred",
    "ARs": "recall of small objects, best hundred",
    "ARm": "of medium objects",
    "ARl": "of large objects",
}
numbers |= {"nuclei": ap.summary([truth], [found], "mask")}
columns = [numbers[kind] for kind in ("box", "mask", "boundary", "nuclei")]
draw.table(
    {
        name: [what, *("-1" if c[name] < 0 else f"{c[name]:.3f}" for c in columns)]
        for name, what in meaning.items()
    },
    ["", "what", "shapes, boxes", "shapes, masks", "shapes, boundaries", "nuclei, masks"],
)

# %% [markdown]
# $-1$ means that there is nothing to find: no picture here holds a large object. AR1 of the nuclei
# cannot exceed one in seventeen, and is less, as it is a mean over thresholds.
#
# ## Check: faster-coco-eval
#
# AP has so many rules that everybody uses one program for it, pycocotools, or a faster one that
# computes the same numbers: `maskrcnn evaluate` uses faster-coco-eval. The oracle of this notebook
# is written anew in NumPy. All twelve numbers must agree but for their last bits: for the nuclei,
# the nuclei with the crowd, and the shapes. The bits differ because pycocotools, and so the oracle,
# adds $2^{-52}$ to what it divides by to get a precision. It never divides by 0 then.


# %%
def annotated(of, **columns):
    """Return boxes and masks of an image as COCO writes them, with more fields as lists."""
    boxes = np.concatenate([of.boxes[:, :2], of.boxes[:, 2:] - of.boxes[:, :2]], axis=1)
    counts = [rle.compress(rle.of_mask(mask)).decode() for mask in of.masks]
    columns |= {"category_id": of.labels.tolist(), "bbox": boxes.tolist()}
    columns["segmentation"] = [{"size": [*of.masks.shape[1:]], "counts": text} for text in counts]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def evaluated(truths, detections, crowds):
    """Return {"bbox", "segm"}: the metrics of `maskrcnn evaluate`."""
    images, annotations, results = [], [], []
    for n, (t, d, crowd) in enumerate(zip(truths, detections, crowds, strict=True)):
        images.append({"id": n, "height": t.masks.shape[1], "width": t.masks.shape[2]})
        for item in annotated(t, area=t.masks.sum(axis=(1, 2)).tolist(), iscrowd=crowd.tolist()):
            annotations.append(item | {"image_id": n, "id": len(annotations) + 1})
        results += [item | {"image_id": n} for item in annotated(d, score=d.scores.tolist())]
    data = {"images": images, "annotations": annotations}
    return evaluate.score(
        data | {"categories": [{"id": k, "name": str(k)} for k in (1, 2, 3)]}, results
    )


def vector(metrics):
    """Return the twelve numbers in order; -1 for none."""
    return np.array([-1 if metrics[name] is None else metrics[name] for name in meaning])


nobody = [np.zeros(len(t.labels), bool) for t in truths]
cases = {
    "nuclei": ([truth], [found], [np.zeros(len(masks), bool)]),
    "nuclei with a crowd": ([with_crowd], [found], [flags]),
    "20 pictures of shapes": (truths, detections, nobody),
}
rows = []
for name, (some_truths, some_detections, crowds) in cases.items():
    theirs = evaluated(some_truths, some_detections, crowds)
    for kind, theirs_name in (("box", "bbox"), ("mask", "segm")):
        ours = vector(ap.summary(some_truths, some_detections, kind, crowds))
        backends = {"faster-coco-eval": vector(theirs[theirs_name])}
        rows.append(check(f"{name}, {kind}", ours, backends, 1e-15))
Report.of("twelve numbers each", rows)

# %% [markdown]
# ## Exercise
#
# Write the matching for one threshold, without crowds and ignored truths. The rows of `iou` are the
# detections by falling score. Think of two detections on one nucleus, and of a detection whose
# favourite is taken.


# %%
def my_match(iou, threshold):
    """IoU [D, G] and a threshold -> for each of D detections the truth it takes, -1 for none."""
    return None  # your code


draw.say(exercise.check(my_match))

# %% [markdown]
# **Remember.**
#
# * By falling score, each detection takes the free truth of highest IoU, if the IoU reaches the
#   threshold. One that takes a truth is right. All others are wrong, duplicates too.
# * Precision is the share of right ones so far, recall the share of truths found so far. AP is the
#   area under the curve, which is made to fall only, and read at 101 recalls.
# * COCO's AP is the mean over ten thresholds and over the classes. Only the order of the scores
#   counts, and wrong detections below the last right one are free.
# * A mask AP knows nothing of boxes, a box AP nothing of masks, and boundary AP looks at outlines.
#
# **Next.** [The Triton kernel, read on a CPU](11_triton_kernel.ipynb): how RoIAlign, to which the
# masks owe their precision, runs on a GPU.
