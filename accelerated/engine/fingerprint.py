"""The data of a run, kept in RUN/data.json, by which a resumed run notices other data.

It holds {"training", "validation"}: the numbers of images and objects, and a checksum per image,
of its id, file name, size and annotations as read, but not of its pixels.
"""

import zlib
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

from accelerated.data.coco import CocoDataset
from accelerated.data.dataset import Dataset
from accelerated.data.text_files import parse_json, write_json

# Hexadecimal digits of a checksum.
DIGITS = 8


@dataclass(frozen=True)
class Fingerprint:
    """What identifies a data set.

    objects    their number; None where they are known only with the pixels
    checksums  one per image, side by side
    """

    images: int
    objects: int | None
    checksums: str


def of(dataset: Dataset) -> Fingerprint:
    """Compute the fingerprint of a data set without reading a pixel."""
    known, count = [b""] * len(dataset), None
    if isinstance(dataset, CocoDataset):
        known = map(dataset.annotations.raw, dataset.rows)
        count = sum(not crowd for *_, crowd in dataset.instances())
    rows = zip(dataset.image_ids, dataset.file_names, dataset.sizes, known, strict=True)
    checksums = "".join(f"{_of_image(*row):0{DIGITS}x}" for row in rows)
    return Fingerprint(len(dataset), count, checksums)


def summary(dataset: Dataset) -> str:
    """Describe a data set by its numbers and one checksum, which tell it from another."""
    found = of(dataset)
    return f"{_counts(asdict(found))}, checksum {zlib.crc32(found.checksums.encode()):08x}"


def _of_image(image_id, file_name, size, known):
    return zlib.crc32(known, zlib.crc32(repr((image_id, file_name, tuple(size))).encode()))


def write(run: Path, dataset: Dataset, evaluation: Dataset | None) -> None:
    """Write RUN/data.json."""
    write_json(run / "data.json", _of_both(dataset, evaluation))


def changes(run: Path, dataset: Dataset, evaluation: Dataset | None) -> list[str]:
    """Tell, in a line each, which data of a run is not what RUN/data.json says.

    Nothing without the file, which older runs do not have. Raises ValueError if it is damaged.
    """
    path = run / "data.json"
    if not path.exists():
        return []
    lines, now = [], _of_both(dataset, evaluation)
    try:
        before = parse_json(path)
        for part, data in (("training", dataset), ("validation", evaluation)):
            if before[part] != now[part]:
                changed = _difference(before[part], now[part], data)
                lines.append(f"the {part} data is not what it was: {changed}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: damaged ({error}); delete it to do without") from None
    return lines


def _of_both(dataset, evaluation):
    parts = {"training": dataset, "validation": evaluation}
    return {part: None if data is None else asdict(of(data)) for part, data in parts.items()}


def _difference(before, now, dataset):
    if before is None or now is None:
        return f"{_counts(before)} before, {_counts(now)} now"
    pairs = zip_longest(*(_split(part["checksums"]) for part in (before, now)))
    first = next((index for index, (old, new) in enumerate(pairs) if old != new), len(dataset))
    where = "its end is missing"
    if first < len(dataset):
        where = (
            f"the first image that differs is {dataset.file_names[first]!r}"
            f" (id {dataset.image_ids[first]!r})"
        )
    return f"{_counts(before)} before, {_counts(now)} now; {where}"


def _split(checksums):
    return [checksums[start : start + DIGITS] for start in range(0, len(checksums), DIGITS)]


def _counts(part):
    if part is None:
        return "none"
    objects = "" if part["objects"] is None else f" with {part['objects']} objects"
    return f"{part['images']} images{objects}"
