# ---
# jupyter:
#   cpu_seconds: 40
# ---

# %% [markdown]
# # 8. One training step: from five losses to the first convolution
#
# **The question.** The mask loss looks at 28 x 28 pixels of a few boxes: how does it reach the very
# first convolution of the network, and is the gradient that arrives there right?
#
# **Time.** 35 minutes to read, half a minute to run.
# **Data.** The small trained model of `data/tiny` and one image of shapes that it has not seen.
# **Before.** [RoIAlign](05_roi_align.ipynb) and [Two heads](06_two_heads.ipynb). The chain rule.

# %%
import os

# Triton's kernels then run on a CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

from collections import Counter

import figures as draw
import numpy as np
from exercises import one_step as exercise

import accelerated
from accelerated.verify import report, training
from reference import autodiff, box_head, checkpoint, conv, mask_head, optimizer, rpn, shapes
from reference import losses as elementary
from reference.mask_rcnn import MaskRCNN
from reference.structures import Stages, Target

# %%
model = checkpoint.load("data/tiny")  # in float64
image, *objects = shapes.sample(seed=1, index=64)
target = Target(*objects)
batch = [image], [target]
names = [shapes.CLASS_NAMES[label - 1] for label in target.labels]
draw.say(f"The image has {len(names)} objects: {', '.join(names)}. {model}.")

# %% [markdown]
# ## Five losses, five places
#
# A training step computes five losses. Two belong to the region proposal network (RPN), three to
# the heads [Faster R-CNN §3.1.2, equation 1; Mask R-CNN §3]:
#
# $$ L = L_{\text{objectness}} + L_{\text{rpn box}} + L_{\text{class}} + L_{\text{box}}
#      + L_{\text{mask}} $$
#
# Each says, with its gradient, which numbers of the feature maps should change. Here are the five
# gradients at the same map, P2, the finest of the pyramid: where does each loss arrive?

# %%
arrived, priorities = {}, None
for name in ("rpn_objectness", "rpn_box", "class", "box", "mask"):
    record = Stages()
    taped = model.taped(*batch, priorities, record, np.random.default_rng(0))
    priorities = taped.priorities
    taped.tape.backward(taped.losses[name])
    arrived[name] = record, taped.variables

samples = record.samples[0]
shown, row = draw.figure(1, 6, size=(10, 2.6))
draw.image(row[0], image, "the image")
for box in target.boxes:
    draw.box(row[0], box, draw.ASKED)
for axes, (name, (stages, _)) in zip(row[1:], arrived.items(), strict=True):
    strength = np.linalg.norm(stages.P2.grad[0], axis=0)
    title = f"{name}\nlargest {strength.max():.1e}"
    draw.cells(axes, strength, title, cmap=draw.MAGNITUDE, grid=False, unit="cells of P2")
    axes.set(ylabel="", yticks=[])
draw.show(shown, "x" * 60)
