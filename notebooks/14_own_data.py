# ---
# jupyter:
#   cpu_seconds: 60
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
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import replace
from pathlib import Path

import figures as draw
import numpy as np
import torch
from exercises import own_data as exercise
from PIL import Image, ImageOps

import accelerated
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
# The microscope picture has 128 x 128 pixels and 17 outlined nuclei. We cut it in two: twelve
# pieces of the left half are for training, three of the right half for evaluation. The two halves
# share no nucleus. **What a model is scored on must never have been trained on.**
#
# A data set in COCO's format is a folder of pictures and one JSON file with three lists:
#
# * `images`: number, file name, width and height of every picture,
# * `categories`: number and name of every class,
# * `annotations`: one entry per object.
#
# An annotation has a mask, stored as run lengths or as polygons, and a box. The box is
# `[x, y, width, height]` of its upper left corner, although nearly everything else in this project
# uses two corners.

# %%
WIDTH, HEIGHT = 48, 36
nuclei = CocoDataset("data/nuclei.json", "data")[0]


def annotation(mask, **ids):
    """An annotation of a mask [H, W] bool, with its box and its area in pixels."""
    counts = rle.of_mask(mask)
    x1, y1, x2, y2 = rle.bounds(counts, HEIGHT)
    stored = {"size": [HEIGHT, WIDTH], "counts": rle.compress(counts).decode()}
    where = {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": stored}
    return ids | where | {"area": int(mask.sum()), "iscrowd": 0, "category_id": 7}


def piece(number, x, y, name):
    """Write a piece of the picture to a file; returns its entry and the masks of its nuclei."""
    part = np.s_[y : y + HEIGHT, x : x + WIDTH]
    entry = {"id": number, "file_name": f"{number:02d}.png", "width": WIDTH, "height": HEIGHT}
    Image.fromarray(nuclei.image[part]).save(folder / name / entry["file_name"])
    masks = nuclei.target.masks.numpy()[:, *part]
    return entry, [mask for mask in masks if mask.sum() >= 20]


def data_set(name, corners):
    """Write pieces of the picture into a folder; returns the lists that describe them."""
    (folder / name).mkdir()
    out = {"images": [], "categories": [{"id": 7, "name": "nucleus"}], "annotations": []}
    for number, (x, y) in enumerate(corners, start=1):
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
by_hand = next(a for a in left["annotations"] if a["image_id"] == 1 and a["bbox"][3] == 24)
by_hand["segmentation"] = [clicks]

for name, content in (("train", left), ("val", right)):
    (folder / f"{name}.json").write_text(json.dumps(content))
lists = {"images": left["images"][0], "categories": left["categories"][0]}
for name, entry in (lists | {"annotations": left["annotations"][-1]}).items():
    draw.say(f"An entry of `{name}`:\n\n```json\n{json.dumps(entry)}\n```")

# %% [markdown]
# The class has the number 7. COCO lets you choose any numbers, with gaps. The model needs the
# labels 1, 2, ..., K, because label 0 is the background, so the library numbers the categories
# anew, by rising id, and translates back when it writes results.
#
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
    """The box of an annotation as two corners, [4]."""
    x, y, w, h = entry["bbox"]
    return np.array([x, y, x + w, y + h])


def believe(axes, entry):
    """Draw an annotation where the file says that it is."""
    draw.box(axes, corners(entry), draw.USED, label="what the file says")
    if entry["category_id"] == 0:
        axes.text(*corners(entry)[2:] + 1, "category 0", color="white", ha="right", va="top")
    if isinstance(entry["segmentation"], list):
        points = np.reshape(entry["segmentation"][0], (-1, 2))
        axes.fill(*points.T, facecolor="none", edgecolor=draw.USED, linewidth=1.4)
        style = {"color": draw.SAMPLE, "markeredgecolor": "white", "label": "a click"}
        axes.plot(*points.T, "o", **style)
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
)

# %% [markdown]
# None of these files would stop a program that only reads JSON. It would train, and the model would
# be bad for a reason that no curve shows. In picture 4 it would even learn the opposite: that a
# nucleus is background.
#
# A problem has one of four severities. `reject` and `skip` stop a training, here five times.
# `warn` and `note` do not, because there can be a good reason: some people draw boxes loosely. But
# the warning of picture 1 is a fault, so read the warnings too.
#
# ## Mend or skip
#
# There are two ways on. `skip_invalid` leaves out what is wrong. Mending keeps it.

# %%
skipped = CocoDataset(folder / "broken.json", folder / "broken", skip_invalid=True)
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
# Picture 4: the number that the categories have.
wrong["unknown_category"]["category_id"] = 7
# Picture 5: corner and size.
x1, y1, x2, y2 = wrong["bbox_corners"]["bbox"]
wrong["bbox_corners"]["bbox"] = [x1, y1, x2 - x1, y2 - y1]
# Picture 6: drawn again.
wrong["polygon_too_short"]["segmentation"] = left["annotations"][
    wrong["polygon_too_short"]["id"] - 1
]["segmentation"]

(folder / "mended.json").write_text(json.dumps(mended))
after = lint.check(folder / "mended.json", folder / "broken")
assert after.problems == [] and mended == left
counts = {"with skip_invalid": skipped.report, "mended": after}
draw.table(
    {name: [result.images, result.annotations] for name, result in counts.items()},
    ["data set", "pictures", "nuclei"],
)

# %% [markdown]
# A picture whose size is wrong is lost with everything in it. In pictures 4 to 6 only one nucleus
# each is skipped, but it can still be seen, now without a label. So the model is told that this
# place is background. With twelve pictures, mend. Among a hundred thousand, skip.
#
# The command `maskrcnn inspect` does the same check and counts what the file holds. This cell runs
# it as one would in a terminal.


# %%
def maskrcnn(line):
    """Run the command with the arguments in `line`; shows and returns what it prints."""
    call = [sys.executable, "-m", "accelerated", *line.split()]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True)
    end = f"(exit code {done.returncode})"
    draw.say(f"```text\n$ maskrcnn {line}\n{done.stdout.strip()}\n{end}\n```")
    return done.stdout


printed = maskrcnn("inspect --data train.json --images train")
counted = summary(train_set)
for name in ("images", "objects"):
    assert re.search(rf"^ *{name} +{counted[name]} *$", printed, re.MULTILINE)

# %% [markdown]
# ## What no linter finds
#
# Look at your labels, all of them if you can. The library draws them:

# %%
items = [train_set[i] for i in range(len(train_set))]
drawn = [detections.draw(item.image, item.target, ["nucleus"], scale=4) for item in items]
made, axes = draw.figure(size=(8.2, 5))
draw.image(axes, detections.sheet(drawn), "The twelve training pictures with their labels")
axes.set(xticks=[], yticks=[], xlabel="", ylabel="")
draw.show(
    made,
    "Twelve dark pictures of nuclei in three rows. Most nuclei have a coloured mask and a box. In"
    " the seventh to ninth picture a small bright spot has none, and the ninth has no label at all.",
)

# %%
val_set = CocoDataset(folder / "val.json", folder / "val")
shutil.copytree("data/tiny", folder / "tiny")
config = override(replace(preset("tiny"), num_classes=1), "optimizer.warmup_iterations=10")
settings = {"iterations": 60, "batch_size": 2, "evaluation": val_set, "log_every": 1, "bar": False}
starts = {"random weights": None, "weights of the shapes": folder / "tiny"}
results, steps = {}, {}
for name, weights in starts.items():
    run = folder / name
    results[name] = train(config, train_set, run, weights=weights, **settings)
    steps[name] = [line for line in log.read(run / "log.jsonl") if "loss" in line]

# %%
parts = []
for name in starts:
    part = curves.loss_curve(folder / name / "log.jsonl")
    part.set_size_inches(5, 4)
    part.axes[0].set(title=f"Start: {name}", xlabel="step", ylabel="loss, no unit", ylim=(0.01, 4))
    parts.append(part)
draw.strip(parts, "Two panels with the five losses and their sum over sixty steps, blah blah blah blah.")

# %%
made, row = draw.figure(1, 2, size=(10, 3.2), sharex=True)
for axes, (name, result) in zip(row, results.items(), strict=True):
    named = {"bbox": "box", "segm": "mask"}
    scores = {f"{what} {key}": result.metrics[branch][key] for branch, what in named.items() for key in ("AP", "AP50")}
    draw.bars(axes, scores, f"Start: {name}", unit="average precision, 0..1", form="{:.2f}")
    axes.set(xlim=(0, 1.1))
draw.show(made, "Two panels with the five losses and their sum over sixty steps, blah blah blah blah.")

# %%
made, grid = draw.figure(3, 3, size=(9.6, 7.6))
for i, row in enumerate(grid):
    item = val_set[i]
    models = [result.model.eval() for result in results.values()]
    shown = [item.target] + [model.detect([item.image])[0] for model in models]
    for axes, found_here, title in zip(row, shown, ["outlined by people", *starts], strict=True):
        picture = detections.draw(item.image, found_here, ["nucleus"], scale=6)
        draw.image(axes, picture, title)
        axes.set(xticks=[], yticks=[], xlabel="", ylabel="")
draw.show(made, "Two panels with the five losses and their sum over sixty steps, blah blah blah blah.")

# %%
best = results["weights of the shapes"]
out = predict(best.model, [folder / "val"], folder / "predictions", categories=categories(val_set))
print(sorted(p.name for p in (folder/"predictions").iterdir()), [str(p) for p in lint.check(folder / "predictions/predictions.json", folder / "val").problems], out.predictions["images"])
print(json.dumps(evaluate(accelerated.load(folder / "weights of the shapes"), val_set)) == json.dumps(best.metrics))

# %%
maskrcnn("train --data train.json --images train --val val.json --val-images val --weights tiny --iterations 60 --batch-size 2 --set optimizer.warmup_iterations=10 --device cpu --output command")
