# ---
# jupyter:
#   cpu_seconds: 36
# ---

# %% [markdown]
# # 15. The failure zoo
#
# **The question.** How does Mask R-CNN break, and how does one see it?
#
# **Time.** About 30 minutes to read, half a minute to run.
#
# **Data.** Synthetic shapes, the small trained model, and the image of nuclei.
#
# **Before.** The river of [notebook 0](00_one_image.ipynb).

# %%
import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton's kernels run on the CPU

import copy
import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import figures as draw
import numpy as np
import torch
from exercises import failure_zoo as exercise
from exercises.one_image import first_to_change
from IPython.display import display
from PIL import Image

import accelerated
from accelerated import nms as fast_nms
from accelerated import roi_align as fast_align
from accelerated.data import rle, synthetic
from accelerated.data.coco import CocoDataset
from accelerated.engine import evaluate, failure
from accelerated.engine.train import train as train_on_disk
from accelerated.structures import Stages as FastStages
from accelerated.verify.equality import MODEL
from accelerated.verify.report import Report, check
from reference import checkpoint, losses, mask_rcnn, nms, optimizer, roi_align, shapes, train
from reference import config as configuration
from reference.activations import sigmoid
from reference.mask_rcnn import MaskRCNN
from reference.structures import Stages, Target

# %% [markdown]
# ## Eight visitors, one of them well
#
# The same weights and the same image, eight times. In seven of them a single setting is wrong.
# **None raises an error.** Under each picture stands the first station of the river whose numbers
# differ from the healthy ones.

# %%
model = checkpoint.load("data/tiny")
image, true_boxes, true_labels, true_masks = shapes.sample(1, 46)
WRONG = {
    "healthy": "mask_head.threshold=0.5",
    "pixels in 0..1, not 0..255": f"transform.pixel_scale={1 / 255**2}",
    "blue and red exchanged": "transform.channel_order=bgr",
    "anchors twice as large": "anchors.sizes=[[24], [48], [96], [192], [320]]",
    "half a pixel forgotten": "box_head.pooler.aligned=false",
    "deltas without their weights": "box_head.box_weights=[1, 1, 1, 1]",
    "no suppression at the end": "box_head.nms_iou=1.0",
    "masks cut at a twentieth": "mask_head.threshold=0.05",
}


def with_setting(change):
    """The model with one setting changed, such as "rpn.nms_iou=0.1"."""
    return MaskRCNN(configuration.override(model.config, change), model.parameters)


def examine(patient):
    """What a model finds in the image, and the record of it."""
    stages = Stages()
    return patient.detect([image], record=stages)[0], stages.computed()


results = {name: examine(with_setting(change)) for name, change in WRONG.items()}
healthy, healthy_record = results["healthy"]
first_wrong = {name: first_to_change(healthy_record, seen) for name, (_, seen) in results.items()}

# %%
figure, axes = draw.figure(2, 4, size=(10, 6.2))
for axis, (name, (found, _)) in zip(axes.flat, results.items(), strict=True):
    draw.image(axis, image, name)
    shown = np.flatnonzero(found.scores > 0.5)[::-1]
    for i in shown:
        draw.outline(axis, found.masks[i], draw.USED)
    draw.boxes(axis, found.boxes[shown], np.ones(len(shown)), draw.ASKED)
    where = "all is well" if name == "healthy" else f"first wrong: {first_wrong[name] or 'masks'}"
    axis.set(xlabel=f"{len(shown)} objects\n{where}", ylabel="", xticks=[], yticks=[])
    axis.set_title(name, fontweight="bold")
figure.get_layout_engine().set(hspace=0.08)
draw.show(
    figure,
    "The same image eight times with outlines of what is found. Healthy: three objects. Pixels in"
    " 0..1: nothing. Colours exchanged and larger anchors: a box too many. Half a pixel: boxes too"
    " far up and left. Deltas without weights: chaos. No suppression: stacks of boxes. Masks cut"
    " low: outlines too wide.",
    colours=256,
)

# %% [markdown]
# This is the lesson of the zoo: the failures that raise an error are the kind ones. The others
# produce boxes and masks, only worse. What helps against them is a second opinion: the record of a
# healthy run, or that of a second implementation. Compare the two stage by stage, and look at the
# *first* stage that differs.

# %%
draw.source(first_to_change)

# %% [markdown]
# Without a healthy run there is only the score. Here is the average precision, AP, on ten images
# that the model has not seen ([notebook 10](10_average_precision.ipynb) says how it is computed):

# %%
fast = accelerated.load("data/tiny").double()
unseen, precision = synthetic.ShapesDataset(10, seed=1), {}
for name, change in WRONG.items():
    patient = copy.copy(fast)
    patient.config = configuration.override(fast.config, change)
    metrics = evaluate.evaluate(patient, unseen)
    precision[name] = metrics["bbox"]["AP"], metrics["segm"]["AP"]
draw.table(
    {
        name: [f"{box:.2f}", f"{mask:.2f}", first_wrong[name] or "-"]
        for name, (box, mask) in precision.items()
    },
    ["setting", "AP of boxes", "AP of masks", "first wrong field"],
)
box_ap = {name: box for name, (box, _) in precision.items()}
assert box_ap["pixels in 0..1, not 0..255"] == 0 < box_ap["deltas without their weights"] < 0.1
assert box_ap["half a pixel forgotten"] < box_ap["healthy"] - 0.1
assert abs(box_ap["blue and red exchanged"] - box_ap["healthy"]) < 0.06
assert box_ap["masks cut at a twentieth"] == box_ap["healthy"]

# %% [markdown]
# Two rows deserve a second look. **Half a pixel** finds every object and still loses a good part of
# the score; only a comparison shows why. **Blue and red exchanged** costs nearly nothing *here*,
# because these shapes have random colours, so that red and blue mean the same. In photographs they
# do not. A data set on which a mistake is harmless cannot find the mistake.
#
# ## The kind ones: they say what is wrong
#
# What cannot be meant is refused at the entrance, with a sentence that says what to do.


# %%
def complaint(function, *arguments):
    """What a call complains of."""
    try:
        function(*arguments)
    except ValueError as error:
        return str(error)
    return "nothing"


def lesson(boxes=true_boxes, labels=true_labels, masks=true_masks):
    """Ask for the losses of the image with these truths."""
    return model.losses([image], [Target(boxes, labels, masks)], generator=np.random.default_rng(0))


with_hole = image.astype(float)
with_hole[60, 90] = np.nan
refused = {
    "labels from 0": complaint(partial(lesson, labels=true_labels - 1)),
    "a label beyond the last class": complaint(partial(lesson, labels=true_labels + 1)),
    "an inverted box, x2 < x1": complaint(partial(lesson, boxes=true_boxes[:, [2, 1, 0, 3]])),
    "masks of another size": complaint(partial(lesson, masks=true_masks[:, :100])),
    "channels first": complaint(model.detect, [image.transpose(2, 0, 1)]),
    "NaN in one pixel": complaint(model.detect, [with_hole]),
}
draw.table(
    {name: [text] for name, text in refused.items()}, ["what goes in", "what comes out"], text=True
)
assert "labels count from 1" in refused["labels from 0"]
assert "above num_classes 3" in refused["a label beyond the last class"]
assert "x1 < x2" in refused["an inverted box, x2 < x1"]
assert "need boxes [3, 4] and masks" in refused["masks of another size"]
assert "move the channels last" in refused["channels first"]
assert "NaN or infinite" in refused["NaN in one pixel"]

# %% [markdown]
# `maskrcnn inspect` finds such faults before a training starts, in the annotations and in the image
# files: [notebook 14](14_own_data.ipynb).
#
# ## The harmless ones: they look dangerous
#
# **An image without any object.** There is nothing to match, no RoI is positive, no mask is drawn.
# A mean over nothing would be 0 / 0. Here it is 0:

# %%
nothing = Target(np.zeros((0, 4)), np.zeros(0, int), np.zeros((0, 128, 128), bool))
empty = model.gradients([image], [nothing], generator=np.random.default_rng(0))
touched = {name for name, gradient in empty.gradients.items() if gradient.any()}
draw.table({name: [f"{float(x):.4f}"] for name, x in empty.losses.items()}, ["loss", "value"])
draw.say(
    f"All {len(empty.gradients)} parameters get a gradient, {len(touched)} of them a gradient other"
    f" than zero. The other {len(empty.gradients) - len(touched)} belong to the box regressions and"
    " to the mask head. A gradient of zeros is not the same as none: when several processes train"
    " together, each must send the gradient of every parameter, or the others wait for ever."
)
assert [name for name, x in empty.losses.items() if x == 0] == ["rpn_box", "box", "mask"]
untouched = empty.gradients.keys() - touched
assert all(name.startswith(("mask_head.", "rpn.deltas", "box_head.box_d")) for name in untouched)

# %% [markdown]
# **Huge logits.** A confident network may say 1000. Rounded, its probability is 1, and the loss is
# $-\ln(1 - 1)$ where the answer is 0: the formula of the textbook gives infinity. The code uses an
# equal form that does not overflow:

# %%
draw.source(losses.binary_cross_entropy)

# %%
huge, opposite = np.array([10.0, 40.0, 1000.0]), np.zeros(3)
stable = losses.binary_cross_entropy(huge, opposite)
with np.errstate(divide="ignore"):
    textbook = -np.log(1 - sigmoid(huge))
draw.table(
    {
        f"logit {logit:g}": [f"{ours:.6g}", f"{theirs:.6g}"]
        for logit, ours, theirs in zip(huge, stable, textbook, strict=True)
    },
    ["answer: background", "as in the code", "as in the textbook"],
)
assert np.isclose(stable[0], textbook[0]) and stable[2] == 1000 and np.isinf(textbook[1:]).all()

# %% [markdown]
# **Boxes that contain nothing.** A network may propose anything. RoIAlign answers with finite
# numbers: zeros outside the map, and the value of a point for a box without area. On a ramp, whose
# value is the place in x, one sees which place was read:

# %%
ramp = np.broadcast_to(np.arange(16) + 0.5, (1, 1, 16, 16)).copy()
strange = {
    "far outside": [40.0, 40, 50, 50],
    "half outside": [12.0, 4, 20, 8],
    "without area": [5.0, 5, 5, 5],
    "inverted": [9.0, 9, 5, 5],
}
rois, index = np.array(list(strange.values())), np.zeros(len(strange), int)
grid = {"output_size": 2, "spatial_scale": 1.0, "sampling_ratio": 2, "aligned": True}
read = roi_align.roi_align(ramp, rois, index, **grid)[:, 0]
draw.table(
    {
        name: [box, " ".join(f"{value:.2f}" for value in bins.ravel())]
        for (name, box), bins in zip(strange.items(), read, strict=True)
    },
    ["box", "x1, y1, x2, y2", "its 2 x 2 bins"],
)
far, half, point, inverted = read
assert not far.any() and not inverted.any() and (point == 5).all()
assert np.isfinite(read).all() and (half[:, 1] == 0).all()

# %% [markdown]
# **Two equal scores.** Which of two boxes survives if both have the same score? Whichever the sort
# puts first, and many sorts promise nothing. Here the lower index wins, on every device, so that a
# training can be repeated. The price: the *order* of the boxes matters.

# %%
twins = np.array([[10.0, 10, 50, 50], [12, 10, 52, 50], [80, 80, 99, 99]])
equal_scores = np.array([0.8, 0.8, 0.8])
kept, kept_reversed = (nms.nms(boxes, equal_scores, 0.5) for boxes in (twins, twins[::-1]))
draw.say(
    f"Of three boxes with equal scores, numbers {kept.tolist()} remain. The same boxes in reversed"
    f" order: numbers {(2 - kept_reversed).tolist()} of the first order remain."
)
assert kept.tolist() == [0, 2] and (2 - kept_reversed).tolist() == [2, 1]

# %% [markdown]
# ## Too large for float16
#
# A float16 number ends at 65504. Images with 8 bits are far below. But microscopes and telescopes
# count in thousands or millions, and a network multiplies and adds. The largest number of each
# stage, for the same image in three scales, computed in float32:

# %%
single = accelerated.load("data/tiny")
largest_of_float16 = float(np.finfo(np.float16).max)
scales = {"8 bits, to 255": 1, "16 bits, to 65535": 257, "counts, to a million": 4096}
stages = ("images", "conv1", "C2", "C3", "C4", "C5", "P2")


def extremes(scale):
    """The largest absolute value of each stage for the image times `scale`, in float32."""
    seen = FastStages()
    single.detect([image * float(scale)], seen)
    seen = seen.computed() | {"conv1": single.backbone.conv1(seen.images)}
    return [float(seen[name].detach().abs().max()) for name in stages]


heights = {name: extremes(scale) for name, scale in scales.items()}
figure, axes = draw.figure(size=(8, 3.8))
ylabel = "largest absolute value, no unit"
title = "the first convolution is the dangerous place"
draw.curve(axes, range(len(stages)), heights, title, xlabel="stage, no unit", ylabel=ylabel)
axes.axhline(largest_of_float16, color="black", linewidth=1)
axes.text(6, largest_of_float16 * 1.2, "float16 ends here", ha="right")
axes.set_yscale("log")
axes.set_xticks(range(len(stages)), stages)
draw.show(
    figure,
    "The largest number of seven stages, three lines on a logarithmic scale, and a level line where"
    " float16 ends. All lines rise from the image to the first convolution, the one of counts"
    " crosses the level line there. From C2 on all three run together, around ten.",
)

# %%
half = copy.deepcopy(single).half()
counts = image * 4096.0
truth = Target(true_boxes, true_labels, true_masks)
batch = half.batch([counts], [truth])
draws = torch.Generator().manual_seed(0)
stage = failure.first_failure(half, partial(half.batch_losses, batch, None, draws), batch)
kinds = single, half, copy.deepcopy(single).bfloat16()
found = {str(x.weight.dtype)[6:]: len(x.detect([counts])[0].scores) for x in kinds}
draw.say(
    f"The same counts, detected in float32: {found['float32']} objects. In float16:"
    f" {found['float16']}, and no complaint. Boxes that are not finite are dropped, and no other is"
    " left. Training does complain: `first_failure` repeats the failed step with a record and names"
    f" the first stage that is not finite, **{stage}**."
)
assert found["float16"] == 0 < min(found["float32"], found["bfloat16"]) and stage == "C2"
assert heights["counts, to a million"][1] > largest_of_float16 > heights["8 bits, to 255"][1]

# %% [markdown]
# The group norm after the first convolution divides its scale out again, which is why the three
# lines meet at C2. It comes too late: infinity divided by infinity is NaN. bfloat16 has fewer
# digits and the range of float32, and does not fail here.
#
# ## One NaN, and where it goes
#
# What would happen if the entrance let a single NaN through?

# %%
parameters, config = model.parameters, model.config
inside = healthy_record["images"].copy()
inside[0, 0, 60, 90] = np.nan
seen = Stages()
mask_rcnn.features(parameters, inside, config, seen)
share = {name: float(np.isnan(getattr(seen, name)).mean()) for name in ("C2", "P2")}
draw.say(
    f"Of the {inside.size:,} numbers of the image, {np.isnan(inside).sum()} is NaN. Of C2 it is"
    f" {share['C2']:.0%}, of P2 {share['P2']:.0%}. A group norm divides by a standard deviation"
    " over the whole map, and so one pixel poisons all of it."
)
assert share["C2"] == share["P2"] == 1

# %% [markdown]
# RoIAlign is more careful. A NaN in a feature reaches exactly the bins that give it a weight, and
# no other, although the code multiplies matrices and $0 \cdot \mathrm{NaN}$ is NaN
# ([notebook 5](05_roi_align.ipynb) explains $A_y$ and $A_x$). We put one into P2, in the triangle:

# %%
P2 = healthy_record["P2"][:, :1].copy()
row, column = 19, 25
P2[0, 0, row, column] = np.nan
[triangle] = np.flatnonzero((healthy.labels == 3) & (healthy.scores > 0.5))
box = healthy.boxes[[triangle]]
options = {"output_size": 7, "spatial_scale": 1 / 4, "sampling_ratio": 2, "aligned": True}
poisoned = np.isnan(roi_align.roi_align(P2, box, np.array([0]), **options)[0, 0])
x1, y1, x2, y2 = box[0] / 4
a_y = roi_align.interpolation_matrix(y1, y2, 7, 32, 2, True)
a_x = roi_align.interpolation_matrix(x1, x2, 7, 32, 2, True)
weight = np.outer(a_y[:, row], a_x[:, column])

figure, (left, right) = draw.figure(1, 2, size=(8, 3.9))
known = np.nan_to_num(P2[0, 0], nan=np.nanmean(P2))
draw.cells(left, known, "one channel of P2", cmap=draw.SIGNED)
draw.box(left, box[0] / 4, draw.USED, bins=7)
left.plot(column + 0.5, row + 0.5, "X", color="black", markeredgecolor="white", markersize=10)
left.set(xlim=(16, 32), ylim=(27, 11), xticks=range(16, 33, 4))
drawn = draw.cells(
    right, weight, "weight of the NaN; outline: NaN", cmap=draw.MAGNITUDE, unit="bins"
)
draw.outline(right, poisoned, draw.USED)
draw.colour_bar(right, drawn, "weight, no unit")
draw.show(
    figure,
    "Left, a part of a feature map with a box of 7 by 7 bins and a black cross where the NaN is."
    " Right, the weight of that cell in each bin: a few bins near the cross have one. An orange"
    " outline around the bins that came out NaN encloses just these.",
    colours=256,
)
draw.say(f"{poisoned.sum()} of 49 bins give the cell a weight, and just these are NaN.")
np.testing.assert_array_equal(poisoned, weight > 0)

# %% [markdown]
# ## The rate is too high
#
# We continue to train the trained model on one image, with its optimizer, at three rates:


# %%
def losses_at(rate, steps=6):
    """The sum of the losses before each of a few steps at a learning rate, without clipping."""
    config = configuration.override(model.config, "optimizer.clip_gradient_norm=0")
    student, state = MaskRCNN(config, model.parameters), optimizer.State()
    generator, sums = np.random.default_rng(0), []
    for _ in range(steps):
        step = train.step(student, [image], [truth], state, rate, generator=generator)
        state = step.state
        sums.append(float(sum(step.losses.values())))
    return sums


rates = (0.0005, 0.02, 1.0)
curves = {f"rate {rate:g}": losses_at(rate) for rate in rates}
figure, axes = draw.figure(size=(7, 3.6))
xlabel, ylabel = "steps taken", "sum of the losses, no unit"
draw.curve(axes, range(6), curves, "one image, three rates", xlabel=xlabel, ylabel=ylabel)
axes.set_yscale("log")
draw.show(
    figure,
    "The loss over six steps on a logarithmic scale. At the lowest rate it stays level. At the"
    " middle one it jumps up by an order of magnitude after the first step and stays there, at the"
    " highest by four orders.",
)
after_one = [curve[1] / curve[0] for curve in curves.values()]
draw.say(
    "After one step the loss is "
    + ", ".join(f"{factor:.2g}" for factor in after_one)
    + " times the first. The sign of too high a rate is this first jump, and a loss that then"
    " falls, but not below where it began: what had been learnt is gone."
)
assert after_one[0] < 2 and after_one[1] > 5 and after_one[2] > 1000
assert min(curves["rate 0.02"][1:]) > curves["rate 0.02"][0]

# %% [markdown]
# The steps of AdamW are bounded by the rate, those of plain SGD are not. There numbers run to
# infinity, and the training stops. Its message names the step, the first stage that is not finite,
# and the images of the batch:

# %%
wild = configuration.preset("tiny")
wild = replace(
    wild,
    optimizer=replace(
        wild.optimizer,
        kind="sgd",
        learning_rate=1e4,
        warmup_iterations=0,
        clip_gradient_norm=0.0,
    ),
)
lessons = synthetic.ShapesDataset(8, seed=0)
with tempfile.TemporaryDirectory() as folder:
    quick = {"iterations": 4, "batch_size": 2, "log_every": 1, "bar": False}
    try:
        train_on_disk(wild, lessons, folder, **quick)
    except failure.NotFiniteError as error:
        message = str(error)
draw.say(f"`NotFiniteError: {message}`")
assert "C2 is not finite (images" in message

# %% [markdown]
# ## A crowd that nobody marked
#
# Sometimes nobody can draw every object: a crowd of people, a heap of nuclei. COCO lets an
# annotator mark the whole region as a *crowd*, `iscrowd = 1`. A detection in a crowd is neither
# right nor wrong. We let a perfect detector find all nuclei, and vary only how the right half is
# annotated.

# %%
nuclei = CocoDataset("data/nuclei.json", "data")
picture, objects = np.asarray(Image.open("data/nuclei.png")), nuclei.target(0)
masks = objects.masks.numpy()
in_crowd = objects.boxes[:, 0].numpy() > 55
region = masks[in_crowd].any(axis=0)
scores = torch.linspace(0.99, 0.5, len(masks), dtype=torch.float64)
# The objects of the crowd come first.
order = np.argsort(~in_crowd, kind="stable")
perfect = accelerated.Detections(
    objects.boxes[order], scores, objects.labels[order], objects.masks[order]
)
answers = [{"image_id": 1} | x for x in evaluate.coco_results(perfect, nuclei.category_ids)]


def annotated(crowd):
    """The file in which the right half is drawn one by one, left out, or one region."""
    content = copy.deepcopy(nuclei.coco)
    if crowd == "one by one":
        return content
    left = [x for x, right in zip(content["annotations"], in_crowd, strict=True) if not right]
    runs = rle.compress(rle.of_mask(region)).decode()
    extra = left[0] | {"id": 99, "area": int(region.sum()), "iscrowd": int(crowd == "as a crowd")}
    extra |= {"segmentation": {"size": [128, 128], "counts": runs}, "bbox": [55, 0, 73, 128]}
    return content | {"annotations": left + [extra] * (crowd != "left out")}


rows = {}
for crowd in ("one by one", "as a crowd", "left out", "as one object"):
    content = annotated(crowd)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotations.json"
        path.write_text(json.dumps(content))
        trained_on = len(CocoDataset(path, "data", open_images=False).target(0).labels)
    value = evaluate.score(content, answers, iou_types=["segm"])["segm"]["AP"]
    rows[crowd] = [trained_on, f"{value:.2f}"]

figure, axes = draw.figure(size=(4.6, 4.4))
draw.image(axes, picture, "left: drawn one by one; right: a crowd")
for mask in masks[~in_crowd]:
    draw.outline(axes, mask, draw.USED)
draw.outline(axes, region, draw.ASKED)
draw.show(
    figure,
    "Nuclei, grey blobs on a dark ground. Those on the left have an orange outline each, those on"
    " the right together a black one: the region that is annotated as a crowd.",
)
heads = ["the right half is annotated", "objects to train on", "AP of masks of a perfect detector"]
draw.table(rows, heads)
assert rows["one by one"][1] == rows["as a crowd"][1] == "1.00"
assert float(rows["left out"][1]) < 0.7 and float(rows["as one object"][1]) < 0.7

# %% [markdown]
# The detector is the same, and perfect, in all four rows. What is missing in the annotations counts
# as false. In training, a crowd is no object, so its pixels count as background there: the mark
# repairs the score, and not the lesson.
#
# ## Check
#
# The behaviour of every strange case is part of the specification, so all implementations must
# share it: which bins are NaN, what strange boxes read, who survives a tie, and the losses without
# an object.

# %%
rows, backends = [], ("torch", "triton")
no_object = fast.losses([image], [nothing], empty.priorities)


def accelerated_align(features, boxes, backend, **options):
    """RoIAlign of boxes [R, 4] on the maps of one image, by a backend."""
    tensors = map(torch.from_numpy, (features, boxes, np.zeros(len(boxes), int)))
    return fast_align.roi_align(*tensors, **options, backend=backend)


ours = {b: accelerated_align(P2, box, b, **options)[0, 0].isnan() for b in backends}
rows.append(check("bins that are NaN", poisoned, ours, 0))
ours = {b: accelerated_align(ramp, rois, b, **grid)[:, 0] for b in backends}
rows.append(check("strange boxes", read, ours, 0))
tie = torch.from_numpy(twins), torch.from_numpy(equal_scores), 0.5
rows.append(check("kept of a tie", kept, {b: fast_nms.nms(*tie, b) for b in backends}, 0))
for name, value in empty.losses.items():
    ours = {"torch": no_object[name]}
    rows.append(check(f"{name}, no object", value, ours, MODEL["float64"]))
display(Report.of("strange cases, float64", rows))

# %% [markdown]
# ## The map of the zoo
#
# | cage | what one sees | first wrong |
# |---|---|---|
# | pixels in 0..1 | nothing is found, AP 0 | `images`: look at its range |
# | blue and red exchanged | AP falls, unless colours are random | `images` |
# | float16 overflow | nothing is found | C2: infinity, then NaN |
# | anchors of another size | boxes too many, small objects missing | `anchors` |
# | half a pixel | boxes shifted by a part of the stride | `box_features` |
# | deltas without weights | boxes far off | `detections` |
# | no suppression | stacks of boxes | `detections` |
# | threshold of masks | outlines too wide or too narrow | none: after the record |
# | rate too high | a jump after the first step | the weights |
# | crowd not marked | AP falls although detections are right | the annotations |
# | labels, boxes, masks that cannot be | an error that says what to do | the entrance |
# | no object, no area, huge logits, equal scores | nothing: these have rules | none |
#
# ## Exercise
#
# Three patients. Each has one wrong setting; weights and image are those of the healthy model. You
# have their records, and the function `first_to_change` from above. Which of these causes is it?

# %%
patients = exercise.records()  # {"healthy": .., "A": .., "B": .., "C": ..}
draw.say("\n".join(f"* {cause}" for cause in exercise.CAUSES))

# %%
diagnosis = None  # your answer: {"A": "...", "B": "...", "C": "..."}, with causes of the list

draw.say(exercise.check(diagnosis))

# %% [markdown]
# **Remember.**
#
# * The dangerous failures are quiet. They lower a score and raise no error.
# * Compare with something healthy, stage by stage, and look at the first stage that differs. All
#   later ones differ, too.
# * No detections and no error: look for NaN, and at the range of `images`.
# * A test on data that cannot show a mistake does not test for it.
#
# **Next.** You have seen it all. Go back to [the whole machine](00_one_image.ipynb), or train on
# [your own data](14_own_data.ipynb).
