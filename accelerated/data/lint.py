"""Everything that is wrong with a COCO data set, said before work starts: the json, and the image files it names."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from accelerated.data import annotations, images
from accelerated.data.annotations import Problem

SEVERITIES = ("reject", "skip", "warn", "note")


@dataclass
class Report:
    problems: list[Problem]  # most severe first
    images: int  # sound ones
    annotations: int  # sound ones, of sound images

    @property
    def blocking(self):
        """Problems that stop a training run."""
        return [problem for problem in self.problems if problem.blocking]

    @property
    def fatal(self):
        """Those among them that `--skip-invalid` cannot leave out, because they spoil the whole file."""
        return [problem for problem in self.blocking if problem.scope == "file"]

    def counts(self):
        """{(severity, code): number of problems}, most severe first."""
        return dict(Counter((problem.severity, problem.code) for problem in self.problems))

    def require(self, skip_invalid=False):
        """ValueError, listing the first problems and the way out, unless work may start."""
        blocking, listed = (self.fatal if skip_invalid else self.blocking), 5
        if not blocking:
            return
        lines = [str(problem) for problem in blocking[:listed]]
        lines += (
            [f"... and {len(blocking) - listed} more; `maskrcnn inspect` lists all"]
            if len(blocking) > listed
            else []
        )
        if not self.fatal:
            lines.append(
                "correct them, or leave these annotations and images out with --skip-invalid"
            )
        raise ValueError(
            "\n".join([f"the data has {len(blocking)} problem{'s' * (len(blocking) > 1)}:", *lines])
        )


def check(json_path, image_root, open_images=True) -> Report:
    """Every problem of the file and, with `open_images`, of the images it names. Never raises, whatever the data holds."""
    return read(json_path, image_root, open_images)[1]


def read(json_path, image_root, open_images=True):
    """(Records of what is sound, Report). Nothing outside `image_root` is opened, nothing huge decompressed."""
    records, problems = annotations.read(json_path)
    if open_images:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(
                lambda record: _image_problem(record, image_root), list(records.images.values())
            )
        problems += [problem for problem in found if problem]
        for problem in problems:
            if problem.blocking and problem.scope == "image":
                records.images.pop(problem.image_id, None)
    problems.sort(key=lambda problem: SEVERITIES.index(problem.severity))
    sound = sum(len(record.instances) for record in records.images.values())
    return records, Report(problems, len(records.images), sound)


def _image_problem(record, root):
    def problem(code, severity, message):
        name = record.file_name if isinstance(record.file_name, str) else repr(record.file_name)
        return Problem(code, severity, "image", name, record.id, None, message)

    try:
        width, height, orientation = images.probe(images.locate(root, record.file_name))
    except images.ImageError as error:
        return problem(error.code, "reject", str(error))
    rotated = orientation >= 5
    if (width, height) == (record.width, record.height):
        if rotated and width == height:
            return problem(
                "exif_ambiguous",
                "warn",
                f"EXIF orientation {orientation} on a square image; labels are taken to be on the stored frame",
            )
        if orientation > 1:
            return problem(
                "exif_ignored",
                "note",
                f"EXIF orientation {orientation} is not applied; labels are on the stored frame",
            )
        return None
    sizes = f"the json says {record.width}x{record.height}, the file is {width}x{height}"
    if (height, width) != (record.width, record.height):
        return problem(
            "size_mismatch",
            "reject",
            f"{sizes} (width x height); labels would fall in the wrong place: correct one of them",
        )
    if rotated:
        advice = "store the image upright without EXIF, or give the stored size and labels on the stored frame"
        return problem(
            "exif_rotated",
            "reject",
            f"{sizes}, shown rotated by EXIF orientation {orientation}; {advice}",
        )
    return problem(
        "size_swapped", "reject", f"{sizes}: width and height are swapped; correct the json"
    )
