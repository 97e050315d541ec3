"""What `inspect` says about how hard a data set is, and what to do about it: one line each."""

from collections.abc import Mapping, Sequence

from accelerated.command_line.report import count
from accelerated.data.hardness import Hardness
from reference.config import Config

# Objects of a class below which it is hardly learned, or its AP hardly measured.
TO_LEARN, TO_MEASURE = 20, 10
# From this many times the objects of the rarest class on, classes are unbalanced.
UNBALANCED = 20
# Shares of objects, and factors of scale, that are worth a line.
SHARE, SCALES = 0.01, 2.0
# Proposals that are wanted for each object of the fullest image.
PROPOSALS = 3
NAMED = 5


def settings(found: Hardness, config: Config) -> list[str]:
    """Say which settings do not fit the objects, with the `--set` that does."""
    return [
        *_limit(found, config),
        *_proposals(found, config),
        *_overlap(found, config),
        *_anchors(found, config),
        *_scale(found),
    ]


def classes(found: Hardness) -> list[str]:
    """Say which classes have too few objects, or far fewer than others."""
    counts, lines = found.class_objects, []
    used = {name: number for name, number in counts.items() if number}
    if not used:
        return []
    rare = {name: number for name, number in used.items() if number < TO_LEARN}
    if rare:
        lines.append(
            f"{len(rare)} of {count(len(used), 'class', 'classes')} {_have(rare)} fewer than"
            f" {TO_LEARN} objects, too few to learn: {_counted(rare)}. Label more of them, or merge"
            " them with similar classes"
        )
    enough = sorted((number, name) for name, number in used.items() if number >= TO_LEARN)
    if enough and enough[-1][0] >= UNBALANCED * enough[0][0]:
        (less, least), (more, most) = enough[0], enough[-1]
        lines.append(
            f"{most!r} has {more} objects, {least!r} {less}. Average precision counts both alike,"
            " but training sees the first more often: label more of the second, and look at the"
            " classes one by one with `maskrcnn report RUN`"
        )
    return lines


def single_images(found: Hardness) -> list[str]:
    """Say which classes cannot be on both sides of a split."""
    single = [name for name, number in found.class_images.items() if number == 1]
    if not single:
        return []
    return [
        f"{count(len(single), 'class', 'classes')} {_are(single)} in only one image, so that"
        f" --split cannot have them on both sides: {_names(single)}. Label another image of each"
    ]


def validation(train: Hardness, val: Hardness, name: str, split: bool) -> list[str]:
    """Say which classes the validation data `name` lacks, has too few of, or has alone.

    split  whether the parts are those of a split, which divides what can be divided
    """
    lines = []
    used = {label for label, number in train.class_objects.items() if number}
    missing = [label for label in train.class_objects if label in used]
    missing = [label for label in missing if not val.class_objects.get(label)]
    if missing:
        remedy = "Move an image of each there, or use --split, which divides every class"
        remedy = "They are in one image each: label another" if split else remedy
        lines.append(
            f"{count(len(missing), 'class', 'classes')} of the training data {_have(missing)} no"
            f" object in {name}, so that their average precision stays unknown:"
            f" {_names(missing)}. {remedy}"
        )
    few = {k: n for k, n in val.class_objects.items() if k in used and 0 < n < TO_MEASURE}
    if few:
        lines.append(
            f"{count(len(few), 'class', 'classes')} {_have(few)} fewer than {TO_MEASURE} objects in"
            f" {name}: {_counted(few)}. One object moves their average precision by a tenth and"
            " more; compare runs by the other classes, or hold back more images"
        )
    alone = [k for k, number in val.class_objects.items() if number and k not in used]
    if alone:
        lines.append(
            f"{count(len(alone), 'class', 'classes')} {_are(alone)} only in {name}, and will"
            f" never be found: {_names(alone)}. Move images of them to the training data"
        )
    return lines


def duplicates(copies: Sequence[tuple[str, str]], name: str | None = None) -> list[str]:
    """Say which pictures are nearly the same, within the data or in the validation data `name`.

    copies  (another picture, the one that is nearly the same)
    """
    if not copies:
        return []
    shown = "; ".join(f"{a} and {b}" for a, b in copies[:NAMED])
    shown += f"; and {len(copies) - NAMED} more" if len(copies) > NAMED else ""
    some = count(len(copies), "picture")
    if name is not None:
        return [
            f"{some} of {name} {_are(copies)} nearly the same as one to train on: {shown}. Average"
            " precision will be too high: remove them from one of both"
        ]
    return [
        f"{some} {_are(copies)} nearly the same as another: {shown}. --split may put one on each"
        " side, which makes average precision too high: remove the copies, or choose the validation"
        " data by hand (--val)"
    ]


def _limit(found, config):
    if not found.lost:
        return
    advised = _round(1.2 * found.most_objects, 50)
    yield (
        f"{count(found.over_limit, 'image')} {'has' if found.over_limit == 1 else 'have'} more"
        f" objects than the {config.box_head.max_detections} detections that are kept of an image:"
        f" {found.lost / found.objects:.1%} of all objects cannot be found. Keep more with"
        f" --set box_head.max_detections={advised}"
    )


def _proposals(found, config):
    rpn, wanted = config.rpn, _round(PROPOSALS * found.most_objects, 100)
    if rpn.post_nms_top_n_test >= PROPOSALS * found.most_objects:
        return
    names = ("post_nms_top_n_test", "post_nms_top_n_train", "pre_nms_top_n_test")
    names = (*names, "pre_nms_top_n_train")
    changes = [f"--set rpn.{name}={wanted}" for name in names if getattr(rpn, name) < wanted]
    yield (
        f"The fullest image has {count(found.most_objects, 'object')}, and"
        f" {rpn.post_nms_top_n_test} proposals of an image are looked at, of which several fall on"
        f" each object. Look at {PROPOSALS} for each with {' '.join(changes)}"
    )


def _overlap(found, config):
    if found.nms_iou is None or found.overlapping < SHARE * found.objects:
        return
    yield (
        f"{found.overlapping / found.objects:.1%} of the objects overlap another of their class by"
        f" an IoU above {config.box_head.nms_iou:g}, where non-maximum suppression takes both for"
        f" one. --set box_head.nms_iou={found.nms_iou:g} leaves"
        f" {found.overlapping_then / found.objects:.1%}, but more duplicates stay"
    )


def _anchors(found, config):
    fit = found.fit
    if fit is None or (fit.sizes is None and fit.ratios is None):
        return
    flat = [size for level in config.anchors.sizes for size in level]
    longest = max(max(ratio, 1 / ratio) for ratio in config.anchors.ratios)
    reasons = {
        f"too small for the smallest, {min(flat):g} pixels": fit.small,
        f"too large for the largest, {max(flat):g} pixels": fit.large,
        f"longer than {longest:g}:1": fit.elongated,
    }
    said = [f"{share:.1%} {reason}" for reason, share in reasons.items() if share >= SHARE]
    why = f" ({'; '.join(said)})" if said else ""
    changes = []
    if fit.sizes is not None:
        sizes = ",".join("[" + ",".join(f"{s:g}" for s in level) + "]" for level in fit.sizes)
        changes.append(f"--set anchors.sizes=[{sizes}]")
    if fit.ratios is not None:
        changes.append(f"--set anchors.ratios=[{','.join(f'{ratio:g}' for ratio in fit.ratios)}]")
    yield (
        f"{fit.unfit:.1%} of the objects, as the network sees them, have the shape of no anchor"
        f"{why}, and are harder to find. {' '.join(changes)} leaves {fit.unfit_then:.1%}, for a"
        " model that starts from random weights or those of a backbone"
    )


def _scale(found):
    low, high = found.scales
    if high < SCALES * low:
        return
    small, large = found.long_sides
    yield (
        f"The long sides of the images are {small:.0f} to {large:.0f} pixels, which the input"
        f" multiplies by {high:.2g} to {low:.2g}. If all pictures have the same scale, as those of"
        " one microscope or camera height, keep it with --set transform.min_size=[]"
    )


def _counted(numbers: Mapping[str, int]) -> str:
    """List classes with their numbers, the rarest first."""
    ranked = sorted(numbers.items(), key=lambda item: item[1])
    return _names([f"{name} {number}" for name, number in ranked])


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _have(things):
    return "has" if len(things) == 1 else "have"


def _are(things):
    return "is" if len(things) == 1 else "are"


def _round(value, step):
    return int(-(-value // step) * step)
