"""From the image that comes in to the array the network sees, and a batch of those.

H, W sides of the image that came in; h, w sides after resizing; G ground truths. The two conventions are those of torchvision's
GeneralizedRCNNTransform and of detectron2's ResizeShortestEdge and ImageList (SPEC §12). Resizing is separable: first one axis, then
the other.
"""

import numpy as np

from reference.structures import Target

PILLOW_BITS = 22  # fractional bits of Pillow's integer filter coefficients


def check_image(image):
    """ValueError unless `image` is a finite [H, W, 3] array of uint8 or floats."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"image: expected [H, W, 3] RGB, got shape {image.shape}; move the channels last, repeat a grey image three times"
        )
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise ValueError(
            f"image: expected uint8, or floats in 0..255, got {image.dtype}; convert it first"
        )
    if image.dtype != np.uint8 and not np.isfinite(image).all():
        raise ValueError(
            "image: some pixels are NaN or infinite; replace them before detection or training"
        )
    return image


def check_target(target, height, width):
    """ValueError unless boxes, labels and masks agree with each other and with the image."""
    boxes, labels, masks = (
        np.asarray(target.boxes, dtype=np.float64),
        np.asarray(target.labels),
        np.asarray(target.masks),
    )
    count = len(labels)
    if boxes.shape != (count, 4) or masks.shape != (count, height, width):
        raise ValueError(
            f"target: {count} labels need boxes [{count}, 4] and masks [{count}, {height}, {width}], got {boxes.shape} and {masks.shape}"
        )
    bad = np.flatnonzero(~(np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)))
    if len(bad):
        raise ValueError(
            f"target: box {bad[0]} is {boxes[bad[0]].tolist()}; boxes are finite with x1 < x2 and y1 < y2: drop this object"
        )
    if (labels < 1).any():
        raise ValueError(f"target: label {labels.min()}; labels count from 1, 0 is the background")
    return Target(boxes, labels.astype(np.int64), masks.astype(bool))


def resized_shape(height, width, min_size, config):
    """(h, w) with a short side of `min_size` and a long side of at most `config.max_size`; the scale is a double (SPEC §12)."""
    short, long = min(height, width), max(height, width)
    if config.size_rounding == "truncate":
        scale = min(min_size / short, config.max_size / long)
        sides = int(height * scale), int(width * scale)
    else:
        scale = min_size / short
        sides = np.where(
            np.arange(2) == np.argmin((height, width)), min_size, np.array((height, width)) * scale
        )
        if sides.max() > config.max_size:
            sides = sides * (config.max_size / sides.max())
        sides = int(sides[0] + 0.5), int(sides[1] + 0.5)
    return max(sides[0], 1), max(sides[1], 1)


def bilinear(x, size, axis):
    """Two taps per sample, sample i at (i + 0.5) * old / new - 0.5, clamped to the first and last pixel (no antialiasing)."""
    old = x.shape[axis]
    position = np.clip((old / size) * (np.arange(size) + 0.5) - 0.5, 0, old - 1)
    low = position.astype(np.int64)
    weight = np.expand_dims(position - low, tuple(range(1, x.ndim - axis)))
    return x.take(low, axis) * (1 - weight) + x.take(np.minimum(low + 1, old - 1), axis) * weight


def pillow_coefficients(old, size):
    """Pillow's triangle filter [size, old]: as wide as an input pixel when growing, as an output pixel when shrinking."""
    scale = old / size
    support = max(scale, 1.0)
    center = (np.arange(size)[:, None] + 0.5) * scale
    first = np.maximum(center - support + 0.5, 0).astype(np.int64)
    last = np.minimum(center + support + 0.5, old).astype(np.int64)
    pixel = np.arange(old)
    weight = np.maximum(1 - np.abs((pixel - center + 0.5) * (1 / support)), 0) * (
        (pixel >= first) & (pixel < last)
    )
    return (
        weight / np.cumsum(weight, axis=1)[:, -1:]
    )  # cumsum adds from left to right, as Pillow's loop does


def pillow(x, size, axis):
    """Pillow's antialiased bilinear filter along one axis; uint8 stays uint8 by Pillow's fixed-point arithmetic, bit for bit."""
    weight = pillow_coefficients(x.shape[axis], size)
    if x.dtype != np.uint8:
        return np.moveaxis(np.tensordot(weight, x, (1, axis)), 0, axis)
    weight = np.floor(0.5 + weight * 2**PILLOW_BITS)
    total = np.moveaxis(
        np.tensordot(weight, x.astype(np.float64), (1, axis)), 0, axis
    )  # integers below 2^31: exact in float64
    return np.clip(np.floor((total + 2 ** (PILLOW_BITS - 1)) / 2**PILLOW_BITS), 0, 255).astype(
        np.uint8
    )


def nearest_indices(old, size, config):
    """Row (or column) of the mask that each resized one copies: torch's float32 rule, or Pillow's running sum over pixel centres."""
    if config.interpolation == "bilinear":
        index = np.arange(size, dtype=np.float32) * np.float32(np.float32(old) / np.float32(size))
    else:
        index = np.cumsum(np.concatenate([[old / size * 0.5], np.full(size - 1, old / size)]))
    return np.minimum(index.astype(np.int64), old - 1)


def scale_boxes(boxes, old, new, config):
    """Boxes [., 4] of an image of sides `old` (h, w) -> boxes of the same image at sides `new`."""
    dtype = np.dtype(config.ratio_dtype).type
    ratio_y, ratio_x = (dtype(n) / dtype(o) for n, o in zip(new, old, strict=True))
    return boxes * np.array([ratio_x, ratio_y, ratio_x, ratio_y], dtype=np.float64)


def prepare(image, target, config, min_size=None):
    """Channel order, normalisation and resizing of one image and of what is to be found in it.

    image     [H, W, 3]  RGB, uint8 or floats in 0..255
    target    Target or None
    config    config.Transform
    min_size  wanted short side; None: the last of `config.min_size`. Where that is empty, nothing is resized
    Returns   ([3, h, w] float64, Target or None in the resized image's pixels).

    Raises ValueError for an image or target of the wrong shape or with non-finite numbers, saying what to do.
    """
    image = check_image(image)
    old = image.shape[:2]
    target = target if target is None else check_target(target, *old)
    if min_size is None and config.min_size:
        min_size = config.min_size[-1]
    new = old if min_size is None else resized_shape(*old, min_size, config)

    def normalized(x):
        return (x * config.pixel_scale - np.array(config.mean)) / np.array(config.std)

    if image.dtype != np.uint8 or config.interpolation == "bilinear":
        image = image.astype(np.float64)
    image = image if config.channel_order == "rgb" else image[:, :, ::-1]
    image = normalized(image) if config.normalize_first else image
    resize = {"bilinear": bilinear, "pillow": pillow}[config.interpolation]
    for axis in (
        1,
        0,
    ):  # Pillow rounds in between; from version 13 on it takes tall images that shrink in the other order
        if new[axis] != old[axis]:
            image = resize(image, new[axis], axis)
    image = image if config.normalize_first else normalized(image)
    if target is not None and new != old:
        rows, columns = (nearest_indices(o, n, config) for o, n in zip(old, new, strict=True))
        target = Target(
            scale_boxes(target.boxes, old, new, config),
            target.labels,
            target.masks[:, rows[:, None], columns],
        )
    return np.ascontiguousarray(image.transpose(2, 0, 1)), target


def pad(images, size_divisor):
    """List of [3, h, w] -> [N, 3, H, W], zeros to the right and below, sides multiples of `size_divisor` (0: just the largest)."""
    sides = np.max([image.shape[1:] for image in images], axis=0)
    height, width = -(-sides // size_divisor) * size_divisor if size_divisor else sides
    out = np.zeros((len(images), 3, height, width), dtype=images[0].dtype)
    for row, image in zip(out, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return out
