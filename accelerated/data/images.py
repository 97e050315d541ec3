"""Finding and reading image files, with nothing taken on trust.

Pixels come as stored: an EXIF orientation is not applied, because COCO labels are drawn on the stored frame.
"""

import os
import stat
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = (
    "BMP",
    "GIF",
    "JPEG",
    "PNG",
    "PPM",
    "TIFF",
    "WEBP",
)  # no EPS: Pillow would start Ghostscript
MAX_PIXELS = Image.MAX_IMAGE_PIXELS  # Pillow's own limit against decompression bombs, 89 million
ORIENTATION = 0x0112  # the EXIF tag
Image.init()  # registers Pillow's formats now: done lazily, threads race for it


class ImageError(ValueError):
    """What is wrong with an image file; `code` is the linter's name for it."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def locate(root, file_name):
    """The regular file `file_name` below the folder `root`, links followed. ImageError where it is not one."""
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
                f"file_name {file_name!r} leaves the image folder and was not opened; move the image inside",
            )
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ImageError(
            "file_missing",
            f"{file_name!r} does not exist in the image folder; add it or correct file_name",
        ) from None
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # permissions, name too long, a loop of links, lone surrogates
        if isinstance(error, ImageError):
            raise
        raise ImageError("file_name_invalid", f"{file_name!r} cannot be opened: {error}") from None
    if not stat.S_ISREG(mode):
        raise ImageError(
            "not_a_file",
            f"{file_name!r} is a folder or a device; file_name must name an image file",
        )
    return path


def probe(path, decode=True):
    """(width, height, EXIF orientation 1..8) of the stored frame. `decode` reads every pixel, to find truncated files."""
    with _opened(path) as image:
        orientation = image.getexif().get(ORIENTATION, 1)
        size = image.size
        if decode:
            image.draft(
                "L", (size[0] // 8, size[1] // 8)
            )  # JPEG: skip most of the inverse transform
            _load(image, path)
    return *size, orientation if orientation in range(1, 9) else 1


def read(path):
    """The image as uint8 [H, W, 3] RGB: grey repeated, palette and CMYK converted, alpha dropped, 16 bits cut to 8, first frame."""
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
    except Exception as error:  # Pillow's readers raise almost anything on hostile bytes
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
        raise ImageError(
            "unreadable_image", f"{_name(path)} is damaged ({error}); replace it"
        ) from error


def _too_large(path):
    return f"{_name(path)} declares more than {MAX_PIXELS:,} pixels and was not decompressed; cut or shrink it"


def _name(path):
    return repr(Path(path).name)
