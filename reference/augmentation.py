"""The switches of augmentation: which random changes training images undergo.

Only the accelerated training loop obeys them (SPEC §17); the reference trains on images as they
are. They stand here because one configuration serves both.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Augment:
    """Random changes of training images, by default only mirroring.

    flip, flip_vertical  probability of mirroring left and right; top and bottom
    quarter_turns        probability of a turn by 90, 180 or 270 degrees
    scale                (low, high) of a factor on the size, drawn uniformly: below 1 the input is
                         smaller, above 1 a window of 1 / factor of the sides is magnified
    brightness, contrast, saturation  factors are drawn from 1 - value to 1 + value
    hue                  the colour circle is turned by up to this part of it, either way
    mosaic               probability that the image and three others share its place
    copy_paste           probability that objects of another image are pasted on
    function             "module:name" of a function of one's own (docs/augmentation.md), or null
    """

    flip: float = 0.5
    flip_vertical: float = 0.0
    quarter_turns: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    mosaic: float = 0.0
    copy_paste: float = 0.0
    function: str | None = None


def augment_problems(augment: Augment) -> Iterator[tuple[str, str]]:
    """Yield (field, what it demands) of fields that contradict each other."""
    if augment.scale[0] > augment.scale[1]:
        yield "augment.scale", "the first number must not exceed the second"
