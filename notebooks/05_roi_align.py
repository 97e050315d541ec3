# ---
# jupyter:
#   cpu_seconds: 40
# ---

# %% [markdown]
# # 5. RoIPool, RoIWarp, RoIAlign: one box, moved by an eighth of a pixel
#
# **The question.** A head of the network reads a fixed grid of numbers for every box, but the
# corners of a box lie *between* the cells of the feature map: where do the numbers come from?
#
# **Time.** 30 minutes to read, half a minute to run.
# **Data.** One microscope picture of cell nuclei, 128 x 128 pixels; no model.
# **Before.** [Pixels and boxes](01_pixels_and_boxes.ipynb): pixel $i$ covers $[i, i + 1)$, and its
# centre is at $i + 0.5$. What a convolution and a feature map are.

# %%
import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton's kernels then run on a CPU.

import figures as draw
import numpy as np
import torch
from exercises import roi_align as exercise
from PIL import Image

from accelerated import roi_align as fast_align
from accelerated import roi_pool as fast_pool
from accelerated import roi_warp as fast_warp
from accelerated.verify import report
from accelerated.verify.equality import POINTWISE
from reference import box_head, config, grad_check, pooler
from reference import roi_align as align
from reference import roi_pool as pool
from reference import roi_warp as warp
from reference.rois import whole_pixels

# %% [markdown]
# A *region of interest* (RoI) is a box in which the network suspects an object. Three operators
# turn it into a grid of numbers. All three divide the box into bins and give one number per bin:
#
# | operator | from | the corners of the box | the number of a bin |
# |---|---|---|---|
# | RoIPool | Fast R-CNN, 2015 | rounded to whole cells, and again for each bin | its largest cell |
# | RoIWarp | Multi-task Network Cascades, 2016 | rounded to whole cells | the mean of samples |
# | RoIAlign | Mask R-CNN, 2017 | left where they are | the mean of samples |
#
# Everything below uses one box on one small map, with 3 x 3 bins.

# %%
image = np.asarray(Image.open("data/nuclei.png"))
features = image.mean(axis=2).reshape(1, 1, 16, 8, 16, 8).mean(axis=(3, 5))  # [N, C, H, W]
box = np.array([37.0, 46.0, 82.0, 93.0])  # x1, y1, x2, y2 in pixels of the image
grid = {"output_size": 3, "spatial_scale": 1 / 8}
sampled = grid | {"sampling_ratio": 2}
operators = {
    "RoIPool": lambda x, rois, index: pool.roi_pool(x, rois, index, **grid),
    "RoIWarp": lambda x, rois, index: warp.roi_warp(x, rois, index, **sampled),
    "RoIAlign": lambda x, rois, index: align.roi_align(x, rois, index, **sampled, aligned=True),
}

# %% [markdown]
# ## Two staircases and a line
#
# Slide the box to the right, two cells far, in very small steps. What should happen to the number
# of the middle bin?
#
# A *ramp* answers this best: a map whose cells hold their own $x$. If the box moves by $d$ cells,
# everything under it is larger by $d$, so the number must grow by $d$: a straight line.

# %%
ramp = np.broadcast_to(np.arange(16.0) + 0.5, (1, 1, 16, 16))
shifts = np.arange(0, 2 + 1 / 64, 1 / 64)
moved = box + 8 * shifts[:, None] * [1, 0, 1, 0]
of_first_image = np.zeros(len(moved), int)


def change(x):
    """By how much the middle bin changes while the box moves, per operator."""
    middle = {name: f(x, moved, of_first_image)[:, 0, 1, 1] for name, f in operators.items()}
    return {name: values - values[0] for name, values in middle.items()}


shown, (where, on_ramp, on_image) = draw.figure(1, 3, size=(10, 3.9))
draw.cells(where, ramp[0, 0], "a ramp: every cell holds its x")
draw.box(where, box / 8, draw.ASKED, bins=3, label="at first")
draw.box(where, moved[-1] / 8, draw.USED, bins=3, label="two cells on")
where.annotate("", (8.9, 12.6), (6.9, 12.6), arrowprops={"arrowstyle": "-|>", "lw": 1.6})
where.set(xlim=(3, 14), ylim=(14, 3))
move, unit = "the box moved by, feature pixels", "change of the middle bin"
draw.curve(on_ramp, shifts, change(ramp), "on the ramp", xlabel=move, ylabel=f"{unit}, cells")
on_ramp.plot(shifts, shifts, color="black", linewidth=6, alpha=0.15, label="the box itself")
draw.curve(
    on_image, shifts, change(features), "on the nuclei", xlabel=move, ylabel=f"{unit}, 0..255"
)
draw.legend(shown)
draw.show(shown, "x" * 50)
