"""Augment training images: the random changes that `config.augment` allows, and a random size."""

from collections.abc import Callable

import numpy as np

from accelerated.data import colours, mixing, moves
from accelerated.data.mixing import Sample
from accelerated.data.own_function import Function
from accelerated.structures import Target
from accelerated.transform import resized_shape
from reference.config import Augment, Config, Transform

# The most points that clipping to one side of a window may make of one.
CLIPPED = 1.5


def augment(
    image: np.ndarray,
    target: Target,
    config: Config,
    rng: np.random.Generator,
    other: Callable[[np.random.Generator], Sample] | None = None,
    function: Function | None = None,
) -> tuple[np.ndarray, Target, int | None]:
    """Draw one random augmentation of an image [H, W, 3] and its target from `rng`.

    config    its `augment` says what may happen, in this order: mirroring and turning, mosaic,
              copy and paste, `scale`, colours, the function
    other     draws one of the images that mosaic and copy-paste take objects from
    function  the function of `config.augment.function`

    Returns the image, the target and min_size for `transform.prepare`, drawn from
    `transform.min_size` (None if that is empty) and changed by a factor of `scale` below 1.
    """
    chances, transform = config.augment, config.transform
    # Without further augmentation, these are the only draws.
    mirrored = rng.random() < chances.flip
    min_size = int(rng.choice(transform.min_size)) if transform.min_size else None
    sample = _oriented((image, target), mirrored, chances, rng)

    def another():
        assert other is not None, "mosaic and copy-paste need other images"
        found = _oriented(other(rng), rng.random() < chances.flip, chances, rng)
        return _alike(found, sample[0].shape, transform, min_size)

    if _happens(chances.mosaic, rng):
        samples = [sample, *(another() for _ in range(3))]
        sample = mixing.mosaic(samples, _padding_colour(transform), rng)
    if _happens(chances.copy_paste, rng):
        sample = mixing.copy_paste(sample, another(), rng)
    factor = rng.uniform(*chances.scale) if chances.scale != (1.0, 1.0) else 1.0
    if factor > 1:
        # An image that keeps its size otherwise is magnified to it.
        min_size = min_size or min(sample[0].shape[:2])
        window = _window(sample[0].shape, factor, transform, min_size, rng)
        sample = moves.crop(*sample, window)
    image, target = sample
    image = colours.jitter(image, chances, rng)
    if function is not None:
        image, target = function(image, target, rng)
    if factor < 1:
        short = min(_network_shape(image.shape, transform, min_size))
        min_size = max(1, round(factor * short))
    return image, target, min_size


def growth(chances: Augment) -> tuple[int, float]:
    """Return by which factors an augmented image may have more objects and points of outlines.

    They are those of the image of a data set that has most.
    """
    images = (4 if chances.mosaic else 1) + (1 if chances.copy_paste else 0)
    clips = int(chances.mosaic > 0 or chances.copy_paste > 0) + int(chances.scale[1] > 1)
    return images, images * CLIPPED ** (4 * clips)


def _happens(probability, rng):
    """Draw whether something happens; nothing is drawn for what never does."""
    return probability > 0 and rng.random() < probability


def _oriented(sample: Sample, mirrored, chances, rng) -> Sample:
    """Mirror and turn an image."""
    if mirrored:
        sample = moves.flip(*sample)
    if _happens(chances.flip_vertical, rng):
        sample = moves.flip_vertical(*sample)
    if _happens(chances.quarter_turns, rng):
        sample = moves.turn(*sample, int(rng.integers(1, 4)))
    return sample


def _alike(sample: Sample, shape, transform, min_size) -> Sample:
    """Resize an image so that in one of `shape` it is as large as by itself in the network's input.

    Images of the same sides stay as they are.
    """
    magnified, own = (
        min(_network_shape(sides, transform, min_size)) / min(sides[:2])
        for sides in (shape, sample[0].shape)
    )
    height, width = (max(1, round(side * own / magnified)) for side in sample[0].shape[:2])
    if (height, width) == sample[0].shape[:2]:
        return sample
    return moves.zoom(*sample, (height, width))


def _window(shape, factor, transform, min_size, rng) -> moves.Window:
    """Draw a window of 1 / factor of the sides; resized, it is not larger than the image is."""
    short, long = sorted(shape[:2])
    # The side that the size in the network's input does not depend on is rounded down.
    if min_size * long > transform.max_size * short:
        wide = max(round(long / factor), -(-long // short))
        narrow = wide * short // long
    else:
        narrow = max(1, round(short / factor))
        wide = narrow * long // short
    height, width = (narrow, wide) if shape[0] <= shape[1] else (wide, narrow)
    x, y = int(rng.integers(shape[1] - width + 1)), int(rng.integers(shape[0] - height + 1))
    return x, y, x + width, y + height


def _network_shape(shape, transform, min_size):
    """Return the sides of an image of `shape` in the network's input."""
    if min_size is None:
        return shape[:2]
    return resized_shape(shape[0], shape[1], min_size, transform)


def _padding_colour(transform: Transform) -> np.ndarray:
    """Return the colour [3] RGB that padding has for the network, the mean."""
    mean = np.array(transform.mean) / transform.pixel_scale
    mean = mean if transform.channel_order == "rgb" else mean[::-1]
    return np.clip(np.rint(mean), 0, 255).astype(np.uint8)
