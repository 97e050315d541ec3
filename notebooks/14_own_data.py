# ---
# jupyter:
#   cpu_seconds: 48
# ---

# %% [markdown]
# # 14. Your own data: from a folder of pictures to a report
#
# **The question.** You have some pictures and have outlined the objects in them. What must be right
# before a model can learn from them, how do you train one, and how good is it then?
#
# **Time.** Thirty minutes to read, one minute to run.
#
# **Data.** Pieces of a microscope picture of cell nuclei, and the small model that knows discs,
# rectangles and triangles, but no nuclei.
#
# **Before.** [Masks](07_masks.ipynb) for run lengths, [training](09_training.ipynb) for the loop,
# [average precision](10_average_precision.ipynb) for the score.

# %%
import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import figures as draw
import numpy as np
import torch
from exercises import own_data as exercise
from PIL import Image, ImageOps

from accelerated import MaskRCNN, interop
from accelerated.data import lint, rle
from accelerated.data.coco import CocoDataset
from accelerated.data.summary import summary
from accelerated.drawing import curves, detections
from accelerated.engine import log
from accelerated.engine.evaluate import categories, evaluate
from accelerated.engine.predict import predict
from accelerated.engine.train import train
from reference.config import override, preset

# Everything is written into a folder that vanishes with the kernel.
workshop = tempfile.TemporaryDirectory()
folder = Path(workshop.name)

# %% [markdown]
# ## A folder and a file
#
# The microscope picture has 128 x 128 pixels and 17 outlined nuclei. We take twelve small pictures
# from its left half for training, and three from its right half for evaluation. The halves share no
# nucleus: **what a model is scored on, it must never have been trained on.**
#
# A data set in COCO's format is a folder of pictures and one JSON file with three lists:
#
# * `images`: number, file name, width and height of every picture,
# * `categories`: number and name of every class,
# * `annotations`: one entry per object.
#
# An annotation has a box and a mask, which is stored as run lengths or as polygons. The box is
# `[x, y, width, height]` with the upper left corner, although nearly everything else in this
# project takes two corners.

# %%
WIDTH, HEIGHT = 48, 36
nuclei = CocoDataset("data/nuclei.json", "data")[0]


def annotation(mask, **ids):
    """Make an annotation of a mask [H, W] bool, with its box and its area in pixels."""
    counts = rle.of_mask(mask)
    x1, y1, x2, y2 = rle.bounds(counts, HEIGHT)
    stored = {"size": [HEIGHT, WIDTH], "counts": rle.compress(counts).decode()}
    where = {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": stored}
    return ids | {"category_id": 7} | where | {"area": int(mask.sum()), "iscrowd": 0}


def piece(number, x, y, name):
    """Write a piece of the picture to a file; return its entry and the masks of its nuclei."""
    part = np.s_[y : y + HEIGHT, x : x + WIDTH]
    entry = {"id": number, "file_name": f"{number:02d}.png", "width": WIDTH, "height": HEIGHT}
    Image.fromarray(nuclei.image[part]).save(folder / name / entry["file_name"])
    masks = nuclei.target.masks.numpy()[:, *part]
    return entry, [mask for mask in masks if mask.sum() >= 20]


def data_set(name, places):
    """Write pieces of the picture into a folder; return the three lists that describe them."""
    (folder / name).mkdir()
    out = {"images": [], "categories": [{"id": 7, "name": "nucleus"}], "annotations": []}
    for number, (x, y) in enumerate(places, start=1):
        entry, masks = piece(number, x, y, name)
        out["images"].append(entry)
        for mask in masks:
            ids = {"id": len(out["annotations"]) + 1, "image_id": number}
            out["annotations"].append(annotation(mask, **ids))
    return out


left = data_set("train", [(x, y) for y in (0, 30, 60, 92) for x in (0, 8, 16)])
right = data_set("val", [(80, y) for y in (0, 36, 72)])

# One nucleus is outlined by hand, with twelve clicks: x and y of each.
clicks = [4, 12, 8, 12.6, 11, 16.5, 14, 22.5, 15, 27, 15, 32.5]
clicks += [13, 36, 9, 36, 6, 31, 5, 26, 2, 20, 2, 14]
by_hand = next(a for a in left["annotations"] if a["bbox"] == [2, 12, 13, 24])
by_hand["segmentation"] = [clicks]

for name, content in (("train", left), ("val", right)):
    (folder / f"{name}.json").write_text(json.dumps(content))
samples = {
    "An entry of `images`": left["images"][0],
    "The only entry of `categories`": left["categories"][0],
    "An annotation with run lengths": left["annotations"][0],
    "The annotation that is outlined by hand": by_hand,
}
for name, entry in samples.items():
    draw.say(f"{name}:\n\n```json\n{textwrap.fill(json.dumps(entry), 96)}\n```")

# %% [markdown]
# The class has the number 7. COCO lets you choose any numbers, even with gaps. The model needs the
# labels 1, 2, ..., K, one per column of its output. So the library numbers the categories anew, by
# rising id, and translates back when it writes results. An annotation becomes a target like this:

# %%
draw.source(CocoDataset.target)

# %% [markdown]
# ## Six faults
#
# Labels come from people and from their scripts. Here is what often goes wrong, once each, in
# copies of the first six pictures.

# %%
broken = copy.deepcopy(left)
of_picture = {n: [a for a in broken["annotations"] if a["image_id"] == n] for n in range(1, 7)}
files = {path.name: Image.open(path) for path in sorted((folder / "train").iterdir())}
exif = {"03.png": Image.Exif()}

# Picture 1: y before x in the outline.
swapped = np.reshape(clicks, (-1, 2))[:, ::-1]
broken["annotations"][by_hand["id"] - 1]["segmentation"] = [swapped.ravel().tolist()]
# Picture 2: a script has halved the picture, but not its labels.
files["02.png"] = files["02.png"].resize((WIDTH // 2, HEIGHT // 2))
# Picture 3: the camera was turned. It stores the picture on its side and notes that in the file.
files["03.png"] = files["03.png"].rotate(90, expand=True)
exif["03.png"][0x0112] = 6
# Picture 4: classes counted from 0.
of_picture[4][-1]["category_id"] = 0
# Picture 5: a box as two corners instead of corner and size.
x, y, w, h = of_picture[5][-1]["bbox"]
of_picture[5][-1]["bbox"] = [x, y, x + w, y + h]
# Picture 6: an outline of two clicks, never finished.
x, y, w, h = of_picture[6][0]["bbox"]
of_picture[6][0]["segmentation"] = [[x + 3, y + h - 2, x + w - 4, y + 2]]

(folder / "broken").mkdir()
for name, file in files.items():
    file.save(folder / "broken" / name, exif=exif.get(name))
(folder / "broken.json").write_text(json.dumps(broken))
report = lint.check(folder / "broken.json", folder / "broken")
found = sorted(report.problems, key=lambda problem: problem.image_id)
faults = (
    ("An outline with y before x", "bbox_disagrees"),
    ("A halved picture, labels as before", "size_mismatch"),
    ("A picture stored on its side", "exif_rotated"),
    ("Classes counted from 0", "unknown_category"),
    ("A box of two corners", "bbox_corners"),
    ("An outline of two clicks", "polygon_too_short"),
)
assert [problem.code for problem in found] == [code for _, code in faults]

# %% [markdown]
# The linter reads the file, opens every picture, and finds all six. Here each is drawn as a program
# sees it that believes the file.

# %%
train_set = CocoDataset(folder / "train.json", folder / "train")
masks = [mask.numpy() for i in range(len(train_set)) for mask in train_set.target(i).masks]
# Where a label belongs in pictures 2 and 3, as their files are stored.
places = {
    2: lambda box: box / 2,
    3: lambda box: box[[1, 2, 3, 0]] * [1, -1, 1, -1] + [0, WIDTH, 0, WIDTH],
}


def corners(entry):
    """Return the box of an annotation as two corners, [4]."""
    x, y, w, h = entry["bbox"]
    return np.array([x, y, x + w, y + h])


def believe(axes, entry):
    """Draw an annotation where the file says that it is."""
    draw.box(axes, corners(entry), draw.USED, label="what the file says")
    if entry["category_id"] == 0:
        x, y = corners(entry)[2:]
        axes.text(x - 1, y + 1, "category 0", color="white", ha="right", va="top")
    if isinstance(entry["segmentation"], list):
        points = np.reshape(entry["segmentation"][0], (-1, 2))
        axes.fill(*points.T, facecolor="none", edgecolor=draw.USED, linewidth=1.4)
        axes.plot(*points.T, "o", color=draw.SAMPLE, markeredgecolor="white", label="a click")
    else:
        draw.outline(axes, masks[entry["id"] - 1])


def panel(axes, below, problem, fault):
    """Draw a picture with its problem, and the linter's message below."""
    number = problem.image_id
    picture = np.asarray(Image.open(folder / "broken" / problem.file))
    draw.image(axes, picture, f"{number}. {fault}")
    for said, meant in zip(broken["annotations"], left["annotations"], strict=True):
        if said["image_id"] == number and (problem.annotation_id or said["id"]) == said["id"]:
            believe(axes, said)
            draw.box(axes, places.get(number, np.array)(corners(meant)), label="what is meant")
    axes.set(xlim=(-1, 65), ylim=(49, -1), facecolor="#E4E4E4")
    message = f"[{problem.code}] {problem.severity}: {problem.message}"
    below.text(0, 1, textwrap.fill(message, 44), va="top", fontsize=9, in_layout=False)


made, grid = draw.figure(4, 3, size=(10, 7.9), height_ratios=(3, 1, 3, 1))
for axes, below, problem, (fault, _) in zip(
    grid[::2].ravel(), grid[1::2].ravel(), found, faults, strict=True
):
    panel(axes, below, problem, fault)
    below.axis("off")
draw.legend(made)
draw.show(
    made,
    "Six pictures of nuclei with the labels of their file in vermilion and dashed boxes where these"
    " belong: a mirrored outline, three labels that miss a halved picture, labels beside the nuclei"
    " of a turned one, a class 0, a box that is much too wide, and a line of two clicks. Below each"
    " stands the linter's message.",
    colours=96,
)

# %% [markdown]
# A program that only reads JSON notices nothing. It trains, and the model is bad for a reason that
# no curve shows. With picture 4 it may even learn the opposite of what is meant: where label 0 is
# the background, this nucleus becomes background.
#
# A problem has one of four severities. `reject` and `skip` stop a training, here five times. `warn`
# and `note` do not, because there can be a good reason: some people draw boxes loosely. But the
# warning of picture 1 is a fault, so read the warnings too.
#
# ## Mend or skip
#
# There are two ways on. `skip_invalid` leaves out what is wrong. Mending keeps it.

# %%
skipped = CocoDataset(folder / "broken.json", folder / "broken", skip_invalid=True).report
mended = copy.deepcopy(broken)
entries = {a["id"]: a for a in mended["annotations"]}
wrong = {problem.code: entries.get(problem.annotation_id) for problem in found}

# Picture 1: x before y.
outline = np.reshape(wrong["bbox_disagrees"]["segmentation"], (-1, 2))[:, ::-1]
wrong["bbox_disagrees"]["segmentation"] = [outline.ravel().tolist()]
# Picture 2: the whole picture again.
shutil.copy(folder / "train" / "02.png", folder / "broken" / "02.png")
# Picture 3: stored upright.
upright = ImageOps.exif_transpose(Image.open(folder / "broken" / "03.png"))
upright.save(folder / "broken" / "03.png")
# Picture 4: the number of the category.
wrong["unknown_category"]["category_id"] = 7
# Picture 5: corner and size.
x1, y1, x2, y2 = wrong["bbox_corners"]["bbox"]
wrong["bbox_corners"]["bbox"] = [x1, y1, x2 - x1, y2 - y1]
# Picture 6: drawn again.
drawn_again = left["annotations"][wrong["polygon_too_short"]["id"] - 1]
wrong["polygon_too_short"]["segmentation"] = drawn_again["segmentation"]

(folder / "mended.json").write_text(json.dumps(mended))
after = lint.check(folder / "mended.json", folder / "broken")
assert after.problems == [] and mended == left
draw.table(
    {
        name: [result.images, result.annotations, len(result.blocking)]
        for name, result in {"with skip_invalid": skipped, "mended": after}.items()
    },
    ["data set", "pictures", "nuclei", "faults left out"],
)

# %% [markdown]
# Skipping loses the two pictures of wrong size with everything in them. From pictures 4 to 6 it
# takes one nucleus each. But these can still be seen, now without a label, so the model is told
# that they are background. And the mirrored outline of picture 1 is still there, because warnings
# stop nothing. With twelve pictures, mend them. With a hundred thousand, skip, and count what is
# lost.
#
# The same check is a command, `maskrcnn inspect`. With `--fix OUT.json` it also writes a copy in
# which it has mended what a program can mend, and a list of its changes. And it counts what the
# file holds. The cell runs it as one would in a terminal.


# %%
def maskrcnn(line):
    """Run the command with the arguments in `line`, in the folder; return what it prints."""
    call = [sys.executable, "-m", "accelerated", *line.split()]
    # A kernel asks programs for colours, which this page does not show.
    plain = {key: value for key, value in os.environ.items() if key != "FORCE_COLOR"}
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, env=plain)
    assert done.returncode == 0, done.stderr
    return "\n".join(line.rstrip() for line in done.stdout.splitlines())


inspection = "inspect --data train.json --images train"
printed = maskrcnn(inspection)
draw.say(f"```text\n$ maskrcnn {inspection}\n{printed}\n```")
counted = summary(train_set)
for name in ("images", "objects"):
    assert re.search(rf"^ *{name} +{counted[name]} *$", printed, re.MULTILINE)

# %% [markdown]
# ## What no linter finds
#
# The file is now right in itself. Whether it is *true*, only eyes can tell. Look at your labels, at
# all of them if you can.

# %%
items = [train_set[i] for i in range(len(train_set))]
drawn = [detections.draw(item.image, item.target, ["nucleus"], scale=5) for item in items]
made, axes = draw.figure(size=(10, 6))
draw.image(axes, detections.sheet(drawn), "The twelve training pictures with their labels")
axes.axis("off")
draw.show(
    made,
    "Twelve dark pictures of nuclei in three rows. Most nuclei have a coloured mask and a box. In"
    " the seventh to ninth picture a small bright spot has none. The ninth picture has no label at"
    " all.",
)

# %% [markdown]
# A small bright spot has no label. Is it a nucleus that somebody forgot, or dirt? That is a
# question about cells, and no program can answer it. As it stands, the model learns that such spots
# are background. The ninth picture has no labels at all. That is allowed, and useful if it is true:
# it teaches what a nucleus is not.

# %% [markdown]
# ## Train
#
# Twelve pictures are few. A network that starts from random weights has to learn first what an edge
# is. One that has been trained for something else knows that already. So we train twice, with the
# same pictures in the same order: once from random weights, and once from those of the small model
# that knows painted shapes. It has never seen a photograph.

# %%
val_set = CocoDataset(folder / "val.json", folder / "val")
shutil.copytree("data/tiny", folder / "tiny")
config = override(replace(preset("tiny"), num_classes=1), "optimizer.warmup_iterations=10")
settings = {"iterations": 60, "batch_size": 2, "evaluation": val_set, "log_every": 1, "bar": False}
starts = {"random weights": None, "weights of the shapes": folder / "tiny"}
runs = {
    name: train(config, train_set, folder / name, weights=weights, **settings)
    for name, weights in starts.items()
}
first = log.read(folder / "weights of the shapes" / "log.jsonl")[0]
draw.say(
    f"Of {len(runs['random weights'].model.state_dict())} tensors,"
    f" {len(first['not_in_weights'])} were not copied from the model of the shapes:"
    f" `{'`, `'.join(first['not_in_weights'])}`."
)

# %% [markdown]
# These are the layers with an output per class. The shapes have three classes and we have one, so
# the sizes do not fit, and the layers stay random. Everything else is kept. The library compares
# the *number* of classes only. Had we three classes of our own, these layers would be copied too,
# and would have to learn that a disc is no nucleus.
#
# A run leaves a folder with a log, one line of JSON per entry. The library draws it:

# %%
parts = []
for name in starts:
    part = curves.loss_curve(folder / name / "log.jsonl")
    [axes] = part.axes
    part.set_size_inches(5, 4.4)
    axes.set(title=f"Start: {name}", xlabel="step", ylabel="loss, no unit", ylim=(0.005, 4))
    # Of every loss there is a line and its dots. The first line is the sum, and stays solid.
    for line, (_, _, dash) in zip(axes.lines[2::2], draw.SERIES, strict=True):
        line.set_linestyle(dash)
    part.legends[0].remove()
    draw.legend(part, columns=3)
    parts.append(part)
draw.strip(
    parts,
    "Two panels with the five losses and their sum over sixty steps, on a logarithmic scale. From"
    " random weights the sum stays near one, and rpn_objectness falls for thirty steps."
    " From the weights of the shapes the sum falls below one, and both losses of the RPN are small"
    " from the start.",
)

# %% [markdown]
# From random weights the RPN needs half of the training before it can tell an object from its
# background. Until then few of the boxes that the heads see lie on an object. At some steps only
# the true ones do, which are put among the proposals and need no correction: the loss of the boxes
# drops to nothing. It rises as more proposals hit, because there is more to correct. So a loss that
# rises can be progress.
#
# With the weights of the shapes the RPN is nearly right from the first step: something that stands
# out from its background is an object, painted or not.
#
# ## Evaluate
#
# A loss tells how the training goes, not how good the model is. That takes pictures that it has not
# seen, and average precision. `train` has evaluated both models on the three pictures of the right
# half.

# %%
made, row = draw.figure(1, 2, size=(10, 3.2))
for axes, (name, run) in zip(row, runs.items(), strict=True):
    branches = {"box": run.metrics["bbox"], "mask": run.metrics["segm"]}
    scores = {f"{b} {k}": values[k] for b, values in branches.items() for k in ("AP", "AP50")}
    draw.bars(axes, scores, f"Start: {name}", unit="average precision, 0..1", form="{:.2f}")
    axes.set(xlim=(0, 1.1))
draw.show(
    made,
    "Average precision of boxes and masks for the two models. All four bars of the model that"
    " started from random weights are short. Those of the other one are more than twice as long,"
    " and at an IoU of one half they come near to one.",
)
assert summary(val_set)["objects"] == 8
precision = {name: run.metrics["segm"]["AP50"] for name, run in runs.items()}
assert precision["weights of the shapes"] > 2 * precision["random weights"]
loaded = interop.load(folder / "weights of the shapes")
assert evaluate(loaded, val_set) == runs["weights of the shapes"].metrics

# %% [markdown]
# The numbers stand in the picture and not in the text, because another machine finds others. In
# float32 another processor rounds differently, and after sixty steps the weights are different. The
# distance between the two models is far larger than that.
#
# Trust such a score little for another reason: the three pictures hold eight nuclei, and one more
# or less moves the score by a tenth. And all of them come from one picture of one microscope. That
# the model works with your neighbour's microscope has not been shown.
#
# ## Predict
#
# A score does not tell *what* goes wrong. So look again, at pictures that were not trained on.

# %%
made, grid = draw.figure(3, 3, size=(10, 8.2))
models = [run.model.eval() for run in runs.values()]
for i, row in enumerate(grid):
    image, target, _ = val_set[i]
    shown = [target, *(model.detect([image])[0] for model in models)]
    for axes, objects, title in zip(row, shown, ["labels", *starts], strict=True):
        draw.image(axes, detections.draw(image, objects, ["nucleus"], scale=6), title)
        axes.axis("off")
draw.show(
    made,
    "The three pictures of the right half, three times each. Left with their labels. In the middle,"
    " the model that started from random weights covers the bright places with many overlapping"
    " boxes. Right, the model that started from the shapes finds the nuclei one by one, and its"
    " masks follow the outlines.",
    colours=128,
)

# %% [markdown]
# From random weights the model has learned so far that bright places matter, and no more. The other
# one separates nuclei that touch.
#
# `predict` does this for a folder, draws each picture, and writes one file in COCO's format. So its
# answers can be checked by the linter, corrected by hand, and become the next training set. That is
# quicker than to outline everything from nothing.

# %%
best = runs["weights of the shapes"].model
predict(best, [folder / "val"], folder / "predictions", categories=categories(val_set))
written = sorted(path.name for path in (folder / "predictions").iterdir())
problems = lint.check(folder / "predictions" / "predictions.json", folder / "val").blocking
draw.say(f"Written: `{'`, `'.join(written)}`. The linter finds {len(problems)} faults in them.")

# %% [markdown]
# ## The same in a terminal
#
# | in Python | in a terminal |
# |---|---|
# | `lint.check`, `summary`, `detections.sample` | `maskrcnn inspect` |
# | `train`, `curves.loss_curve` | `maskrcnn train` |
# | `evaluate` | `maskrcnn evaluate` |
# | `predict` | `maskrcnn predict` |
# | `interop.load`, `interop.save` | `maskrcnn convert` |
#
# Does the command do the same as the library? It trains once more, in a process of its own, with
# the same seed.

# %%
training = (
    "train --data train.json --images train --val val.json --val-images val"
    " --weights tiny --set optimizer.warmup_iterations=10"
    " --iterations 60 --batch-size 2 --device cpu --output command"
)
printed = maskrcnn(training).splitlines()[-1]
shown = training.replace(" --weights", " \\\n      --weights").replace(" --it", " \\\n      --it")
draw.say(f"```text\n$ maskrcnn {shown}\n{printed}\n```")

# %% [markdown]
# ## Check
#
# The command writes a line of the log every twenty steps, with the means of the losses, and the
# library was told to write one every step. All the rest must be equal to the last bit.

# %%
LOGGED = ("rpn_objectness", "rpn_box", "class", "box", "mask", "loss", "gradient_norm")


def numbers(run):
    """Read the numbers that a run leaves in its folder: {name: array}."""
    lines, weights = log.read(folder / run / "log.jsonl"), interop.load(folder / run).parameters()
    losses = np.array([[line[key] for key in LOGGED] for line in lines if "loss" in line])
    scores = [value for branch in lines[-1]["evaluation"].values() for value in branch.values()]
    found = json.loads((folder / run / "evaluations/00000060/results.json").read_text())
    return {
        "losses and gradient norm, means of 20 steps": losses.reshape(3, -1, 7).mean(axis=1),
        "every weight": np.concatenate([weight.detach().ravel() for weight in weights]),
        "boxes and scores of the detections": np.array([[*d["bbox"], d["score"]] for d in found]),
        "average precision": np.array([value for value in scores if isinstance(value, float)]),
    }


ours, theirs = numbers("weights of the shapes"), numbers("command")
differences = {name: float(np.abs(theirs[name] - ours[name]).max()) for name in ours}
draw.table(
    {name: [f"{value:.1e}"] for name, value in differences.items()},
    ["what", "command against library, largest difference"],
)
averaged, *exact = differences.values()
assert averaged < 1e-12 and exact == [0, 0, 0]

# %% [markdown]
# On the same CPU a training can be repeated bit by bit: the random numbers of a step are a function
# of the seed and of its number. What cannot be repeated cannot be mended.
#
# ## To torchvision and back
#
# `--weights` also takes files of torchvision and detectron2, and `interop` writes them. Their
# models have other names for the same tensors. Nothing is downloaded here: a small network of
# torchvision's layout with random weights shows it as well.

# %%
layout = preset("torchvision_r50_fpn")
for change in ("num_classes=2", "backbone.depth=18", "backbone.width=8", "fpn.channels=16"):
    layout = override(layout, change)
for change in ("box_head.channels=32", "mask_head.channels=16", "transform.min_size=[96]"):
    layout = override(layout, change)
torch.manual_seed(0)
original = MaskRCNN(layout).eval()
interop.save(original, folder / "layout.pth", "torchvision")
stored = torch.load(folder / "layout.pth", weights_only=True)
theirs = dict(zip(original.state_dict(), stored, strict=True))
chosen = ("backbone.conv1", "fpn.lateral2", "rpn.logits", "box_head.fc6", "mask_head.conv1")
draw.table(
    {
        f"{name}.weight": [theirs[f"{name}.weight"], tuple(stored[theirs[f"{name}.weight"]].shape)]
        for name in chosen
    },
    ["here", "in torchvision's file", "shape"],
)

# %% [markdown]
# The file holds tensors and nothing else. How wide and how deep the network is, and how many
# classes it has, can be read off their shapes. The size to which it enlarges a picture cannot. Such
# settings come from the nearest preset, unless you say otherwise, and are printed.

# %%
assumed = interop.read_model(folder / "layout.pth")
guessed = assumed.model
notes = "\n".join(line.strip() for line in assumed.notes if line.startswith(" "))
draw.say(f"What was assumed for the file:\n\n```text\n{notes}\n```")
fields = ("num_classes", "backbone.depth", "backbone.width", "fpn.channels", "transform.min_size")
draw.table(
    {field: [attrgetter(field)(model.config) for model in (original, guessed)] for field in fields},
    ["setting", "of the model", "after reading the file"],
)
told = interop.load(folder / "layout.pth", layout)
for model in (guessed, told):
    pairs = zip(original.state_dict().values(), model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
[before], [after] = (model.detect([val_set[0].image]) for model in (original, told))
assert len(before.boxes) and torch.equal(before.boxes, after.boxes)
assert torch.equal(before.scores, after.scores) and torch.equal(before.masks, after.masks)
draw.say(
    f"All {len(stored)} tensors are back. With the configuration given to it, the model repeats its"
    f" {len(before.boxes)} detections exactly."
)

# %% [markdown]
# So keep the configuration with the weights. The folders of this project do, and a foreign file
# cannot. Not every model fits into a foreign format, either. The reply names what does not:

# %%
try:
    interop.save(best, folder / "nuclei.pth", "torchvision")
except ValueError as refusal:
    draw.say(f"> {refusal}")

# %% [markdown]
# ## Exercise
#
# Turn outlines into an annotation. An object may have several parts, if something in front of it
# cuts it in two. The result needs the keys `id`, `image_id`, `category_id`, `bbox`, `segmentation`,
# `area` and `iscrowd`, as in the entries above. The area of a polygon with the corners
# $(x_i, y_i)$ is
#
# $$\tfrac12 \left| \sum_i \left( x_i\, y_{i+1} - x_{i+1}\, y_i \right) \right|,$$
#
# and after the last corner comes the first again. The checker asks the linter first.


# %%
def my_annotation(polygons, number, image, category):
    """Polygons, lists of points [x, y]; the ids of annotation, image and category -> a dict."""
    return None  # your code


draw.say(exercise.check(my_annotation))

# %% [markdown]
# **Remember.**
#
# * Check the file before the first step. A wrong label does not stop a training, it spoils it.
# * Then look at the labels. No program knows what you forgot to outline.
# * Mend what is wrong. A skipped label says "background".
# * Start from weights that were trained for something else, even for something painted.
# * Score on what was not trained on, and look at the pictures behind the score.
# * Keep seed, settings and configuration with the weights. Then the run can be repeated.
#
# **Next.** [The failure zoo](15_failure_zoo.ipynb): how training breaks, and how one sees it.
