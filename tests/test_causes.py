"""One mistake behind many problems: it is named once, and --fix mends it."""

import copy
import json
import re

import numpy as np
import pytest
from PIL import Image
from support import shapes_file
from support.shapes_file import HEIGHT, WIDTH, data, outline

from accelerated.data import images, lint, rle, sources
from accelerated.data.coco import CocoDataset
from accelerated.data.reading import Reading
from accelerated.data.repair import repair


def images_of(content, change):
    for image in content["images"]:
        image.update(change(image))


def annotations_of(content, change):
    for entry in content["annotations"]:
        entry.update(change(entry))


def names(pattern):
    return lambda d: images_of(d, lambda i: {"file_name": pattern.format(i["file_name"])})


def boxes(change):
    return lambda d: annotations_of(d, lambda a: {"bbox": change(*a["bbox"])})


def fractions(d):
    scale = np.tile([1 / WIDTH, 1 / HEIGHT], 4)
    annotations_of(
        d,
        lambda a: {
            "segmentation": [(np.array(a["segmentation"][0]) * scale).tolist()],
            "bbox": (np.array(a["bbox"]) * scale[:4]).tolist(),
        },
    )


def run_lengths(entry, height=HEIGHT, width=WIDTH, scale=1):
    mask = np.zeros((height, width), dtype=bool)
    x, y, w, h = (int(side * scale) for side in entry["bbox"])
    mask[y : y + h, x : x + w] = True
    return {"size": [height, width], "counts": rle.of_mask(mask).tolist()}


def text_ids(d):
    for k, image in enumerate(d["images"]):
        image["id"] = f"00000{k + 1}"


def superclass(d):
    d["categories"].insert(0, {"id": 0, "name": "shapes", "supercategory": "none"})
    for category in d["categories"][1:]:
        category["supercategory"] = "shapes"


def resized(d):
    images_of(d, lambda i: {"width": 2 * WIDTH, "height": 2 * HEIGHT})
    annotations_of(
        d,
        lambda a: {
            "bbox": [2 * v for v in a["bbox"]],
            "segmentation": [[2 * v for v in a["segmentation"][0]]],
            "area": 4 * a["area"],
        },
    )


def points(entry):
    return {"segmentation": np.reshape(entry["segmentation"][0], (-1, 2)).tolist()}


# {name: (cause, words of its line, the damage)}; all are mended.
MENDED = {
    "backslashes": ("file_names", r"4 of 4 exist with / instead of \\ and", names("images\\{}")),
    "the_root_again": (
        "file_names",
        "4 of 4 exist without images/.*--images .*/data",
        names("images/{}"),
    ),
    "windows_path": ("file_names", "4 of 4 exist", names("C:\\Users\\me\\photos\\{}")),
    "absolute_path": ("file_names", "4 of 4 exist", names("/home/me/photos/{}")),
    "label_studio_disk": ("file_names", "4 of 4", names("..\\..\\label-studio\\upload\\4\\{}")),
    "label_studio_link": ("file_names", "4 of 4", names("data/local-files/?d=photos%2F{}")),
    "label_studio_upload": ("file_names", "4 of 4.*Label Studio", names("images/cb0618f6-{}")),
    "roboflow": (
        "file_names",
        "4 of 4.*Roboflow",
        lambda d: images_of(d, lambda i: {"file_name": i["file_name"][:-4] + "_png.rf.0f3a.png"}),
    ),
    "link": ("file_names", "4 of 4", names("https://host/me/my%20photos/{}?size=full")),
    "capitals": (
        "file_names",
        "4 of 4.*capital",
        lambda d: images_of(d, lambda i: {"file_name": i["file_name"].upper()}),
    ),
    "text_in_images": ("image_ids", "8 of 8 annotations is a number, .*images are texts", text_ids),
    "text_in_annotations": (
        "image_ids",
        "8 of 8 annotations is a text, .*images are numbers",
        lambda d: annotations_of(d, lambda a: {"image_id": str(a["image_id"])}),
    ),
    "shifted": (
        "image_ids_shifted",
        "count from 0",
        lambda d: images_of(d, lambda i: {"id": i["id"] - 1}),
    ),
    "category_names": (
        "category_ids",
        "8 of 8 annotations is a name",
        lambda d: annotations_of(
            d, lambda a: {"category_id": ["square", "other"][a["category_id"] - 1]}
        ),
    ),
    "categories_from_zero": (
        "category_ids_shifted",
        "all 8 annotations",
        lambda d: annotations_of(d, lambda a: {"category_id": a["category_id"] - 1}),
    ),
    "categories_from_two": (
        "category_ids_shifted",
        "all 8 annotations",
        lambda d: annotations_of(d, lambda a: {"category_id": a["category_id"] + 1}),
    ),
    "category_texts": (
        "category_ids",
        "is a text",
        lambda d: annotations_of(d, lambda a: {"category_id": str(a["category_id"])}),
    ),
    "category_null": (
        "category_ids",
        "VIA writes text ids",
        lambda d: [
            d.update(categories=[{"id": 1, "name": "square"}]),
            annotations_of(d, lambda a: {"category_id": None}),
        ],
    ),
    "fractions": ("coordinates_fractions", "fractions", fractions),
    "corners": (
        "bbox_corners",
        "of 8 boxes .* x1, y1, x2, y2",
        boxes(lambda x, y, w, h: [x, y, x + w, y + h]),
    ),
    "centres": (
        "bbox_centres",
        "8 of 8 boxes",
        boxes(lambda x, y, w, h: [x + w / 2, y + h / 2, w, h]),
    ),
    "fractions_of_boxes": (
        "bbox_fractions",
        "8 of 8 boxes",
        boxes(lambda x, y, w, h: [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]),
    ),
    "flat": (
        "outlines_flat",
        "8 of 8 outlines",
        lambda d: annotations_of(d, lambda a: {"segmentation": a["segmentation"][0]}),
    ),
    "points": ("outlines_flat", "8 of 8 outlines", lambda d: annotations_of(d, points)),
    "sizes_gone": (
        "image_size_missing",
        "read from the files",
        lambda d: [i.pop(key) for i in d["images"] for key in ("width", "height")],
    ),
    "sizes_zero": ("image_size_invalid", "4 of 4", lambda d: images_of(d, lambda i: {"width": 0})),
    "sides_swapped": (
        "size_swapped",
        "4 of 4",
        lambda d: images_of(d, lambda i: {"width": HEIGHT, "height": WIDTH}),
    ),
    "resized": ("size_mismatch", "4 of 4 pictures", resized),
    "masks_of_half_the_size": (
        "rle_size_mismatch",
        "8 of 8",
        lambda d: annotations_of(
            d, lambda a: {"segmentation": run_lengths(a, HEIGHT // 2, WIDTH // 2, 0.5)}
        ),
    ),
    "exported_twice": (
        "duplicate_annotation",
        "8 of 16",
        lambda d: d["annotations"].extend(copy.deepcopy(d["annotations"])),
    ),
    "ids_restart": (
        "duplicate_annotation_id",
        "6 of 8",
        lambda d: annotations_of(d, lambda a: {"id": a["id"] % 2}),
    ),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return shapes_file.pictures(tmp_path_factory.mktemp("data") / "images")


def written(root, damage):
    content = data()
    damage(content)
    path = root.parent / "case.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("name", MENDED)
def test_a_mistake_is_named_once_and_mended(root, name, tmp_path):
    code, words, damage = MENDED[name]
    path = written(root, damage)
    before = path.read_bytes()
    report = lint.check(path, root)
    assert [cause.code for cause in report.causes] == [code]
    assert re.search(words, report.causes[0].message), report.causes[0].message
    assert not report.unexplained, report.unexplained
    repaired = repair(sources.find(path, root))
    assert path.read_bytes() == before and repaired.changes and sum(repaired.counts().values())
    assert not repaired.report.problems
    (tmp_path / "out.json").write_text(json.dumps(repaired.content))
    right = data()
    if name == "category_null":
        annotations_of(right, lambda a: {"category_id": 1})
    (tmp_path / "right.json").write_text(json.dumps(right))
    mended, right = (CocoDataset(tmp_path / f, root) for f in ("out.json", "right.json"))
    assert mended.file_names == right.file_names and mended.sizes == right.sizes
    for k in range(len(right)):
        ours, theirs = mended.target(k), right.target(k)
        assert ours.labels.tolist() == theirs.labels.tolist()
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-4)
        overlap = (ours.masks & theirs.masks).sum() / (ours.masks | theirs.masks).sum()
        assert overlap > (0.85 if name == "masks_of_half_the_size" else 0.999)


def test_a_converted_source_is_not_modified(root):
    content = data()
    content["images"][0]["file_name"] = "images\\img0.png"
    before = copy.deepcopy(content)
    source = sources.Source(root.parent, "another", root, content)
    assert repair(source).changes and content == before


def test_right_data_has_nothing_to_repair(root):
    path = written(root, lambda d: None)
    assert not lint.check(path, root).problems and not repair(sources.find(path, root)).changes


def test_augmented_copies_are_not_taken_for_their_original(root):
    """Roboflow's copies of one picture differ from it, and from each other."""

    def damage(d):
        for image, text in zip(d["images"], ("a", "b", "c", "d"), strict=True):
            image["file_name"] = f"img0_png.rf.{text}.png"

    report = lint.check(written(root, damage), root)
    assert "exist" not in report.causes[0].message
    with pytest.raises(ValueError, match="no repair is known for any of its images"):
        repair(sources.find(written(root, damage), root))


def test_the_wrong_folder_is_told_apart(root, tmp_path):
    path = written(root, lambda d: None)
    (tmp_path / "empty").mkdir()
    (cause,) = lint.check(path, tmp_path / "empty").causes
    assert "is it the right folder" in cause.message or "--images" in cause.message
    (cause,) = lint.check(path, root.parent).causes
    assert f"--images {root}" in cause.message
    lost = written(root, names("lost/{}"))
    (problem,) = lint.check(lost, root.parent / "imags").problems
    assert problem.code == "image_folder_missing" and repr(str(root)) in problem.message
    path = written(root, lambda d: None)
    (problem,) = lint.check(path, root.parent / "nowhere").problems
    assert f"exist in {str(root)!r}" in problem.message
    with pytest.raises(ValueError, match=r"cse\.json: no such .*did you mean .*case\.json'\?$"):
        lint.check(root.parent / "cse.json", root)


def test_file_and_folder_are_exchanged(root):
    path = written(root, lambda d: None)
    with pytest.raises(ValueError, match="exchange the two"):
        lint.check(root, path)


def test_results_are_no_annotations(tmp_path):
    result = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    (tmp_path / "results.json").write_text(json.dumps([result]))
    (problem,) = lint.check(tmp_path / "results.json", tmp_path).problems
    assert "list of results" in problem.message


# Brush masks with iscrowd 1.


def brush(d, count):
    for entry in d["annotations"][:count]:
        entry.update(iscrowd=1, segmentation=run_lengths(entry))


@pytest.mark.parametrize(("count", "warned"), [(8, True), (4, True), (0, False)])
def test_brush_masks_that_are_crowds(root, count, warned):
    path = written(root, lambda d: brush(d, count))
    report = lint.check(path, root)
    assert report.objects == 8 - count and not report.blocking
    text = f"{count} of 8 annotations have iscrowd 1 and are not trained on"
    assert warned == any(text in line and "--crowd objects" in line for line in report.warnings)
    objects = Reading(crowd="objects")
    assert not lint.check(path, root, reading=objects).problems
    dataset = CocoDataset(path, root, reading=objects)
    assert sum(len(dataset.target(k).labels) for k in range(4)) == 8
    assert not any(entry["iscrowd"] for entry in dataset.coco["annotations"])


def test_cocos_share_of_crowds_is_usual(shared_data):
    folder = shared_data("coco_tiny")
    assert not lint.check(folder / "train.json", folder / "images", open_images=False).warnings


# Rectangles without masks.


def blank(value, count):
    return lambda d: [e.update(segmentation=value) for e in d["annotations"][:count]]


@pytest.mark.parametrize("value", [[], [[]], None])
@pytest.mark.parametrize("count", [4, 8])
def test_rectangles_without_a_mask(root, value, count):
    path = written(root, blank(value, count))
    report = lint.check(path, root)
    assert report.counts() == {("skip", "mask_missing"): count}
    (cause,) = report.causes
    assert ("no annotation has a mask" in cause.message) == (count == 8)
    assert "--boxes-as-masks" in cause.message and (
        count < 8 or "mask_head.kind=none" in cause.message
    )
    if count < 8:
        dataset = CocoDataset(path, root, skip_invalid=True)
        assert sum(len(dataset.target(k).labels) for k in range(4)) == 8 - count
    # The boxes are the masks, which is what the right file has.
    right = CocoDataset(written(root, lambda d: None), root)
    path = written(root, blank(value, count))
    for reading in (Reading(boxes_as_masks=True), Reading(masks=False)):
        dataset = CocoDataset(path, root, reading=reading)
        for k in range(4):
            ours, theirs = dataset.target(k), right.target(k)
            assert (ours.masks == theirs.masks).all() and (ours.boxes == theirs.boxes).all()
    said = lint.check(path, root, reading=Reading(boxes_as_masks=True)).counts()
    assert said == {("note", "box_as_mask"): count}
    assert not lint.check(path, root, reading=Reading(masks=False)).problems


def test_a_box_without_a_pixel_counts_where_no_mask_is_needed(root):
    path = written(
        root, lambda d: d["annotations"][0].update(segmentation=[], bbox=[5.6, 5.6, 0.2, 9])
    )
    assert not lint.check(path, root, reading=Reading(masks=False)).problems
    assert lint.check(path, root, reading=Reading(boxes_as_masks=True)).blocking


def test_corners_are_seen_without_masks(root):
    def damage(d):
        blank([], 8)(d)
        boxes(lambda x, y, w, h: [x, y, x + w, y + h])(d)

    path, reading = written(root, damage), Reading(masks=False)
    assert "bbox_all_corners" in {p.code for p in lint.check(path, root, reading=reading).blocking}
    repaired = repair(sources.find(path, root), reading)
    assert not repaired.report.problems
    assert [a["bbox"] for a in repaired.content["annotations"]] == [
        a["bbox"] for a in data()["annotations"]
    ]


# EXIF orientation and depth.


def turned(root, tmp_path, orientations, sizes):
    """Pictures that are displayed upright, stored turned."""
    folder = tmp_path / "turned"
    folder.mkdir()
    content = data()
    for image, orientation, size in zip(content["images"], orientations, sizes, strict=False):
        pixels = np.asarray(Image.open(root / image["file_name"]))
        inverse = {6: 8, 8: 6}.get(orientation, orientation)
        exif = Image.Exif()
        exif[images.ORIENTATION] = orientation
        Image.fromarray(images.turn(pixels, inverse)).save(folder / image["file_name"], exif=exif)
        if size == "stored":
            image.update(width=HEIGHT, height=WIDTH)
    count = len(orientations)
    content["images"] = content["images"][:count]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] <= count]
    path = tmp_path / "turned.json"
    path.write_text(json.dumps(content))
    return path, folder


def test_orientations_stop_until_somebody_decides(root, tmp_path):
    path, folder = turned(root, tmp_path, [6, 3, 2, 4], ["shown"] * 4)
    report = lint.check(path, folder)
    assert [p.code for p in report.blocking] == ["exif_rotated", *["exif_undecided"] * 3]
    (cause,) = report.causes
    assert "4 of 4 pictures" in cause.message and "1 fit only --exif apply" in cause.message
    assert "--exif ignore" in cause.message
    apply = Reading(exif="apply")
    assert not lint.check(path, folder, reading=apply).problems
    upright = CocoDataset(written(root, lambda d: None), root)
    for k, item in enumerate(CocoDataset(path, folder, reading=apply)):
        np.testing.assert_array_equal(item.image, upright[k].image)
    ignored = lint.check(path, folder, reading=Reading(exif="ignore")).problems
    assert [p.code for p in ignored] == ["exif_rotated"] and "--exif apply" in ignored[0].message
    # Nothing is left out of a copy that only an option decides.
    repaired = repair(sources.find(path, folder))
    assert not repaired.changes and len(repaired.report.blocking) == 4


def test_a_stored_size_means_the_stored_picture(root, tmp_path):
    path, folder = turned(root, tmp_path, [6], ["stored"])
    wrong = lint.check(path, folder, reading=Reading(exif="apply")).blocking
    assert "--exif ignore" in wrong[0].message
    found = lint.check(path, folder)
    assert ("note", "exif_ignored") in found.counts() and not found.blocking


def test_without_a_size_an_orientation_is_undecided(root, tmp_path):
    path, folder = turned(root, tmp_path, [6], ["shown"])
    content = json.loads(path.read_text())
    del content["images"][0]["width"], content["images"][0]["height"]
    path.write_text(json.dumps(content))
    assert "exif_undecided" in {p.code for p in lint.check(path, folder).blocking}
    dataset = CocoDataset(path, folder, reading=Reading(exif="apply"))
    assert dataset.sizes == [(HEIGHT, WIDTH)] and dataset[0].image.shape[:2] == (HEIGHT, WIDTH)


def test_deep_pictures(root, tmp_path):
    folder = tmp_path / "deep"
    folder.mkdir()
    content, kinds = data(), (np.uint16, np.float32, np.int32, np.uint16)
    for k, (image, kind) in enumerate(zip(content["images"], kinds, strict=True)):
        grey = np.asarray(Image.open(root / image["file_name"]))[..., 0].astype(kind)
        image["file_name"] = f"{k}.tif"
        Image.fromarray(grey * kind(16 if k < 3 else 256)).save(folder / image["file_name"])
    path = tmp_path / "deep.json"
    path.write_text(json.dumps(content))
    report = lint.check(path, folder)
    assert report.counts() == {("reject", "pixel_range_missing"): 2, ("warn", "image_dark"): 1}
    assert "640 to 3200" in report.problems[-1].message
    assert "--pixel-range 0:4095" in report.problems[-1].message
    assert CocoDataset(path, folder, skip_invalid=True).image_ids == [1, 4]
    reading = Reading(pixel_range=(0, 4080))
    dataset = CocoDataset(path, folder, reading=reading)
    for k in range(3):
        assert set(np.unique(dataset[k].image)) == {40, 200}
    assert [p.code for p in dataset.report.problems] == ["image_bright"]


# Of the whole data set.


def test_boxes_that_disagree_stop_even_without_an_explanation(root):
    def damage(d):
        for entry, other in zip(d["annotations"][:5], d["annotations"][::-1], strict=False):
            entry["bbox"] = [other["bbox"][1] / 2, 1, 9, 7]

    path = written(root, damage)
    with pytest.raises(ValueError, match="5 of 8 boxes disagree with their masks"):
        CocoDataset(path, root, skip_invalid=True)
    assert not repair(sources.find(path, root)).changes
    path = written(root, boxes(lambda x, y, w, h: [y, x, h, w]))
    (cause,) = lint.check(path, root).causes
    assert "only with x and y exchanged" in cause.message
    assert not repair(sources.find(path, root)).changes


def test_a_category_that_only_groups(root):
    path = written(root, superclass)
    (problem,) = lint.check(path, root).problems
    assert problem.code == "category_is_superclass" and "'shapes'" in problem.message
    assert CocoDataset(path, root).class_names == ["shapes", "square", "other"]
    assert repair(sources.find(path, root)).content["categories"][0]["name"] == "square"


def test_categories_with_texts_as_ids(root):
    def damage(d):
        for entry in d["categories"]:
            entry["id"] = str(entry["id"])
        annotations_of(d, lambda a: {"category_id": str(a["category_id"])})

    path = written(root, damage)
    (problem,) = lint.check(path, root).problems
    assert problem.code == "category_invalid" and "--fix" in problem.message
    repaired = repair(sources.find(path, root))
    assert repaired.content == data() and not repaired.report.problems


def test_categories_that_via_leaves_empty(root):
    path = written(root, lambda d: annotations_of(d, lambda a: {"category_id": None}))
    (cause,) = lint.check(path, root).causes
    assert "category_id of 8 of 8 annotations is missing" in cause.message


def test_percents_are_suspected(tmp_path):
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    box = [10.0, 5.0, 85.0, 90.0]
    content = data() | {
        "images": [{"id": k, "file_name": "a.png", "width": 640, "height": 480} for k in (1, 2)],
        "annotations": [
            data()["annotations"][0]
            | {"id": k, "image_id": 1 + k % 2, "bbox": box, "segmentation": [outline(tuple(box))]}
            for k in range(1, 13)
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    codes = {p.code for p in lint.check(tmp_path / "a.json", tmp_path).problems}
    assert "coordinates_percent" in codes


# Repairs of one entry.


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"bbox": [69, 52, -24, -24]}, "bbox_negative", "bbox"),
        ({"bbox": None}, "bbox_missing", "bbox"),
        ({"bbox": ["45", 28, 24, 24]}, "bbox_invalid", "bbox"),
        ({"area": None}, "area_missing", "area"),
        ({"iscrowd": None}, "iscrowd_missing", "iscrowd"),
        ({"iscrowd": "0"}, "iscrowd_invalid", "iscrowd"),
        ({"id": None}, "annotation_id_missing", "id"),
        ({"segmentation": [[float("nan")] * 6]}, "polygon_not_finite", None),
        ({"image_id": 99}, "unknown_image", None),
    ],
)
def test_one_entry_is_mended_or_left_out(root, change, code, field):
    path = written(root, lambda d: d["annotations"][0].update(change))
    repaired = repair(sources.find(path, root))
    assert not repaired.report.problems
    (done,) = repaired.changes
    assert (done.code, done.part, done.field) == (code, "annotations", field)
    assert len(repaired.content["annotations"]) == (8 if field else 7)
    if field == "bbox":
        assert repaired.content["annotations"][0]["bbox"] == data()["annotations"][0]["bbox"]


def test_a_shift_is_mended_beside_entries_without_an_id(root):
    def damage(content):
        images_of(content, lambda i: {"id": i["id"] - 1})
        content["annotations"] += [None, {"category_id": 1}, {"image_id": "1"}]

    repaired = repair(sources.find(written(root, damage), root))
    assert not repaired.report.problems
    assert [a["image_id"] for a in repaired.content["annotations"]] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_annotations_of_a_broken_image_go_with_it(root):
    path = written(root, lambda d: d["images"][1].update(file_name="lost.png"))
    repaired = repair(sources.find(path, root))
    assert len(repaired.content["images"]) == 3 and len(repaired.content["annotations"]) == 6
    assert repaired.counts() == {
        ("file_missing", "images", "left out"): 1,
        ("unknown_image", "annotations", "left out"): 2,
    }


def test_what_cannot_be_repaired(root, tmp_path):
    (tmp_path / "a.json").write_text('{"images": [], "images": [1]}')
    with pytest.raises(ValueError, match="duplicate_key"):
        repair(sources.find(tmp_path / "a.json", root))
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match="not_coco"):
        repair(sources.find(tmp_path / "a.json", root))
