"""YOLO as Ultralytics reads it: a text file per image, a row per object, in parts of its sides."""

from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from accelerated.data.formats import draft, outlines, writing
from accelerated.data.formats.draft import Draft, Source
from accelerated.data.formats.place import Listing, Place, linked_images
from accelerated.data.text_files import parse_yaml, read_lines
from accelerated.data.values import finite, short, whole

NAME = "YOLO"
LOOKED_FOR = "YOLO (data.yaml, or labels with .txt files)"
# Files of class names, a line each.
CLASSES = ("classes.txt", "obj.names", "_darknet.labels")
# The same part of a data set under different names.
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
# Coordinates are parts of a side; a larger one is in pixels.
LARGEST = 2.0


def recognises(place: Place) -> bool:
    """Tell whether this is a YAML file that names classes, or a folder with one or with labels."""
    if place.folder is None:
        return place.path.is_file() and bool(_layout(place.path))
    if _layout_file(place.folder):
        return True
    return bool(_labels(place.folder))


def read(place: Place, image_root: Path | None) -> Source:
    """Convert a YOLO data set: a part of it, "train" unless the place says otherwise.

    A row of a class and four numbers is a box without a mask; of six and more, an outline. An
    image without a text file has no objects. Sizes are those of the images as displayed.
    Raises ValueError for a part that does not exist, or for no pictures.
    """
    folder, layout, file = place.folder, {}, None
    if folder is None:
        folder, file = Listing(place.path.parent), place.path
    else:
        name = _layout_file(folder)
        file = folder.path / name if name else None
    if file is not None:
        layout = _layout(file)
    beside = folder.path.parent / "images"
    if image_root is None and folder.path.name == "labels" and beside.is_dir():
        image_root = beside
    image_root = image_root or linked_images(folder.path)
    pictures = folder if image_root is None else Listing(image_root)
    names = _class_names(layout, folder)
    made = Draft(place.path, NAME, pictures, names)
    if not names:
        made.report("class_names_missing", "warn", "no file names the classes: they are numbered")
    labels = _labels(folder)
    chosen = _chosen(made, place, folder, layout, labels)
    if not chosen:
        raise ValueError(f"{place.path}: no picture in {pictures.path}; name it with --images")
    label_of = {name: _find_label(name, labels) for name in chosen}
    for name, label in label_of.items():
        image = made.image(name)
        if image and label:
            _read_rows(made, folder, label, image)
    parents = {_key(name)[:-1] for name in chosen}
    found = set(label_of.values())
    for key, name in sorted(pair for pairs in labels.values() for pair in pairs):
        if key[:-1] in parents and name not in found:
            message = "no picture of this name is in the image folder; add it or delete the labels"
            made.report("file_missing", "skip", message, name)
    empty = sum(label is None for label in label_of.values())
    if empty:
        message = f"pictures without a text file: {empty}, read as pictures without objects"
        # So many may be pictures that nobody has labelled yet.
        severity = "warn" if 2 * empty > len(chosen) else "note"
        made.report("picture_unlabelled", severity, message)
    return made.source()


def _layout(path: Path) -> dict:
    """Return the content of a YAML file that describes a data set; {} for any other file."""
    if path.suffix.lower() not in (".yaml", ".yml"):
        return {}
    try:
        content = parse_yaml(path)
    except ValueError:
        return {}
    if not isinstance(content, dict) or not isinstance(content.get("names"), list | dict):
        return {}
    return content


def _layout_file(folder):
    """Return the YAML file at the top of a folder that describes a data set, or None."""
    top = [name for name in folder.having(".yaml", ".yml") if "/" not in name]
    return next((name for name in top if _layout(folder.path / name)), None)


def _class_names(layout: dict, folder: Listing) -> list[str]:
    """Return the class names by their number; repeated ones are told apart by it."""
    names: Any = layout.get("names")
    if isinstance(names, dict):
        # Keys are numbers, or texts of numbers.
        numbers = {int(key): name for key, name in names.items() if str(key).isdecimal()}
        last = max(numbers, default=-1)
        # A number beyond all measure must not make a list of that length.
        names = [numbers.get(k, f"class {k}") for k in range(min(last, 100_000) + 1)]
    if not names:
        lists = [name for name in folder.files if PurePosixPath(name).name in CLASSES]
        try:
            names = [line.strip() for line in read_lines(folder.path / lists[0]) if line.strip()]
        except (ValueError, IndexError):
            names = []
    names = [str(name).strip() or f"class {k}" for k, name in enumerate(names)]
    return [f"{name} ({k})" if name in names[:k] else name for k, name in enumerate(names)]


def _labels(folder: Listing) -> dict[str, list[tuple[tuple[str, ...], str]]]:
    """Return the label files of a folder, {stem: [(key, path)]}."""
    texts = [n for n in folder.having(".txt") if PurePosixPath(n).name not in CLASSES]
    inside = [name for name in texts if "labels" in PurePosixPath(name).parts[:-1]]
    # Elsewhere other texts may stand beside them.
    found = inside or [name for name in texts if _holds_rows(folder.path / name)]
    by_stem = defaultdict(list)
    for name in found:
        by_stem[_key(name)[-1]].append((_key(name), name))
    return by_stem


def _holds_rows(path):
    """Tell whether a text begins with the row of an object."""
    try:
        _numbers_of(next(line.split() for line in read_lines(path) if line.strip()))
    except (ValueError, StopIteration):
        return False
    return True


def _key(name):
    """Name an image and its label file alike: images/train/a.jpg and labels/train/a.txt."""
    path = PurePosixPath(name).with_suffix("")
    parents = (part for part in path.parts[:-1] if part.casefold() not in ("images", "labels"))
    return (*parents, path.name)


def _find_label(picture, labels):
    """Return the label file of a picture, or None."""
    key, fitting = _key(picture), []
    for other, name in labels.get(key[-1], ()):
        if other == key:
            return name
        # The image folder may stand deeper than the labels, or the other way round.
        length = min(len(key), len(other))
        if other[-length:] == key[-length:]:
            fitting.append(name)
    return fitting[0] if len(fitting) == 1 else None


def _chosen(made, place, folder, layout, labels):
    """Return the pictures of the part that is asked for."""
    pictures, wanted = made.pictures.pictures, _split(place.split or "train")
    stated = [key for key in layout if isinstance(key, str) and _split(key) == wanted]
    if place.split and layout and not stated:
        parts = [key for key in ("train", "val", "valid", "test") if key in layout]
        raise ValueError(f"{place.path}: has no part {place.split}, but {', '.join(parts)}")
    if stated and layout[stated[0]]:
        entries = layout[stated[0]]
        chosen = []
        for entry in entries if isinstance(entries, list) else [entries]:
            chosen += _entry(made, folder, str(layout.get("path") or ""), str(entry))
        if chosen:
            made.report_part(stated[0])
            return sorted(set(chosen))
    parts = {part: _split(part) for name in pictures for part in PurePosixPath(name).parts[:-1]}
    if wanted in parts.values() and (place.split or set(parts.values()) & {"val", "test"}):
        made.report_part(wanted)
        folders = [part for part, split in parts.items() if split == wanted]
        return [n for n in pictures if set(PurePosixPath(n).parts[:-1]).intersection(folders)]
    if place.split:
        raise ValueError(f"{place.path}: has no part {place.split}")
    beside = any(_find_label(name, labels) for name in pictures)
    return list(pictures) if beside else []


def _entry(made, folder, root, entry):
    """Return the pictures of an entry of data.yaml: a folder, a picture or a list of pictures.

    Its path may start above the data set, as in data.yaml of another machine: then the longest end
    of it that exists is read.
    """
    parts = PurePosixPath(f"{root}/{entry}".replace("\\", "/")).parts
    parts = [part for part in parts if part not in ("/", ".", "..")]
    for start in range(len(parts)):
        path = "/".join(parts[start:])
        inside = [name for name in made.pictures.pictures if f"{name}/".startswith(f"{path}/")]
        if not inside and path.endswith(".txt") and path in folder.files:
            lines = _lines_of(made, folder.path / path)
            inside = list(filter(None, map(made.pictures.find, lines)))
            if len(inside) < len(lines):
                message = "pictures that it lists and that do not exist: "
                message += f"{len(lines) - len(inside)}; add them or correct the list"
                made.report("file_missing", "skip", message, path)
        if inside:
            if start:
                message = f"{root}{'/' * bool(root)}{entry} is read as {path}"
                made.report("path_shortened", "note", message)
            return inside
    message = f"{entry} is not below {made.pictures.path}; name that folder with --images"
    made.report("folder_missing", "warn", message)
    return []


def _lines_of(made, path):
    try:
        return [line.strip() for line in read_lines(path) if line.strip()]
    except ValueError as error:
        made.report("file_unreadable", "skip", str(error), path.name)
        return []


def _split(name):
    return SPLITS.get(name.casefold(), name.casefold())


def _read_rows(made, folder, label, image):
    """Add the objects of a label file."""
    try:
        rows = [line.split() for line in read_lines(folder.path / label)]
    except ValueError as error:
        made.report("labels_unreadable", "skip", str(error), label)
        return
    for number, row in enumerate(rows, start=1):
        if not row:
            continue
        try:
            index, values = _numbers_of(row)
            name = _class_of(made, index)
        except ValueError as error:
            message = f"row {number} is skipped: {error}; correct it or delete it"
            made.report("row_invalid", "skip", message, label)
            continue
        width, height = image["width"], image["height"]
        if len(values) >= 6:
            sides = [side * (height if k % 2 else width) for k, side in enumerate(values)]
            made.add(image, name, draft.outlined([sides], image))
        else:
            scales = width, height, width, height
            x, y, w, h = (part * side for part, side in zip(values, scales, strict=True))
            made.add(image, name, draft.boxed(x - w / 2, y - h / 2, x + w / 2, y + h / 2))


def _numbers_of(row):
    """Return the class number and the coordinates of a row; a score behind a box is dropped."""
    try:
        numbers = [float(word) for word in row]
    except ValueError:
        raise ValueError(f"it has {short(' '.join(row))}, not numbers") from None
    label, values = whole(numbers[0]), numbers[1:]
    if label is None or label < 0:
        raise ValueError(f"its class is {row[0]}, not a number from 0")
    if len(values) == 5:
        values.pop()
    if len(values) < 4 or len(values) % 2:
        raise ValueError(f"it has {len(values)} coordinates; they come in pairs of x and y")
    if not all(map(finite, values)) or max(map(abs, values)) > LARGEST:
        worst = max(values, key=abs)
        raise ValueError(f"a coordinate is {worst:g}; write them as parts of width and height")
    return label, values


def _class_of(made, label):
    names = made.categories
    if names and label >= len(names):
        raise ValueError(f"its class is {label}, but the classes are 0 to {len(names) - 1}")
    return names[label] if names else f"class {label}"


def write(content: dict, folder: Path, image_root: str | Path | None = None) -> None:
    """Write a COCO dictionary as a folder of YOLO labels, labels/*.txt with classes.txt.

    content     images, annotations, categories
    image_root  folder that its file names are relative to; None: the working folder

    Parts and holes of an object are joined to one row by lines of no width, see `outlines`. An
    object without a mask is a row of a box. Ids, scores and crowd regions are lost; classes are
    numbered from 0 in the order of `categories`. data.yaml names them, and images.txt, a list of
    the images in the folder "images" beside "labels", a link to theirs.
    Raises ValueError if two images differ in their suffix alone, for they would share a file.
    """
    folder, categories = Path(folder), content["categories"]
    index = {category["id"]: k for k, category in enumerate(categories)}
    objects, images = writing.objects_by_image(content), content["images"]
    plain = [image["file_name"].replace("\\", "/") for image in images]
    if image_root is not None and all(name.startswith("images/") for name in plain):
        plain = [name.removeprefix("images/") for name in plain]
        image_root = Path(image_root) / "images"
    picture_folder, paths = writing.label_paths(plain, ".txt", image_root)
    for image, path in zip(images, paths, strict=True):
        if PurePosixPath(image["file_name"].replace("\\", "/")).stem != path.stem:
            raise ValueError(
                f"{image['file_name']} and another picture would share the labels"
                f" {path.stem.rpartition('_')[0]}.txt: rename one of them"
            )
    names = [" ".join(category["name"].split()) for category in categories]
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    writing.link_images(folder, picture_folder)
    (folder / "labels" / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    listed = [
        f"./images/{path.with_suffix(PurePosixPath(name).suffix).as_posix()}\n"
        for path, name in zip(paths, plain, strict=True)
    ]
    (folder / "images.txt").write_text("".join(listed))
    layout = {"train": "images.txt", "val": "images.txt", "names": dict(enumerate(names))}
    text = yaml.safe_dump(layout, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text)
    for image, path in zip(images, paths, strict=True):
        rows = [
            [index[annotation["category_id"]], *_numbers(annotation, image)]
            for annotation in objects[image["id"]]
        ]
        path = folder / "labels" / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(" ".join(f"{v:.12g}" for v in row) + "\n" for row in rows))


def _numbers(annotation, image):
    """Return the outline x1, y1, x2, y2, .. of an object, or its box by centre and size."""
    width, height = image["width"], image["height"]
    parts = outlines.polygons(annotation.get("segmentation") or [])
    if parts:
        return (outlines.joined(parts) / [width, height]).ravel().tolist()
    x, y, w, h = annotation["bbox"]
    return [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
