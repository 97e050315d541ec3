"""Ground-truth masks -> targets of the mask head, and the head's small masks -> masks of the image.

G ground truths, R RoIs, D detections, S side of the head's masks, H and W sides of an image. Both directions are separable, as RoIAlign is:
`out = A_y M A_xᵀ`, with sparse interpolation matrices per box.
"""

import numpy as np

from reference.boxes import check_finite
from reference.roi_align import roi_align

COCO_SCALE = 5  # grid points per pixel on which COCO walks along an outline


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


def rasterize_polygon(points, height, width):
    """Pixels [height, width] bool inside a polygon, exactly as COCO's `frPyObjects` draws it.

    points  [V, 2]  x, y in pixels, the last joined to the first

    The outline is walked on a grid five times as fine. Wherever it passes the centre column of a pixel column, everything below that
    crossing flips. The rounding is COCO's, so half of a pixel may end up on the wrong side.
    """
    corners = np.trunc(COCO_SCALE * np.asarray(points, dtype=np.float64) + 0.5)
    walk = np.concatenate(
        [
            _line(start, end)
            for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True)
        ]
    )
    (u, v), (u_next, v_next) = walk[:-1].T, walk[1:].T
    x = (np.where(u_next < u, u_next, u_next - 1) + 0.5) / COCO_SCALE - 0.5
    y = np.ceil(np.clip((np.minimum(v, v_next) + 0.5) / COCO_SCALE - 0.5, 0, height))
    crossing = (u != u_next) & (x == np.floor(x)) & (x >= 0) & (x <= width - 1)
    flips = np.bincount(
        (x[crossing] * height + y[crossing]).astype(np.int64), minlength=height * width + 1
    )[:-1]
    return (
        (np.cumsum(flips) % 2 == 1).reshape(width, height).T
    )  # COCO counts down the columns, from one into the next


def _line(start, end):
    """Grid points from `start` to `end`, one per step of the longer axis; computed from the lower end of that axis, whichever way."""
    axis = 0 if abs(end[0] - start[0]) >= abs(end[1] - start[1]) else 1
    low, high = (start, end) if start[axis] <= end[axis] else (end, start)
    steps = np.arange(high[axis] - low[axis] + 1)
    slope = (high[1 - axis] - low[1 - axis]) / max(high[axis] - low[axis], 1)
    line = np.empty((len(steps), 2))
    line[:, axis], line[:, 1 - axis] = (
        low[axis] + steps,
        np.trunc(low[1 - axis] + slope * steps + 0.5),
    )
    return line if low is start else line[::-1]


def polygon_targets(polygons, boxes, size):
    """Targets from outlines instead of masks [detectron2's default]: moved and scaled into the RoI's grid, then drawn.

    polygons  list of R lists of [V, 2]: the outlines of each RoI's object
    boxes     [R, 4]  xyxy
    Returns   [R, size, size] float64, 0 or 1. RoIs narrower than 0.1 pixels count as that wide.
    """
    out = np.zeros((len(boxes), size, size))
    for row, outlines, box in zip(out, polygons, np.asarray(boxes), strict=True):
        scale = size / np.maximum(box[2:] - box[:2], 0.1)
        for points in outlines:
            row[rasterize_polygon((np.asarray(points) - box[:2]) * scale, size, size)] = 1
    return out


def paste_matrix(low, high, size, length, convention):
    """Interpolation matrices [D, length, size] that spread a mask's `size` cells from `low` to `high` over `length` pixels (SPEC §11).

    "detectron2": bilinear at each pixel's centre, zero outside the mask.
    "torchvision": the mask grows by a border of one zero cell, its box accordingly and then truncated to whole pixels, ends included.
    """
    pixel = np.arange(length)
    low, high = (
        np.asarray(low, dtype=np.float64)[:, None],
        np.asarray(high, dtype=np.float64)[:, None],
    )
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
    for row, pasted in zip(
        out, _pasted(mask_probabilities, boxes, height, width, convention), strict=True
    ):
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
    for row, pasted in zip(
        out, _pasted(mask_probabilities, boxes, height, width, convention), strict=True
    ):
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
