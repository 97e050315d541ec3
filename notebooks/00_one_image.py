# ---
# jupyter:
#   cpu_seconds: 18
# ---

# %% [markdown]
# # 0. One image through the whole machine
#
# **The question.** Pixels go in, masks come out. What happens in between?
#
# **Time.** About 20 minutes to read, half a minute to run.
#
# **Data.** One synthetic image with three objects, and the small trained model in `data/tiny`.
#
# **Before.** You know Python and have heard of convolutions. Nothing about detection is needed.

# %%
import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton's kernels run on the CPU

import json
import runpy
from pathlib import Path

import figures as draw
import numpy as np
import stations
from exercises import one_image as exercise
from IPython.display import display

import accelerated
from accelerated.verify.detection import compare
from reference import boxes, checkpoint, rpn, shapes
from reference.activations import sigmoid, softmax
from reference.mask_rcnn import MaskRCNN
from reference.structures import Stages, Target

# %% [markdown]
# ## The river
#
# Mask R-CNN finds the objects in an image, says what each of them is, and draws its outline. One
# call does it. We pass a *record* to it, which keeps everything that is computed on the way. In the
# picture below we follow the triangle. Which anchor and which proposal became the triangle, their
# scores tell.

# %%
model = checkpoint.load("data/tiny")
image, true_boxes, true_labels, true_masks = shapes.sample(1, 46)
record = Stages()
found = model.detect([image], record=record)[0]

[triangle, *_] = np.flatnonzero(found.labels == 3)
class_scores = softmax(record.class_logits)
proposal = np.abs(class_scores[:, 3] - found.scores[triangle]).argmin()
objectness = sigmoid(rpn.flatten(record.rpn_logits, record.rpn_deltas)[0][0])
anchor = np.abs(objectness - record.proposal_scores[0][proposal]).argmin()

# %%
names = ("background", *shapes.CLASS_NAMES)
followed = triangle, proposal, anchor
draw.show(
    stations.detection(image, record, found, names, class_scores, followed),
    "Eight pictures that a stream joins: an image of a disc, a triangle and a rectangle; maps of"
    " it, each coarser than the last; one anchor box on a grid of dots; many grey boxes and the"
    " triangle's; 32 small maps of its inside; bars, the longest says triangle; a mask of 28 by 28"
    " cells; the image with three outlines and names.",
    colours=256,
)

# %% [markdown]
# What happens at each station, where it is written down, and which notebook takes it apart:
#
# 1. **The image.** Its colours are normalised and its sides padded.
#    [transform](../reference/transform.py), [notebook 1](01_pixels_and_boxes.ipynb)
# 2. **Maps.** A ResNet and a feature pyramid turn pixels into features, at five scales.
#    [resnet](../reference/resnet.py), [fpn](../reference/fpn.py),
#    [notebook 4](04_backbone_and_pyramid.ipynb)
# 3. **Anchors.** On every cell of every map stand three fixed boxes, one wide, one square, one
#    tall. [anchors](../reference/anchors.py), [notebook 2](02_anchors.ipynb)
# 4. **Proposals.** The *region proposal network*, RPN, says how likely each anchor is to be an
#    object, and how it should move to fit. The best remain. [rpn](../reference/rpn.py),
#    [nms](../reference/nms.py), [notebook 3](03_rpn.ipynb)
# 5. **RoI features.** A proposal is a *region of interest*, RoI. Its inside is read off the maps,
#    always as 7 x 7 numbers of each channel. [roi_align](../reference/roi_align.py),
#    [notebook 5](05_roi_align.ipynb), [notebook 11](11_triton_kernel.ipynb)
# 6. **Classes.** The box head says what is in the box, and moves the box once more.
#    [box_head](../reference/box_head.py), [postprocess](../reference/postprocess.py),
#    [notebook 6](06_two_heads.ipynb)
# 7. **The mask.** The mask head draws 28 x 28 probabilities, only for the boxes that are left.
#    [mask_head](../reference/mask_head.py), [notebook 6](06_two_heads.ipynb)
# 8. **Pasted masks.** Each mask is stretched over its box and cut at one half.
#    [masks](../reference/masks.py), [notebook 7](07_masks.ipynb)
#
# Stations 1 to 4 look at the whole image, once. Stations 5 to 8 look at each box alone. This is the
# R in R-CNN: *regions with CNN features*.
#
# ## The code
#
# The model is a page of wiring. The work is done in the files that are linked above. Here is the
# middle of the page, as it runs. A line such as `keep(record, ...)` stores what passes, and changes
# nothing.

# %%
draw.source(MaskRCNN.batch_detections)

# %% [markdown]
# ## One triangle, four boxes
#
# A box is moved twice. How much does each move help? The measure is the *intersection over union*
# with the true box, IoU: the area that both cover, divided by the area that at least one covers.

# %%
truth = int(np.flatnonzero(true_labels == 3)[0])
anchors = np.concatenate(record.anchors)
steps = {
    "anchor": anchors[anchor],
    "proposal": record.proposals[0][proposal],
    "detection": found.boxes[triangle],
}
overlap = {name: boxes.iou(box[None], true_boxes[[truth]])[0, 0] for name, box in steps.items()}
both = (found.masks[triangle] & true_masks[truth]).sum()
mask_overlap = both / (found.masks[triangle] | true_masks[truth]).sum()

figure, axes = draw.figure(1, 4, size=(10, 3.3))
for axis, (name, box) in zip(axes, steps.items(), strict=False):
    draw.image(axis, image, f"{name}: IoU {overlap[name]:.2f}")
    draw.box(axis, true_boxes[truth], draw.ASKED, label="true box")
    draw.box(axis, box, draw.USED, label="box of the model")
draw.image(axes[3], image, f"mask: IoU {mask_overlap:.2f}")
draw.outline(axes[3], found.masks[triangle], draw.USED, label="mask of the model")
for axis in axes:
    axis.set(xlim=(62, 128), ylim=(110, 36))
draw.legend(figure)
draw.show(
    figure,
    "Four enlarged pictures of the triangle. In the first, the anchor lies too low and to the left"
    " of the dashed true box. The proposal fits better, the detection almost exactly,"
    " and in the last picture the outline of the mask follows the triangle's edges.",
)
draw.table(
    {
        name: [*(f"{side:.1f}" for side in box), f"{overlap[name]:.3f}"]
        for name, box in steps.items()
    }
    | {"true box": [*(f"{side:.1f}" for side in true_boxes[truth]), "-"]},
    ["box", "x1", "y1", "x2", "y2", "IoU with the true box"],
)
draw.say(
    f"The RPN moves the anchor and lifts the IoU from {overlap['anchor']:.2f} to"
    f" {overlap['proposal']:.2f}. The box head moves the proposal once more, to"
    f" {overlap['detection']:.2f}."
)

# %% [markdown]
# ## Every number
#
# The picture of the river shows a few of the arrays in the record. Here are all of them, in the
# order in which they are computed. Many shapes begin with the number of images, here 1.

# %%
UNITS = {
    "images": "standard deviations from the mean colour",
    **dict.fromkeys(["C2", "C3", "C4", "C5"], "features of the backbone, no unit"),
    **dict.fromkeys(["P2", "P3", "P4", "P5", "P6"], "features of the pyramid, no unit"),
    "rpn_logits": "log-odds that an anchor is an object",
    "rpn_deltas": "moves of the anchors, in their sides; logarithms of ratios",
    "anchors": "corners, pixels",
    "proposals": "corners, pixels",
    "proposal_scores": "probability",
    "box_features": "features at 7 x 7 places of a proposal, no unit",
    "class_logits": "logarithms of unnormalised probabilities",
    "box_deltas": "moves of the proposals, a tenth or a fifth of their sides",
    "boxes": "corners, pixels",
    "scores": "probability",
    "labels": "class, 1 to 3",
    "mask_features": "features at 14 x 14 places of a detection, no unit",
    "mask_logits": "log-odds that a cell is inside",
    "mask_probabilities": "probability",
}


def arrays(value):
    """List the arrays in a field of the record, which may be a list over levels or images."""
    if isinstance(value, np.ndarray):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return [array for part in parts if part is not None for array in arrays(part)]


def described(name, value):
    """Describe a field of the record: shape, type, unit, least and largest value."""
    found = arrays(value)
    flat = np.concatenate([array.ravel() for array in found])
    sizes = list(dict.fromkeys(map(stations.shape, found)))
    limits = (f"{limit:.3g}" for limit in (flat.min(), flat.max()))
    return [" ".join(sizes), flat.dtype, UNITS.get(name, "-"), *limits]


computed = record.computed()
inside = record.detections[0]
computed["detections"] = {"boxes": inside.boxes, "scores": inside.scores, "labels": inside.labels}
rows = {}
for name, value in computed.items():
    for part, array in value.items() if isinstance(value, dict) else [(name, value)]:
        rows[part] = described(part, array)
draw.table(rows, ["field", "shape", "type", "unit", "least", "largest"], text=True)
passed = sum(array.size for value in computed.values() for array in arrays(value))
draw.say(
    f"{len(rows)} arrays with {passed:,} numbers, from an image of {image.size:,}. The model itself"
    f" consists of {sum(x.size for x in model.parameters.values()):,} numbers, its parameters."
)

# %% [markdown]
# ## The same river in training
#
# In training, the true objects come along. Nothing is pasted. Instead, every prediction is compared
# with what it should have been. The first four panels below show these answers, and the last one
# the five losses.

# %%
target = Target(true_boxes, true_labels, true_masks)
lesson = Stages()
losses = model.losses([image], [target], record=lesson, generator=np.random.default_rng(0))
draw.show(
    stations.training(image, target, anchors, lesson, losses, label=3),
    "Five pictures that a stream joins: the image with the outlines and boxes of its three objects;"
    " dots where anchors are asked, orange squares on the objects and grey dots elsewhere; orange"
    " boxes around the objects and grey ones beside them; a mask target, a triangle of 28 by 28"
    " cells; five bars, one per loss.",
)

# %% [markdown]
# Only some of the anchors are asked, and only some of the proposals. Most of an image is
# background, and a loss over everything would hear of little else.
# [Notebook 2](02_anchors.ipynb) shows who is asked, and [notebook 8](08_one_step.ipynb) how the
# losses reach back to the first convolution. These fields of the record exist in training only:

# %%
UNITS |= {
    "priorities": "random, the lowest are sampled",
    "rpn_labels": "1 object, 0 background, -1 ignored",
    "rpn_matched": "number of a true object",
    "rpn_target_deltas": "moves that the anchors should make",
    "rpn_sampled": "1 object, 0 background, -1 not asked",
    "sampled_rois": "corners, pixels",
    "roi_labels": "class, 0 background",
    "mask_targets": "share of a cell that is inside",
}
extra = {name: value for name, value in lesson.computed().items() if name not in computed}
# The parts of `samples` stand in the record under names of their own.
del extra["samples"]
rows = {name: described(name, value) for name, value in extra.items()}
draw.table(rows, ["field", "shape", "type", "unit", "least", "largest"], text=True)

# %% [markdown]
# ## From the papers to the code
#
# Mask R-CNN stands on the shoulders of many papers. Every row of the following table is a step of
# the algorithm: the section of the paper that describes it, the functions in NumPy, the same in
# PyTorch and Triton, the test that holds them together, the notebook that explains it, and the
# section of the specification that fixes its details. Two notebooks belong to no paper:
# [14](14_own_data.ipynb) trains on your own data, and [15](15_failure_zoo.ipynb) shows how all this
# breaks.

# %%
papers = json.loads(Path("../docs/papers.json").read_text())
writer = runpy.run_path("../docs/papers.py")
draw.say(writer["one_folder_down"](writer["table"](**papers)))
draw.say(f"{len(papers['steps'])} steps from {len(papers['papers'])} papers.")

# %% [markdown]
# ## Check: three implementations, stage by stage
#
# Everything above was NumPy, written to be read. The project has the same model a second time, in
# PyTorch with Triton kernels, written to be fast. With the same weights and the same image, every
# stage must agree. The Triton kernels are interpreted here, which is slow. Therefore only the six
# best proposals go on to the heads.

# %%
report = compare(accelerated.load("data/tiny"), image, proposals=6)
assert report.passed and len(report.rows) == 24, report.summary
display(report)

# %% [markdown]
# A number such as `1.2e-15` is the largest difference of any entry, divided by the largest entry. A
# float64 has sixteen digits, and these results agree in nearly all of them. Labels and masks are
# not rounded, and must be equal.

# %% [markdown]
# ## Exercise
#
# At the end of the river every object has a class. Which field of the record is the *first* to know
# it?
#
# Think of an experiment. We exchange the names of two classes: in every weight of the model that
# has a part for each class, the parts of disc and triangle change places. The new model finds the
# same objects and calls each disc a triangle. Which field of the record, in the order of the table,
# is the first whose numbers change?

# %%
first_to_know = None  # your answer: the name of a field, such as "P2"

draw.say(exercise.check(first_to_know))

# %% [markdown]
# The fields before it are not blind to shapes. The maps must contain what distinguishes a disc from
# a triangle, or no layer could tell them apart later. But nothing in them says which is which.

# %% [markdown]
# **Remember.**
#
# * The river: image, maps, anchors, proposals, RoI features, classes, mask, pasted mask. The first
#   half looks at the whole image once, the second half at each box alone.
# * A box is an anchor first, moved by the RPN to a proposal, and by the box head to a detection.
# * Every box is read as 7 x 7 numbers, however large it is, and every mask is 28 x 28.
# * `detect(images, record=Stages())` keeps every number. Whatever puzzles you, look it up there.
#
# **Next.** [Pixels and boxes](01_pixels_and_boxes.ipynb): where is pixel 3, and how wide is a box
# from 3 to 7?
