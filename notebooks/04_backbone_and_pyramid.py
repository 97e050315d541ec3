# ---
# jupyter:
#   cpu_seconds: 17
# ---

# %% [markdown]
# # 4. Backbone and pyramid: which map should a box read?
#
# **The question.** The network computes five maps of one image, from fine to coarse. A box of
# 60 pixels and a box of 500 pixels both want 7 x 7 numbers. From which map should each take them?
#
# **Time.** About 25 minutes to read, a few seconds to run.
#
# **Data.** Synthetic shapes, and the small trained model in `data/tiny`.
#
# **Before.** You know what a convolution is. [Notebook 1](01_pixels_and_boxes.ipynb) says what the
# four numbers of a box mean.

# %%
import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton's kernels run on the CPU

import math
from functools import partial

import figures as draw
import numpy as np
import torch
from exercises import backbone_and_pyramid as exercise

import accelerated
from accelerated import pooler as fast_pooler
from accelerated.structures import Stages as FastStages
from accelerated.verify import equality
from accelerated.verify.report import Report, check
from reference import (
    backbone,
    checkpoint,
    config,
    fpn,
    mask_rcnn,
    max_pool,
    neck,
    norm,
    parameters,
    pooler,
    resnet,
    shapes,
    transform,
    upsample,
)
from reference.activations import relu
from reference.autodiff import Tape
from reference.structures import Stages

# %% [markdown]
# ## One picture, five objects, four maps
#
# The image below has the size that Mask R-CNN works on: its short side is 800 pixels. The largest
# object is eight times as large as the smallest one. The pyramid has four maps for the heads, P2 to
# P5. One cell of P2 covers 4 x 4 pixels of the image, one of P3 covers 8 x 8, one of P4 16 x 16,
# and one of P5 32 x 32.

# %%
paper = config.preset("paper_r50_fpn").box_head.pooler
style = shapes.Style(radius=(0.03, 0.42), min_visible=0.6)
photo, boxes, labels, _ = shapes.sample(4, 112, height=800, width=1088, style=style)
sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
levels = pooler.assign(boxes, paper)
# Drawn as means over the cells of P2, 4 x 4 pixels, which hides the noise.
drawn_photo = photo.reshape(200, 4, 272, 4, 3).mean(axis=(1, 3)).repeat(4, 0).repeat(4, 1) / 255


def squares(sides):
    """Squares of these sides [R] -> boxes [R, 4]."""
    sides = np.asarray(sides, dtype=float)
    return np.stack([0 * sides, 0 * sides, sides, sides], axis=1)


# %%
def draw_in_its_cells(axes, box, level):
    """Draw the part of the image around a box, cut into the cells of a level."""
    stride, (width, height) = 2**level, box[2:] - box[:2]
    draw.image(axes, drawn_photo, f"P{level}: {width / stride:.0f} x {height / stride:.0f} cells")
    # A square around the box, moved into the image.
    side = min(1.24 * max(width, height), 800)
    left, top = np.clip((box[:2] + box[2:] - side) / 2, 0, [1088 - side, 800 - side])
    for lines in (axes.vlines, axes.hlines):
        lines(np.arange(0, 1088, stride), 0, 1088, color="white", linewidth=0.5, alpha=0.6)
    draw.box(axes, box, draw.USED)
    axes.set(xlim=(left, left + side), ylim=(top + side, top))
    axes.set(xlabel="", ylabel="", xticks=[], yticks=[])


figure, axes = draw.mosaic(["aabb", "2345"], size=(10, 6.6), height_ratios=(1.25, 1))
draw.image(axes["a"], drawn_photo, "five boxes, one image")
size_axis = np.geomspace(20, 1100, 2000)
axes["b"].step(size_axis, pooler.assign(squares(size_axis), paper), color=draw.USED)
for number, (box, side, level) in enumerate(zip(boxes, sides, levels, strict=True), start=1):
    draw.box(axes["a"], box, draw.USED)
    axes["a"].text(*(box[:2] + box[2:]) / 2, str(number), ha="center", va="center", weight="bold")
    axes["b"].plot(side, level, "o", color=draw.SAMPLE, markersize=8)
    axes["b"].annotate(str(number), (side, level), (-3, 8), textcoords="offset points")
axes["b"].set(title="the level of each box: a doubling is one step", xscale="log", ylim=(1.6, 5.6))
axes["b"].set(xlabel="side of a square of the same area, pixels", ylabel="level, no unit")
axes["b"].set_yticks([2, 3, 4, 5], ["P2", "P3", "P4", "P5"])
axes["b"].set_xticks([28, 56, 112, 224, 448, 896], ["28", "56", "112", "224", "448", "896"])
axes["b"].minorticks_off()
for level in (2, 3, 4, 5):
    draw_in_its_cells(axes[str(level)], boxes[np.flatnonzero(levels == level)[0]], level)
draw.show(
    figure,
    "Top left, an image with five numbered boxes. Top right, a staircase of levels over the size "
    "of a box, with steps at 112, 224 and 448 pixels and a dot per box. Bottom, one box of each "
    "level on the cells of its own map: although their sizes differ eightfold, all four are cut "
    "into roughly the same number of cells.",
)

# %%
draw.table(
    {
        f"box {i}": [f"{side:.0f}", f"P{level}", f"{side / 2**level:.1f}", f"{side / 4:.1f}"]
        for i, (side, level) in enumerate(zip(sides, levels, strict=True), start=1)
    },
    ["box", "side, pixels", "map", "cells across, on its map", "cells across, if all read P2"],
)
draw.say(
    f"The sides of these boxes span a factor of {sides.max() / sides.min():.1f}. Measured in the "
    f"cells of their maps, they span a factor of "
    f"{(sides / 2.0**levels).max() / (sides / 2.0**levels).min():.1f}. This is what a pyramid is "
    "for: one head, trained once, sees large and small objects at the same size."
)

# %% [markdown]
# Where do the maps come from? From a classifier without its last layers, the **backbone**, and from
# a second network on top, the **feature pyramid**. We take them in this order.
#
# ## The backbone
#
# A ResNet is a stack of blocks. A block does not compute its output. It computes what to *add* to
# its input [Deep Residual Learning, (1)]:
#
# $$y = \mathrm{ReLU}\big(x + F(x)\big)$$
#
# In the smaller ResNets, $F$ is two normalised 3 x 3 convolutions with a ReLU in between:

# %%
draw.source(resnet.basic_block)

# %% [markdown]
# Here is the first stage by hand, in the trained model: the stem, then two blocks. The result must
# be the map that the model itself records under the name C2.

# %%
model = checkpoint.load("data/tiny")
tiny, weights = model.config, model.parameters
picture = shapes.sample(1, 24)[0]
images = transform.prepare(picture, None, tiny.transform)[0][None]
record = Stages()
pyramid = mask_rcnn.features(weights, images, tiny, record)

stem = partial(resnet.conv_norm, weights, "backbone", tiny, None)
x = relu(stem("conv1", "bn1", images, stride=2, padding=3))
x = max_pool.max_pool2d(x, kernel=3, stride=2, padding=1)
steps = [x]
for name in ("backbone.layer1.0", "backbone.layer1.1"):
    branch = resnet.basic_block(partial(resnet.conv_norm, weights, name, tiny, None), x, 1, 1, tiny)
    x = relu(x + branch)
    steps += [branch, x]
np.testing.assert_array_equal(x, record.C2)

# %%
channel = int(np.argmax(steps[1][0].std(axis=(1, 2))))
# The image on the cells of C2: means over 4 x 4 pixels.
small = picture.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3)) / 255
figure, axes = draw.figure(1, 4, size=(10, 2.9))
draw.image(axes[0], small, "the image, in these cells", unit="feature pixels")
largest = max(np.abs(part[0, channel]).max() for part in steps[:3])
titles = ("input x", "F(x)", "ReLU(x + F(x))")
for part, title, panel in zip(steps[:3], titles, axes[1:], strict=True):
    limits, cells = (-largest, largest), part[0, channel]
    drawn = draw.cells(panel, cells, title, cmap=draw.SIGNED, limits=limits, grid=False)
draw.colour_bar(axes[3], drawn, "feature, no unit")
draw.show(
    figure,
    "An image of six shapes, and three maps of one channel of the first residual block: its input, "
    "nowhere negative; the branch F, strongly negative on four of the shapes and positive around "
    "others; and their rectified sum, which is zero on these four shapes and large beside them.",
)
ratio = np.linalg.norm(steps[1]) / np.linalg.norm(steps[0])
draw.say(
    f"In the first block the norm of F(x) is {ratio:.2f} times that of x: the branch says as much "
    "as the input. But it need not say anything. Were its weights zero, the block would be the "
    "identity, since x has passed a ReLU and is not negative. A stack of such blocks can start as "
    "a shallow network, and a gradient reaches its first block even if no branch lets it through."
)

# %% [markdown]
# Four times, a stage of such blocks halves the resolution and doubles the channels. The pyramid
# then gives all maps the same number of channels.

# %%
rows = {}
for name, value in record.computed().items():
    batch, channels, height, width = value.shape
    rows[name] = [f"{channels}", f"{height} x {width}", f"{images.shape[2] // height}"]
draw.table(rows, ["array", "channels", "cells", "image pixels per cell and axis"])

# %% [markdown]
# ## How much of the image does a cell see?
#
# Ask the gradient. Put a 1 on one cell of a map, for all channels, and run the tape backwards to
# the image. A pixel whose gradient is zero cannot change the cell. The pixels that can are the
# **receptive field** of the cell. We take an untrained network of this shape with frozen
# normalisation, and an image of 512 x 512 pixels.

# %%
free = config.override(config.override(tiny, "backbone.norm=frozen"), "fpn.norm=none")
random_weights = parameters.initial_parameters(free, np.random.default_rng(0))
large = shapes.sample(1, 3, height=512, width=512)[0]
sized = config.override(config.override(tiny, "transform.min_size=[512]"), "transform.max_size=512")
large_images = transform.prepare(large, None, sized.transform)[0][None]


def seen_by(name, weights, setting):
    """The middle cell of map `name` -> |gradient| of the image [512, 512], summed over colours."""
    tape, record = Tape(), Stages()
    variable = tape.variable(large_images)
    mask_rcnn.features(weights, variable, setting, record)
    output = getattr(record, name)
    grad = np.zeros(output.shape)
    grad[:, :, output.shape[2] // 2, output.shape[3] // 2] = 1
    tape.backward(output, grad)
    return np.abs(variable.grad[0]).sum(axis=0)


NAMES = ("C2", "C3", "C4", "C5", "P2")
seen = {name: seen_by(name, random_weights, free) for name in NAMES}
width_of = {name: int(np.ptp(np.nonzero(field)[1])) + 1 for name, field in seen.items()}

# %%
figure, axes = draw.figure(1, 5, size=(10, 2.7))
for name, panel in zip(NAMES, axes, strict=True):
    field = seen[name] / seen[name].max()
    title = f"{name}: {width_of[name]} pixels wide"
    scaled = np.log10(np.maximum(field, 1e-5))
    draw.cells(panel, scaled, title, cmap=draw.MAGNITUDE, limits=(-5, 0), grid=False)
    panel.set(xlabel="x, pixels", xticks=[0, 256, 512], ylabel="", yticks=[])
axes[0].set(ylabel="y, pixels", yticks=[0, 256, 512])
draw.show(
    figure,
    "Five squares of 512 pixels, each with a bright patch: the logarithm of the gradient of one "
    "cell. The patch of C2 is small; those of C3, C4 and C5 double again and again until C5 fills "
    "most of the image. The patch of P2 is as large as that of C5.",
)
middle = seen["C5"][256 - 108 : 256 + 108, 256 - 108 : 256 + 108].sum() / seen["C5"].sum()
draw.say(
    "A cell of C2 lies on 4 pixels and sees "
    f"{width_of['C2']}; a cell of C5 lies on 32 and sees {width_of['C5']}. Within its field a cell "
    "looks mostly at the middle: the inner half of C5's field, a quarter of its area, carries "
    f"{middle:.0%} of the gradient."
)

# %% [markdown]
# **This is the reason for the pyramid.** C2 knows *where* but sees little. C5 has seen everything
# but is coarse. P2 has the cells of C2 and the field of C5. The next section shows how that is
# done.
#
# One warning. These exact borders hold for frozen or batch normalisation in inference. Group
# normalisation divides by a standard deviation over the *whole* map, so every pixel of the image
# can change every cell:

# %%
assert [width_of[name] for name in NAMES[:4]] == [43, 99, 211, 435]
trained = seen_by("C2", weights, tiny)
inside = seen["C2"] > 0
draw.say(
    f"In the trained model, which has group normalisation, {(trained > 0).mean():.0%} of all "
    f"pixels have a gradient at one cell of C2, and {trained[~inside].sum() / trained.sum():.0%} "
    f"of the sum of magnitudes lies outside the {width_of['C2']} pixels that its convolutions see. "
    "It is spread thinly: at a pixel inside, the mean magnitude is "
    f"{trained[inside].mean() / trained[~inside].mean():.0f} times as large as at one outside."
)

# %% [markdown]
# ## Top down: position and meaning, added
#
# The pyramid goes back from the coarse maps to the fine ones [Feature Pyramid Networks, §3]:
#
# $$M_5 = \mathrm{lateral}_5(C_5), \qquad
#   M_l = \mathrm{lateral}_l(C_l) + \mathrm{enlarge}(M_{l+1}), \qquad
#   P_l = \mathrm{output}_l(M_l)$$
#
# A lateral is a 1 x 1 convolution, which brings every stage to the same number of channels.
# Enlarging repeats every cell 2 x 2 times. The output is a 3 x 3 convolution.

# %%
draw.source(fpn.forward)

# %% [markdown]
# The same by hand, down to P2:


# %%
def layer(name, x, **keywords):
    """A normalised convolution of the pyramid."""
    return norm.conv_norm(weights, name, f"{name}_norm", x, "group", tiny, None, **keywords)


stages = {2: record.C2, 3: record.C3, 4: record.C4, 5: record.C5}
lateral = {level: layer(f"fpn.lateral{level}", value) for level, value in stages.items()}
total = lateral[5]
for level in (4, 3, 2):
    from_above = upsample.nearest(total, *lateral[level].shape[2:])
    total = lateral[level] + from_above
np.testing.assert_array_equal(layer("fpn.output2", total, padding=1), record.P2)

# %%
figure, axes = draw.figure(1, 3, size=(9, 2.9))
parts = {"lateral2(C2)": lateral[2], "enlarge(M3)": from_above, "their sum, M2": total}
strengths = {title: np.abs(part[0]).mean(axis=0) for title, part in parts.items()}
top = max(strength.max() for strength in strengths.values())
for (title, strength), panel in zip(strengths.items(), axes, strict=True):
    limits = (0, top)
    drawn = draw.cells(panel, strength, title, cmap=draw.MAGNITUDE, limits=limits, grid=False)
draw.colour_bar(axes[2], drawn, "mean |feature|, no unit")
draw.show(
    figure,
    "Three maps of 32 by 32 cells of the same image. The lateral map shows the outlines of the six "
    "shapes sharply and is dark elsewhere. The enlarged map from above is smooth and consists of "
    "blocks of 2 by 2 equal cells. The sum shows both.",
)
blocks = from_above[0].reshape(32, 16, 2, 16, 2)
assert np.array_equal(blocks.max(axis=(2, 4)), blocks.min(axis=(2, 4)))
norms = [np.linalg.norm(part) for part in parts.values()]
draw.say(
    f"Norms: {norms[0]:.0f} from the side, {norms[1]:.0f} from above, {norms[2]:.0f} for the sum."
)

# %% [markdown]
# ## Which level? The formula
#
# A box of width $w$ and height $h$ reads the map [Feature Pyramid Networks, (1)]
#
# $$k = \Big\lfloor 4 + \log_2 \frac{\sqrt{w h}}{224} \Big\rfloor,
#   \qquad \text{clamped to } 2 \le k \le 5.$$
#
# The constant 224 is the side of the images on which ResNets are trained as classifiers: a box that
# large should read the map that a classifier of such an image would end with, in the design that
# the pyramid replaced. The code:

# %%
draw.source(pooler.assign)

# %% [markdown]
# **Why a logarithm?** Two boxes whose sides have the ratio 2 must differ by one level, whether they
# have 50 and 100 pixels or 300 and 600. The logarithm turns equal ratios into equal differences,
# and the strides of the maps are powers of 2. So the side in *cells* stays within one factor of 2:

# %%
sides_shown = [28, 56, 112, 224, 448, 896, 1792]
chosen = pooler.assign(squares(sides_shown), paper)
draw.table(
    {
        f"{side}": [f"{4 + math.log2(side / 224):.0f}", f"P{k}", f"{side / 2**k:.0f}"]
        for side, k in zip(sides_shown, chosen, strict=True)
    },
    ["side, pixels", "4 + log2(side / 224)", "map", "cells across"],
)
inner = np.arange(112, 896)
cells = inner / 2.0 ** pooler.assign(squares(inner), paper)
draw.say(
    f"Every square of 112 to 895 pixels is {cells.min():.0f} to {cells.max():.2f} cells wide on "
    "its map, so each of its 7 bins is 2 to 4 cells wide. "
    "Below 112 pixels there is no finer map, and from 896 on no coarser one: the ends of the "
    "staircase are flat."
)


# %%
def four_levels(size):
    """Draw a square of `size` pixels in the cells of each level, and mark the one it reads."""
    figure, axes = draw.figure(1, 4, size=(10, 2.75))
    read = pooler.assign(squares([size]), paper)[0]
    for level, panel in zip((2, 3, 4, 5), axes, strict=True):
        side, role = size / 2**level, draw.USED if level == read else draw.QUIET
        title = f"P{level}: {side:.3g} cells{', read' if level == read else ''}"
        draw.cells(panel, np.full((32, 32), 0.8), title, limits=(0, 1), unit="cells")
        draw.patch(panel, (0, 0, side, side), role, alpha=0.35)
        draw.box(panel, (0, 0, side, side), role, bins=7 if level == read else 0)
        panel.set(xlim=(0, 32), ylim=(32, 0), xticks=[0, 14, 28], yticks=[0, 14, 28])
    return figure


draw.explore(
    four_levels,
    "A square of 80, 200 and 500 pixels, from top to bottom, on 32 by 32 cells of P2, P3, P4 and "
    "P5. The vermilion square with 7 by 7 bins is on the map that is read. Further left the square "
    "would have too many cells or leave the panel; further right it would have few.",
    [{"size": 80}, {"size": 200}, {"size": 500}],
    size=(16, 900, 1),
)

# %% [markdown]
# ## At the edge of a step
#
# A square of exactly 224 pixels reads P4. But coordinates are rounded. Put 10000 squares of 224
# pixels at random places and round their corners to float32. Then compute their level by the
# formula as it stands, and with the two corrections that are in use: torchvision adds a millionth
# *outside* the logarithm, detectron2 a hundred-millionth *inside*.

# %%
generator = np.random.default_rng(0)
corner = generator.uniform(0, 576, (10000, 2)).astype(np.float32)
rounded = np.concatenate([corner, corner + np.float32(224)], axis=1).astype(np.float64)
inside_log = config.override(tiny, "box_head.pooler.level_epsilon=inside").box_head.pooler
area = (rounded[:, 2] - rounded[:, 0]) * (rounded[:, 3] - rounded[:, 1])
plain = np.floor(4 + np.log2(np.sqrt(area) / 224))
chosen = {
    "no correction": plain,
    "inside, 1e-8 (detectron2)": pooler.assign(rounded, inside_log),
    "outside, 1e-6 (torchvision)": pooler.assign(rounded, paper),
}
draw.table(
    {name: [int((k == 3).sum()), int((k == 4).sum())] for name, k in chosen.items()},
    ["formula", "squares that read P3", "squares that read P4"],
)
draw.say(
    f"The rounded sides differ from 224 by at most {np.abs(np.sqrt(area) - 224).max():.0e} pixels. "
    "That is enough to send some of them to another map, where they read entirely different "
    "numbers. The larger correction covers float32's rounding, the smaller one does not. Two "
    "implementations that agree everywhere else may differ in such a box."
)
assert (chosen["outside, 1e-6 (torchvision)"] == 4).all() and (plain == 3).any()

# %% [markdown]
# ## P6, and this small model
#
# The RPN reads one map more. P6 is every second cell of P5, without a weight of its own. Its
# anchors are the largest ones. No box is pooled from it: `max_level` is 5.

# %%
np.testing.assert_array_equal(pyramid[6], pyramid[5][:, :, ::2, ::2])
known = np.concatenate([shapes.sample(0, index)[1] for index in range(100)])
counts = np.bincount(pooler.assign(known, tiny.box_head.pooler), minlength=6)
draw.say(
    f"P6 has {pyramid[6].shape[2]} x {pyramid[6].shape[3]} cells here. The small model keeps the "
    "constant 224 although its images have 128 pixels: of the "
    f"{len(known)} objects in its first 100 training images, {counts[2]} read P2 and {counts[3]} "
    "read P3. The coarser maps serve its RPN, and its heads through what they add to P2."
)

# %% [markdown]
# ## Without a pyramid
#
# The paper compares the pyramid with single maps (its table 2, a). C4 stops after stage 4 and runs
# stage 5 on every box. DC5 runs stage 5 on the whole image with dilated convolutions, which keep
# the stride at 16. VGG-16 is the backbone of Faster R-CNN. The parameters are counted without those
# of the heads, to which C4 moves its stage 5.

# %%
rows = {}
for name in ("paper_r50_fpn", "paper_r50_c4", "detectron2_r50_dc5", "paper_r50_c5", "paper_vgg16"):
    setting = config.preset(name)
    body, top = backbone.of(setting), neck.of(setting)
    # A C4 model lists its stage 5 with the backbone, where it is defined.
    own = config.override(setting, "shared_head=none")
    counted = body.parameter_shapes(own) | top.parameter_shapes(own)
    size = sum(math.prod(shape) for shape in counted.values()) / 1e6
    read = pooler.assign(squares([64, 448]), setting.box_head.pooler)
    maps = f"P{read[0]}, P{read[1]}" if setting.neck == "fpn" else f"stride {2 ** read[0]}"
    across = [f"{side / 2**level:.0f}" for side, level in zip((64, 448), read, strict=True)]
    rows[name] = [maps, *across, top.channels(setting), f"{size:.1f}"]
columns = ["preset", "maps", "cells of 64 pixels", "cells of 448 pixels"]
draw.table(rows, [*columns, "channels", "million parameters"])

# %% [markdown]
# With one map of stride 16, a box of 64 pixels has 4 cells for 7 bins, so neighbouring bins read
# the same cells. The fine maps of a pyramid are there for such boxes.
#
# ## Check
#
# Levels must be equal, exactly, for both corrections: for random boxes, boxes at the edges of the
# steps, empty and inverted ones. The maps must agree, and so must what four boxes read. For these
# we set the constant to 32, so that they use all four maps.

# %%
generator = np.random.default_rng(1)
edge = 224 * 2.0 ** np.arange(-3, 4)[:, None] * (1 + np.array([-1e-5, -1e-7, -1e-9, 0, 1e-9]))
some = np.concatenate([squares(edge.ravel()), generator.uniform(0, 1500, (2000, 4))])
rows = [
    check(
        f"levels, epsilon {choice.level_epsilon}",
        pooler.assign(some, choice),
        {"torch": fast_pooler.assign(torch.from_numpy(some), choice)},
        0,
    )
    for choice in (paper, inside_log)
]
fast = accelerated.load("data/tiny").double().eval()
fast_record = FastStages()
with torch.no_grad():
    fast_maps = fast.features(torch.from_numpy(images), fast_record)
for name, value in record.computed().items():
    result = {"torch": getattr(fast_record, name)}
    rows.append(check(name, value, result, equality.REDUCTION["float64"]))
four = config.override(tiny, "box_head.pooler.canonical_size=32").box_head.pooler
asked = np.array([[60.0, 60, 67, 68], [20, 30, 38, 52], [9, 40, 45, 77], [8, 5, 124, 120]])
assert sorted(pooler.assign(asked, four)) == [2, 3, 4, 5]
inputs = torch.from_numpy(asked), torch.zeros(4, dtype=torch.long), four
expected = pooler.pool(pyramid, asked, np.zeros(4, int), four)
maps = {level: torch.from_numpy(value) for level, value in pyramid.items()}
results = {name: fast_pooler.pool(maps, *inputs, backend=name) for name in ("torch", "triton")}
rows.append(check("pooled from four maps", expected, results, equality.POINTWISE["float64"]))
Report.of("Levels, maps and pooled boxes", rows)

# %% [markdown]
# ## Exercise
#
# Write the formula for one box, with the clamps. A box without area reads P2. Use the standard
# library's `math`.


# %%
def my_level(width, height):
    """Width and height of a box in pixels, floats, perhaps 0 -> its level, an int from 2 to 5."""
    return None  # your code


draw.say(exercise.check(my_level))

# %% [markdown]
# **Remember.**
#
# * A residual block adds to its input. Four stages halve the resolution and widen the view.
# * The pyramid adds what coarse maps know to fine maps: the cells of C2 with the field of C5.
# * A box reads the map on which it is 14 to 28 cells wide. Each doubling of its side is one level,
#   so the rule is a logarithm, rounded down.
# * At an edge of the staircase, a millionth decides which map is read.
#
# **Next.** The box lies between the cells of its map. How does it get exactly 7 x 7 numbers?
# [Notebook 5: RoIPool, RoIWarp, RoIAlign](05_roi_align.ipynb).
