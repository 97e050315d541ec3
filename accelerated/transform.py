"""From the image that comes in to the tensor the network sees, and a batch of those in fixed shapes, on the CPU's workers.

N images, G ground-truth slots; H, W sides of the batch; h, w sides of one image after resizing. Masks travel as bits: 8 pixels of a
row in one byte, the first in the highest bit (numpy.packbits).
"""

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from accelerated.structures import Batch, PackedTarget, Target


def check_image(image):
    """[3, H, W] tensor of an [H, W, 3] array or tensor; ValueError unless it is finite, and uint8 or floats."""
    image = torch.as_tensor(np.ascontiguousarray(image) if isinstance(image, np.ndarray) else image)
    if image.ndim != 3 or image.shape[2] != 3 or image.numel() == 0:
        shape = tuple(image.shape)
        raise ValueError(
            f"image: expected [H, W, 3] RGB, got shape {shape}; move the channels last, repeat a grey image three times"
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


def check_target(target, height, width, dtype):
    """Target of tensors; ValueError unless boxes, labels and masks agree with each other and with the image."""
    boxes, labels = (
        torch.as_tensor(target.boxes, dtype=dtype),
        torch.as_tensor(target.labels, dtype=torch.int64),
    )
    masks, count = torch.as_tensor(target.masks), len(target.labels)
    if boxes.shape != (count, 4) or masks.shape != (count, height, width):
        raise ValueError(
            f"target: {count} labels need boxes [{count}, 4] and masks [{count}, {height}, {width}], "
            f"got {tuple(boxes.shape)} and {tuple(masks.shape)}"
        )
    bad = ~(boxes.isfinite().all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1))
    if bad.any():
        row = int(bad.int().argmax())
        raise ValueError(
            f"target: box {row} is {boxes[row].tolist()}; boxes are finite with x1 < x2 and y1 < y2: drop this object"
        )
    if (labels < 1).any():
        raise ValueError(
            f"target: label {int(labels.min())}; labels count from 1, 0 is the background"
        )
    return Target(boxes, labels, masks)


def resized_shape(height, width, min_size, config):
    """(h, w) with a short side of `min_size` and a long side of at most `config.max_size`; the scale is a double (SPEC §12)."""
    short, long = min(height, width), max(height, width)
    if config.size_rounding == "truncate":
        scale = min(min_size / short, config.max_size / long)
        height, width = int(height * scale), int(width * scale)
    else:
        scale = min_size / short
        height, width = (min_size, width * scale) if height <= width else (height * scale, min_size)
        shrink = min(config.max_size / max(height, width), 1.0)
        height, width = int(height * shrink + 0.5), int(width * shrink + 0.5)
    return max(height, 1), max(width, 1)


def resize(image, size, config):
    """[3, H, W] -> [3, h, w] by the configured filter; uint8 stays uint8 under Pillow's, floats take the same filter unrounded."""
    if config.interpolation == "bilinear":
        return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
    if image.dtype != torch.uint8:
        return F.interpolate(
            image[None], size=size, mode="bilinear", align_corners=False, antialias=True
        )[0]
    image = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    for sides in (
        (size[1], image.height),
        (size[1], size[0]),
    ):  # columns first: Pillow 13 chooses by the shape, earlier ones did not
        image = image.resize(sides, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def resize_and_pack(masks, size, config):
    """Masks [G, H, W] bool, nearest neighbour, as bits [G, h, ceil(w / 8)] uint8; one at a time, to stay within the cache."""
    out = np.zeros((len(masks), size[0], -(-size[1] // 8)), dtype=np.uint8)
    for row, mask in zip(out, masks.to(torch.uint8), strict=True):
        if mask.shape == size:
            resized = mask.numpy()
        elif config.interpolation == "bilinear":
            resized = F.interpolate(mask[None, None], size=size, mode="nearest")[0, 0].numpy()
        else:
            resized = np.asarray(
                Image.fromarray(mask.numpy()).resize(size[::-1], Image.Resampling.NEAREST)
            )
        row[:] = np.packbits(resized, axis=1)
    return torch.from_numpy(out)


def scale_boxes(boxes, old, new, config):
    """Boxes [., 4] of an image of sides `old` (h, w) -> boxes of the same image at sides `new`."""
    dtype = np.dtype(config.ratio_dtype).type
    ratio_y, ratio_x = (float(dtype(n) / dtype(o)) for n, o in zip(new, old, strict=True))
    return boxes * torch.tensor(
        [ratio_x, ratio_y, ratio_x, ratio_y], dtype=boxes.dtype, device=boxes.device
    )


def prepare(image, target, config, min_size=None, dtype=torch.float32):
    """Channel order, normalisation and resizing of one image and of what is to be found in it.

    image     [H, W, 3]  RGB array or tensor, uint8 or floats in 0..255
    target    Target with dense masks, or None
    config    config.Transform
    min_size  wanted short side; None: the last of `config.min_size`. Where that is empty, nothing is resized
    dtype     of image and boxes: float32, or float64 to compare with the reference
    Returns   ([3, h, w], PackedTarget or None, in the resized image's pixels).

    Raises ValueError for an image or target of the wrong shape or with non-finite numbers, saying what to do.
    """
    image = check_image(image)
    old = tuple(image.shape[1:])
    target = target if target is None else check_target(target, *old, dtype)
    if min_size is None and config.min_size:
        min_size = config.min_size[-1]
    new = old if min_size is None else resized_shape(*old, min_size, config)

    def normalized(x):
        mean, std = (
            torch.tensor(value, dtype=dtype, device=x.device)[:, None, None]
            for value in (config.mean, config.std)
        )
        return (x.to(dtype) * config.pixel_scale).sub_(mean).div_(std)

    if image.dtype != torch.uint8 or config.interpolation == "bilinear":
        image = image.to(dtype)
    image = image if config.channel_order == "rgb" else image.flip(0)
    image = normalized(image) if config.normalize_first else image
    image = resize(image, new, config) if new != old else image
    image = image if config.normalize_first else normalized(image)
    if target is not None:
        masks = resize_and_pack(target.masks.cpu(), new, config)
        target = PackedTarget(
            scale_boxes(target.boxes, old, new, config) if new != old else target.boxes,
            target.labels,
            masks,
        )
    return image.contiguous(), target


def collate(prepared, config, original_sizes, image_ids=None, max_objects=None, pad_to=None):
    """A Batch from what `prepare` returned for each image.

    prepared        list of ([3, h, w], PackedTarget or None)
    config          config.Transform
    original_sizes  list of (H, W) of the images that came in
    max_objects     ground-truth slots per image; None: the most of this batch, at least 1
    pad_to          (H, W) of the batch; None: the largest image, up to a multiple of `config.size_divisor`
    Raises ValueError where an image or its objects do not fit.
    """
    images, targets = zip(*prepared, strict=True)
    sizes = torch.tensor([image.shape[1:] for image in images])
    counts = [0 if target is None else len(target.labels) for target in targets]
    height, width = (int(side) for side in sizes.amax(0)) if pad_to is None else pad_to
    if pad_to is None and config.size_divisor:
        height, width = (
            -(-side // config.size_divisor) * config.size_divisor for side in (height, width)
        )
    slots = max(1, *counts) if max_objects is None else max_objects
    if max(counts) > slots:
        raise ValueError(
            f"{max(counts)} objects in an image of the batch, but max_objects is {slots}; raise it or drop objects"
        )
    if (sizes > torch.tensor([height, width])).any():
        raise ValueError(
            f"images of up to {sizes.amax(0).tolist()} do not fit into pad_to {[height, width]}; lower max_size or raise pad_to"
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
