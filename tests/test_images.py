"""Reading pictures: orientations, depths, and one rule for the linter and the reader."""

import io
import struct
import zlib

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


BLOCKS = np.kron(PIXELS, np.ones((4, 4, 1), np.uint8))
# {name: (format, mode, options)}
WRITTEN = {
    "png": ("PNG", "RGB", {}),
    "palette png": ("PNG", "P", {}),
    "bits png": ("PNG", "1", {}),
    "jpeg": ("JPEG", "RGB", {}),
    "progressive jpeg": ("JPEG", "RGB", {"progressive": True}),
    "webp": ("WEBP", "RGB", {}),
    "lossless webp": ("WEBP", "RGB", {"lossless": True}),
    "tiff": ("TIFF", "L", {}),
    "lzw tiff": ("TIFF", "L", {"compression": "tiff_lzw"}),
    "deflated tiff": ("TIFF", "L", {"compression": "tiff_adobe_deflate"}),
    "packed tiff": ("TIFF", "L", {"compression": "packbits"}),
    "gif": ("GIF", "P", {}),
    "bmp": ("BMP", "L", {}),
    "ppm": ("PPM", "L", {}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_that_is_cut_is_refused_or_whole(tmp_path, name):
    """At some hundred places, at each of the first and the last bytes."""
    form, mode, options = WRITTEN[name]
    path, stream = tmp_path / "a.image", io.BytesIO()
    Image.fromarray(BLOCKS).convert(mode).save(stream, form, **options)
    raw = stream.getvalue()
    path.write_bytes(raw)
    whole = images.read(path)
    inner = range(0, len(raw), max(1, len(raw) // 50))
    for length in {*range(30), *inner, *range(len(raw) - 30, len(raw))}:
        path.write_bytes(raw[: max(0, length)])
        for function in (images.read, images.probe):
            try:
                found = function(path)
            except images.ImageError as error:
                assert str(error).startswith("'a.image' ") and "\n" not in str(error)
            else:
                same = function is images.probe or np.array_equal(found, whole)
                assert same, f"cut after {length} of {len(raw)} bytes"


def png_of(rows, height=16, interlaced=0, depth=8, colour=2):
    """A PNG file that holds so many rows; its data ends as if that were all."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 8, height, depth, colour, 0, 0, interlaced)
    data = zlib.compress(b"".join(rows))
    chunks = ((b"IHDR", header), (b"IDAT", data[:9]), (b"IDAT", data[9:]), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in chunks)


@pytest.mark.parametrize("rows", [1, 10, 15, 16])
@pytest.mark.parametrize("value", [0, 200])
def test_a_png_with_fewer_rows_than_it_declares(tmp_path, rows, value):
    """Missing rows are not black rows, which are read."""
    path = tmp_path / "a.png"
    path.write_bytes(png_of([b"\0" + bytes([value]) * 24] * rows))
    if rows == 16:
        assert (images.read(path) == value).all() and images.probe(path).height == 16
        return
    for function in (images.read, images.probe):
        with pytest.raises(images.ImageError, match=r"'a\.png' is damaged"):
            function(path)


def test_an_interlaced_png_without_its_last_passes(tmp_path):
    # 8 columns: one pixel in each of the first two passes, two of the third, and so on.
    passes = [(1, 2), (1, 2), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8)]
    rows = [b"\0" + b"\x50" * columns for columns, count in passes for _ in range(count)]
    path = tmp_path / "a.png"
    for missing in range(len(rows)):
        path.write_bytes(png_of(rows[: len(rows) - missing], interlaced=1, colour=0))
        if missing == 0:
            assert (images.read(path) == 0x50).all()
            continue
        with pytest.raises(images.ImageError, match="is damaged"):
            images.read(path)


def test_files_that_expand(tmp_path):
    """Texts and profiles a thousand times as large as the file: read without them, or refused."""
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("a", "x" * 5_000_000, zip=True)
    for name, options in (("text", {"pnginfo": info}), ("icc", {"icc_profile": bytes(5_000_000)})):
        path = tmp_path / f"{name}.png"
        Image.fromarray(PIXELS).save(path, **options)
        assert path.stat().st_size < 50_000
        for function in (images.read, images.probe):
            try:
                function(path)
            except images.ImageError as error:
                assert "\n" not in str(error) and f"{name}.png" in str(error)


def test_the_limit_of_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 127)
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    with pytest.raises(images.ImageError, match="declares more than 127 pixels"):
        images.read(tmp_path / "a.png")


def test_sixteen_bits_need_no_float_picture(tmp_path):
    """The memory that NumPy needs stays below that of the picture in float64."""
    import tracemalloc

    values = np.arange(1 << 20, dtype=np.uint16).reshape(1024, 1024)
    Image.fromarray(values).save(tmp_path / "a.png")
    tracemalloc.start()
    images.read(tmp_path / "a.png", pixel_range=(0, 4095))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * values.size
