"""Ways to break the oracle that a notebook's checks must notice: (notebook, code that breaks it).

The code runs in the notebook's kernel before its first cell.
"""

MUTATIONS = [
    # The channels of the image in the other order.
    (
        "00_one_image",
        "import reference.transform as m; f = m.prepare\n"
        "m.prepare = lambda image, *rest: f(image[:, :, ::-1], *rest)",
    ),
    # Masks lie half a pixel too far to the lower right.
    (
        "00_one_image",
        "import reference.masks as m; f = m.paste_matrix\n"
        "m.paste_matrix = lambda low, high, *rest: f(low + 0.5, high + 0.5, *rest)",
    ),
    # Boxes are one pixel wider than x2 - x1.
    (
        "01_pixels_and_boxes",
        "import reference.boxes as m; f = m.iou\n"
        "m.iou = lambda a, b: f(a + [0, 0, 1, 1], b + [0, 0, 1, 1])",
    ),
    # Resizing without the half pixel.
    (
        "01_pixels_and_boxes",
        "import reference.transform as m; import numpy as np\n"
        "m.bilinear = lambda x, n, axis: x.take(np.arange(n) * x.shape[axis] // n, axis)",
    ),
    # A NaN reaches bins that give it no weight.
    (
        "15_failure_zoo",
        "import reference.roi_align as m\nm._product = lambda a_y, x, a_x: a_y @ x @ a_x.T",
    ),
    # Of equal scores the higher index is first.
    (
        "15_failure_zoo",
        "import reference.nms as m; import numpy as np\n"
        "m.top_k = lambda s, k: np.argsort(s, axis=-1, kind='stable')[..., ::-1][..., :k]",
    ),
]
