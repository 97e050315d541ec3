"""The one mistake behind many problems, as the exports of annotation programs make it."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accelerated.data import bbox, file_names
from accelerated.data.annotations import Problem, Records, counterparts, number
from accelerated.data.reading import Reading
from accelerated.data.sources import Source
from accelerated.data.values import is_number, plain, whole

FIX = "inspect --fix OUT.json"
# Names that are looked for in other folders.
TRIED = 100


@dataclass
class Cause:
    """A mistake: its name, a line that says what it is and what to do, and what it explains."""

    code: str
    message: str
    problems: list[Problem]

    @property
    def severity(self) -> str:
        """The severest of the problems'."""
        severities = [problem.severity for problem in self.problems]
        return min(severities, key=("reject", "skip", "warn", "note").index)

    def __str__(self) -> str:
        return f"{self.severity}: {self.message} [{self.code}]"


@dataclass
class Case:
    """A data set with its problems, by code."""

    records: Records
    problems: dict[str, list[Problem]]
    source: Source
    reading: Reading

    def entry(self, problem: Problem) -> dict:
        """Return the image or annotation of a problem as it is in the file."""
        part = "images" if problem.scope == "image" else "annotations"
        entry = self.entries(part)[problem.index] if problem.index is not None else None
        return entry if isinstance(entry, dict) else {}

    def entries(self, part: str) -> list:
        """Return a list of the file."""
        return self.records.content[part]


def find(
    records: Records, problems: list[Problem], source: Source, reading: Reading
) -> list[Cause]:
    """Return the mistakes that explain two problems or more; a problem has one at most."""
    by_code = defaultdict(list)
    for problem in problems:
        by_code[problem.code].append(problem)
    content = records.content
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(p), list) for p in parts):
        return []
    case = Case(records, by_code, source, reading)
    causes, explained = [], set()
    for cause in filter(None, (rule(case) for rule in RULES)):
        if not explained.issuperset(map(id, cause.problems)):
            causes.append(cause)
            explained.update(map(id, cause.problems))
    return causes


def _names(case: Case) -> Cause | None:
    """File names that name no file, with how many exist when mended."""
    codes = ("file_missing", "file_outside_root", "file_name_invalid")
    problems = [problem for code in codes for problem in case.problems[code]]
    names = [case.entry(problem).get("file_name") for problem in problems]
    names = [name for name in names if isinstance(name, str) and "\0" not in name]
    if not names:
        return None
    root = case.source.image_root
    every = [entry.get("file_name") for entry in case.entries("images") if isinstance(entry, dict)]
    found = file_names.Folder(root).mend_all(name for name in every if isinstance(name, str))
    mended = [found[name] for name in names if name in found]
    total = len(case.entries("images"))
    start = f"{len(problems)} of {total} files are not in the image folder {str(root)!r}"
    other = file_names.other_root(root, case.source.path, names[:TRIED])
    advice = [f"--images {other} if they are those in it"] if other else []
    if mended:
        ways = list(dict.fromkeys(way for _, how in mended for way in how))
        fronts = [way for way in ways if way.startswith("without ")]
        if len(fronts) > 1:
            ways = [way for way in ways if way not in fronts] + ["without the folders in front"]
        shown = f"{len(mended)} of {len(names)} exist {' and '.join(ways)}"
        advice.append(f"{FIX} writes these names")
        return Cause("file_names", f"{start}; {shown}: {', or '.join(advice)}", problems)
    if advice:
        return Cause("file_names", f"{start}: {advice[0]}", problems)
    if len(problems) < 2:
        return None
    return Cause("file_names", f"{start}: is it the right folder?", problems)


def _image_ids(case: Case) -> Cause | None:
    """Annotations whose image ids are numbers where the images have texts, or shifted by one."""
    problems = case.problems["unknown_image"]
    images = {plain(i.get("id")) for i in case.entries("images") if isinstance(i, dict)}
    total, texts = len(case.entries("annotations")), counterparts(images)
    used = [plain(case.entry(problem).get("image_id")) for problem in problems]
    for kinds, known in (
        (("texts", "numbers"), [u for u in used if isinstance(u, str) and number(u) in images]),
        (("numbers", "texts"), [u for u in used if not isinstance(u, str) and u in texts]),
    ):
        if known and len(known) == len(used):
            ours, theirs = kinds
            message = f"the image ids of {len(known)} of {total} annotations are {ours}, those of"
            return Cause("image_ids", f"{message} the images {theirs}: {FIX} mends that", problems)
    if problems and shifted(case.records.content):
        message = "the images' ids count from 0, the annotations' image_id from 1, so that all"
        message = f"{message} labels belong to the image before: {FIX} mends that"
        return Cause("image_ids_shifted", message, problems)
    return None


def shift_of_categories(content: dict) -> int:
    """Return 1 if all classes are used by the number before theirs, -1 if by the next, else 0."""
    known = {whole(c.get("id")) for c in content["categories"] if isinstance(c, dict)}
    used = {whole(a.get("category_id")) for a in content["annotations"] if isinstance(a, dict)}
    for shift in (1, -1):
        if (
            None not in known | used
            and {value + shift for value in used if value is not None} == known
        ):
            return shift
    return 0


def shifted(content: dict) -> bool:
    """Tell whether images count from 0 and are used from 1 on, up to one too many, most of them."""
    images = {
        i.get("id") for i in content["images"] if isinstance(i, dict) and is_number(i.get("id"))
    }
    used = [a.get("image_id") for a in content["annotations"] if isinstance(a, dict)]
    numbers = {value for value in used if is_number(value)}
    count = len(content["images"])
    from_one = numbers <= set(range(1, count + 1)) and count in numbers
    return images == set(range(count)) and from_one and 2 * len(numbers) > count


def _categories(case: Case) -> Cause | None:
    """Annotations that name their category by its name, by a text, or not at all."""
    problems = case.problems["unknown_category"]
    values = [case.entry(problem).get("category_id") for problem in problems]
    known = case.records.categories
    if len(problems) < 2:
        return None
    if shift_of_categories(case.records.content):
        message = (
            f"all {len(case.entries('annotations'))} annotations name the category beside theirs,"
        )
        message += f" as if one of the lists counted from 0 and the other from 1: {FIX} mends that"
        return Cause("category_ids_shifted", message, problems)
    if all(number(value) in known for value in values):
        what = "texts, the categories' ids numbers"
    elif all(isinstance(value, str) and value in known.values() for value in values):
        what = "names, not ids"
    elif all(value is None for value in values) and len(known) == 1:
        what = "missing, as VIA writes text ids, and there is one category"
    elif all(value is None for value in values):
        message = f"{len(problems)} of {len(case.entries('annotations'))} annotations have no"
        message += " category_id: VIA writes null where its ids are texts; number them there"
        return Cause("category_ids", message, problems)
    else:
        return None
    message = (
        f"the category_id of {len(problems)} of {len(case.entries('annotations'))} annotations"
    )
    return Cause("category_ids", f"{message} are {what}: {FIX} mends that", problems)


def _flat(case: Case) -> Cause | None:
    """Outlines that are not in a list of outlines."""
    codes = ("segmentation_invalid", "polygon_too_short", "polygon_invalid")
    problems = [
        problem
        for code in codes
        for problem in case.problems[code]
        if outlines(case.entry(problem).get("segmentation")) is not None
    ]
    if len(problems) < 2:
        return None
    message = (
        f"{len(problems)} of {len(case.entries('annotations'))} outlines are flat lists or lists"
    )
    message += f" of points, instead of [[x1, y1, x2, y2, ..]]: {FIX} writes these"
    return Cause("outlines_flat", message, problems)


def outlines(value: Any) -> list | None:
    """Return [[x1, y1, ..]] for a flat list [x1, y1, ..] (VIA) or points [[x, y], ..], or None."""
    if not isinstance(value, list) or not value:
        return None
    if all(map(is_number, value)) and len(value) >= 6:
        return [value]
    parts = value if _are_points(value[0]) else [value]
    if all(map(_are_points, parts)):
        return [[side for point in part for side in point] for part in parts]
    return None


def _are_points(part):
    return (
        isinstance(part, list)
        and len(part) >= 3
        and all(isinstance(p, list) and len(p) == 2 and all(map(is_number, p)) for p in part)
    )


def _no_masks(case: Case) -> Cause | None:
    problems, total = case.problems["mask_missing"], len(case.entries("annotations"))
    if len(problems) < 2:
        return None
    if len(problems) == total:
        message = "no annotation has a mask, only boxes: train with --set mask_head.kind=none, or"
        return Cause(
            "masks_missing", f"{message} take the boxes as masks with --boxes-as-masks", problems
        )
    message = (
        f"{len(problems)} of {total} annotations are rectangles without a mask: leave them out"
    )
    message += " with --skip-invalid, or take their boxes as masks with --boxes-as-masks"
    return Cause("masks_missing", message, problems)


def _exif(case: Case) -> Cause | None:
    undecided, rotated = case.problems["exif_undecided"], case.problems["exif_rotated"]
    count = len(undecided) + len(rotated)
    if count < 2:
        return None
    message = (
        f"{count} of {len(case.entries('images'))} pictures are displayed turned or mirrored, by"
    )
    message += " their EXIF orientation: say --exif apply if labels are on them as displayed,"
    message += " --exif ignore if as stored"
    for option in ("apply", "ignore"):
        fitting = sum(problem.message.endswith(f"--exif {option}") for problem in rotated)
        message += f"; by their sizes {fitting} fit only --exif {option}" if fitting else ""
    return Cause("exif", message, [*undecided, *rotated])


def _boxes(case: Case) -> Cause | None:
    total = len(case.entries("annotations"))
    for code, (numbers, _) in bbox.READINGS.items():
        problems = case.problems[code]
        if len(problems) >= 2:
            explained = [*case.problems["boxes_disagree"], *problems]
            message = (
                f"{len(problems)} of {total} boxes fit their masks only when read as {numbers}"
            )
            return Cause(code, f"{message}: {FIX} writes [x, y, width, height]", explained)
    problems = [*case.problems["boxes_disagree"], *case.problems["bbox_disagrees"]]
    if not case.problems["boxes_disagree"]:
        return None
    message = case.problems["boxes_disagree"][0].message
    exchanged = sum(problem.message.endswith(bbox.EXCHANGED) for problem in problems)
    if exchanged > 1:
        message = (
            f"{exchanged} of {total} boxes fit their masks only with x and y exchanged: correct"
        )
        message += " the boxes or the outlines, whichever are wrong"
    return Cause("boxes_disagree", message, problems)


def _all(
    code: str, part: str, message: str, codes: tuple[str, ...] = ()
) -> Callable[[Case], Cause | None]:
    """Make a rule that explains all problems of a code.

    part     what it is counted of
    message  with {n} problems of {of} entries
    codes    further codes that it explains
    """

    def rule(case: Case) -> Cause | None:
        problems = case.problems[code]
        if len(problems) < 2:
            return None
        line = message.format(n=len(problems), of=len(case.entries(part)))
        return Cause(code, line, [*problems, *(p for c in codes for p in case.problems[c])])

    return rule


RULES = [
    _names,
    _image_ids,
    _categories,
    _all(
        "coordinates_fractions",
        "annotations",
        "the coordinates of {n} of {of} annotations are fractions of the image's sides, 0 to 1,"
        f" instead of pixels: {FIX} multiplies them",
    ),
    _boxes,
    _flat,
    _no_masks,
    _exif,
    _all(
        "bbox_all_corners",
        "annotations",
        f"boxes are x1, y1, x2, y2 instead of x, y, width, height: {FIX} writes these",
        ("bbox_clipped",),
    ),
    _all(
        "rle_size_mismatch",
        "annotations",
        "the masks (RLE) of {n} of {of} annotations were encoded for another size than their"
        f" image's: {FIX} scales those of the same shape",
    ),
    _all(
        "size_mismatch",
        "images",
        "{n} of {of} pictures have other sizes than the json says, as if they were resized after"
        f" labelling: {FIX} scales the labels of those of the same shape",
    ),
    _all(
        "size_swapped",
        "images",
        "width and height of {n} of {of} images are swapped:"
        f" {FIX} mends those whose labels fit",
    ),
    _all(
        "image_size_missing",
        "images",
        "{n} of {of} images have no width and height: they are read from the files"
        f" ({FIX} writes them)",
    ),
    _all(
        "image_size_invalid",
        "images",
        f"{{n}} of {{of}} images have an invalid width or height: {FIX} writes the files' sizes",
    ),
    _all(
        "pixel_range_missing",
        "images",
        "{n} of {of} pictures have pixels of 32 bits: say which values become black and white with"
        " --pixel-range LOW:HIGH",
    ),
    _all(
        "image_dark",
        "images",
        "{n} of {of} pictures are nearly black, as with 12 bits in 16: say --pixel-range 0:4095 if"
        " 4095 is white",
    ),
    _all(
        "duplicate_annotation",
        "annotations",
        f"{{n}} of {{of}} annotations are in the file twice, as after a second export: {FIX} leaves"
        " them out",
        ("duplicate_annotation_id",),
    ),
    _all(
        "duplicate_annotation_id",
        "annotations",
        "{n} of {of} annotations have the id of another; all are used, renumbered",
    ),
]
