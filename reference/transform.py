"""Preparation of images and targets: from the input image to a batch that the network sees.

The two conventions are those of torchvision's GeneralizedRCNNTransform and of detectron2's
ResizeShortestEdge and ImageList (SPEC §12). Resizing is separable: first one axis, then the other.

Legend: N images, G ground truths; H, W sides of the input image; h, w sides after resizing.
"""

import numpy as np

from reference.config import Transform
from reference.structures import Array, Target


def check_image(image: Array) -> Array:
    """Return `image` as an array; ValueError unless [H, W, 3], finite, and uint8 or floats."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        fix = "move the channels last, or repeat a grey image three times"
        raise ValueError(f"image: expected [H, W, 3] RGB, got shape {image.shape}; {fix}")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        expected = "expected uint8, or floats in 0..255"
        raise ValueError(f"image: {expected}, got {image.dtype}; convert it first")
    if not np.isfinite(image).all():
        fix = "replace them before detection or training"
        raise ValueError(f"image: some pixels are NaN or infinite; {fix}")
    return image


def check_target(target: Target, height: int, width: int) -> Target:
    """Return `target` as arrays; ValueError unless its parts fit each other and the image."""
    boxes, labels = np.asarray(target.boxes, dtype=np.float64), np.asarray(target.labels)
    masks, count = np.asarray(target.masks), len(labels)
    if boxes.shape != (count, 4) or masks.shape != (count, height, width):
        needed = f"{count} labels need boxes [{count}, 4] and masks [{count}, {height}, {width}]"
        raise ValueError(f"target: {needed}, got {boxes.shape} and {masks.shape}")
    bad = ~(np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1))
    if bad.any():
        row = int(bad.argmax())
        fix = "boxes must be finite with x1 < x2 and y1 < y2: drop this object"
        raise ValueError(f"target: box {row} is {boxes[row].tolist()}; {fix}")
    if (labels < 1).any():
        raise ValueError(f"target: label {labels.min()}; labels count from 1, 0 is the background")
    polygons = check_polygons(target.polygons, count)
    return Target(boxes, labels.astype(np.int64), masks.astype(bool), polygons)


def check_labels(target: Target | None, num_classes: int) -> None:
    """Raise ValueError for a label above K, `num_classes`."""
    label = 0 if target is None else int(max(target.labels, default=0))
    if label > num_classes:
        raise ValueError(f"target: label {label} above num_classes {num_classes}: correct either")


def check_polygons(polygons: list | None, count: int) -> list[list[Array]] | None:
    """Return each object's outlines as arrays; ValueError unless they are finite polygons."""
    if polygons is None:
        return None
    arrays = [[np.asarray(x, np.float64) for x in (() if p is None else p)] for p in polygons]
    outlines = [x for p in arrays for x in p]
    fit = all(x.ndim == 2 and len(x) >= 3 and x.shape[1] == 2 for x in outlines)
    if len(arrays) != count or not fit or not all(np.isfinite(x).all() for x in outlines):
        needed = "a list of finite outlines [V, 2] with V >= 3, or None"
        raise ValueError(f"target: polygons: {count} labels need as many entries, each {needed}")
    return arrays


def resized_shape(height: int, width: int, min_size: int, transform: Transform) -> tuple[int, int]:
    """Compute (h, w): short side `min_size`, but long side at most `max_size` (SPEC §12)."""
    if transform.size_rounding == "truncate":
        scale = min(min_size / min(height, width), transform.max_size / max(height, width))
        return max(int(height * scale), 1), max(int(width * scale), 1)
    scale = min_size / min(height, width)
    h, w = (min_size, width * scale) if height <= width else (height * scale, min_size)
    shrink = min(transform.max_size / max(h, w), 1.0)
    return max(int(h * shrink + 0.5), 1), max(int(w * shrink + 0.5), 1)


def bilinear(x: Array, size: int, axis: int) -> Array:
    """Resize one axis with two taps per sample, at (i + 0.5) * old / new - 0.5, clamped."""
    old = x.shape[axis]
    position = np.clip((old / size) * (np.arange(size) + 0.5) - 0.5, 0, old - 1)
    low = position.astype(np.int64)
    weight = np.expand_dims(position - low, tuple(range(1, x.ndim - axis)))
    return x.take(low, axis) * (1 - weight) + x.take(np.minimum(low + 1, old - 1), axis) * weight


def pillow_coefficients(old: int, size: int) -> Array:
    """Compute Pillow's triangle filter [size, old], as wide as the larger of both pixels."""
    scale, support, pixel = old / size, max(old / size, 1.0), np.arange(old)
    center = (np.arange(size)[:, None] + 0.5) * scale
    first = np.maximum(center - support + 0.5, 0).astype(np.int64)
    last = np.minimum(center + support + 0.5, old).astype(np.int64)
    weight = np.maximum(1 - np.abs((pixel - center + 0.5) * (1 / support)), 0)
    weight = weight * ((pixel >= first) & (pixel < last))
    # cumsum adds from left to right, like Pillow's loop.
    return weight / np.cumsum(weight, axis=1)[:, -1:]


def pillow(x: Array, size: int, axis: int) -> Array:
    """Resize one axis by Pillow's antialiased filter: uint8 as Pillow does, bit for bit."""
    weight = pillow_coefficients(x.shape[axis], size)
    if x.dtype == np.uint8:
        # Pillow's coefficients have 22 fractional bits; float64 adds such products exactly.
        weight = np.floor(weight * 2**22 + 0.5) / 2**22
    out = np.moveaxis(np.tensordot(weight, x.astype(np.float64), (1, axis)), 0, axis)
    return np.clip(np.floor(out + 0.5), 0, 255).astype(np.uint8) if x.dtype == np.uint8 else out


def nearest_indices(old: int, size: int, transform: Transform) -> Array:
    """Compute the row (or column) of a mask that each resized row copies, as torch or Pillow."""
    if transform.interpolation == "bilinear":
        index = np.arange(size, dtype=np.float32) * (np.float32(old) / np.float32(size))
    else:
        index = np.cumsum(np.concatenate([[old / size * 0.5], np.full(size - 1, old / size)]))
    return np.minimum(index.astype(np.int64), old - 1)


def scale_boxes(boxes: Array, old: tuple, new: tuple, transform: Transform) -> Array:
    """Scale boxes [., 4] or points [., 2] of an image with sides `old` (h, w) to sides `new`."""
    ratio_y, ratio_x = np.array(new, transform.ratio_dtype) / np.array(old, transform.ratio_dtype)
    return boxes * np.resize(np.array([ratio_x, ratio_y], dtype=np.float64), boxes.shape[-1])


def prepare(
    image: Array, target: Target | None, transform: Transform, min_size: int | None = None
) -> tuple[Array, Target | None]:
    """Order the channels, normalise and resize one image and its target.

    image     [H, W, 3]  RGB, uint8 or floats in 0..255
    min_size  short side; None: the last of `transform.min_size`. If that is empty, the size is kept
    Returns   ([3, h, w] float64, Target in the resized image's pixels or None).
    Raises ValueError for an image or target that does not fit or is not finite, saying what to do.
    """
    image = check_image(image)
    height, width = old = image.shape[:2]
    target = target if target is None else check_target(target, height, width)
    sizes = transform.min_size if min_size is None else (min_size,)
    new = resized_shape(height, width, sizes[-1], transform) if sizes else old

    def normalized(x):
        return (x * transform.pixel_scale - np.array(transform.mean)) / np.array(transform.std)

    if image.dtype != np.uint8 or transform.interpolation == "bilinear":
        image = image.astype(np.float64)
    image = image if transform.channel_order == "rgb" else image[:, :, ::-1]
    image = normalized(image) if transform.normalize_first else image
    resize = {"bilinear": bilinear, "pillow": pillow}[transform.interpolation]
    # Columns first: Pillow rounds in between. (Version 13 and later shrink tall images rows first.)
    for axis in (1, 0):
        if new[axis] != old[axis]:
            image = resize(image, new[axis], axis)
    image = image if transform.normalize_first else normalized(image)
    if target is not None and new != old:
        rows, columns = (nearest_indices(o, n, transform) for o, n in zip(old, new))
        boxes = scale_boxes(target.boxes, old, new, transform)
        polygons = target.polygons and [
            [scale_boxes(points, old, new, transform) for points in outlines]
            for outlines in target.polygons
        ]
        masks = target.masks[:, rows[:, None], columns]
        target = Target(boxes, target.labels, masks, polygons)
    return np.ascontiguousarray(image.transpose(2, 0, 1)), target


def pad(images: list[Array], size_divisor: int) -> Array:
    """Pad images [3, h, w] with zeros, right and below, to one size: [N, 3, H, W] (SPEC §12)."""
    height, width = np.max([image.shape[1:] for image in images], axis=0)
    if size_divisor:
        height, width = (-(-side // size_divisor) * size_divisor for side in (height, width))
    out = np.zeros((len(images), 3, height, width), dtype=images[0].dtype)
    for row, image in zip(out, images):
        row[:, : image.shape[1], : image.shape[2]] = image
    return out
