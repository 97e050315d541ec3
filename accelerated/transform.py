"""Preparation of images and targets: from the input image to a batch that the network sees.

The two conventions are those of torchvision's GeneralizedRCNNTransform and of detectron2's
ResizeShortestEdge and ImageList (SPEC §12). The workers leave the pixels as uint8; what is done to
each alone (channel order, normalisation, padding) and bilinear resizing run on the model's device.
Pillow's filter on uint8 runs on the CPU, because it must round as Pillow does. The batch has fixed
shapes. Masks are stored as bits: 8 pixels of a row in one byte, the first in the highest bit
(numpy.packbits).

Legend: N images, G ground-truth slots; H, W sides of the input image or of the batch; h, w sides
after resizing.
"""

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from accelerated.structures import Batch, BatchTargets, PackedTarget, RawBatch, Target
from reference.config import Transform


def check_image(image: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Return `image` as [3, H, W]; ValueError unless [H, W, 3], finite, and uint8 or floats."""
    if isinstance(image, np.ndarray):
        # PyTorch warns of arrays that are read-only.
        image = np.require(image, requirements=("C", "W"))
    image = torch.as_tensor(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.numel() == 0:
        raise ValueError(
            f"image: expected [H, W, 3] RGB, got shape {tuple(image.shape)}; "
            "move the channels last, or repeat a grey image three times"
        )
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ValueError(
            f"image: expected uint8, or floats in 0..255, got {image.dtype}; convert it first"
        )
    if image.dtype != torch.uint8 and not image.isfinite().all():
        raise ValueError(
            "image: some pixels are NaN or infinite; replace them before detection or training"
        )
    if image.dtype != torch.uint8 and 0 < image.max() <= 1:
        text = "image: its floats never exceed 1, but 0..255 is expected; multiply it by 255"
        warnings.warn(text, stacklevel=2)
    return image.permute(2, 0, 1)


def check_target(target: Target, height: int, width: int, dtype: torch.dtype) -> Target:
    """Return `target` as tensors; ValueError unless its parts fit each other and the image."""
    boxes = torch.as_tensor(target.boxes, dtype=dtype)
    labels = torch.as_tensor(target.labels, dtype=torch.int64)
    masks, count = torch.as_tensor(target.masks), len(target.labels)
    if boxes.shape != (count, 4) or masks.shape != (count, height, width):
        raise ValueError(
            f"target: {count} labels need boxes [{count}, 4] and masks "
            f"[{count}, {height}, {width}], got {tuple(boxes.shape)} and {tuple(masks.shape)}"
        )
    bad = ~(boxes.isfinite().all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1))
    if bad.any():
        row = int(bad.int().argmax())
        raise ValueError(
            f"target: box {row} is {boxes[row].tolist()}; "
            "boxes must be finite with x1 < x2 and y1 < y2: drop this object"
        )
    if (labels < 1).any():
        label = int(labels.min())
        raise ValueError(f"target: label {label}; labels count from 1, 0 is the background")
    polygons = check_polygons(target.polygons, count)
    return Target(boxes, labels, masks, polygons)


def check_labels(target: Target | None, num_classes: int) -> None:
    """Raise ValueError for a label above K, `num_classes`."""
    label = 0 if target is None else int(max(target.labels, default=0))
    if label > num_classes:
        raise ValueError(f"target: label {label} above num_classes {num_classes}: correct either")


def check_polygons(polygons: list | None, count: int) -> list[list[np.ndarray]] | None:
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
    """Compute (h, w): short side `min_size`, long side at most `max_size` (SPEC §12)."""
    short, long = min(height, width), max(height, width)
    if transform.size_rounding == "truncate":
        scale = min(min_size / short, transform.max_size / long)
        return max(int(height * scale), 1), max(int(width * scale), 1)
    scale = min_size / short
    h, w = (min_size, width * scale) if height <= width else (height * scale, min_size)
    shrink = min(transform.max_size / max(h, w), 1.0)
    return max(int(h * shrink + 0.5), 1), max(int(w * shrink + 0.5), 1)


def resize(image: torch.Tensor, size: tuple, transform: Transform) -> torch.Tensor:
    """Resize [3, H, W] -> [3, h, w] by the configured filter.

    With Pillow's filter, uint8 stays uint8; floats take the same filter without rounding.
    """
    pillow = transform.interpolation == "pillow"
    if not pillow or image.dtype != torch.uint8:
        keywords = {"mode": "bilinear", "align_corners": False, "antialias": pillow}
        return F.interpolate(image[None], size=size, **keywords)[0]
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    # Columns first: Pillow 13 chooses the order by the shape, earlier versions do not.
    for sides in ((size[1], picture.height), (size[1], size[0])):
        picture = picture.resize(sides, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def resize_and_pack(masks: torch.Tensor, size: tuple, transform: Transform) -> torch.Tensor:
    """Resize masks [G, H, W] bool by nearest neighbour and pack them: [G, h, ceil(w / 8)] uint8.

    One mask at a time, which stays within the cache.
    """
    out = np.zeros((len(masks), size[0], -(-size[1] // 8)), dtype=np.uint8)
    for row, mask in zip(out, masks.to(torch.uint8), strict=True):
        if mask.shape == size:
            resized = mask.numpy()
        elif transform.interpolation == "bilinear":
            resized = F.interpolate(mask[None, None], size=size, mode="nearest")[0, 0].numpy()
        else:
            picture = Image.fromarray(mask.numpy())
            resized = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.NEAREST))
        row[:] = np.packbits(resized, axis=1)
    return torch.from_numpy(out)


def pack_polygons(polygons: list) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pack the outlines of G objects: points [V, 2], rings [P + 1], parts [G + 1], see `Batch`."""
    outlines = [points for outlines in polygons for points in outlines]
    points = torch.from_numpy(np.concatenate([np.empty((0, 2)), *outlines]))
    rings, parts = (torch.tensor([0, *map(len, x)]).cumsum(0) for x in (outlines, polygons))
    return points, rings, parts


def scale_boxes(boxes: torch.Tensor, old: tuple, new: tuple, transform: Transform) -> torch.Tensor:
    """Scale boxes [., 4] or points [., 2] of an image with sides `old` (h, w) to sides `new`."""
    dtype = np.dtype(transform.ratio_dtype).type
    ratio_y, ratio_x = (float(dtype(n) / dtype(o)) for n, o in zip(new, old, strict=True))
    return boxes * boxes.new_tensor([ratio_x, ratio_y] * (boxes.shape[-1] // 2))


def prepare_pixels(
    image: np.ndarray | torch.Tensor,
    target: Target | None,
    transform: Transform,
    min_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    masks: bool = True,
) -> tuple[torch.Tensor, tuple[int, int], PackedTarget | None]:
    """Do the part of `prepare` that stays on the CPU: targets, and Pillow's filter on uint8.

    masks  False: leave the masks out, because targets are drawn from the outlines of all objects
    The other arguments and errors are those of `prepare`.
    Returns the pixels as a view [3, H, W] of [H, W, 3], the sides (h, w) that they shall have, and
    the PackedTarget, in the resized image's pixels, or None.
    """
    image = check_image(image)
    height, width = old = image.shape[1], image.shape[2]
    target = target if target is None else check_target(target, height, width, dtype)
    if min_size is None and transform.min_size:
        min_size = transform.min_size[-1]
    new = old if min_size is None else resized_shape(height, width, min_size, transform)
    by_pillow = transform.interpolation == "pillow" and not transform.normalize_first
    if by_pillow and image.dtype == torch.uint8 and new != old:
        image = resize(image, new, transform)
    if target is None:
        return image, new, None
    left_out = torch.zeros(len(target.labels), 0, 0, dtype=torch.uint8)
    packed = resize_and_pack(target.masks.cpu(), new, transform) if masks else left_out
    boxes = scale_boxes(target.boxes, old, new, transform) if new != old else target.boxes
    if target.polygons is None:
        return image, new, PackedTarget(boxes, target.labels, packed)
    points, *offsets = pack_polygons(target.polygons)
    points = scale_boxes(points, old, new, transform) if new != old else points
    return image, new, PackedTarget(boxes, target.labels, packed, points, *offsets)


def normalize_and_resize(
    image: torch.Tensor, size: tuple[int, int], transform: Transform, dtype: torch.dtype
) -> torch.Tensor:
    """Do the rest of `prepare`, on any device: pixels [3, H, W] -> network input [3, h, w]."""
    if image.dtype != torch.uint8 or transform.interpolation == "bilinear":
        image = image.to(dtype)
    image = image if transform.channel_order == "rgb" else image.flip(0)
    if transform.normalize_first:
        image = normalize(image, transform, dtype)
    if image.shape[1:] != size:
        image = resize(image, size, transform)
    if not transform.normalize_first:
        image = normalize(image, transform, dtype)
    return image.contiguous()


def normalize(image: torch.Tensor, transform: Transform, dtype: torch.dtype) -> torch.Tensor:
    """Compute (image * pixel_scale - mean) / std of [3, h, w] in `dtype`."""
    # No scalars: a GPU would multiply by the reciprocal of a scalar and round otherwise.
    mean, std = (
        torch.tensor(value, dtype=dtype)[:, None, None].to(image.device, non_blocking=True)
        for value in (transform.mean, transform.std)
    )
    return (image.to(dtype) * transform.pixel_scale).sub_(mean).div_(std)


def prepare(
    image: np.ndarray | torch.Tensor,
    target: Target | None,
    transform: Transform,
    min_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> tuple[torch.Tensor, PackedTarget | None]:
    """Order the channels, normalise and resize one image and its target.

    image     [H, W, 3]  RGB, uint8 or floats in 0..255
    target    Target or None
    min_size  short side; None: the last of `transform.min_size`. If that is empty, the size is kept
    dtype     of image and boxes: float32, or float64 to compare with the reference
    device    of the prepared image; None: the image's own
    Returns   ([3, h, w], PackedTarget in the resized image's pixels or None).

    Raises ValueError for an image or target that does not fit or is not finite, saying what to do.
    """
    pixels, size, packed = prepare_pixels(image, target, transform, min_size, dtype)
    return normalize_and_resize(pixels.to(device), size, transform, dtype), packed


def collate(
    prepared: list,
    transform: Transform,
    original_sizes: list,
    image_ids: list | None = None,
    max_objects: int | None = None,
    pad_to: tuple[int, int] | None = None,
    max_points: int | None = None,
) -> Batch:
    """Collect what `prepare` returned for each image into a Batch.

    prepared        list of ([3, h, w], PackedTarget or None)
    original_sizes  list of (H, W) of the input images
    max_objects     ground-truth slots per image; None: the maximum of this batch, at least 1
    pad_to          (H, W) of the batch; None: the largest image, up to a multiple of `size_divisor`
    max_points      slots per image for points of outlines; None: the maximum of this batch
    Raises ValueError if an image or its objects do not fit.
    """
    images, targets = zip(*prepared, strict=True)
    sizes = [tuple(image.shape[1:]) for image in images]
    shape = _padded_shape(sizes, transform, pad_to)
    fields = _targets(targets, sizes, shape, images[0].dtype, max_objects, max_points)
    ids = list(range(len(images))) if image_ids is None else list(image_ids)
    originals = [tuple(size) for size in original_sizes]
    return Batch(**fields, original_sizes=originals, image_ids=ids, images=pad(images, shape))


def collate_pixels(
    prepared: list,
    transform: Transform,
    original_sizes: list,
    image_ids: list,
    max_objects: int | None = None,
    pad_to: tuple[int, int] | None = None,
    max_points: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> RawBatch:
    """Collect what `prepare_pixels` returned for each image into a RawBatch.

    dtype  of the boxes and of the images to be; the other arguments and errors are those of
           `collate`
    """
    images, sizes, targets = zip(*prepared, strict=True)
    shape = _padded_shape(sizes, transform, pad_to)
    return RawBatch(
        **_targets(targets, sizes, shape, dtype, max_objects, max_points),
        original_sizes=[tuple(size) for size in original_sizes],
        image_ids=list(image_ids),
        pixels=torch.cat([image.permute(1, 2, 0).reshape(-1) for image in images]),
        pixel_shapes=[tuple(image.shape[1:]) for image in images],
        new_shapes=list(sizes),
        shape=shape,
    )


def finish(batch: RawBatch, transform: Transform) -> Batch:
    """Make the images of a batch on its device, without synchronisation.

    On a CPU the result has the bits of `prepare` and `collate`.
    """
    images = [
        normalize_and_resize(pixels, size, transform, batch.boxes.dtype)
        for pixels, size in zip(batch.images(), batch.new_shapes, strict=True)
    ]
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(BatchTargets)}
    return Batch(**fields, images=pad(images, batch.shape))


def pad(images: Sequence[torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
    """Pad images [3, h, w] with zeros, right and below, to one size: [N, 3, H, W] (SPEC §12)."""
    out = images[0].new_zeros(len(images), 3, *shape)
    for row, image in zip(out, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return out


def _padded_shape(sizes, transform, pad_to):
    """Return (H, W) of a batch of images with `sizes` (h, w)."""
    largest = tuple(max(sides) for sides in zip(*sizes, strict=True))
    if pad_to is None:
        divisor = transform.size_divisor or 1
        return tuple(-(-side // divisor) * divisor for side in largest)
    if largest[0] > pad_to[0] or largest[1] > pad_to[1]:
        raise ValueError(
            f"images of up to {list(largest)} do not fit into pad_to {list(pad_to)}; "
            "lower max_size or raise pad_to"
        )
    return pad_to


def _targets(targets, sizes, shape, dtype, max_objects, max_points):
    """Return the tensors of BatchTargets, of images with `sizes` (h, w) in a batch of `shape`."""
    counts = [0 if target is None else len(target.labels) for target in targets]
    n, slots = len(sizes), max(1, *counts) if max_objects is None else max_objects
    if max(counts) > slots:
        raise ValueError(
            f"{max(counts)} objects in an image of the batch, but max_objects is {slots}; "
            "raise it or drop objects"
        )
    boxes = torch.zeros(n, slots, 4, dtype=dtype)
    labels = torch.zeros(n, slots, dtype=torch.int64)
    left_out = any(target is not None and target.masks.shape[1] == 0 for target in targets)
    mask_shape = (0, 0) if left_out else (shape[0], -(-shape[1] // 8))
    masks = torch.zeros(n, slots, *mask_shape, dtype=torch.uint8)
    for i, (target, count) in enumerate(zip(targets, counts, strict=True)):
        if count:
            boxes[i, :count], labels[i, :count] = target.boxes, target.labels
            masks[i, :count, : target.masks.shape[1], : target.masks.shape[2]] = target.masks
    valid = torch.arange(slots) < torch.tensor(counts)[:, None]
    tensors = {"boxes": boxes, "labels": labels, "valid": valid, "masks": masks}
    return {"sizes": torch.tensor(sizes)} | tensors | _outlines(targets, slots, max_points)


def _outlines(targets, slots, max_points):
    """Return the fields of a Batch with `slots` objects per image that hold their outlines."""
    if all(target is None or target.points is None for target in targets):
        return {}
    counts = [0 if target is None else len(target.points) for target in targets]
    width = max(counts) if max_points is None else max_points
    if max(counts) > width:
        raise ValueError(
            f"outlines of {max(counts)} points in an image of the batch, but max_points is {width};"
            " raise it or simplify the outlines"
        )
    n = len(targets)
    points = torch.zeros(n, width, 2, dtype=torch.float64)
    # Every outline has at least three points.
    rings, parts = (torch.zeros(n, k + 1, dtype=torch.int64) for k in (width // 3, slots))
    for i, (target, count) in enumerate(zip(targets, counts, strict=True)):
        if count:
            points[i, :count] = target.points
            for row, offsets in ((rings[i], target.rings), (parts[i], target.parts)):
                row[: len(offsets)], row[len(offsets) :] = offsets, offsets[-1]
    return {"points": points, "rings": rings, "parts": parts}
