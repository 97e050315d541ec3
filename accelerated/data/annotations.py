"""Read a COCO json file: collect every problem, and keep the valid part as records.

No image is opened here.

Severities: "reject" and "skip" stop a training run (`--skip-invalid` skips the annotation or image
instead; a problem of the whole file cannot be skipped); "warn" and "note" do not.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerated.data.file_names import nearest
from accelerated.data.images import MAX_PIXELS
from accelerated.data.instance import Instance, read_instance
from accelerated.data.reading import DEFAULT, Reading
from accelerated.data.values import Invalid, plain, short, whole

# The lists of a COCO file.
PARTS = ("images", "annotations", "categories")
SEVERITIES = ("reject", "skip", "warn", "note")
# What corrects a file, for messages.
FIX = "inspect --fix OUT.json"


@dataclass
class Problem:
    """One problem of a data set.

    code           its name
    severity       "reject", "skip", "warn" or "note"
    scope          what is affected: the "file", an "image" or an "annotation"
    file           the image's file name, or the json's for a problem of the whole file
    image_id       of the image, or None
    annotation_id  of the annotation, or None
    message        what is wrong, and what to do
    index          of the image or annotation in the file's list, or None
    """

    code: str
    severity: str
    scope: str
    file: str
    image_id: Any
    annotation_id: Any
    message: str
    index: int | None = None

    @property
    def blocking(self) -> bool:
        """Tell whether the problem stops a training run."""
        return self.severity in ("reject", "skip")

    @property
    def part(self) -> str:
        """The list of the file that `index` counts in."""
        return "images" if self.scope == "image" else "annotations"

    def entry(self, content: dict) -> dict:
        """Return the image or annotation with the problem, as it is in the file."""
        entry = None if self.index is None else content[self.part][self.index]
        return entry if isinstance(entry, dict) else {}

    @property
    def where(self) -> str:
        """Name the file, the image and the annotation, as far as there are any."""
        where = [self.file]
        where += [f"image {self.image_id}"] if self.image_id is not None else []
        where += [f"annotation {self.annotation_id}"] if self.annotation_id is not None else []
        return ", ".join(where)

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.message} [{self.code}]"


@dataclass
class ImageRecord:
    """An image of the file with its valid annotations.

    measured  whether the size was read from the image file, because the json has none
    index     in the file's list of images
    """

    id: Any
    file_name: Any
    width: int
    height: int
    measured: bool = False
    index: int | None = None
    instances: list[Instance] = field(default_factory=list)

    @property
    def objects(self) -> list[Instance]:
        """The annotations that are no crowd regions."""
        return [instance for instance in self.instances if not instance.crowd]


@dataclass
class Records:
    """The valid part of a file: {id: name} by rising id, and {id: ImageRecord} in its order.

    content  the whole file, parsed; None if it cannot be read
    """

    categories: dict[int, str] = field(default_factory=dict)
    images: dict[Any, ImageRecord] = field(default_factory=dict)
    content: Any = None


def read(
    path: str | Path,
    content: Any = None,
    reading: Reading = DEFAULT,
    size_of: Callable[[Any], tuple[int, int] | None] = lambda file_name: None,
) -> tuple[Records, list[Problem]]:
    """Read a COCO json file. Never raises, whatever the file contains.

    content  its parsed content; None: read the file
    reading  what the file leaves open
    size_of  returns (width, height) of an image file that the file gives no size of, if it can
    """
    reader = _Reader(Path(path), reading, size_of)
    try:
        reader.records.content = reader.parse() if content is None else content
        reader.read(reader.records.content)
    except Invalid as invalid:
        reader.add(*invalid.problem, scope="file")
        return Records(content=reader.records.content), reader.problems
    return reader.records, reader.problems


class _Reader:
    """Collects the records and problems of one file. Raises Invalid if nothing can be read."""

    def __init__(self, path, reading, size_of):
        self.reading, self.size_of = reading, size_of
        self.path, self.problems, self.records = path, [], Records()
        self.all_image_ids, self.texts, self.drawn = set(), {}, set()

    def add(
        self, code, severity, message, *, scope, file=None, image=None, annotation=None, at=None
    ):
        """Add a problem."""
        file = file if isinstance(file, str) else self.path.name
        self.problems.append(Problem(code, severity, scope, file, image, annotation, message, at))

    def read(self, data):
        """Read the whole file, parsed."""
        if not isinstance(data, dict):
            name = type(data).__name__
            message = f"the top level is a {name}"
            entry = data[0] if isinstance(data, list) and data else None
            if isinstance(entry, dict) and "image_id" in entry:
                kind = "results" if "score" in entry else "annotations without images"
                message = f"this is a list of {kind}"
            needed = "write an object with images, annotations, categories"
            raise Invalid("not_coco", f"{message}; {needed}")
        for key in PARTS:
            if not isinstance(data.get(key), list):
                state = "is not a list" if key in data else "is missing"
                raise Invalid(
                    f"{key}_missing",
                    f'"{key}" {state}; a COCO file has images, annotations and categories',
                )
        for key in ("images", "categories"):
            if not data[key]:
                raise Invalid(f"{key}_empty", f'"{key}" is empty; add at least one')
        self.read_categories(data["categories"])
        self.read_images(data["images"])
        self.read_annotations(data["annotations"])
        if not data["annotations"]:
            message = "there are no annotations; this allows prediction, but no training"
            self.add("annotations_empty", "warn", message, scope="file")

    def parse(self):
        """Parse the JSON."""
        try:
            raw = self.path.read_bytes()
        except OSError as error:
            message = f"the file cannot be read: {error.strerror}{nearest(self.path, '.json')}"
            raise Invalid("json_unreadable", message) from None
        if not raw.strip():
            raise Invalid("json_invalid", "the file is empty")
        if raw.startswith(b"\xef\xbb\xbf"):
            message = "the file begins with a byte-order mark, which was ignored"
            self.add("json_bom", "note", message, scope="file")
        # JSONDecodeError and UnicodeDecodeError are ValueErrors.
        try:
            return json.loads(raw, object_pairs_hook=self.unique_keys)
        except (ValueError, RecursionError) as error:
            raise Invalid("json_invalid", f"the file is not JSON: {error}") from None

    def unique_keys(self, pairs):
        """Make a dictionary of an object's (key, value) pairs and report repeated keys."""
        values = dict(pairs)
        if len(values) != len(pairs):
            seen = {}
            for key, value in pairs:
                if key in seen and seen[key] != value:
                    message = f'the key "{key}" appears twice in an object, with different values;'
                    self.add("duplicate_key", "reject", f"{message} remove one", scope="file")
                seen[key] = value
        return values

    def read_categories(self, categories):
        """Collect the categories' names by id."""
        names = {}
        for category in categories:
            category_id = whole(category.get("id")) if isinstance(category, dict) else None
            if category_id is None:
                message = f"category {short(category)} needs an integer as id"
                if isinstance(category, dict) and number(category.get("id")) is not None:
                    message += f", not a text: {FIX} corrects this"
                raise Invalid("category_invalid", message)
            name = category.get("name")
            if not isinstance(name, str) or not name:
                name = str(category_id)
                message = f"category {category_id} has no name; it is called {name}"
                self.add("category_name_missing", "warn", message, scope="file")
            if names.get(category_id, name) != name:
                raise Invalid(
                    "duplicate_category_id",
                    f"two categories have the id {category_id}: {names[category_id]!r} and"
                    f" {name!r}; give each a different id",
                )
            if name in names.values() and category_id not in names:
                message = f"two categories are called {name!r}"
                self.add("duplicate_category_name", "warn", message, scope="file")
            names[category_id] = name
        self.records.categories = dict(sorted(names.items()))

    def read_images(self, images):
        """Collect the valid images. Different images with the same id are all rejected."""
        originals, files, ambiguous = {}, {}, set()
        for at, image in enumerate(images):
            if not isinstance(image, dict):
                message = f"an image is {short(image)}, not an object; correct or delete it"
                self.add("image_invalid", "reject", message, scope="image", at=at)
                continue
            name, image_id = image.get("file_name"), plain(image.get("id"))
            where = {"scope": "image", "file": name, "image": image_id, "at": at}
            try:
                record = self.image_record(image, where)
            except Invalid as invalid:
                self.add(*invalid.problem, **where)
                continue
            if record.id in originals:
                problem = f"two images have the id {record.id};"
                if originals[record.id] == image:
                    message = f"{problem} the second is skipped"
                    self.add("duplicate_image_id", "warn", message, **where)
                else:
                    message = f"{problem} give each a different id"
                    self.add("duplicate_image_id", "reject", message, **where)
                    ambiguous.add(record.id)
                continue
            if isinstance(name, str) and name in files:
                message = f"images {files[name]} and {record.id} are the same file; both are used"
                self.add("duplicate_file_name", "warn", message, **where)
            elif isinstance(name, str):
                files[name] = record.id
            originals[record.id] = image
            self.records.images[record.id] = record
        for image_id in ambiguous:
            del self.records.images[image_id]
        # Rejected images too, so that their annotations are not reported as well.
        self.all_image_ids = {plain(i.get("id")) for i in images if isinstance(i, dict)}
        self.texts = counterparts(self.all_image_ids)

    def image_record(self, image, where):
        """Check an image's id and size."""
        image_id = image.get("id")
        if not isinstance(image_id, str) and whole(image_id) is None:
            raise Invalid(
                "image_id_invalid", f"the image's id is {short(image_id)}; write an integer"
            )
        measured = image.get("width") is None and image.get("height") is None
        if measured:
            found = self.size_of(image.get("file_name"))
            if found is None:
                message = "width and height are missing, and the file does not tell them;"
                raise Invalid("image_size_invalid", f"{message} write them in pixels")
            width, height = found
            message = f"width and height are missing; the file is {width}x{height}"
            self.add("image_size_missing", "warn", message, **where)
        else:
            width, height = (self.side(image, key) for key in ("width", "height"))
        if width * height > MAX_PIXELS:
            raise Invalid(
                "image_too_large",
                f"{width}x{height} is more than {MAX_PIXELS:,} pixels; crop or shrink the image",
            )
        return ImageRecord(
            plain(image_id), image.get("file_name"), width, height, measured, where["at"]
        )

    def side(self, image, key):
        """Check an image's width or height."""
        side = whole(image.get(key))
        if side is None or side <= 0:
            raise Invalid(
                "image_size_invalid",
                f"{key} is {short(image.get(key))}; write the image's {key} in pixels",
            )
        return side

    def read_annotations(self, annotations):
        """Add the valid annotations to their images."""
        seen = set()
        for at, annotation in enumerate(annotations):
            if not isinstance(annotation, dict):
                message = f"an annotation is {short(annotation)}, not an object;"
                message += " correct or delete it"
                self.add("annotation_invalid", "reject", message, scope="annotation", at=at)
                continue
            self.read_annotation(annotation, seen, at)

    def read_annotation(self, annotation, seen, at):
        """Add one annotation to its image, or report it. `seen` holds the ids so far."""
        annotation_id, image_id = plain(annotation.get("id")), plain(annotation.get("image_id"))
        image = self.records.images.get(image_id)
        where = {
            "scope": "annotation",
            "annotation": annotation_id,
            "image": image_id,
            "file": image.file_name if image else None,
            "at": at,
        }
        if annotation_id is None:
            self.add("annotation_id_missing", "note", "the annotation has no id", **where)
        elif annotation_id in seen:
            message = f"two annotations have the id {annotation_id}; both are used, renumbered"
            self.add("duplicate_annotation_id", "warn", message, **where)
        seen.add(annotation_id)
        try:
            if image is None:
                self.check_image_id(annotation, image_id)
                # Its image was rejected, which has been reported.
                return
            known = self.records.categories
            instance, remarks = read_instance(annotation, image, known, self.reading)
            drawn = image_id, instance.category_id, instance.box, instance.counts
            if drawn in self.drawn:
                message = "the same object is in the file twice; both are used"
                remarks.append(("duplicate_annotation", "warn", message))
            self.drawn.add(drawn)
            image.instances.append(instance)
        except Invalid as invalid:
            remarks = [invalid.problem]
        for remark in remarks:
            self.add(*remark, **where)

    def check_image_id(self, annotation, image_id):
        """Check that an annotation names an image of the file."""
        if "image_id" not in annotation:
            raise Invalid(
                "image_id_missing", "the annotation has no image_id; write the id of its image"
            )
        if image_id in self.all_image_ids:
            return
        hint = "write an id from the list of images"
        if number(image_id) in self.all_image_ids - {None}:
            hint = f"the image's id is the number {number(image_id)}, this is a text"
            hint += "; write the number"
        elif image_id in self.texts:
            hint = f"the image's id is the text {self.texts[image_id]!r}, this is a number"
            hint += "; write the same for both"
        value = short(annotation["image_id"])
        raise Invalid("unknown_image", f"image_id {value} belongs to no image; {hint}")


def has_parts(content: Any) -> bool:
    """Tell whether parsed JSON has the three lists of a COCO file."""
    return isinstance(content, dict) and all(isinstance(content.get(p), list) for p in PARTS)


def number(text: Any) -> int | None:
    """Return the number that a text writes, or None."""
    written = isinstance(text, str) and text.strip().isdecimal() and len(text) < 20
    return int(text) if written else None


def counterparts(known: Collection) -> dict[int, str]:
    """Map numbers to the ids that are the same number written as text, each if there is one."""
    texts = [(number(value), value) for value in known]
    counts = Counter(value for value, _ in texts)
    return {value: text for value, text in texts if value is not None and counts[value] == 1}
