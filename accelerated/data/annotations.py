"""The COCO json file: read strictly, every problem noted, what is sound kept as records. No image is opened here.

Severities: "reject" and "skip" stop a training run (`--skip-invalid` leaves the annotation or image out instead; a
problem of the whole file cannot be left out); "warn" and "note" do not.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from accelerated.data.images import MAX_PIXELS
from accelerated.data.instance import Invalid, plain, read_instance, short, whole


@dataclass
class Problem:
    code: str
    severity: str  # "reject", "skip", "warn" or "note"
    scope: str  # what is affected: the "file", an "image" or an "annotation"
    file: str  # the image's file name, or the json's for a problem of the whole file
    image_id: object
    annotation_id: object
    message: str  # what is wrong, and what to do

    @property
    def blocking(self):
        return self.severity in ("reject", "skip")

    def __str__(self):
        where = [self.file]
        where += [f"image {self.image_id}"] if self.image_id is not None else []
        where += [f"annotation {self.annotation_id}"] if self.annotation_id is not None else []
        return f"{self.severity}: {', '.join(where)}: {self.message} [{self.code}]"


@dataclass
class ImageRecord:
    id: object  # int, or str
    file_name: object
    width: int
    height: int
    instances: list = field(default_factory=list)


@dataclass
class Records:
    categories: dict = field(default_factory=dict)  # {id: name}, by rising id
    images: dict = field(default_factory=dict)  # {id: ImageRecord}, in the file's order


def read(json_path):
    """(Records, [Problem]) of a COCO json file. Never raises, whatever the file holds."""
    reader = _Reader(Path(json_path))
    try:
        reader.read()
    except Invalid as invalid:
        reader.note(*invalid.problem, scope="file")
        return Records(), reader.problems
    return reader.records, reader.problems


class _Reader:
    def __init__(self, path):
        self.path, self.problems, self.records, self.all_image_ids = path, [], Records(), set()

    def note(self, code, severity, message, *, scope, file=None, image=None, annotation=None):
        file = file if isinstance(file, str) else self.path.name
        self.problems.append(Problem(code, severity, scope, file, image, annotation, message))

    def read(self):
        data = self.parse()
        if not isinstance(data, dict):
            raise Invalid(
                "not_coco",
                f"the top level is a {type(data).__name__}, not an object with images, annotations and categories",
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
                raise Invalid(f"{key}_empty", f'"{key}" is empty; there is nothing to work on')
        self.read_categories(data["categories"])
        self.read_images(data["images"])
        self.read_annotations(data["annotations"])
        if not data["annotations"]:
            message = "there are no annotations; fine for prediction, but nothing can be trained"
            self.note("annotations_empty", "warn", message, scope="file")

    def parse(self):
        try:
            raw = self.path.read_bytes()
        except OSError as error:
            raise Invalid("json_unreadable", f"the file cannot be read: {error.strerror}") from None
        if not raw.strip():
            raise Invalid("json_invalid", "the file is empty")
        if raw.startswith(b"\xef\xbb\xbf"):
            self.note(
                "json_bom",
                "note",
                "the file begins with a byte-order mark, which was ignored",
                scope="file",
            )
        try:
            return json.loads(raw, object_pairs_hook=self.unique_keys)
        except (
            ValueError,
            RecursionError,
        ) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
            raise Invalid("json_invalid", f"the file is not JSON: {error}") from None

    def unique_keys(self, pairs):
        values = dict(pairs)
        if len(values) != len(pairs):
            seen = {}
            for key, value in pairs:
                if key in seen and seen[key] != value:
                    message = f'the key "{key}" appears twice in one object, with different values; remove one'
                    self.note("duplicate_key", "reject", message, scope="file")
                seen[key] = value
        return values

    def read_categories(self, categories):
        names = {}
        for category in categories:
            number = whole(category.get("id")) if isinstance(category, dict) else None
            if number is None:
                raise Invalid(
                    "category_invalid", f"category {short(category)} has no whole number as id"
                )
            name = category.get("name")
            if not isinstance(name, str) or not name:
                self.note(
                    "category_name_missing",
                    "warn",
                    f"category {number} has no name; it is called {number}",
                    scope="file",
                )
                name = str(number)
            if names.get(number, name) != name:
                message = f"two categories have the id {number}: {names[number]!r} and {name!r}; give each its own"
                raise Invalid("duplicate_category_id", message)
            if name in names.values() and number not in names:
                self.note(
                    "duplicate_category_name",
                    "warn",
                    f"two categories are called {name!r}",
                    scope="file",
                )
            names[number] = name
        self.records.categories = dict(sorted(names.items()))

    def read_images(self, images):
        originals, files, ambiguous = {}, {}, set()
        for image in images:
            if not isinstance(image, dict):
                self.note(
                    "image_invalid",
                    "reject",
                    f"an image is {short(image)}, not an object",
                    scope="image",
                )
                continue
            name, number = image.get("file_name"), image.get("id")
            try:
                record = self.image_record(image)
            except Invalid as invalid:
                self.note(*invalid.problem, scope="image", file=name, image=plain(number))
                continue
            if record.id in originals:
                same = originals[record.id] == image
                message = f"two images have the id {record.id}; " + (
                    "the second is left out" if same else "give each its own"
                )
                self.note(
                    "duplicate_image_id",
                    "warn" if same else "reject",
                    message,
                    scope="image",
                    file=name,
                    image=record.id,
                )
                ambiguous |= set() if same else {record.id}
                continue
            if isinstance(name, str) and name in files:
                message = f"images {files[name]} and {record.id} are the same file; it counts twice"
                self.note(
                    "duplicate_file_name",
                    "warn",
                    message,
                    scope="image",
                    file=name,
                    image=record.id,
                )
            elif isinstance(name, str):
                files[name] = record.id
            originals[record.id] = image
            self.records.images[record.id] = record
        for number in ambiguous:
            del self.records.images[number]
        self.all_image_ids = originals.keys() | {
            plain(i.get("id")) for i in images if isinstance(i, dict)
        }

    def image_record(self, image):
        number = image.get("id")
        if not isinstance(number, str) and whole(number) is None:
            raise Invalid(
                "image_id_invalid", f"the image's id is {short(number)}; write a whole number"
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
        if sides[0] * sides[1] > MAX_PIXELS:
            raise Invalid(
                "image_too_large",
                f"{sides[0]}x{sides[1]} is more than {MAX_PIXELS:,} pixels; cut or shrink the image",
            )
        return ImageRecord(plain(number), image.get("file_name"), *sides)

    def read_annotations(self, annotations):
        seen = set()
        for annotation in annotations:
            if not isinstance(annotation, dict):
                self.note(
                    "annotation_invalid",
                    "reject",
                    f"an annotation is {short(annotation)}, not an object",
                    scope="annotation",
                )
                continue
            number, image_id = plain(annotation.get("id")), plain(annotation.get("image_id"))
            image = self.records.images.get(image_id)
            place = {
                "scope": "annotation",
                "annotation": number,
                "image": image_id,
                "file": image.file_name if image else None,
            }
            if number is None:
                self.note("annotation_id_missing", "note", "the annotation has no id", **place)
            elif number in seen:
                self.note(
                    "duplicate_annotation_id",
                    "warn",
                    f"two annotations have the id {number}; both are used, renumbered",
                    **place,
                )
            seen.add(number)
            try:
                if image is None:
                    self.check_image_id(annotation, image_id)
                    continue  # its image was rejected, and that has been said
                instance, remarks = read_instance(annotation, image, self.records.categories)
                image.instances.append(instance)
            except Invalid as invalid:
                remarks = [invalid.problem]
            for remark in remarks:
                self.note(*remark, **place)

    def check_image_id(self, annotation, image_id):
        if "image_id" not in annotation:
            raise Invalid(
                "image_id_missing", "the annotation has no image_id; write the id of its image"
            )
        if image_id not in self.all_image_ids:
            hint = "write an id from the list of images"
            if (
                isinstance(image_id, str)
                and image_id.strip().isdecimal()
                and int(image_id) in self.all_image_ids
            ):
                hint = f"the image's id is the number {int(image_id)}, this is a text; write the number"
            raise Invalid(
                "unknown_image",
                f"image_id {short(annotation['image_id'])} belongs to no image; {hint}",
            )
