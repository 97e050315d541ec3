"""What `MaskRCNN.detect` accepts besides arrays: paths of picture files, and Pillow's images."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from accelerated.data import images


def arrays(inputs: Any) -> list[np.ndarray | torch.Tensor]:
    """Turn paths and Pillow's images of a list into arrays [H, W, 3] uint8; leave other items.

    A path is read as `maskrcnn predict` reads it: turned upright by its EXIF orientation, with a
    warning. An image of Pillow's is used as it is.
    Raises ValueError for a single image instead of a list, for a file that cannot be read and for
    an image of 16 or 32 bits.
    """
    single = isinstance(inputs, str | Path | Image.Image)
    if single or getattr(inputs, "ndim", 4) < 4:
        raise ValueError("expected a list of images, got a single one; write [image]")
    # A comprehension is a frame of its own in some versions, and warnings name the caller's line.
    return list(map(_array, inputs))


def _array(image):
    if isinstance(image, str | Path):
        if images.probe(Path(image), decode=False).orientation > 1:
            text = f"{image} was turned upright by its EXIF orientation, and so are its detections"
            warnings.warn(f"{text}; pass an array for the stored frame", stacklevel=4)
        return images.read(Path(image), "apply")
    if not isinstance(image, Image.Image):
        return image
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"image: its pixels have mode {image.mode}; convert it to 8 bits first")
    image = image.convert("RGBA") if "transparency" in image.info else image
    return np.array(image.convert("RGB"))
