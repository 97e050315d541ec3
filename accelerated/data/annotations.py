"""Read a COCO json file: collect every problem, and keep the valid part as records.

No image is opened here.

Severities: "reject" and "skip" stop a training run (`--skip-invalid` skips the annotation or image
instead; a problem of the whole file cannot be skipped); "warn" and "note" do not.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerated.data.images import MAX_PIXELS
from accelerated.data.instance import Instance, Invalid, plain, read_instance, short, whole
from accelerated.data.reading import DEFAULT, Reading


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
    """

    code: str
    severity: str
    scope: str
    file: str
    image_id: Any
    annotation_id: Any
    message: str

    @property
    def blocking(self) -> bool:
        """Tell whether the problem stops a training run."""
        return self.severity in ("reject", "skip")

    def __str__(self) -> str:
        where = [self.file]
        where += [f"image {self.image_id}"] if self.image_id is not None else []
        where += [f"annotation {self.annotation_id}"] if self.annotation_id is not None else []
        return f"{self.severity}: {', '.join(where)}: {self.message} [{self.code}]"


@dataclass
class ImageRecord:
    """An image of the file with its valid annotations."""

    id: Any
    file_name: Any
    width: int
    height: int
    instances: list[Instance] = field(default_factory=list)

    @property
    def objects(self) -> list[Instance]:
        """The annotations that are no crowd regions."""
        return [instance for instance in self.instances if not instance.crowd]


@dataclass
class Records:
    """The valid part of a file: {id: name} by rising id, and {id: ImageRecord} in its order."""

    categories: dict[int, str] = field(default_factory=dict)
    images: dict[Any, ImageRecord] = field(default_factory=dict)


def read(
    path: str | Path, content: Any = None, reading: Reading = DEFAULT
) -> tuple[Records, list[Problem]]:
    """Read a COCO json file. Never raises, whatever the file contains.

    content  its parsed content; None: read the file
    reading  what the file leaves open
    """
    reader = _Reader(Path(path), reading)
    try:
        reader.read(reader.parse() if content is None else content)
    except Invalid as invalid:
        reader.add(*invalid.problem, scope="file")
        return Records(), reader.problems
    return reader.records, reader.problems


class _Reader:
    """Collects the records and problems of one file. Raises Invalid if nothing can be read."""

    def __init__(self, path, reading):
        self.reading = reading
        self.path, self.problems, self.records, self.all_image_ids = path, [], Records(), set()

    def add(self, code, severity, message, *, scope, file=None, image=None, annotation=None):
        """Add a problem."""
        file = file if isinstance(file, str) else self.path.name
        self.problems.append(Problem(code, severity, scope, file, image, annotation, message))

    def read(self, data):
        """Read the whole file, parsed."""
        if not isinstance(data, dict):
            name = type(data).__name__
            raise Invalid(
                "not_coco",
                f"the top level is a {name}; write an object with images, annotations, categories",
            )
        for key in ("images", "annotations", "categories"):
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
            raise Invalid("json_unreadable", f"the file cannot be read: {error.strerror}") from None
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
                raise Invalid(
                    "category_invalid", f"category {short(category)} needs an integer as id"
                )
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
        for image in images:
            if not isinstance(image, dict):
                message = f"an image is {short(image)}, not an object; correct or delete it"
                self.add("image_invalid", "reject", message, scope="image")
                continue
            name = image.get("file_name")
            try:
                record = self.image_record(image)
            except Invalid as invalid:
                image_id = plain(image.get("id"))
                self.add(*invalid.problem, scope="image", file=name, image=image_id)
                continue
            where = {"scope": "image", "file": name, "image": record.id}
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

    def image_record(self, image):
        """Check an image's id and size."""
        image_id = image.get("id")
        if not isinstance(image_id, str) and whole(image_id) is None:
            raise Invalid(
                "image_id_invalid", f"the image's id is {short(image_id)}; write an integer"
            )
        sides = []
        for key in ("width", "height"):
            side = whole(image.get(key))
            if side is None or side <= 0:
                raise Invalid(
                    "image_size_invalid",
                    f"{key} is {short(image.get(key))}; write the image's {key} in pixels",
                )
            sides.append(side)
        width, height = sides
        if width * height > MAX_PIXELS:
            raise Invalid(
                "image_too_large",
                f"{width}x{height} is more than {MAX_PIXELS:,} pixels; crop or shrink the image",
            )
        return ImageRecord(plain(image_id), image.get("file_name"), width, height)

    def read_annotations(self, annotations):
        """Add the valid annotations to their images."""
        seen = set()
        for annotation in annotations:
            if not isinstance(annotation, dict):
                message = f"an annotation is {short(annotation)}, not an object;"
                message += " correct or delete it"
                self.add("annotation_invalid", "reject", message, scope="annotation")
                continue
            self.read_annotation(annotation, seen)

    def read_annotation(self, annotation, seen):
        """Add one annotation to its image, or report it. `seen` holds the ids so far."""
        annotation_id, image_id = plain(annotation.get("id")), plain(annotation.get("image_id"))
        image = self.records.images.get(image_id)
        where = {
            "scope": "annotation",
            "annotation": annotation_id,
            "image": image_id,
            "file": image.file_name if image else None,
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
            instance, remarks = read_instance(annotation, image, self.records.categories)
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
        if isinstance(image_id, str) and image_id.strip().isdecimal():
            number = int(image_id)
            if number in self.all_image_ids:
                hint = f"the image's id is the number {number}, this is a text; write the number"
        value = short(annotation["image_id"])
        raise Invalid("unknown_image", f"image_id {value} belongs to no image; {hint}")
