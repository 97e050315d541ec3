"""Pad batches to a few shapes that are known before training, for compiled and captured steps."""

from collections.abc import Sequence
from dataclasses import dataclass

from accelerated.data.dataset import Dataset
from accelerated.transform import resized_shape
from reference.config import Transform

# Slots for objects come in multiples of this.
SLOTS = 8


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


def fixed_shapes(dataset: Dataset, transform: Transform) -> Shapes:
    """Return six shapes at most that hold every training batch of `dataset`, without dropping any.

    The sides are those of a landscape batch, of a portrait batch and of one with both (see
    `loader.epoch`); the slots are the most objects in an image, and half as many, rounded up.
    """
    groups = {False: [], True: []}
    for height, width in set(dataset.sizes):
        for min_size in transform.min_size or (None,):
            size = height, width
            if min_size is not None:
                size = resized_shape(height, width, min_size, transform)
            groups[height > width].append(size)
    divisor = transform.size_divisor or 1
    largest = [
        tuple(-(-max(sides) // divisor) * divisor for sides in zip(*group, strict=True))
        for group in (*groups.values(), groups[False] + groups[True])
        if group
    ]
    most = max(dataset.max_objects, 1)
    slots = {-(-count // SLOTS) * SLOTS for count in (most, -(-most // 2))}
    sides = sorted(set(largest), key=lambda sides: (sides[0] * sides[1], sides))
    return Shapes(tuple(sides), tuple(sorted(slots)))
