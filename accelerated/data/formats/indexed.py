"""Pictures whose values are ids of objects or classes."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from accelerated.data.images import MAX_PIXELS

# Without JPEG and WebP, which change values.
EXACT = ("BMP", "GIF", "PNG", "PPM", "TIFF")
# Pillow's modes of one value per pixel: palettes give their indices.
SINGLE = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")


def read(file: Path | bytes) -> np.ndarray:
    """Read a picture as ids: [H, W] of its values, or [H, W, 3] of its colours; alpha is dropped.

    Equal colour channels, as of a grey picture stored as RGB, are one value.
    Raises ValueError, with the reason, if it is no such picture or too large to be opened.
    """
    data: Any = io.BytesIO(file) if isinstance(file, bytes) else file
    name = "the embedded picture" if isinstance(file, bytes) else repr(file.name)
    # Pillow's readers raise almost anything on hostile bytes.
    try:
        with Image.open(data, formats=EXACT) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"it has more than {MAX_PIXELS:,} pixels")
            if image.mode == "LA":
                image = image.convert("L")
            values = np.asarray(image if image.mode in SINGLE else image.convert("RGB"))
    except Exception as error:
        raise ValueError(f"{name} cannot be read as a mask: {error}") from None
    if values.ndim == 3 and (values[..., :1] == values).all():
        values = values[..., 0]
    return values.astype(np.uint8) if values.dtype == bool else values


def numbered(values: np.ndarray) -> np.ndarray:
    """Turn colours [H, W, 3] to one number per pixel, 0 for black; values [H, W] stay."""
    if values.ndim == 2:
        return values
    red, green, blue = np.moveaxis(values.astype(np.int64), 2, 0)
    return red << 16 | green << 8 | blue


def runs(ids: np.ndarray) -> dict[int, np.ndarray]:
    """Return {id: run lengths [n]} of every value but 0 in [H, W], by rising id."""
    flat = ids.T.ravel()
    if not flat.size:
        return {}
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.append(starts[1:], flat.size)
    values = flat[starts]
    order = np.argsort(values, kind="stable")
    cuts = np.flatnonzero(np.diff(values[order])) + 1
    found = {}
    for group in np.split(order, cuts):
        value = int(values[group[0]])
        if value:
            edges = np.stack([starts[group], ends[group]], axis=1).ravel()
            lengths = np.diff(edges, prepend=0, append=flat.size)
            found[value] = lengths if lengths[-1] else lengths[:-1]
    return found
