"""Find all problems of a data set before work starts, in its annotations and its image files."""

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from accelerated.data import annotations, causes, images, plausibility, sources
from accelerated.data.annotations import SEVERITIES, Problem, Records
from accelerated.data.causes import Cause
from accelerated.data.file_names import nearest, other_root
from accelerated.data.images import Header, ImageError
from accelerated.data.reading import DEFAULT, Reading
from accelerated.data.sources import Source
from accelerated.data.values import Remark

# Problems that an error lists.
LISTED = 5
# Greatest values of pictures in fractions, and with 8, 10, 12, 14 and 16 bits.
DEPTHS = (1, 255, 1023, 4095, 16383, 65535)


@dataclass
class Report:
    """The problems, most severe first, and how many images and annotations are valid.

    objects  the valid annotations without crowd regions
    causes   the mistakes that explain many problems at once
    """

    problems: list[Problem]
    images: int
    annotations: int
    objects: int = 0
    causes: list[Cause] = field(default_factory=list)

    @property
    def blocking(self) -> list[Problem]:
        """The problems that stop a training run."""
        return [problem for problem in self.problems if problem.blocking]

    @property
    def fatal(self) -> list[Problem]:
        """The blocking problems of the whole file, which `--skip-invalid` cannot skip."""
        return [problem for problem in self.blocking if problem.scope == "file"]

    @property
    def warnings(self) -> list[str]:
        """What does not stop a training run, but concerns the data set as a whole."""
        found = [*self.causes, *(p for p in self.unexplained if p.scope == "file")]
        return [str(item) for item in found if item.severity == "warn"]

    @property
    def unexplained(self) -> list[Problem]:
        """The problems that have none of the causes."""
        explained = {id(problem) for cause in self.causes for problem in cause.problems}
        return [problem for problem in self.problems if id(problem) not in explained]

    def counts(self) -> dict[tuple[str, str], int]:
        """Return {(severity, code): number of problems}, most severe first."""
        return dict(Counter((problem.severity, problem.code) for problem in self.problems))

    def lines(self, blocking: list[Problem]) -> list[str]:
        """Describe some of the blocking problems in a few entries, causes first."""
        chosen = {id(problem) for problem in blocking}
        lines = []
        for cause in self.causes:
            count = sum(id(problem) in chosen for problem in cause.problems)
            if count:
                first = next(p for p in cause.problems if id(p) in chosen)
                lines.append(f"{cause} (explains {count} of {len(blocking)})\n  first: {first}")
        rest = [problem for problem in self.unexplained if id(problem) in chosen]
        lines += [str(problem) for problem in rest[:LISTED]]
        if len(rest) > LISTED:
            lines.append(f"... and {len(rest) - LISTED} more; `maskrcnn inspect` lists all")
        return lines

    def require(self, skip_invalid: bool = False) -> None:
        """Raise ValueError, with the first problems and the remedy, if the data is invalid."""
        blocking = self.fatal if skip_invalid else self.blocking
        if not blocking:
            return
        lines = [f"the data has {len(blocking)} problem{'s' * (len(blocking) > 1)}:"]
        lines += self.lines(blocking)
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

    Whatever the data contains becomes problems. Raises ValueError if its format is not recognised.
    """
    return read(sources.find(data, image_root), open_images, reading)[1]


def read(
    source: Source,
    open_images: bool = True,
    reading: Reading = DEFAULT,
    probe: Callable[..., Header] = images.probe,
) -> tuple[Records, Report]:
    """Read the valid records and report the problems, see `check`.

    probe  `images.probe`, or one that remembers its answers

    Nothing outside the image folder is opened, and nothing huge is decompressed.
    """
    root, name = source.image_root, source.path.name

    def size_of(file_name):
        try:
            return probe(images.locate(root, file_name), decode=False).size(reading.exif)
        except ImageError:
            return None

    records, problems = annotations.read(source.path, source.content, reading, size_of)
    problems = [*source.problems, *problems]
    if open_images and records.images and not root.is_dir():
        names = (record.file_name for record in records.images.values())
        other = other_root(root, source.path, names)
        hint = f"; the pictures exist in {str(other)!r}" if other else nearest(root)
        message = f"the image folder {str(root)!r} does not exist{hint}"
        problems.append(
            Problem("image_folder_missing", "reject", "file", name, None, None, message)
        )
    elif open_images:
        problems += _check_images(list(records.images.values()), root, reading, probe)
    problems += plausibility.check(records, problems, reading, name)
    for problem in problems:
        if problem.blocking and problem.scope == "image":
            records.images.pop(problem.image_id, None)
    problems.sort(key=lambda problem: SEVERITIES.index(problem.severity))
    found = causes.find(records, problems, source)
    records.content = None
    kept = records.images.values()
    valid = sum(len(record.instances) for record in kept)
    objects = sum(len(record.objects) for record in kept)
    return records, Report(problems, len(kept), valid, objects, found)


def _check_images(records, root, reading, probe) -> list[Problem]:
    """Check the image files of records, several at a time."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        remarks = pool.map(lambda record: _image_remarks(record, root, reading, probe), records)
        problems = []
        for record, found in zip(records, remarks, strict=True):
            file = record.file_name if isinstance(record.file_name, str) else repr(record.file_name)
            for code, severity, message in found:
                where = file, record.id, None
                problems.append(Problem(code, severity, "image", *where, message, record.index))
    return problems


def _image_remarks(record, root, reading, probe) -> list[Remark]:
    """Check the image file of a record."""
    try:
        path = images.locate(root, record.file_name)
        header = probe(path, pixel_range=reading.pixel_range)
    except ImageError as error:
        return [(error.code, "reject", str(error))]
    found = [_frame_problem(record, header, reading.exif), _range_problem(header, reading)]
    if header.frames > 1:
        found.append(("frames", "note", f"the first of {header.frames} pictures in it is used"))
    return list(filter(None, found))


def _frame_problem(record, header, exif) -> Remark | None:
    """Find out whether labels are on the picture as stored or as displayed."""
    stated, stored, shown = (record.width, record.height), header.size(None), header.size("apply")
    turned = f"EXIF orientation {header.orientation}"
    if exif is None and header.orientation > 1:
        if stated == stored and (record.measured or stored == shown or header.orientation < 5):
            message = f"{turned}: are labels on the picture as displayed (--exif apply) or as"
            return "exif_undecided", "reject", f"{message} stored (--exif ignore)?"
        if stated == stored:
            message = f"{turned} is not applied; by their size, labels are on the stored picture"
            return "exif_ignored", "note", message
    if stated == header.size(exif):
        return None
    if stated in (stored, shown):
        frame, option = ("displayed", "apply") if stated == shown else ("stored", "ignore")
        message = f"{turned}: the stated size is that of the picture as {frame}"
        return "exif_rotated", "reject", f"{message}; if labels are on it, add --exif {option}"
    file = header.size(exif)
    sizes = f"the stated size is {stated[0]}x{stated[1]}, the file's {file[0]}x{file[1]}"
    if stated != file[::-1]:
        message = f"{sizes} (width x height), so labels would be misplaced; correct one of them"
        return "size_mismatch", "reject", message
    message = f"{sizes}: width and height are swapped; correct them"
    return "size_swapped", "reject", message


def _range_problem(header, reading) -> Remark | None:
    """Find pictures of 16 or 32 bits that become black or white."""
    if header.limits is None:
        return None
    (least, greatest), (low, high) = header.limits, reading.pixel_range or (0, 65535)
    values = f"its values are {least:g} to {greatest:g} of {low:g} to {high:g}"
    if 16 * (greatest - low) < high - low:
        likely = next((limit for limit in DEPTHS if greatest <= limit), greatest)
        message = f"the picture is nearly black: {values}; if {likely:g} is white, add"
        return "image_dark", "warn", f"{message} --pixel-range 0:{likely:g}"
    if least >= high:
        return "image_bright", "warn", f"the picture is white: {values}; correct --pixel-range"
    return None
