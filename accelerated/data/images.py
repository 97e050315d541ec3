"""Find and read image files that may be damaged or hostile.

Whatever `read` refuses, `probe` refuses too.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from accelerated.data import png

# Without EPS, for which Pillow would start Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Endings of their names.
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# Pillow's limit against decompression bombs, 89 million.
MAX_PIXELS = cast(int, Image.MAX_IMAGE_PIXELS)
# The EXIF tag.
ORIENTATION = 0x0112
# The formats that Pillow turns upright itself, and the orientations that are not their own inverse.
TURNED, BACK = ("TIFF",), {6: 8, 8: 6}
# Modes of 16 and of 32 bits, and those of 8 bits that always become RGB.
DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
PLAIN = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")
# Register Pillow's formats now, because threads race when it is done lazily.
Image.init()


class ImageError(ValueError):
    """A problem with an image file; `code` is the linter's name for it."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


def locate(root: str | Path, file_name: object) -> Path:
    """Return the path of the regular file `file_name` below the folder `root`, links resolved.

    Raises ImageError if there is none.
    """
    if not isinstance(file_name, str) or not file_name:
        raise ImageError(
            "file_name_missing",
            f"file_name is {file_name!r}; write the path of the image below the image folder",
        )
    if "\0" in file_name:
        raise ImageError(
            "file_name_invalid",
            f"file_name {file_name!r} contains a NUL character; correct the name",
        )
    try:
        root = Path(root).resolve()
        path = (root / file_name).resolve()
        if not path.is_relative_to(root):
            raise ImageError(
                "file_outside_root",
                f"file_name {file_name!r} leaves the image folder and was not opened;"
                " move the image inside",
            )
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ImageError(
            "file_missing",
            f"{file_name!r} does not exist in the image folder; add it or correct file_name",
        ) from None
    except ImageError:
        raise
    # Permissions, names that are too long, loops of links, lone surrogates.
    except (OSError, ValueError, RuntimeError) as error:
        raise ImageError("file_name_invalid", f"{file_name!r} cannot be opened: {error}") from None
    if not stat.S_ISREG(mode):
        raise ImageError(
            "not_a_file",
            f"{file_name!r} is a folder or a device; file_name must name an image file",
        )
    return path


@dataclass(frozen=True)
class Header:
    """What is known of an image file without keeping its pixels.

    width, height  of the stored frame
    orientation    EXIF's, 1..8; from 5 on the displayed frame has the sides exchanged
    frames         pages of a TIFF file or pictures of an animation
    limits         least and greatest value of a picture of 16 or 32 bits; None for 8 bits
    """

    width: int
    height: int
    orientation: int
    frames: int
    limits: tuple[float, float] | None

    def size(self, exif: str | None) -> tuple[int, int]:
        """Return width and height of the frame that `read` returns."""
        swap = exif == "apply" and self.orientation >= 5
        return (self.height, self.width) if swap else (self.width, self.height)


def probe(
    path: Path, decode: bool = True, pixel_range: tuple[float, float] | None = None
) -> Header:
    """Read what `Header` lists.

    decode       read every pixel, to find truncated files; False: limits are None, frames is 1
    pixel_range  as for `read`

    Raises ImageError.
    """
    with _opened(path) as image:
        orientation = _orientation(image)
        width, height = image.size
        if image.format in TURNED and orientation >= 5:
            width, height = height, width
        frames, limits = 1, None
        if decode:
            frames = _frames(image)
            # For JPEG this skips most of the inverse transform.
            image.draft("L", (width // 8, height // 8))
            _load(image, path)
            if image.mode in DEEP:
                values = _values(image, path, pixel_range)
                limits = float(values.min()), float(values.max())
            elif image.mode not in PLAIN:
                _rgb(image, path, pixel_range)
    return Header(width, height, orientation, frames, limits)


def read(
    path: Path, exif: str | None = None, pixel_range: tuple[float, float] | None = None
) -> np.ndarray:
    """Read the first frame of an image as [H, W, 3] uint8 RGB.

    exif         "apply": the frame as displayed, turned by its EXIF orientation; "ignore" or None:
                 as stored
    pixel_range  the values that become 0 and 255 in pictures of 16 or 32 bits, those outside
                 clipped; None: 16 bits are cut to 8, and 32 bits are refused

    Grey is repeated, palettes and CMYK are converted, alpha is dropped.
    Raises ImageError.
    """
    with _opened(path) as image:
        orientation = _orientation(image)
        _load(image, path)
        pixels = _rgb(image, path, pixel_range)
        turned = image.format in TURNED
    if exif == "apply":
        return pixels if turned else turn(pixels, orientation)
    return turn(pixels, BACK.get(orientation, orientation)) if turned else pixels


def thumbnail(path: Path, side: int) -> np.ndarray:
    """Read an image as stored in grey, shrunk to [side, side] whatever its shape: uint8.

    The values of pictures of 16 or 32 bits are stretched. Raises ImageError.
    """
    with _opened(path) as image:
        # A JPEG file is decoded at a fraction of its size.
        image.draft("L", (4 * side, 4 * side))
        _load(image, path)
        if image.mode in DEEP:
            values = np.asarray(image, dtype=np.float64)
            spread = np.nan_to_num(values - values.min()) * (255 / max(np.ptp(values), 1e-9))
            image = Image.fromarray(np.clip(spread, 0, 255).astype(np.uint8))
        grey = image.convert("RGB").convert("L") if image.mode != "L" else image
        return np.asarray(grey.resize((side, side), Image.Resampling.BOX))


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn a stored frame [H, W, 3] upright by its EXIF orientation, 1..8."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _rgb(image, path, pixel_range):
    if image.mode in DEEP:
        values = _values(image, path, pixel_range)
        pixels = np.empty((*values.shape, 3), np.uint8)
        # Row by row, because a whole large picture in float64 would need gigabytes.
        for index, row in enumerate(values):
            pixels[index] = _eight_bits(row, pixel_range)[:, None]
        return pixels
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    try:
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except ValueError as error:
        message = f"{_name(path)} has colours of mode {image.mode}; convert it to RGB"
        raise ImageError("unreadable_image", message) from error


def _eight_bits(values, pixel_range):
    if pixel_range is None:
        return values.astype(np.uint16) >> 8
    low, high = pixel_range
    return np.rint(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255)


def _values(image, path, pixel_range):
    """Return the values [H, W] of a picture of 16 or 32 bits."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        return values
    if not np.isfinite(values).all():
        message = f"{_name(path)} contains NaN or infinity; replace these pixels"
        raise ImageError("pixels_not_finite", message)
    if pixel_range is None:
        raise ImageError(
            "pixel_range_missing",
            f"{_name(path)} has 32-bit pixels, here from {values.min():g} to {values.max():g}; name"
            " the values that become black and white with --pixel-range LOW:HIGH",
        )
    return values


def _orientation(image):
    # Pillow's readers raise almost anything on hostile bytes.
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:
        return 1
    return orientation if orientation in range(1, 9) else 1


def _frames(image):
    try:
        return getattr(image, "n_frames", 1)
    # The first frame is read, so that damage behind it does not matter.
    except Exception:
        return 1


def _opened(path):
    try:
        image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError:
        raise ImageError("image_too_large", _too_large(path)) from None
    except FileNotFoundError:
        raise ImageError("file_missing", f"{path}: no such file") from None
    # Pillow's readers raise almost anything on hostile bytes.
    except Exception as error:
        reason = "is not an image Pillow can read"
        # Pillow's own error has no number.
        if isinstance(error, OSError) and error.errno:
            reason = f"cannot be opened ({error.strerror})"
        elif os.path.getsize(path) == 0:
            reason = "is empty (0 bytes)"
        raise ImageError("unreadable_image", f"{_name(path)} {reason}; replace it") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ImageError("image_too_large", _too_large(path))
    return image


def _load(image, path):
    try:
        image.load()
        # Pillow takes missing rows to be black where the data ends as if it were complete. The last
        # row that is read is one of the last two, also of an interlaced picture.
        last = np.asarray(image.crop((0, max(0, image.height - 2), *image.size)))
        black = not last.reshape(len(last), -1).any(axis=1).all()
        if image.format == "PNG" and black and not png.is_complete(path):
            raise EOFError("it has fewer rows than it declares")
    except Exception as error:
        message = f"{_name(path)} is damaged ({' '.join(str(error).split())}); replace it"
        raise ImageError("unreadable_image", message) from error


def _too_large(path):
    return (
        f"{_name(path)} declares more than {MAX_PIXELS:,} pixels and was not decompressed;"
        " crop or shrink it"
    )


def _name(path):
    return repr(Path(path).name)
