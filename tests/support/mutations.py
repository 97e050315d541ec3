"""Ways to break the oracle that a notebook's checks must notice: (notebook, code that breaks it).

The code runs in the notebook's kernel before its first cell.
"""

MUTATIONS = [
    # The pyramid's enlarged maps upside down.
    (
        "04_backbone_and_pyramid",
        "import reference.upsample as m; f = m.nearest;"
        "m.nearest = lambda x, h, w: f(x[:, :, ::-1], h, w)",
    ),
    # The other correction of the logarithm, in every pooler.
    (
        "04_backbone_and_pyramid",
        "import dataclasses, reference.pooler as m; f = m.assign;"
        "m.assign = lambda r, p: f(r, dataclasses.replace(p, level_epsilon='inside'))",
    ),
    # The kernel of the transposed convolution upside down.
    (
        "06_two_heads",
        "import reference.conv as m; f = m.conv_transpose2d;"
        "m.conv_transpose2d = lambda x, w, b=None, **k: f(x, w[:, :, ::-1], b, **k)",
    ),
    # The backward of the sigmoid's loss without its target.
    (
        "06_two_heads",
        "import reference.losses as m;"
        "m.binary_cross_entropy_backward = lambda g, x, t: g * m.sigmoid(x)",
    ),
    # Masks pasted half a pixel to the right.
    (
        "07_masks",
        "import reference.masks as m; f = m.paste_matrix;"
        "m.paste_matrix = lambda low, high, *rest: f(low + 0.5, high + 0.5, *rest)",
    ),
    # Outlines walked on another grid than COCO's.
    ("07_masks", "import reference.masks as m; m.COCO_SCALE = 4"),
]
