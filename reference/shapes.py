"""The built-in synthetic data set: discs, rectangles and triangles on a noisy background.

Every image is a pure function of (seed, index, style): nothing is stored or downloaded, and both
implementations see the same pixels. Boxes are tight around the visible part of an object.

Legend: H x W pixels, G ground truths.
"""

from dataclasses import dataclass

import numpy as np

# Labels 1, 2, 3.
CLASS_NAMES = ("disc", "rectangle", "triangle")


@dataclass(frozen=True)
class Style:
    """The look of the objects; lengths in units of the image's shorter side.

    radius       of the smallest and of the largest object
    min_visible  an object that would leave less than this fraction of an earlier one is skipped
    crowded      probability that an object is placed next to the previous one
    hollow       probability that only the outline of an object is painted, and is its mask
    stroke       thickness of such an outline, never less than 1.5 pixels
    """

    radius: tuple[float, float] = (0.07, 0.23)
    min_visible: float = 0.5
    crowded: float = 0.0
    hollow: float = 0.0
    stroke: float = 0.0


EASY = Style()
# Thin outlines, overlaps, nothing large: here alignment and the competition of classes matter.
HARD = Style(radius=(0.09, 0.2), min_visible=0.5, crowded=0.25, hollow=0.35, stroke=0.055)


def sample(
    seed: int,
    index: int,
    *,
    height: int = 128,
    width: int = 128,
    max_objects: int = 6,
    style: Style = EASY,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Paint image `index` of the data set `seed`; masks show what later objects leave visible.

    Returns image [H, W, 3] uint8 RGB, boxes [G, 4] float64 xyxy pixels, labels [G] int64 (1..3),
    masks [G, H, W] bool, with 1 <= G <= max_objects.
    Raises ValueError for a side below 24, where the smallest shapes vanish.
    """
    if min(height, width) < 24:
        raise ValueError(f"shapes need at least 24x24 pixels, got {height}x{width}")
    rng = np.random.default_rng([seed, index])
    image = _background(rng, height, width)
    # The index of the object that a pixel shows.
    owner = np.full((height, width), -1)
    labels, areas, last = [], [], None
    for _ in range(rng.integers(1, max_objects, endpoint=True)):
        label = int(rng.integers(1, 4))
        mask, centre = _shape(rng, label, height, width, style, last)
        colour = _contrasting(rng, image[mask].mean(axis=0)) if mask.any() else None
        painted = np.where(mask, len(labels), owner)
        visible = np.bincount(painted[painted >= 0], minlength=len(labels) + 1)
        if colour is None or (visible[:-1] < style.min_visible * np.array(areas)).any():
            continue
        owner, last = painted, centre
        labels.append(label)
        areas.append(mask.sum())
        image[mask] = colour
    image = np.clip((image + rng.normal(0, 6, image.shape)).round(), 0, 255).astype(np.uint8)
    masks = owner == np.arange(len(labels))[:, None, None]
    return image, _tight_boxes(masks), np.array(labels, dtype=np.int64), masks


def _background(rng, height, width):
    """Blend a coarse random grid bilinearly to soft clouds of colour, [H, W, 3] float64."""
    coarse = rng.uniform(40, 215, 3) + rng.normal(0, 25, (5, 5, 3))
    distance = (np.abs((np.arange(n) * 4 / n)[:, None] - np.arange(5)) for n in (height, width))
    blend_y, blend_x = (np.maximum(0, 1 - d) for d in distance)
    return (blend_y @ (blend_x @ coarse).reshape(5, -1)).reshape(height, width, 3)


def _shape(rng, label, height, width, style, last):
    """Draw a random shape or its outline, perhaps near `last`: mask [H, W] bool, centre (x, y)."""
    side = min(height, width)
    radius = side * rng.uniform(*style.radius)
    low, high = 0.6 * radius, (width - 0.6 * radius, height - 0.6 * radius)
    cx, cy = rng.uniform(low, high[0]), rng.uniform(low, high[1])
    if style.crowded and last is not None and rng.random() < style.crowded:
        cx, cy = np.clip(last + rng.uniform(-1.3, 1.3, 2) * radius, low, high)
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.arange(width) + 0.5 - cx, np.arange(height)[:, None] + 0.5 - cy
    if label == 2:
        normals = angle + np.arange(4) * np.pi / 2
        distances = radius * np.tile(rng.uniform(0.55, 1, 2), 2)
    else:
        # The circumscribed circle of a triangle; 1.2 keeps its area near that of the other shapes.
        radius *= 1.2 if label == 3 else 1
        normals, distances = angle + np.arange(3) * 2 * np.pi / 3, np.full(3, radius / 2)

    def inside(margin):
        """Test which pixels have their centre further than `margin` inside the edge."""
        if label == 1:
            return x**2 + y**2 <= max(radius - margin, 0) ** 2
        halves = [np.cos(n) * x + np.sin(n) * y <= d - margin for n, d in zip(normals, distances)]
        return np.logical_and.reduce(halves)

    if style.hollow and rng.random() < style.hollow:
        return inside(0) & ~inside(max(style.stroke * side, 1.5)), (cx, cy)
    return inside(0), (cx, cy)


def _contrasting(rng, behind):
    """Draw a colour [3] that differs from the one behind it by at least 60 levels in a channel."""
    colour = rng.uniform(0, 255, 3)
    channel = rng.integers(3)
    if np.abs(colour - behind).max() < 60:
        colour[channel] = behind[channel] + (90 if behind[channel] < 128 else -90)
    return colour


def _tight_boxes(masks):
    """Compute the boxes of masks [G, H, W] bool, none empty -> [G, 4] float64 xyxy."""
    occupied = masks.any(axis=1), masks.any(axis=2)
    low = [line.argmax(axis=1) for line in occupied]
    high = [line.shape[1] - line[:, ::-1].argmax(axis=1) for line in occupied]
    return np.stack([*low, *high], axis=1).astype(np.float64)
