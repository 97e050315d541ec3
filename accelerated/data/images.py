"""Find and read image files that may be damaged or hostile.

Pixels are returned as stored: an EXIF orientation is not applied, because COCO labels refer to the
stored frame.
"""

import os
import stat
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

# Without EPS, for which Pillow would start Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Pillow's limit against decompression bombs, 89 million.
MAX_PIXELS = cast(int, Image.MAX_IMAGE_PIXELS)
# The EXIF tag.
ORIENTATION = 0x0112
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


def probe(path: Path, decode: bool = True) -> tuple[int, int, int]:
    """Return width, height and EXIF orientation (1..8) of the stored frame.

    `decode` reads every pixel, to find truncated files. Raises ImageError.
    """
    with _opened(path) as image:
        orientation = image.getexif().get(ORIENTATION, 1)
        width, height = image.size
        if decode:
            # For JPEG this skips most of the inverse transform.
            image.draft("L", (width // 8, height // 8))
            _load(image, path)
    return width, height, orientation if orientation in range(1, 9) else 1


def read(path: Path) -> np.ndarray:
    """Read the first frame of an image as [H, W, 3] uint8 RGB.

    Grey is repeated, palettes and CMYK are converted, alpha is dropped, 16 bits are cut to 8.
    Raises ImageError.
    """
    with _opened(path) as image:
        _load(image, path)
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ImageError(
                "unreadable_image",
                f"{_name(path)} has 32-bit pixels (mode {image.mode}); convert it to 8 or 16 bits",
            )
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return np.array(image.convert("RGB"))


def _opened(path):
    try:
        image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError:
        raise ImageError("image_too_large", _too_large(path)) from None
    # Pillow's readers raise almost anything on hostile bytes.
    except Exception as error:
        empty = os.path.getsize(path) == 0
        reason = "is empty (0 bytes)" if empty else "is not an image Pillow can read"
        raise ImageError("unreadable_image", f"{_name(path)} {reason}; replace it") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ImageError("image_too_large", _too_large(path))
    return image


def _load(image, path):
    try:
        image.load()
    except Exception as error:
        message = f"{_name(path)} is damaged ({error}); replace it"
        raise ImageError("unreadable_image", message) from error


def _too_large(path):
    return (
        f"{_name(path)} declares more than {MAX_PIXELS:,} pixels and was not decompressed;"
        " crop or shrink it"
    )


def _name(path):
    return repr(Path(path).name)
