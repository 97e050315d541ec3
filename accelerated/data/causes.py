"""The one mistake behind many problems, as the exports of annotation programs make it."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accelerated.data import bbox, file_names
from accelerated.data.annotations import (
    FIX,
    SEVERITIES,
    Problem,
    Records,
    counterparts,
    has_parts,
    number,
)
from accelerated.data.sources import Source
from accelerated.data.values import is_number, is_point, plain, whole

CORRECTS = f"{FIX} corrects this"


@dataclass
class Cause:
    """A mistake: its name, a line that says what it is and what to do, and what it explains."""

    code: str
    message: str
    problems: list[Problem]

    @property
    def severity(self) -> str:
        """The severest of the problems'."""
        return min((problem.severity for problem in self.problems), key=SEVERITIES.index)

    def __str__(self) -> str:
        return f"{self.severity}: {self.message} [{self.code}]"


@dataclass
class Case:
    """A data set with its problems, by code."""

    content: dict
    categories: dict[int, str]
    problems: dict[str, list[Problem]]
    source: Source

    def values(self, problems: list[Problem], key: str) -> list:
        """Return the values of a key in the entries that have the problems."""
        return [problem.entry(self.content).get(key) for problem in problems]

    def share(self, found: list, part: str = "annotations") -> str:
        """Count something among the entries of a part, such as "3 of 10"."""
        return f"{len(found)} of {len(self.content[part])}"


def find(records: Records, problems: list[Problem], source: Source) -> list[Cause]:
    """Return the mistakes that explain two problems or more; a problem has one at most."""
    if not has_parts(records.content):
        return []
    by_code = defaultdict(list)
    for problem in problems:
        by_code[problem.code].append(problem)
    case = Case(records.content, records.categories, by_code, source)
    causes, explained = [], set()
    for cause in filter(None, (rule(case) for rule in RULES)):
        if not explained.issuperset(map(id, cause.problems)):
            causes.append(cause)
            explained.update(map(id, cause.problems))
    return causes


def _names(case: Case) -> Cause | None:
    """File names that name no file, and how many are found under similar names."""
    codes = ("file_missing", "file_outside_root", "file_name_invalid")
    problems = [problem for code in codes for problem in case.problems[code]]
    names = [name for name in case.values(problems, "file_name") if isinstance(name, str)]
    names = [name for name in names if "\0" not in name]
    if not names:
        return None
    root = case.source.image_root
    every = [entry.get("file_name") for entry in case.content["images"] if isinstance(entry, dict)]
    found = file_names.Folder(root).mend_all(name for name in every if isinstance(name, str))
    mended = [found[name] for name in names if name in found]
    message = f"{case.share(problems, 'images')} files are not in the image folder {str(root)!r}"
    other = file_names.other_root(root, case.source.path, names)
    advice = [f"add --images {other}, where files of these names exist"] if other else []
    if mended:
        ways = list(dict.fromkeys(way for _, how in mended for way in how))
        fronts = [way for way in ways if way.startswith("without ")]
        if len(fronts) > 1:
            ways = [way for way in ways if way not in fronts] + ["without the folders in front"]
        message += f"; {len(mended)} of {len(names)} exist {' and '.join(ways)}"
        advice.append(f"{FIX} writes these names")
    elif not advice:
        if len(problems) < 2:
            return None
        advice.append("is it the right folder?")
    return Cause("file_names", f"{message}: {', or '.join(advice)}", problems)


def _image_ids(case: Case) -> Cause | None:
    """Annotations whose image ids are numbers where the images have texts, or shifted by one."""
    problems = case.problems["unknown_image"]
    if not problems:
        return None
    images = {plain(i.get("id")) for i in case.content["images"] if isinstance(i, dict)}
    texts = counterparts(images)
    used = [plain(value) for value in case.values(problems, "image_id")]
    message = f"the image_id of {case.share(problems)} annotations"
    if all(isinstance(value, str) and number(value) in images for value in used):
        message += f" is a text, while the ids of the images are numbers: {CORRECTS}"
        return Cause("image_ids", message, problems)
    if all(not isinstance(value, str) and value in texts for value in used):
        message += f" is a number, while the ids of the images are texts: {CORRECTS}"
        return Cause("image_ids", message, problems)
    if shifted(case.content):
        message = "the ids of the images count from 0, the image_id of the annotations from 1, so"
        message += f" that all labels belong to the image before: {CORRECTS}"
        return Cause("image_ids_shifted", message, problems)
    return None


def shift_of_categories(content: dict) -> int:
    """Return 1 if all classes are used by the number before theirs, -1 if by the next, else 0."""
    known = {whole(c.get("id")) for c in content["categories"] if isinstance(c, dict)}
    used = {whole(a.get("category_id")) for a in content["annotations"] if isinstance(a, dict)}
    for shift in (1, -1):
        if {value - shift for value in known if value is not None} == used:
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
    if len(problems) < 2:
        return None
    if shift_of_categories(case.content):
        message = f"all {len(case.content['annotations'])} annotations name the category beside"
        message += f" theirs, as if one list counted from 0 and the other from 1: {CORRECTS}"
        return Cause("category_ids_shifted", message, problems)
    values, known = case.values(problems, "category_id"), case.categories
    message = f"the category_id of {case.share(problems)} annotations"
    if all(number(value) in known for value in values):
        what = "is a text, while the ids of the categories are numbers"
    elif all(isinstance(value, str) and value in known.values() for value in values):
        what = "is a name, not an id"
    elif all(value is None for value in values) and len(known) == 1:
        what = "is missing, as VIA writes text ids, and there is one category"
    elif all(value is None for value in values):
        message += " is missing: VIA writes null where ids are texts; number the categories there"
        return Cause("category_ids", message, problems)
    else:
        return None
    return Cause("category_ids", f"{message} {what}: {CORRECTS}", problems)


def _flat(case: Case) -> Cause | None:
    """Outlines that are not in a list of outlines."""
    codes = ("segmentation_invalid", "polygon_too_short", "polygon_invalid")
    problems = [
        problem
        for code in codes
        for problem in case.problems[code]
        if outlines(problem.entry(case.content).get("segmentation")) is not None
    ]
    if len(problems) < 2:
        return None
    message = f"{case.share(problems)} outlines are flat lists or lists of points, instead of"
    message += f" [[x1, y1, x2, y2, ..]]: {CORRECTS}"
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
    return isinstance(part, list) and len(part) >= 3 and all(map(is_point, part))


def _no_masks(case: Case) -> Cause | None:
    problems = case.problems["mask_missing"]
    if len(problems) < 2:
        return None
    message = f"{case.share(problems)} annotations are rectangles without a mask: leave them out"
    message += " with --skip-invalid"
    if len(problems) == len(case.content["annotations"]):
        message = "no annotation has a mask, only boxes: train with --set mask_head.kind=none"
    message += ", or use their boxes as masks with --boxes-as-masks"
    return Cause("masks_missing", message, problems)


def _exif(case: Case) -> Cause | None:
    rotated = case.problems["exif_rotated"]
    problems = [*case.problems["exif_undecided"], *rotated]
    if len(problems) < 2:
        return None
    message = f"{case.share(problems, 'images')} pictures are displayed turned or mirrored, by"
    message += " their EXIF orientation: add --exif apply if labels are on them as displayed,"
    message += " --exif ignore if as stored"
    for option in ("apply", "ignore"):
        fitting = sum(problem.message.endswith(f"--exif {option}") for problem in rotated)
        message += f"; by their sizes {fitting} fit only --exif {option}" if fitting else ""
    return Cause("exif", message, problems)


def _boxes(case: Case) -> Cause | None:
    for code, (numbers, _) in bbox.READINGS.items():
        problems = case.problems[code]
        if len(problems) >= 2:
            explained = [*case.problems["boxes_disagree"], *problems]
            message = f"{case.share(problems)} boxes fit their masks only when read as {numbers}"
            return Cause(code, f"{message}: {FIX} writes [x, y, width, height]", explained)
    problems = [*case.problems["boxes_disagree"], *case.problems["bbox_disagrees"]]
    if not case.problems["boxes_disagree"]:
        return None
    message = problems[0].message
    exchanged = [problem for problem in problems if problem.message.endswith(bbox.EXCHANGED)]
    if len(exchanged) > 1:
        message = f"{case.share(exchanged)} boxes fit their masks only with x and y exchanged:"
        message += " correct the boxes or the outlines, whichever are wrong"
    return Cause("boxes_disagree", message, problems)


def _all(
    code: str, part: str, message: str, codes: tuple[str, ...] = ()
) -> Callable[[Case], Cause | None]:
    """Make a rule that explains all problems of a code.

    part     the list that the problems are counted in
    message  with {of}, such as "3 of 10"
    codes    further codes that it explains
    """

    def rule(case: Case) -> Cause | None:
        problems = case.problems[code]
        if len(problems) < 2:
            return None
        explained = [*problems, *(p for c in codes for p in case.problems[c])]
        return Cause(code, message.format(of=case.share(problems, part)), explained)

    return rule


RULES = [
    _names,
    _image_ids,
    _categories,
    _all(
        "coordinates_fractions",
        "annotations",
        "the coordinates of {of} annotations are fractions of the image's sides, 0 to 1, instead of"
        f" pixels: {FIX} multiplies them",
    ),
    _boxes,
    _flat,
    _no_masks,
    _exif,
    _all(
        "bbox_all_corners",
        "annotations",
        f"boxes are x1, y1, x2, y2 instead of x, y, width, height: {CORRECTS}",
        ("bbox_clipped",),
    ),
    _all(
        "rle_size_mismatch",
        "annotations",
        "the masks (RLE) of {of} annotations were encoded for another size than that of their"
        f" image: {FIX} scales those of the same shape",
    ),
    _all(
        "size_mismatch",
        "images",
        "{of} pictures have other sizes than stated, as if they were resized after"
        f" labelling: {FIX} scales the labels of those of the same shape",
    ),
    _all(
        "size_swapped",
        "images",
        f"width and height of {{of}} images are swapped: {FIX} corrects those whose labels fit",
    ),
    _all(
        "image_size_missing",
        "images",
        f"{{of}} images have no width and height: they are read from the files ({FIX} writes them)",
    ),
    _all(
        "image_size_invalid",
        "images",
        f"{{of}} images have an invalid width or height: {FIX} writes the sizes of the files",
    ),
    _all(
        "pixel_range_missing",
        "images",
        "{of} pictures have pixels of 32 bits: name the values that become black and white with"
        " --pixel-range LOW:HIGH",
    ),
    _all(
        "image_dark",
        "images",
        "{of} pictures are nearly black, as with 12 bits in 16: add --pixel-range 0:4095 if 4095 is"
        " white",
    ),
    _all(
        "duplicate_annotation",
        "annotations",
        f"{{of}} annotations are in the file twice, as after a second export: {FIX} leaves them"
        " out",
        ("duplicate_annotation_id",),
    ),
    _all(
        "duplicate_annotation_id",
        "annotations",
        "{of} annotations have the id of another; all are used, renumbered",
    ),
]
