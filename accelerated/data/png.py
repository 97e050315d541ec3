"""How much data a PNG file holds, which Pillow does not tell."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

# Samples of a pixel, by the type of its colour.
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# First column and row, and the steps between them, of the passes of an interlaced picture.
WHOLE = ((0, 0, 1, 1),)
ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
# Bytes that are held at a time.
PIECE = 1 << 20


def is_complete(path: Path) -> bool:
    """Tell whether the first picture of a PNG file that Pillow reads has all of its rows."""
    chunks = _chunks(path)
    _, header = next(chunks)
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header[:13])
    bits, missing = SAMPLES[colour] * depth, 0
    for left, top, across, down in ADAM7 if interlaced else WHOLE:
        columns, rows = -((left - width) // across), -((top - height) // down)
        # A byte for the filter begins each row.
        missing += rows * (1 + (columns * bits + 7) // 8) if columns > 0 and rows > 0 else 0
    unpacked = zlib.decompressobj()
    for kind, piece in chunks:
        while kind == b"IDAT" and piece and missing > 0 and not unpacked.eof:
            missing -= len(unpacked.decompress(piece, PIECE))
            piece = unpacked.unconsumed_tail
    return missing <= 0


def _chunks(path) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind of each chunk, with a piece of its data at a time."""
    with open(path, "rb") as file:
        file.seek(8)
        while len(start := file.read(8)) == 8:
            left, kind = struct.unpack(">I4s", start)
            while left and (piece := file.read(min(left, PIECE))):
                left -= len(piece)
                yield kind, piece
            file.seek(4, 1)
