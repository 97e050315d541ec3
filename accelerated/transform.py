"""Preparation of images and targets: from the input image to a batch that the network sees.

The two conventions are those of torchvision's GeneralizedRCNNTransform and of detectron2's
ResizeShortestEdge and ImageList (SPEC §12). Everything runs on the workers' CPU. The batch has
fixed shapes. Masks are stored as bits: 8 pixels of a row in one byte, the first in the highest bit
(numpy.packbits).

Legend: N images, G ground-truth slots; H, W sides of the input image or of the batch; h, w sides
after resizing.
"""

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from accelerated.structures import Batch, PackedTarget, Target
from reference.config import Transform


def check_image(image: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Return `image` as [3, H, W]; ValueError unless [H, W, 3], finite, and uint8 or floats."""
    image = torch.as_tensor(np.ascontiguousarray(image) if isinstance(image, np.ndarray) else image)
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
    return Target(boxes, labels, masks)


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


def scale_boxes(boxes: torch.Tensor, old: tuple, new: tuple, transform: Transform) -> torch.Tensor:
    """Scale boxes [., 4] of an image with sides `old` (h, w) to the image with sides `new`."""
    dtype = np.dtype(transform.ratio_dtype).type
    ratio_y, ratio_x = (float(dtype(n) / dtype(o)) for n, o in zip(new, old, strict=True))
    return boxes * boxes.new_tensor([ratio_x, ratio_y, ratio_x, ratio_y])


def prepare(
    image: np.ndarray | torch.Tensor,
    target: Target | None,
    transform: Transform,
    min_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, PackedTarget | None]:
    """Order the channels, normalise and resize one image and its target.

    image     [H, W, 3]  RGB, uint8 or floats in 0..255
    target    Target or None
    min_size  short side; None: the last of `transform.min_size`. If that is empty, the size is kept
    dtype     of image and boxes: float32, or float64 to compare with the reference
    Returns   ([3, h, w], PackedTarget in the resized image's pixels or None).

    Raises ValueError for an image or target that does not fit or is not finite, saying what to do.
    """
    image = check_image(image)
    height, width = old = tuple(image.shape[1:])
    target = target if target is None else check_target(target, height, width, dtype)
    if min_size is None and transform.min_size:
        min_size = transform.min_size[-1]
    new = old if min_size is None else resized_shape(height, width, min_size, transform)

    def normalized(x):
        mean, std = (
            torch.tensor(value, dtype=dtype, device=x.device)[:, None, None]
            for value in (transform.mean, transform.std)
        )
        return (x.to(dtype) * transform.pixel_scale).sub_(mean).div_(std)

    if image.dtype != torch.uint8 or transform.interpolation == "bilinear":
        image = image.to(dtype)
    image = image if transform.channel_order == "rgb" else image.flip(0)
    image = normalized(image) if transform.normalize_first else image
    image = resize(image, new, transform) if new != old else image
    image = (image if transform.normalize_first else normalized(image)).contiguous()
    if target is None:
        return image, None
    masks = resize_and_pack(target.masks.cpu(), new, transform)
    boxes = scale_boxes(target.boxes, old, new, transform) if new != old else target.boxes
    return image, PackedTarget(boxes, target.labels, masks)


def collate(
    prepared: list,
    transform: Transform,
    original_sizes: list,
    image_ids: list | None = None,
    max_objects: int | None = None,
    pad_to: tuple[int, int] | None = None,
) -> Batch:
    """Collect what `prepare` returned for each image into a Batch.

    prepared        list of ([3, h, w], PackedTarget or None)
    original_sizes  list of (H, W) of the input images
    max_objects     ground-truth slots per image; None: the maximum of this batch, at least 1
    pad_to          (H, W) of the batch; None: the largest image, up to a multiple of `size_divisor`
    Raises ValueError if an image or its objects do not fit.
    """
    images, targets = zip(*prepared, strict=True)
    sizes = torch.tensor([image.shape[1:] for image in images])
    counts = [0 if target is None else len(target.labels) for target in targets]
    height, width = (int(side) for side in sizes.amax(0)) if pad_to is None else pad_to
    if pad_to is None and transform.size_divisor:
        divisor = transform.size_divisor
        height, width = (-(-side // divisor) * divisor for side in (height, width))
    slots = max(1, *counts) if max_objects is None else max_objects
    if max(counts) > slots:
        raise ValueError(
            f"{max(counts)} objects in an image of the batch, but max_objects is {slots}; "
            "raise it or drop objects"
        )
    if (sizes > torch.tensor([height, width])).any():
        raise ValueError(
            f"images of up to {sizes.amax(0).tolist()} do not fit into pad_to {[height, width]}; "
            "lower max_size or raise pad_to"
        )

    n, dtype = len(images), images[0].dtype
    batch = Batch(
        images=torch.zeros(n, 3, height, width, dtype=dtype),
        sizes=sizes,
        boxes=torch.zeros(n, slots, 4, dtype=dtype),
        labels=torch.zeros(n, slots, dtype=torch.int64),
        valid=torch.arange(slots) < torch.tensor(counts)[:, None],
        masks=torch.zeros(n, slots, height, -(-width // 8), dtype=torch.uint8),
        original_sizes=[tuple(size) for size in original_sizes],
        image_ids=list(range(n)) if image_ids is None else list(image_ids),
    )
    for i, (image, target, count) in enumerate(zip(images, targets, counts, strict=True)):
        batch.images[i, :, : image.shape[1], : image.shape[2]] = image
        if count:
            batch.boxes[i, :count], batch.labels[i, :count] = target.boxes, target.labels
            batch.masks[i, :count, : target.masks.shape[1], : target.masks.shape[2]] = target.masks
    return batch
