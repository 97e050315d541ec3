"""Ways to break the oracle that a notebook's checks must notice: (notebook, code that breaks it).

The code runs in the notebook's kernel before its first cell, in a namespace of its own.
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
    # The half pixel of RoIAlign is dropped.
    (
        "05_roi_align",
        "import reference.roi_align as m; f = m.sample_positions\n"
        "m.sample_positions = lambda low, high, bins, sampling_ratio, aligned:"
        " f(low, high, bins, sampling_ratio, False)",
    ),
    # x and y of a box are swapped.
    (
        "05_roi_align",
        "import reference.roi_align as m; f = m.check\n"
        "m.check = lambda x, rois, index: f(x, rois[:, [1, 0, 3, 2]], index)",
    ),
    # A sample far outside the map reads the outermost pixel.
    (
        "05_roi_align",
        "import reference.roi_align as m; f = m.neighbours\n"
        "m.neighbours = lambda positions, size: f(positions.clip(0, size - 1), size)",
    ),
    # RoIPool and RoIWarp round half to even.
    (
        "05_roi_align",
        "import numpy as np, reference.rois as m\n"
        "def whole_pixels(rois, scale):\n"
        "    low, high = np.split(np.round(rois * scale), 2, axis=1)\n"
        "    return np.concatenate([low, np.maximum(high, low) + 1], axis=1)\n"
        "m.whole_pixels = whole_pixels",
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
    # A negative difference of a box loses its sign on the way back.
    (
        "08_one_step",
        "import reference.losses as m; f = m.smooth_l1_backward\n"
        "m.smooth_l1_backward = lambda grad, d, beta: f(grad, abs(d), beta)",
    ),
    # A ReLU lets the gradient of a negative value through.
    (
        "08_one_step",
        "import reference.activations as m\nm.relu_backward = lambda grad, x: grad",
    ),
    # AdamW corrects its running means as if it had taken one step more.
    (
        "09_training",
        "import reference.optimizer as m; f = m.step\n"
        "m.step = lambda p, g, s, *rest: f(p, g, m.State(s.steps + 1, s.mean, s.square), *rest)",
    ),
    # Precision is a hundredth too low at every recall.
    (
        "10_average_precision",
        "import reference.average_precision as m; f = m.precision_recall\n"
        "def g(found):\n"
        "    curve = f(found)\n"
        "    return curve._replace(interpolated=0.99 * curve.interpolated)\n"
        "m.precision_recall = g",
    ),
    # The weights of the two neighbours are swapped.
    (
        "11_triton_kernel",
        "import reference.roi_align as m; f = m.neighbours\n"
        "m.neighbours = lambda *a: tuple(f(*a)[i] for i in (0, 1, 3, 2))",
    ),
    # The oracle pastes by one convention, whatever the configuration says.
    (
        "12_conventions",
        "import reference.masks as m; f = m.paste\n"
        "m.paste = lambda *masks, convention, **rest: f(*masks, convention='detectron2', **rest)",
    ),
    # Windows are cut half a pixel too far to the lower right.
    (
        "13_before_mask_rcnn",
        "import reference.roi_align as m; f = m.sample_positions\n"
        "m.sample_positions = lambda low, high, bins, sampling_ratio, aligned:"
        " f(low, high, bins, sampling_ratio, False)",
    ),
    # A window of twice the size is not far.
    ("13_before_mask_rcnn", "import reference.windows as m; m.FAR = (32 / 224, 2.0)"),
    # The linter, which has no oracle, does not see that a picture is stored on its side.
    ("14_own_data", "import accelerated.data.images as m; m.ORIENTATION = 0"),
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
