"""Structure-aware damage to a valid file, as a function of a random generator."""

import re
from random import Random

# What is read as a length, an index, a size or a number.
WORDS = [0, 1, 2, 127, 128, 255, 256, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
NUMBERS = [
    *("0", "-1", "1", "3", "1.5", "1e3", "65536", "2147483648", "1000000000000", "1e308", "1e999"),
    *("NaN", "-Infinity", "9" * 400, "true", "null", '"a"', "[]", "{}", "[[1]]", '"\\ud800"'),
]
PIECES = [b"", b"\0", b"\xff" * 4, b"\0" * 8, b"\xff" * 8, b"../" * 3, b"A" * 300, b"[" * 3000]


def mutate(whole: bytes, others: list[bytes], random: Random) -> bytes:
    """Damage a file in one to four places; `others` are files of the same kind."""
    data = bytearray(whole)
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        random.choice(WAYS)(data, others, random)
    return bytes(data)


def _place(data, random):
    # Headers stand at the front, and directories of archives at the end.
    end = len(data)
    return random.choice(
        (
            random.randint(0, end),
            random.randint(0, min(end, 64)),
            random.randint(max(0, end - 128), end),
        )
    )


def _flip(data, others, random):
    if data:
        where = min(_place(data, random), len(data) - 1)
        data[where] ^= 1 << random.randrange(8)


def _byte(data, others, random):
    if data:
        data[min(_place(data, random), len(data) - 1)] = random.choice(
            (0, 255, 128, 46, 40, 82, 113)
        )


def _word(data, others, random):
    """Replace what may be a length."""
    size, where = random.choice((1, 2, 4, 8)), _place(data, random)
    value = random.choice([*WORDS, len(data), len(data) - where, len(data) + 1, 1 << 40, 1 << 63])
    order = random.choice(("little", "big"))
    data[where : where + size] = (value % (1 << 8 * size)).to_bytes(size, order)


def _cut(data, others, random):
    del data[_place(data, random) :]


def _remove(data, others, random):
    where = _place(data, random)
    del data[where : where + random.choice((1, 2, 4, 16, 100))]


def _repeat(data, others, random):
    where = _place(data, random)
    piece = data[where : where + random.choice((1, 4, 16, 64))]
    data[where:where] = piece * random.choice((1, 2, 30))


def _insert(data, others, random):
    where = _place(data, random)
    data[where:where] = random.choice(PIECES)


def _splice(data, others, random):
    """Go on as another file does."""
    other = random.choice(others)
    data[_place(data, random) :] = other[_place(other, random) :]


def _number(data, others, random):
    """Replace a number that is written as text."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?(e-?\d+)?", data))
    if found:
        match = random.choice(found)
        data[match.start() : match.end()] = random.choice(NUMBERS).encode()


def _text(data, others, random):
    """Replace a word or a whole value between quotation marks."""
    found = list(re.finditer(rb'"[^"]*"|[A-Za-z_]{3,}', data))
    if found:
        match, other = random.choice(found), random.choice(found)
        new = random.choice((other[0], b'"a\\nb"', b"3", b"", b'"' + b"x" * 200 + b'"'))
        data[match.start() : match.end()] = new


WAYS = (
    _flip,
    _byte,
    _word,
    _word,
    _cut,
    _remove,
    _repeat,
    _insert,
    _splice,
    _number,
    _number,
    _text,
)
