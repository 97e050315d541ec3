"""The windows of DeepMask: where they lie, and which fit an object [Pinheiro et al. 2015 §3].

A window is a square that may leave the image. It fits an object that is in its middle, whole, and
neither small nor large.

Legend: N windows, G ground truths.
"""

import numpy as np

from reference.autodiff import Array

# Longer side of an object, in sides of the window that it belongs to.
OBJECT = 128 / 224
# An object fits a window if its centre is so near on both axes, in sides of the window, and its
# size so close, in octaves. It is far if one of the two differs by at least so much.
FITS = 16 / 224, 1 / 4
FAR = 32 / 224, 1.0
# The negative windows are drawn from this neighbourhood of an object.
AROUND = 0.6, 1.25


def canonical(boxes: Array) -> Array:
    """Return the window [G, 4] that belongs to each box [G, 4]: a square about its centre."""
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1) / OBJECT
    return squares((boxes[:, :2] + boxes[:, 2:]) / 2, sides)


def grid(height: int, width: int, sides: tuple[float, ...], step: float) -> Array:
    """Return windows [N, 4] of all `sides`, centred all over an image every `step` sides."""
    windows = []
    for side in sides:
        y, x = ((np.arange(size / (step * side)) + 0.5) * step * side for size in (height, width))
        centres = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        windows.append(squares(centres, np.full(len(centres), side)))
    return np.concatenate(windows)


def label(windows: Array, boxes: Array) -> tuple[Array, Array]:
    """Label windows [N, 4] by the boxes of the objects [G, 4], at least one (SPEC §18).

    Returns labels [N], 1 if an object fits, 0 if all are far, else -1: such a window is not used;
    and the object of each window [N], the nearest that fits.
    """
    objects, sides = canonical(boxes), (windows[:, 2] - windows[:, 0])[:, None]
    distance = (windows[:, None, :2] + windows[:, None, 2:] - objects[:, :2] - objects[:, 2:]) / 2
    shift = np.abs(distance).max(axis=2) / sides
    octaves = np.abs(np.log2((objects[:, 2] - objects[:, 0]) / sides))
    fits = (shift <= FITS[0]) & (octaves <= FITS[1])
    far = (shift >= FAR[0]) | (octaves >= FAR[1])
    labels = np.where(fits.any(axis=1), 1, np.where(far.all(axis=1), 0, -1))
    return labels, np.where(fits, shift, np.inf).argmin(axis=1)


def draw(boxes: Array, generator: np.random.Generator) -> tuple[Array, Array, Array]:
    """Draw for each box [G, 4] a window that it fits and one somewhere around it.

    Returns windows [N, 4], labels [N] and objects [N] as `label`, without those of label -1.
    """
    windows = canonical(boxes)
    centres, sides = (windows[:, :2] + windows[:, 2:]) / 2, windows[:, 2] - windows[:, 0]
    drawn = []
    for shift, octaves in (FITS, AROUND):
        side = sides * 2 ** generator.uniform(-octaves, octaves, len(boxes))
        moved = centres + generator.uniform(-shift, shift, centres.shape) * side[:, None]
        drawn.append(squares(moved, side))
    windows = np.concatenate(drawn)
    labels, objects = label(windows, boxes)
    used = labels >= 0
    return windows[used], labels[used], objects[used]


def squares(centres: Array, sides: Array) -> Array:
    """Return squares [N, 4] xyxy about centres [N, 2] (x, y) with sides [N]."""
    half = sides[:, None] / 2
    return np.concatenate([centres - half, centres + half], axis=1)
