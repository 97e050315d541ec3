"""Repair a data set: mend what has one meaning, leave out what is broken, list every change."""

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from accelerated.data import annotations, images, lint
from accelerated.data.lint import Report
from accelerated.data.mending import Case, fixes
from accelerated.data.reading import DEFAULT, Reading
from accelerated.data.sources import Source
from accelerated.data.values import plain

# A mended entry may show another problem.
PASSES = 6
# Problems that an option answers, not a repair.
OPEN = {"exif_undecided", "exif_rotated", "pixel_range_missing", "mask_missing"}


@dataclass(frozen=True)
class Change:
    """What was done to an entry, because of the problem `code`.

    part    "images", "annotations" or "categories"
    id      of the entry before
    field   that was changed; None: the entry was left out
    before, after  values of the field, or the whole entry and None
    """

    code: str
    part: str
    id: Any
    field: str | None
    before: Any
    after: Any


@dataclass
class Repair:
    """The repaired data as COCO's dictionary, the changes, and what the linter says of it."""

    content: dict[str, Any]
    changes: list[Change]
    report: Report

    def counts(self) -> dict[tuple[str, str, str], int]:
        """Return {(code, part, what was done): number of entries}."""
        done = [
            (c.code, c.part, f"{c.field} written" if c.field else "left out") for c in self.changes
        ]
        return dict(Counter(done))


def repair(source: Source, reading: Reading = DEFAULT) -> Repair:
    """Repair the data of a source; the source is not modified.

    Problems that an option answers stay in it, see `Repair.report`.
    Raises ValueError if the file as a whole cannot be read, or if nothing would be left.
    """
    content = source.content
    if content is None:
        records, problems = annotations.read(source.path, None, reading)
        content = records.content
        # One of the two values is lost.
        if any(problem.code == "duplicate_key" for problem in problems):
            lint.read(source, False, reading)[1].require()
    if not annotations.has_parts(content):
        lint.read(source, False, reading)[1].require()
    content, changes, probe = copy.deepcopy(content), [], cache(images.probe)

    def check():
        whole = replace(source, content=content, problems=())
        return lint.read(whole, True, reading, probe)[1]

    report = check()
    for _ in range(PASSES):
        case = Case(content, source.image_root, reading, probe)
        made = _apply(content, fixes(case, report.problems))
        if not made:
            break
        changes += made
        report = check()
    broken = [p for p in report.blocking if p.index is not None and p.code not in OPEN]
    left_out = _apply(content, [(p.code, p.part, p.index, None) for p in broken])
    left_out += _apply(content, _orphans(content))
    if left_out:
        report = check()
    for part in ("images", "annotations"):
        if not content[part] and any(change.part == part for change in left_out):
            raise ValueError(f"{source.path}: no repair is known for any of its {part}")
    return Repair(content, changes + left_out, report)


def _orphans(content) -> Iterable[tuple[str, str, int, None]]:
    """Leave out the annotations whose image was left out."""
    known = {plain(image.get("id")) for image in content["images"] if isinstance(image, dict)}
    for index, entry in enumerate(content["annotations"]):
        if isinstance(entry, dict) and plain(entry.get("image_id")) not in known:
            yield "unknown_image", "annotations", index, None


def _apply(content, found) -> list[Change]:
    """Make the changes (code, part, index, new fields or None), the first of each entry."""
    first = {}
    for code, part, index, fields in found:
        first.setdefault((part, index), (code, fields))
    changes, dropped = [], []
    for (part, index), (code, fields) in first.items():
        entry = content[part][index]
        entry_id = plain(entry.get("id")) if isinstance(entry, dict) else None
        if fields is None:
            dropped.append((part, index))
            changes.append(Change(code, part, entry_id, None, entry, None))
            continue
        for name, value in fields.items():
            changes.append(Change(code, part, entry_id, name, entry.get(name), value))
        entry.update(fields)
    for part, index in sorted(dropped, reverse=True):
        del content[part][index]
    return changes
