"""Ways to break the oracle that a notebook's checks must notice: (notebook, code that breaks it).

The code runs in the notebook's kernel before its first cell.
"""

MUTATIONS = [
    (
        "02_anchors",
        "import reference.matcher as m; old = m.reasons;"
        "m.reasons = lambda iou, high, low, *_, **__: old(iou, high, low, False)",
    ),
    (
        "02_anchors",
        "import reference.sampler as m; old = m.sample;"
        "m.sample = lambda labels, priorities, *rest: old(labels, -priorities, *rest)",
    ),
    (
        "03_rpn",
        "import numpy as np, reference.nms as m;"
        "m.top_k = lambda s, k: np.flip(np.argsort(s, axis=-1, kind='stable'), -1)[..., :k]",
    ),
    ("03_rpn", "import reference.box_coder as m; m.MAX_LOG_SCALE = 100.0"),
]
