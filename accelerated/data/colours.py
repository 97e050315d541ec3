"""Change the colours of an image by random amounts, with Pillow's filters."""

import numpy as np
from PIL import Image, ImageEnhance

from reference.config import Augment

# In the order in which they are applied.
ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


def jitter(image: np.ndarray, augment: Augment, rng: np.random.Generator) -> np.ndarray:
    """Return an image [H, W, 3] uint8 with its colours changed as `augment` allows."""
    amounts = {name: getattr(augment, name) for name in ENHANCERS}
    if not any(amounts.values()) and not augment.hue:
        return image
    picture = Image.fromarray(image)
    for name, enhancer in ENHANCERS.items():
        if amounts[name]:
            factor = rng.uniform(1 - amounts[name], 1 + amounts[name])
            picture = enhancer(picture).enhance(factor)
    if augment.hue:
        turned = round(256 * rng.uniform(-augment.hue, augment.hue))
        hue, saturation, value = picture.convert("HSV").split()
        hue = hue.point([(level + turned) % 256 for level in range(256)])
        picture = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    return np.array(picture)
