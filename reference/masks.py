"""Targets of the mask head, and pasting of its small masks into the image [Mask R-CNN §3].

Both are separable, as RoIAlign is: out = A_y M A_xᵀ, with interpolation matrices per box.

Legend: G ground truths, R rois, D detections, S side of the head's masks, H, W sides of an image.
"""

import numpy as np

from reference.autodiff import Array
from reference.boxes import check_finite
from reference.config import MaskHead
from reference.roi_align import roi_align

# Grid points per pixel on which COCO walks along an outline.
COCO_SCALE = 5


def targets(masks: Array, matched: Array, boxes: Array, head: MaskHead, size: int) -> Array:
    """Average each RoI's ground-truth mask over the bins of a size x size grid (SPEC §10).

    masks    [G, H, W]  bool
    matched  [R]        int, row of `masks` for each RoI
    boxes    [R, 4]     xyxy, pixels of the masks
    Returns  [R, size, size] float64 in [0, 1]; exactly 0 or 1 unless the targets are "soft".
    """
    maps, aligned = masks[:, None].astype(np.float64), head.target_aligned
    mean = roi_align(
        maps, boxes, matched, output_size=size, spatial_scale=1.0, sampling_ratio=0, aligned=aligned
    )[:, 0]
    return mean if head.target == "soft" else (mean >= 0.5).astype(np.float64)


def polygon_targets(polygons: list[list[Array]], boxes: Array, size: int) -> Array:
    """Draw targets from outlines instead of masks [detectron2's default].

    polygons  list of R lists of [V, 2]: the outlines of each RoI's object
    boxes     [R, 4]  xyxy
    Returns   [R, size, size] float64, 0 or 1. RoIs narrower than 0.1 pixels count as that wide.
    """
    out = np.zeros((len(boxes), size, size))
    for row, outlines, box in zip(out, polygons, np.asarray(boxes, np.float64), strict=True):
        scale = size / np.maximum(box[2:] - box[:2], 0.1)
        for points in outlines:
            row[rasterize_polygon((np.asarray(points) - box[:2]) * scale, size, size)] = 1
    return out


def rasterize_polygon(points: Array, height: int, width: int) -> Array:
    """Return the pixels inside a polygon, exactly as COCO's `frPyObjects` draws it.

    points [V, 2] are x, y in pixels, the last joined to the first; returns [height, width] bool.
    The outline is walked on a grid five times as fine. Where it passes the centre of a column,
    everything below flips. The rounding is COCO's: half a pixel may be on the wrong side.
    """
    corners = np.trunc(COCO_SCALE * np.asarray(points, dtype=np.float64) + 0.5)
    walk = np.concatenate([_line(*edge) for edge in zip(corners, np.roll(corners, -1, axis=0))])
    x, y = (np.minimum(walk[:-1], walk[1:]).T + 0.5) / COCO_SCALE - 0.5
    crossing = (walk[:-1, 0] != walk[1:, 0]) & (x == np.floor(x)) & (x >= 0) & (x <= width - 1)
    # COCO counts down the columns, from the end of one into the next.
    position = (x * height + np.ceil(np.clip(y, 0, height)))[crossing].astype(np.int64)
    flips = np.bincount(position, minlength=height * width + 1)[:-1]
    return (np.cumsum(flips) % 2 == 1).reshape(width, height).T


def _line(start, end):
    """Return grid points, one per step of the longer axis, computed from that axis' lower end."""
    axis = np.abs(end - start).argmax()
    low, high = (start, end) if start[axis] <= end[axis] else (end, start)
    steps = np.arange(high[axis] - low[axis] + 1)
    slope = (high - low) / max(high[axis] - low[axis], 1)
    line = np.trunc(low + slope * steps[:, None] + 0.5)
    line[:, axis] = low[axis] + steps
    return line if low is start else line[::-1]


def paste_matrix(low: Array, high: Array, size: int, length: int, convention: str) -> Array:
    """Return matrices [D, length, size] that spread masks over a row of pixels (SPEC §11).

    A mask's `size` cells are spread from `low` [D] to `high` [D], over `length` pixels.
    "detectron2"   bilinear at each pixel's centre, zero outside the mask
    "torchvision"  the mask gets a border of one zero cell; its box grows in proportion and is then
                   truncated to whole pixels, ends included
    """
    pixel = np.arange(length)
    low, high = (np.asarray(x, dtype=np.float64)[:, None] for x in (low, high))
    if convention == "detectron2":
        inside = high > low
        position = (pixel + 0.5 - low) / np.where(inside, high - low, 1.0) * size - 0.5
    else:
        center, half = (high + low) * 0.5, (high - low) * 0.5 * ((size + 2) / size)
        low, high = np.trunc(center - half), np.trunc(center + half)
        inside = (pixel >= low) & (pixel <= high)
        position = (size + 2) / np.maximum(high - low + 1, 1) * (pixel - low + 0.5) - 0.5
        # Cells -1 and `size` are the zero border.
        position = np.clip(position, 0, size + 1) - 1
    return np.maximum(1 - np.abs(position[..., None] - np.arange(size)), 0) * inside[..., None]


def paste_probabilities(
    mask_probabilities: Array, boxes: Array, height: int, width: int, *, convention: str
) -> Array:
    """Stretch each mask over its box in an image of zeros: [D, S, S], [D, 4] -> [D, H, W]."""
    pasted = list(_pasted(mask_probabilities, boxes, height, width, convention))
    return np.array(pasted).reshape(len(boxes), height, width)


def paste(
    mask_probabilities: Array,
    boxes: Array,
    height: int,
    width: int,
    *,
    convention: str,
    threshold: float = 0.5,
) -> Array:
    """Return the pixels of each object, where its pasted probability is at least `threshold`.

    mask_probabilities  [D, S, S]
    boxes               [D, 4]     xyxy, pixels of the image; may leave it
    convention          "torchvision" or "detectron2", see `paste_matrix`
    Returns             [D, height, width] bool.

    Memory does not depend on the boxes. Raises ValueError for a non-finite box, naming its row.
    """
    out = np.zeros((len(boxes), height, width), dtype=bool)
    pasted_masks = _pasted(mask_probabilities, boxes, height, width, convention)
    for row, pasted in zip(out, pasted_masks, strict=True):
        np.greater_equal(pasted, threshold, out=row)
    return out


def _pasted(mask_probabilities, boxes, height, width, convention):
    """Yield each mask stretched over its box [height, width]."""
    if convention not in ("torchvision", "detectron2"):
        raise ValueError(f"convention: expected torchvision or detectron2, got {convention!r}")
    check_finite(boxes, "boxes")
    size, (x1, y1, x2, y2) = mask_probabilities.shape[-1], np.asarray(boxes).T
    a_y = paste_matrix(y1, y2, size, height, convention)
    a_x = paste_matrix(x1, x2, size, width, convention)
    for y, mask, x in zip(a_y, mask_probabilities, a_x, strict=True):
        yield y @ mask @ x.T
