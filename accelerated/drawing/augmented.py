"""Draw what training sees: images after augmentation, as the network gets them."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from accelerated.drawing.detections import draw, sheet
from accelerated.structures import RawBatch, Target
from accelerated.transform import finish
from reference.config import Config, Transform

# In a row.
VERSIONS = 4


def rows(
    versions: Iterable[Iterable[RawBatch]], names: Sequence[str], config: Config
) -> np.ndarray:
    """Draw a row for each image, with its versions side by side: [H, W, 3] uint8.

    versions  of each image, batches of one with masks, see `loader.versions`
    names     of the classes 1..K
    """
    pictures = [list(_pictures(batches, names, config.transform)) for batches in versions]
    return sheet([picture for row in pictures for picture in row], columns=len(pictures[0]))


def _pictures(batches, names, transform) -> Iterator[np.ndarray]:
    for batch in batches:
        shown = batch.valid[0]
        masks = np.unpackbits(batch.masks[0, shown].numpy(), axis=2)[..., : batch.shape[1]].astype(
            bool
        )
        boxes, labels = batch.boxes[0, shown], batch.labels[0, shown]
        target = Target(boxes, labels, torch.from_numpy(masks))
        [image] = finish(batch, transform).images
        yield draw(_pixels(image, transform), target, names)


def _pixels(image: torch.Tensor, transform: Transform) -> np.ndarray:
    """Undo the normalisation of [3, H, W]: [H, W, 3] RGB, 0..255."""
    mean, std = (torch.tensor(x)[:, None, None] for x in (transform.mean, transform.std))
    pixels = (image * std + mean) / transform.pixel_scale
    pixels = pixels if transform.channel_order == "rgb" else pixels.flip(0)
    return pixels.round().clamp(0, 255).permute(1, 2, 0).numpy()
