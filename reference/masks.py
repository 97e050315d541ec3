"""Ground-truth masks -> targets of the mask head, and the head's small masks -> masks of the image.

G ground truths, R RoIs, D detections, S side of the head's masks, H and W sides of an image. Both directions are separable, as RoIAlign is:
`out = A_y M A_xᵀ`, with sparse interpolation matrices per box.
"""

import numpy as np

from reference.boxes import check_finite
from reference.roi_align import roi_align


def targets(masks, matched, boxes, config, size):
    """What the mask head should put out for each RoI: its ground-truth mask, averaged over the bins of a size x size grid (SPEC §10).

    masks    [G, H, W]  bool
    matched  [R]        int, row of `masks` for each RoI
    boxes    [R, 4]     xyxy, pixels of the masks
    config   config.MaskHead
    Returns  [R, size, size] float64 in [0, 1]; exactly 0 or 1 for "binary" targets.
    """
    mean = roi_align(
        masks[:, None].astype(np.float64),
        boxes,
        matched,
        output_size=size,
        spatial_scale=1.0,
        sampling_ratio=0,
        aligned=config.target_aligned,
    )[:, 0]
    return (mean >= 0.5).astype(np.float64) if config.target == "binary" else mean


def paste_matrix(low, high, size, length, convention):
    """Interpolation matrices [D, length, size] that spread a mask's `size` cells from `low` to `high` over `length` pixels (SPEC §11).

    "detectron2": bilinear at each pixel's centre, zero outside the mask.
    "torchvision": the mask grows by a border of one zero cell, its box accordingly and then truncated to whole pixels, ends included.
    """
    pixel = np.arange(length)
    low, high = np.asarray(low, dtype=np.float64)[:, None], np.asarray(high, dtype=np.float64)[:, None]
    if convention == "detectron2":
        inside = high > low
        position = (pixel + 0.5 - low) / np.where(inside, high - low, 1.0) * size - 0.5
    else:
        center, half = (high + low) * 0.5, (high - low) * 0.5 * ((size + 2) / size)
        low, high = np.trunc(center - half), np.trunc(center + half)
        inside = (pixel >= low) & (pixel <= high)
        position = (size + 2) / np.maximum(high - low + 1, 1) * (pixel - low + 0.5) - 0.5
        position = np.clip(position, 0, size + 1) - 1  # cell -1 and cell `size` are the zero border
    return np.maximum(1 - np.abs(position[..., None] - np.arange(size)), 0) * inside[..., None]


def paste_probabilities(mask_probabilities, boxes, height, width, *, convention):
    """Each mask stretched over its box in an otherwise zero image: [D, S, S], [D, 4] -> [D, height, width] floats."""
    out = np.zeros((len(boxes), height, width))
    for row, pasted in zip(out, _pasted(mask_probabilities, boxes, height, width, convention), strict=True):
        row[:] = pasted
    return out


def paste(mask_probabilities, boxes, height, width, *, convention, threshold=0.5):
    """Pixels of each object: where its pasted probability is at least `threshold`.

    mask_probabilities  [D, S, S]
    boxes               [D, 4]     xyxy, pixels of the image; may leave it
    convention          "torchvision" or "detectron2", see `paste_matrix`
    Returns             [D, height, width] bool.

    Memory does not depend on the boxes. Raises ValueError for a non-finite box, naming its row.
    """
    out = np.zeros((len(boxes), height, width), dtype=bool)
    for row, pasted in zip(out, _pasted(mask_probabilities, boxes, height, width, convention), strict=True):
        np.greater_equal(pasted, threshold, out=row)
    return out


def _pasted(mask_probabilities, boxes, height, width, convention):
    if convention not in ("torchvision", "detectron2"):
        raise ValueError(f"convention: expected torchvision or detectron2, got {convention!r}")
    check_finite(boxes, "boxes")
    size = mask_probabilities.shape[-1]
    a_y = paste_matrix(boxes[:, 1], boxes[:, 3], size, height, convention)
    a_x = paste_matrix(boxes[:, 0], boxes[:, 2], size, width, convention)
    for y, mask, x in zip(a_y, mask_probabilities, a_x, strict=True):
        yield y @ mask @ x.T
