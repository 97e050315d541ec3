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
]
