"""Reading pictures: orientations, depths, and one rule for the linter and the reader."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from accelerated.data import images

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_read_as_stored_or_as_displayed(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    path = tmp_path / f"a.{suffix}"
    lossless = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(PIXELS).save(path, exif=exif, **lossless)
    header = images.probe(path)
    assert (header.width, header.height, header.orientation) == (16, 8, orientation)
    with Image.open(path) as image:
        displayed = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    shown = images.read(path, "apply")
    np.testing.assert_array_equal(shown, displayed)
    assert header.size("apply") == shown.shape[1::-1] and shown.flags.writeable
    for choice in ("ignore", None):
        np.testing.assert_array_equal(images.read(path, choice), PIXELS)
        assert header.size(choice) == (16, 8)


# {name: (values, what becomes of them with 0:4000, least and greatest)}
DEEP = {
    "float": np.array([[0, 1000, 4000, 5000]], np.float32),
    "int": np.array([[-7, 1000, 4000, 70000]], np.int32),
    "sixteen": np.array([[0, 1000, 4000, 65535]], np.uint16),
}


@pytest.mark.parametrize("name", DEEP)
def test_a_range_of_values_becomes_black_to_white(tmp_path, name):
    path, values = tmp_path / "a.tif", DEEP[name]
    Image.fromarray(values).save(path)
    pixels = images.read(path, pixel_range=(0, 4000))
    assert pixels.shape == (1, 4, 3) and pixels[0, :, 0].tolist() == [0, 64, 255, 255]
    limits = images.probe(path, pixel_range=(0, 4000)).limits
    assert limits == (values.min(), values.max())
    if name == "sixteen":
        assert images.read(path)[0, :, 1].tolist() == [0, 3, 15, 255]
        return
    for function in (images.read, images.probe):
        with pytest.raises(images.ImageError, match="--pixel-range") as error:
            function(path)
        assert error.value.code == "pixel_range_missing"


def test_big_endian_sixteen_bits(tmp_path):
    values = np.array([[1, 256, 65280]], ">u2")
    image = Image.frombytes("I;16B", (3, 1), values.tobytes())
    image.save(tmp_path / "a.tif")
    assert images.read(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 1, 255]


def test_a_number_that_is_none_is_refused(tmp_path):
    Image.fromarray(np.array([[0, np.nan]], np.float32)).save(tmp_path / "a.tif")
    for function in (images.read, images.probe):
        with pytest.raises(images.ImageError, match="NaN"):
            function(tmp_path / "a.tif", pixel_range=(0, 1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "LAB", "YCbCr", "F", "I"])
def test_what_reading_refuses_the_linter_refuses(tmp_path, mode):
    base = Image.fromarray(PIXELS).convert("L" if mode in ("F", "I") else "RGB")
    image = Image.new("LAB", (16, 8)) if mode == "LAB" else base.convert(mode)
    image.save(tmp_path / "a.tif")

    def accepts(function):
        try:
            function(tmp_path / "a.tif")
        except images.ImageError:
            return False
        return True

    assert accepts(images.probe) == accepts(images.read) == (mode not in ("F", "I"))


def test_the_first_picture_of_several(tmp_path):
    first, second = Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    assert images.probe(tmp_path / "a.tif").frames == 2
    np.testing.assert_array_equal(images.read(tmp_path / "a.tif"), PIXELS)
