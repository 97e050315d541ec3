"""Pascal VOC's instance segmentation: two pictures of palette indices per image."""

from pathlib import Path, PurePosixPath

import numpy as np

from accelerated.data.formats import draft, indexed
from accelerated.data.formats.draft import Draft, Source
from accelerated.data.formats.place import Listing, Place
from accelerated.data.text_files import read_lines

NAME = "Pascal VOC"
LOOKED_FOR = "Pascal VOC (SegmentationObject)"
CLASSES = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]
VOID = 255


def recognises(place: Place) -> bool:
    """Tell whether a folder has both folders of masks."""
    return place.folder is not None and _top(place.folder) is not None


def read(place: Place, image_root: Path | None) -> Source:
    """Convert the images that ImageSets/Segmentation lists for a part of the data set.

    The part is "train" unless the place says otherwise; without lists, all. A class is the most
    frequent one under an object; 255 is no object. Class names are those of labelmap.txt, as CVAT
    writes it, or Pascal's.
    Raises ValueError for a part that does not exist.
    """
    folder = place.folder
    top = None if folder is None else _top(folder)
    if folder is None or top is None:
        raise ValueError(f"{place.path}: name the folder that holds SegmentationObject")
    pictures = folder if image_root is None else Listing(image_root)
    names, colours = _labelmap(folder, top)
    made = Draft(place.path, NAME, pictures, names)
    for stem in _listed(made, place, folder, top):
        _read_image(made, folder, top, stem, names, colours)
    return made.source()


def _top(folder):
    """Return the path in front of SegmentationObject, if SegmentationClass is there too."""
    for name in folder.having(".png"):
        head, found, _ = f"/{name}".partition("/SegmentationObject/")
        prefix = f"{head[1:]}/" if head else ""
        if found and any(n.startswith(f"{prefix}SegmentationClass/") for n in folder.files):
            return prefix
    return None


def _listed(made, place, folder, top):
    """Return the stems of the images of the part that is asked for."""
    inside = f"{top}ImageSets/Segmentation/"
    lists = {PurePosixPath(n).stem: n for n in folder.having(".txt") if n.startswith(inside)}
    part = place.split or ("train" if "train" in lists else None)
    if part in lists:
        try:
            lines = read_lines(folder.path / lists[part])
        except ValueError as error:
            raise ValueError(f"{lists[part]}: {error}") from None
        made.report_part(part)
        return [line.split()[0] for line in lines if line.strip()]
    if place.split:
        parts = ", ".join(sorted(lists)) or "none"
        raise ValueError(f"{place.path}: has no part {place.split}; its parts are {parts}")
    masks = [n for n in folder.having(".png") if n.startswith(f"{top}SegmentationObject/")]
    return [PurePosixPath(name).stem for name in masks]


def _labelmap(folder, top):
    """Return the class names from 1, and {colour: index} for masks of colours."""
    palette = {_colour(index): index for index in range(256)}
    path = next((n for n in (f"{top}labelmap.txt", "labelmap.txt") if n in folder.files), None)
    if path is None:
        return CLASSES, palette
    names, colours = [], {0: 0}
    try:
        lines = read_lines(folder.path / path)
    except ValueError:
        return CLASSES, palette
    for line in lines:
        name, _, rest = line.partition(":")
        words = rest.split(":")[0].split(",")
        if line.startswith("#") or len(words) != 3 or not all(w.strip().isdecimal() for w in words):
            continue
        red, green, blue = (min(int(word), 255) for word in words)
        if name.strip() != "background":
            names.append(name.strip())
            colours[red << 16 | green << 8 | blue] = len(names)
    return names, colours


def _colour(index):
    """Return the colour of an index in Pascal's palette, as one number: bits, spread by threes."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    red, green, blue = channels
    return red << 16 | green << 8 | blue


def _read_image(made, folder, top, stem, names, colours):
    """Add an image with its objects."""
    masks = []
    for kind in ("Object", "Class"):
        path = f"{top}Segmentation{kind}/{stem}.png"
        try:
            if path not in folder.files:
                raise ValueError(f"{path} does not exist")
            masks.append(indexed.read(folder.path / path))
        except ValueError as error:
            made.report("mask_unreadable", "skip", str(error), stem)
            return
    objects, classes = masks
    if objects.shape[:2] != classes.shape[:2]:
        made.report("mask_size", "skip", "its two masks have different sizes", stem)
        return
    found = made.pictures.find_stem(f"{top}JPEGImages/{stem}")
    if found is None:
        made.report_missing(f"JPEGImages/{stem}.jpg", stem)
        return
    image = made.image(found, (objects.shape[1], objects.shape[0]))
    if classes.ndim == 3:
        numbers, inverse = np.unique(indexed.numbered(classes), return_inverse=True)
        known = np.array([colours.get(int(number), VOID) for number in numbers])
        classes = known[inverse].reshape(classes.shape[:2])
    void = _colour(VOID) if objects.ndim == 3 else VOID
    for number, counts in indexed.runs(indexed.numbered(objects)).items():
        if number == void:
            continue
        under = np.bincount(classes.T.ravel()[_inside(counts)])
        # The background and the rim between objects are no classes.
        under[[0, *([VOID] if len(under) > VOID else [])]] = 0
        label = int(under.argmax())
        if not under[label]:
            message = f"object {number} has no class in SegmentationClass and is skipped"
            made.report("class_missing", "skip", message, found)
            continue
        name = names[label - 1] if label <= len(names) else f"class {label}"
        made.add(image, name, draft.masked(counts, image))


def _inside(counts):
    """Return the mask [n] of the pixels, column by column, that run lengths cover."""
    covered = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.flatnonzero(covered)
