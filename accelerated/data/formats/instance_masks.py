"""Pictures of ids: Penn-Fudan's folders, images/ with masks/, and a folder per image."""

from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np

from accelerated.data.formats import draft, indexed
from accelerated.data.formats.draft import Draft, Source
from accelerated.data.formats.place import Listing, Place

NAME = "instance masks"
LOOKED_FOR = "masks (in a folder masks or PedMasks)"
# Folders of masks, and the class of the objects in them.
MASKS = {"masks": "object", "mask": "object", "pedmasks": "person"}
IMAGES = ("images", "image", "pngimages")
# Ends of a mask's name that its image lacks.
ENDS = ("_masks", "_mask", "-mask", "_instances", "_instance", "_label")


def recognises(place: Place) -> bool:
    """Tell whether a folder has pictures in a folder of masks, and others beside that."""
    if place.folder is None:
        return False
    masks, pictures = _sorted(place.folder)
    return bool(masks) and (bool(pictures) or place.path.name.casefold() in MASKS)


def read(place: Place, image_root: Path | None) -> Source:
    """Convert pictures of ids, of one class.

    A mask of an image's name holds the ids of its objects, 0 for none. Several masks, in a folder
    of the image's name or beside the image's folder, are an object each.
    Raises ValueError if this is a file.
    """
    if place.folder is None:
        raise ValueError(f"{place.path}: name the folder of images and masks")
    masks, pictures = _sorted(place.folder)
    folder = place.folder
    if image_root is not None:
        folder = Listing(image_root)
        pictures = [n for n in folder.pictures if not _mask_folder(n)] or folder.pictures
    by_key, last = defaultdict(list), {}
    for name in masks:
        for key in _keys(name):
            by_key[key].append(name)
        last[name] = MASKS[_mask_folder(name) or "masks"]
    made = Draft(place.path, NAME, folder)
    used = set()
    for name in pictures:
        found = next((by_key[key] for key in _picture_keys(name) if key in by_key), [])
        used.update(found)
        if found:
            _read_image(made, place.folder, name, found, last[found[0]])
    made.report_unused(set(masks) - used, "no image of its name exists")
    missing = len(pictures) - len(made.images)
    if missing:
        message = f"images without a mask, or with one that cannot be used: {missing} left out"
        made.report("picture_unlabelled", "warn", message)
    names = {annotation["category"] for annotation in made.annotations}
    if names:
        message = f"masks do not name classes: all objects are called {', '.join(sorted(names))}"
        made.report("class_assumed", "note", message)
    return made.source()


def _sorted(folder):
    """Return the masks and the images of a folder."""
    masks = [name for name in folder.pictures if _mask_folder(name)]
    if not masks and folder.path.name.casefold() in MASKS:
        return folder.pictures, []
    others = [name for name in folder.pictures if not _mask_folder(name)]
    inside = [n for n in others if set(map(str.casefold, PurePosixPath(n).parts)) & set(IMAGES)]
    return masks, inside or others


def _mask_folder(name):
    """Return the last folder of masks in a path, or None."""
    parts = map(str.casefold, PurePosixPath(name).parts[:-1])
    return next((part for part in reversed(list(parts)) if part in MASKS), None)


def _plain(name):
    """Drop the folders that sort images from masks, and the suffix."""
    path = PurePosixPath(name).with_suffix("")
    parts = [part.casefold() for part in path.parts[:-1]]
    return (*(p for p in parts if p not in MASKS and p not in IMAGES), path.name.casefold())


def _keys(mask):
    """Return the keys of the image that a mask may belong to."""
    *parents, stem = _plain(mask)
    plain = next((stem.removesuffix(end) for end in ENDS if stem.endswith(end)), stem)
    keys = [(*parents, plain)]
    # masks/NAME/1.png, and NAME/masks/1.png.
    return [*keys, tuple(parents)] if parents else keys


def _picture_keys(name):
    """Return the keys of an image: images/NAME.png, or NAME/images/NAME.png."""
    key = _plain(name)
    return [key, key[:-1], key[-1:]] if len(key) > 1 and key[-2] == key[-1] else [key, key[-1:]]


def _read_image(made, folder, name, masks, category):
    """Add an image with the objects of its masks."""
    loaded = {}
    for mask in masks:
        try:
            loaded[mask] = indexed.numbered(indexed.read(folder.path / mask))
        except ValueError as error:
            made.report("mask_unreadable", "skip", f"{error}; save it as PNG", mask)
    sizes = {values.shape for values in loaded.values()}
    if len(sizes) > 1:
        message = "its masks have different sizes; save them in the size of the image"
        made.report("mask_size", "skip", message, name)
    if len(sizes) != 1:
        return
    height, width = sizes.pop()
    image = made.image(name, (width, height))
    for values in loaded.values():
        if len(loaded) > 1:
            # A mask per object: its values do not matter.
            values = (values > 0).astype(np.uint8)
        found = indexed.runs(values)
        if len(loaded) == 1 and found.keys() == {255}:
            message = "its mask has the values 0 and 255: all of 255 is read as one object"
            made.report("mask_binary", "warn", message, name)
        for counts in found.values():
            made.add(image, category, draft.masked(counts, image))
