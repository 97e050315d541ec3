"""Move an image and its objects together: mirror, turn, cut out and resize.

Pixel i spans [i, i+1). Mirroring, turning and cutting are exact: no pixel is interpolated, and
boxes, masks and outlines stay where they belong. Images are [H, W, 3]; boxes and masks of targets
are tensors on the CPU.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from accelerated.structures import Target

# (x1, y1, x2, y2) in whole pixels.
Window = tuple[int, int, int, int]


def flip(image: np.ndarray, target: Target) -> tuple[np.ndarray, Target]:
    """Mirror left and right: x becomes W - x."""
    width = image.shape[1]
    moved = _moved(target, target.masks.flip(2), lambda x, y: (width - x, y))
    return image[:, ::-1].copy(), moved


def flip_vertical(image: np.ndarray, target: Target) -> tuple[np.ndarray, Target]:
    """Mirror top and bottom: y becomes H - y."""
    height = image.shape[0]
    moved = _moved(target, target.masks.flip(1), lambda x, y: (x, height - y))
    return image[::-1].copy(), moved


def turn(image: np.ndarray, target: Target, quarters: int) -> tuple[np.ndarray, Target]:
    """Turn counterclockwise by 1, 2 or 3 times 90 degrees; 1 and 3 exchange the sides."""
    height, width = image.shape[:2]
    move = {
        1: lambda x, y: (y, width - x),
        2: lambda x, y: (width - x, height - y),
        3: lambda x, y: (height - y, x),
    }[quarters]
    moved = _moved(target, target.masks.rot90(quarters, (1, 2)), move)
    return np.ascontiguousarray(np.rot90(image, quarters)), moved


def crop(image: np.ndarray, target: Target, window: Window) -> tuple[np.ndarray, Target]:
    """Cut out a window of the image; objects without a pixel or an outline in it go.

    Outlines are clipped to the window. The box of an object that is cut is what the window and the
    rest of its mask have in common.
    """
    x1, y1, x2, y2 = window
    masks = target.masks[:, y1:y2, x1:x2]
    low, high = target.boxes.new_tensor([x1, y1] * 2), target.boxes.new_tensor([x2, y2] * 2)
    boxes = target.boxes.clamp(low, high)
    whole = (boxes == target.boxes).all(1).tolist()
    boxes = boxes - low
    polygons = None if target.polygons is None else list(target.polygons)
    kept = []
    for index, (mask, part) in enumerate(zip(target.masks.numpy(), masks.numpy(), strict=True)):
        pixels = np.count_nonzero(part)
        cut = not whole[index] or pixels < np.count_nonzero(mask)
        if cut and not pixels:
            continue
        if cut:
            boxes[index] = tightened(boxes[index], part)
        if polygons is not None and polygons[index] is not None:
            outlines = (clip(points, window) - (x1, y1) for points in polygons[index])
            polygons[index] = [points for points in outlines if len(points)]
            if not polygons[index]:
                continue
        kept.append(index)
    return image[y1:y2, x1:x2].copy(), select(Target(boxes, target.labels, masks, polygons), kept)


def zoom(image: np.ndarray, target: Target, size: tuple[int, int]) -> tuple[np.ndarray, Target]:
    """Resize to the sides (h, w): the image by Pillow's filter, masks by the nearest pixel.

    Objects whose masks lose their last pixel go.
    """
    (height, width), (h, w) = image.shape[:2], size
    picture = Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR)
    masks = torch.zeros(len(target.labels), h, w, dtype=torch.bool)
    for out, mask in zip(masks, target.masks.to(torch.uint8), strict=True):
        out[:] = F.interpolate(mask[None, None], size=size, mode="nearest")[0, 0]
    ratio = np.array([w / width, h / height])
    boxes = target.boxes * torch.tensor([*ratio, *ratio], dtype=torch.float32)
    boxes = boxes.minimum(boxes.new_tensor([w, h, w, h]))
    polygons = target.polygons and [
        outlines and [points * ratio for points in outlines] for outlines in target.polygons
    ]
    before, after = ([mask.any() for mask in x.numpy()] for x in (target.masks, masks))
    kept = [index for index, there in enumerate(after) if there or not before[index]]
    return np.asarray(picture), select(Target(boxes, target.labels, masks, polygons), kept)


def select(target: Target, kept: list[int]) -> Target:
    """Return the target of some of the objects."""
    if len(kept) == len(target.labels):
        return target
    rows = torch.tensor(kept, dtype=torch.int64)
    polygons = target.polygons and [target.polygons[index] for index in kept]
    return Target(target.boxes[rows], target.labels[rows], target.masks[rows], polygons)


def placed(parts: list[tuple[Target, int, int]], size: tuple[int, int]) -> Target:
    """Return one target for an image with sides `size` (H, W) from those of parts of it.

    parts  (target, left, top): the upper left corner of the part is at x = left, y = top
    """
    masks = torch.zeros(sum(len(target.labels) for target, *_ in parts), *size, dtype=torch.bool)
    targets, first = [], 0
    for target, left, top in parts:
        count, height, width = target.masks.shape
        rows = masks[first : first + count]
        rows[:, top : top + height, left : left + width] = target.masks
        targets.append(_moved(target, rows, _by(left, top)))
        first += count
    boxes, labels = (
        torch.cat([getattr(target, name) for target in targets]) for name in ("boxes", "labels")
    )
    polygons = None
    if any(target.polygons is not None for target in targets):
        lists = (target.polygons or [None] * len(target.labels) for target in targets)
        polygons = [outlines for part in lists for outlines in part]
    return Target(boxes, labels, masks, polygons)


def tightened(box: torch.Tensor, mask: np.ndarray) -> torch.Tensor:
    """Return what a box [4] and the box of the pixels of a mask [H, W] have in common.

    If that is nothing, it is the latter.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    pixels = box.new_tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    both = torch.cat([box[:2].maximum(pixels[:2]), box[2:].minimum(pixels[2:])])
    return both if (both[2:] > both[:2]).all() else pixels


def clip(points: np.ndarray, window: Window) -> np.ndarray:
    """Clip an outline [V, 2] to a window, as another one [W, 2]; W is 0 if nothing is left.

    By the half-planes of the four sides, one after the other [Sutherland & Hodgman 1974]. What
    falls apart stays one outline, with edges that run to and fro along the window's border.
    """
    x1, y1, x2, y2 = window
    for axis, sign, bound in ((0, 1, x1), (1, 1, y1), (0, -1, x2), (1, -1, y2)):
        inside = sign * (points[:, axis] - bound) >= 0
        if inside.all():
            continue
        if not inside.any():
            return points[:0]
        following = np.roll(points, -1, axis=0)
        crossing = inside != np.roll(inside, -1)
        steps = np.where(crossing, following[:, axis] - points[:, axis], 1.0)
        crossed = points + ((bound - points[:, axis]) / steps)[:, None] * (following - points)
        crossed[:, axis] = bound
        # After each point that where its edge crosses the side.
        both, wanted = np.stack([points, crossed], axis=1), np.stack([inside, crossing], axis=1)
        points = both[wanted]
    return points


def _by(left, top):
    return lambda x, y: (x + left, y + top)


def _moved(target, masks, move: Callable):
    """Return the target with `masks` and with its corners and outlines moved."""
    x1, y1, x2, y2 = target.boxes.unbind(1)
    (a, b), (c, d) = move(x1, y1), move(x2, y2)
    boxes = torch.stack([a.minimum(c), b.minimum(d), a.maximum(c), b.maximum(d)], dim=1)
    polygons = target.polygons and [
        outlines and [np.stack(move(*points.T), axis=1) for points in outlines]
        for outlines in target.polygons
    ]
    return Target(boxes, target.labels, masks, polygons)
