"""Find all problems of a COCO data set before work starts, in the json and in its image files."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from accelerated.data import annotations, images, sources
from accelerated.data.annotations import Problem, Records
from accelerated.data.reading import DEFAULT, Reading
from accelerated.data.sources import Source

SEVERITIES = ("reject", "skip", "warn", "note")
# Problems that an error lists.
LISTED = 5


@dataclass
class Report:
    """The problems, most severe first, and the numbers of valid images and of their annotations."""

    problems: list[Problem]
    images: int
    annotations: int

    @property
    def blocking(self) -> list[Problem]:
        """The problems that stop a training run."""
        return [problem for problem in self.problems if problem.blocking]

    @property
    def fatal(self) -> list[Problem]:
        """The blocking problems of the whole file, which `--skip-invalid` cannot skip."""
        return [problem for problem in self.blocking if problem.scope == "file"]

    def counts(self) -> dict[tuple[str, str], int]:
        """Return {(severity, code): number of problems}, most severe first."""
        return dict(Counter((problem.severity, problem.code) for problem in self.problems))

    def require(self, skip_invalid: bool = False) -> None:
        """Raise ValueError, with the first problems and the remedy, if the data is invalid."""
        blocking = self.fatal if skip_invalid else self.blocking
        if not blocking:
            return
        lines = [f"the data has {len(blocking)} problem{'s' * (len(blocking) > 1)}:"]
        lines += [str(problem) for problem in blocking[:LISTED]]
        if len(blocking) > LISTED:
            lines.append(f"... and {len(blocking) - LISTED} more; `maskrcnn inspect` lists all")
        if not self.fatal:
            lines.append("correct them, or skip these annotations and images with --skip-invalid")
        raise ValueError("\n".join(lines))


def check(
    data: str | Path,
    image_root: str | Path | None = None,
    open_images: bool = True,
    reading: Reading = DEFAULT,
) -> Report:
    """Find every problem of a data set and, with `open_images`, of the images it names.

    The arguments are those of `coco.CocoDataset`.

    Never raises, whatever the data contains.
    """
    return read(sources.find(data, image_root), open_images, reading)[1]


def read(
    source: Source, open_images: bool = True, reading: Reading = DEFAULT
) -> tuple[Records, Report]:
    """Read the valid records and report the problems, see `check`.

    Nothing outside the image folder is opened, and nothing huge is decompressed.
    """
    records, problems = annotations.read(source.path, source.content, reading)
    problems = [*source.problems, *problems]
    if open_images:
        opened = list(records.images.values())
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            checked = pool.map(lambda record: _image_problem(record, source.image_root), opened)
        problems += [problem for problem in checked if problem]
        for problem in problems:
            if problem.blocking and problem.scope == "image":
                records.images.pop(problem.image_id, None)
    problems.sort(key=lambda problem: SEVERITIES.index(problem.severity))
    valid = sum(len(record.instances) for record in records.images.values())
    return records, Report(problems, len(records.images), valid)


def _image_problem(record, root):
    """Check the image file of a record; return a Problem or None."""

    def problem(code, severity, message):
        name = record.file_name if isinstance(record.file_name, str) else repr(record.file_name)
        return Problem(code, severity, "image", name, record.id, None, message)

    try:
        header = images.probe(images.locate(root, record.file_name))
    except images.ImageError as error:
        return problem(error.code, "reject", str(error))
    width, height, orientation = header.width, header.height, header.orientation
    exif, rotated = f"EXIF orientation {orientation}", orientation >= 5
    if (width, height) == (record.width, record.height):
        if rotated and width == height:
            message = f"{exif} on a square image; labels are assumed to be on the stored frame"
            return problem("exif_ambiguous", "warn", message)
        if orientation > 1:
            message = f"{exif} is not applied; labels are on the stored frame"
            return problem("exif_ignored", "note", message)
        return None
    sizes = f"the json says {record.width}x{record.height}, the file is {width}x{height}"
    if (height, width) != (record.width, record.height):
        message = f"{sizes} (width x height), so labels would be misplaced; correct one of them"
        return problem("size_mismatch", "reject", message)
    if rotated:
        advice = "store the image upright without EXIF, or give size and labels of the stored frame"
        message = f"{sizes}, displayed rotated by {exif}; {advice}"
        return problem("exif_rotated", "reject", message)
    message = f"{sizes}: width and height are swapped; correct the json"
    return problem("size_swapped", "reject", message)
