"""Pad batches: to a few shapes that are known before training, or to one shape on all processes.

The few shapes serve compiled and captured steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from accelerated.data.augment import growth
from accelerated.data.dataset import Dataset
from accelerated.structures import RawBatch
from accelerated.transform import resized_shape
from reference.config import Augment, Transform

# Slots for objects come in multiples of this.
SLOTS = 8
PLAIN = Augment()


@dataclass(frozen=True)
class Shapes:
    """The shapes of batches: any of the sides with any number of slots.

    sides  (H, W) of the padded images, by rising area
    slots  G, rising
    """

    sides: tuple[tuple[int, int], ...]
    slots: tuple[int, ...]

    def of_batch(
        self, sizes: Sequence[tuple[int, int]], counts: Sequence[int]
    ) -> tuple[tuple[int, int], int]:
        """Return the first sides and slots that hold images of `sizes` (h, w), `counts` objects.

        If none does, these are the largest, for `transform.collate` to refuse.
        """
        height, width = (max(sides) for sides in zip(*sizes, strict=True))
        sides = next((s for s in self.sides if s[0] >= height and s[1] >= width), self.sides[-1])
        return sides, next((g for g in self.slots if g >= max(counts)), self.slots[-1])


def fixed_shapes(dataset: Dataset, transform: Transform, augment: Augment = PLAIN) -> Shapes:
    """Return six shapes at most that hold every training batch of `dataset`, without dropping any.

    The sides are those of a landscape batch, of a portrait batch and of one with both (see
    `loader.epoch`); the slots are the most objects in an image, and half as many, rounded up.
    """
    groups = {False: [], True: []}
    for size in set(dataset.sizes):
        for min_size in transform.min_size or (None,):
            largest = _largest(size, min_size, transform, augment)
            turned = [largest[::-1]] if augment.quarter_turns else []
            groups[size[0] > size[1]] += [largest, *turned]
    divisor = transform.size_divisor or 1
    largest = [
        tuple(-(-max(sides) // divisor) * divisor for sides in zip(*group, strict=True))
        for group in (*groups.values(), groups[False] + groups[True])
        if group
    ]
    most = max(dataset.max_objects * growth(augment)[0], 1)
    slots = {-(-count // SLOTS) * SLOTS for count in (most, -(-most // 2))}
    sides = sorted(set(largest), key=lambda sides: (sides[0] * sides[1], sides))
    return Shapes(tuple(sides), tuple(sorted(slots)))


def _largest(size, min_size, transform, augment):
    """Return the largest sides that an image of `size` (h, w) has in the network's input."""
    if min_size is None:
        return size
    if augment.scale[1] <= 1:
        return resized_shape(size[0], size[1], min_size, transform)
    # A window of the image has the same sides but for how they are rounded.
    scale = min(min_size / min(size), transform.max_size / max(size))
    return tuple(max(1, int(side * scale + 0.5 + 1e-6)) for side in size)


def pad_alike(
    batch: RawBatch, shapes: Shapes | None, maximum: Callable[..., list[int]]
) -> RawBatch:
    """Pad the part of a batch that one process has as the whole batch would be padded.

    shapes   those of the run, see `fixed_shapes`, or None
    maximum  returns the largest of each of its arguments over all processes

    So the borders of an image, which convolutions see, do not depend on the number of processes.
    """
    heights, widths = zip(*batch.new_shapes, strict=True)
    own = max(heights), max(widths), int(batch.valid.sum(1).max())
    *size, most, height, width, slots = maximum(*own, *batch.shape, batch.boxes.shape[1])
    if shapes is not None:
        (height, width), slots = shapes.of_batch([(size[0], size[1])], [most])
    return pad_to(batch, (height, width), slots)


def pad_to(batch: RawBatch, shape: tuple[int, int], slots: int) -> RawBatch:
    """Return the batch with sides `shape` (H, W) and `slots` ground-truth slots per image.

    What is cut off must be padding.
    """
    more = slots - batch.boxes.shape[1]
    masks = F.pad(batch.masks, (0, 0, 0, 0, 0, more))
    # Masks that are left out have no sides.
    if masks.shape[2]:
        masks = F.pad(masks, (0, -(-shape[1] // 8) - masks.shape[3], 0, shape[0] - masks.shape[2]))
    parts = batch.parts
    if parts is not None:
        parts = torch.cat([parts, parts[:, -1:].expand(-1, max(more, 0))], 1)[:, : slots + 1]
    return replace(
        batch,
        boxes=F.pad(batch.boxes, (0, 0, 0, more)),
        labels=F.pad(batch.labels, (0, more)),
        valid=F.pad(batch.valid, (0, more)),
        masks=masks,
        parts=parts,
        shape=shape,
    )
