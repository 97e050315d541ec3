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
from PIL import Image

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
pictures = {path.name: Image.open(path) for path in sorted((folder / "train").iterdir())}
swapped = np.reshape(clicks, (-1, 2))[:, ::-1]
lying = Image.Exif()

# Picture 1: y before x in the outline.
broken["annotations"][by_hand["id"] - 1]["segmentation"] = [swapped.ravel().tolist()]
# Picture 2: a script has halved the picture, but not its labels.
pictures["02.png"] = pictures["02.png"].resize((WIDTH // 2, HEIGHT // 2))
# Picture 3: a box as two corners instead of corner and size.
x, y, w, h = of_picture[3][-1]["bbox"]
of_picture[3][-1]["bbox"] = [x, y, x + w, y + h]
# Picture 4: classes counted from 0.
of_picture[4][0]["category_id"] = 0
# Picture 5: the camera was turned. It stores the picture on its side and notes that in the file.
pictures["05.png"] = pictures["05.png"].rotate(90, expand=True)
lying[0x0112] = 6
# Picture 6: an outline of two clicks, never finished.
x, y, w, h = of_picture[6][0]["bbox"]
of_picture[6][0]["segmentation"] = [[x, y, x + w, y + h]]

(folder / "broken").mkdir()
for name, picture in pictures.items():
    picture.save(folder / "broken" / name, exif=lying if name == "05.png" else Image.Exif())
(folder / "broken.json").write_text(json.dumps(broken))
report = lint.check(folder / "broken.json", folder / "broken")
found = sorted(report.problems, key=lambda problem: problem.image_id)

# %% [markdown]
# The linter reads the file and opens every picture. It finds all six. Each is drawn as a program
# would see it that believes the file.

# %%
train_set = CocoDataset(folder / "train.json", folder / "train")
masks = dict(zip([a["id"] for a in left["annotations"]], torch.cat([train_set.target(i).masks for i in range(12)]).numpy(), strict=True))
# Where a label belongs in pictures 2 and 5, as the file stores them.
places = {
    2: lambda box: box / 2,
    5: lambda box: box[[1, 2, 3, 0]] * [1, -1, 1, -1] + [0, WIDTH, 0, WIDTH],
}


def corners(entry):
    """The box of an annotation as two corners, [4]."""
    x, y, w, h = entry["bbox"]
    return np.array([x, y, x + w, y + h])


def believe(axes, entry):
    """Draw an annotation where the file says that it is."""
    draw.box(axes, corners(entry), draw.USED, label="what the file says")
    if isinstance(entry["segmentation"], list):
        points = np.reshape(entry["segmentation"][0], (-1, 2))
        axes.fill(*points.T, facecolor="none", edgecolor=draw.USED, linewidth=1.7)
        style = {"color": draw.SAMPLE, "markeredgecolor": "white", "label": "click"}
        axes.plot(*points.T, "o", **style)
    else:
        draw.outline(axes, masks[entry["id"]])


def panel(axes, below, problem):
    """Draw a picture with its problem, and the linter's message below."""
    picture = np.asarray(Image.open(folder / "broken" / problem.file))
    draw.image(axes, picture, f"Picture {problem.image_id}: {problem.code}")
    for entry, right_entry in zip(broken["annotations"], left["annotations"], strict=True):
        if entry["image_id"] == problem.image_id and problem.annotation_id in (None, entry["id"]):
            believe(axes, entry)
            place = places.get(problem.image_id, np.array)
            draw.box(axes, place(corners(right_entry)), label="what is meant")
    axes.set(xlim=(-1, 62), ylim=(62, -1))
    message = textwrap.fill(f"{problem.severity}: {problem.message}", 52)
    below.text(0, 1, message, va="top", fontsize=8.5)
    below.axis("off")


made, grid = draw.figure(4, 3, size=(10, 10), height_ratios=(4, 1, 4, 1))
for problem, axes, below in zip(found, grid[::2].ravel(), grid[1::2].ravel(), strict=True):
    panel(axes, below, problem)
draw.legend(made)
draw.show(made, "Six pictures of nuclei with the labels that their file gives them, in vermilion, and with dashed boxes where the labels belong. Outlines beside their nuclei, an outline of two clicks, a box that leaves its picture. Below each stands the linter's message.")
