"""The linter: each damage has its code, and nothing is raised or opened outside the folder."""

import contextlib
import copy
import json
import os
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from accelerated.data import images, lint, rle, sources
from accelerated.data.repair import OPEN, repair

# Damage made here.

RLE = {"size": [40, 60], "counts": [0, 40 * 10, 40 * 50]}


def annotation(**changes):
    return lambda data: data["annotations"][0].update(changes)


def run_lengths(**changes):
    return annotation(segmentation={**RLE, **changes})


def image(**changes):
    return lambda data: data["images"][0].update(changes)


def without(part, key):
    return lambda data: data[part][0].pop(key)


def whole(key, value):
    return lambda data: data.update({key: value})


def renumber_category(data, category_id):
    data["categories"][0].update(id=category_id)
    for entry in data["annotations"]:
        entry.update(category_id=category_id)


POLYGON = [[5, 5, 25, 5, 25, 25, 5, 25]]
# {name: (expected code, expected severity, what breaks the data)}
CASES = {
    "good": (None, None, lambda data: None),
    "bow_tie": (None, None, annotation(segmentation=[[5, 5, 25, 25, 25, 5, 5, 25]])),
    "category_zero": (None, None, lambda d: renumber_category(d, 0)),
    "rle": (None, None, annotation(segmentation=RLE, bbox=[0, 0, 10, 40])),
    "rle_text": (
        None,
        None,
        annotation(
            segmentation={"size": [40, 60], "counts": rle.compress(RLE["counts"]).decode()},
            bbox=[0, 0, 10, 40],
        ),
    ),
    "not_coco": ("not_coco", "reject", None),
    "no_images": ("images_missing", "reject", lambda d: d.pop("images")),
    "no_annotations": ("annotations_missing", "reject", lambda d: d.pop("annotations")),
    "categories_null": ("categories_missing", "reject", whole("categories", None)),
    "categories_empty": ("categories_empty", "reject", whole("categories", [])),
    "images_empty": ("images_empty", "reject", whole("images", [])),
    "annotations_empty": ("annotations_empty", "warn", whole("annotations", [])),
    "category_number": ("category_invalid", "reject", whole("categories", [3])),
    "category_text_id": (
        "category_invalid",
        "reject",
        whole("categories", [{"id": "1", "name": "a"}]),
    ),
    "category_twice": (
        "duplicate_category_id",
        "reject",
        whole("categories", [{"id": 7, "name": "a"}, {"id": 7, "name": "b"}]),
    ),
    "category_same_name": (
        "duplicate_category_name",
        "warn",
        whole("categories", [{"id": 7, "name": "a"}, {"id": 8, "name": "a"}]),
    ),
    "category_nameless": ("category_name_missing", "warn", without("categories", "name")),
    "image_number": ("image_invalid", "reject", lambda d: d["images"].append(5)),
    "image_id_list": ("image_id_invalid", "reject", image(id=[1])),
    "image_id_gone": ("image_id_invalid", "reject", without("images", "id")),
    "image_id_fraction": ("image_id_invalid", "reject", image(id=1.5)),
    "image_id_twice": ("duplicate_image_id", "reject", lambda d: d["images"][1].update(id=1)),
    "image_twice": (
        "duplicate_image_id",
        "warn",
        lambda d: d["images"].append(dict(d["images"][0])),
    ),
    "file_twice": (
        "duplicate_file_name",
        "warn",
        lambda d: d["images"][1].update(file_name="a.png"),
    ),
    "width_zero": ("image_size_invalid", "reject", image(width=0)),
    "width_text": ("image_size_invalid", "reject", image(width="60")),
    "height_gone": ("image_size_invalid", "reject", without("images", "height")),
    "size_gone": (
        "image_size_missing",
        "warn",
        lambda d: [d["images"][0].pop(key) for key in ("width", "height")],
    ),
    "image_huge": ("image_too_large", "reject", image(width=10**6, height=10**6)),
    "size_swapped": ("size_swapped", "reject", image(width=40, height=60)),
    "size_wrong": ("size_mismatch", "reject", image(width=61)),
    "file_gone": ("file_missing", "reject", image(file_name="none.png")),
    "file_nameless": ("file_name_missing", "reject", without("images", "file_name")),
    "file_number": ("file_name_missing", "reject", image(file_name=3)),
    "file_nul": ("file_name_invalid", "reject", image(file_name="a\0.png")),
    "file_surrogate": ("file_name_invalid", "reject", image(file_name="a\ud800.png")),
    "file_long": ("file_name_invalid", "reject", image(file_name="a" * 5000)),
    "file_folder": ("not_a_file", "reject", image(file_name="sub")),
    "file_pipe": ("not_a_file", "reject", image(file_name="pipe")),
    "file_above": ("file_outside_root", "reject", image(file_name="sub/../../secret.png")),
    "file_absolute": ("file_outside_root", "reject", image(file_name="/etc/hostname")),
    "file_link": ("file_outside_root", "reject", image(file_name="link.png")),
    "file_empty": ("unreadable_image", "reject", image(file_name="empty.png")),
    "file_text": ("unreadable_image", "reject", image(file_name="text.jpg")),
    "file_truncated": ("unreadable_image", "reject", image(file_name="truncated.jpg")),
    "file_bomb": ("image_too_large", "reject", image(file_name="bomb.png")),
    "exif_display": ("exif_rotated", "reject", image(file_name="exif.jpg", width=40, height=60)),
    "exif_stored": ("exif_ignored", "note", image(file_name="exif.jpg")),
    "annotation_number": ("annotation_invalid", "reject", lambda d: d["annotations"].append(None)),
    "annotation_id_twice": (
        "duplicate_annotation_id",
        "warn",
        lambda d: d["annotations"][1].update(id=10),
    ),
    "annotation_id_gone": ("annotation_id_missing", "note", without("annotations", "id")),
    "image_id_missing": ("image_id_missing", "reject", without("annotations", "image_id")),
    "image_unknown": ("unknown_image", "reject", annotation(image_id=99)),
    "image_id_text": ("unknown_image", "reject", annotation(image_id="1")),
    "category_unknown": ("unknown_category", "reject", annotation(category_id=9)),
    "category_list": ("unknown_category", "reject", annotation(category_id=[7])),
    "crowd_gone": ("iscrowd_missing", "note", without("annotations", "iscrowd")),
    "crowd_text": ("iscrowd_invalid", "reject", annotation(iscrowd="yes")),
    "crowd_polygon": ("crowd_polygon", "note", annotation(iscrowd=1)),
    "area_gone": ("area_missing", "note", without("annotations", "area")),
    "area_nan": ("area_missing", "note", annotation(area=float("nan"))),
    "bbox_gone": ("bbox_missing", "warn", without("annotations", "bbox")),
    "bbox_three": ("bbox_invalid", "reject", annotation(bbox=[5, 5, 20])),
    "bbox_text": ("bbox_invalid", "reject", annotation(bbox=["5", 5, 20, 20])),
    "bbox_nan": ("bbox_not_finite", "reject", annotation(bbox=[5, float("nan"), 20, 20])),
    "bbox_beyond_float": ("bbox_not_finite", "reject", annotation(bbox=[5, 10**400, 20, 20])),
    "bbox_negative": ("bbox_negative", "reject", annotation(bbox=[25, 5, -20, 20])),
    "bbox_flat": ("bbox_empty", "skip", annotation(bbox=[5, 5, 20, 0])),
    "bbox_of_the_least_side": ("bbox_disagrees", "warn", annotation(bbox=[0, 5, 0.01, 20])),
    "bbox_narrower": ("bbox_empty", "skip", annotation(bbox=[0, 5, 0.0099, 20])),
    "bbox_outside": ("bbox_outside", "skip", annotation(bbox=[100, 5, 20, 20])),
    "bbox_corners": (
        "bbox_corners",
        "reject",
        annotation(bbox=[30, 20, 50, 35], segmentation=[[30, 20, 50, 20, 50, 35, 30, 35]]),
    ),
    "bbox_clipped": (
        "bbox_clipped",
        "warn",
        annotation(bbox=[-5, 5, 30, 20], segmentation=[[-5, 5, 25, 5, 25, 25, -5, 25]]),
    ),
    "bbox_elsewhere": ("bbox_disagrees", "warn", annotation(bbox=[30, 20, 10, 10])),
    "mask_gone": ("mask_missing", "skip", without("annotations", "segmentation")),
    "mask_and_box_gone": (
        "segmentation_missing",
        "reject",
        lambda d: [d["annotations"][0].pop(key) for key in ("segmentation", "bbox")],
    ),
    "mask_text": ("segmentation_invalid", "reject", annotation(segmentation="polygon")),
    "mask_flat": ("segmentation_invalid", "reject", annotation(segmentation=POLYGON[0])),
    "mask_empty_list": ("mask_missing", "skip", annotation(segmentation=[])),
    "mask_outside": ("mask_empty", "skip", annotation(segmentation=[[70, 5, 90, 5, 90, 25]])),
    "mask_line": ("mask_empty", "skip", annotation(segmentation=[[5, 5, 5, 5, 5, 5]])),
    "polygon_text": ("polygon_invalid", "reject", annotation(segmentation=[["a"] * 6])),
    "polygon_two_points": ("polygon_too_short", "skip", annotation(segmentation=[[5, 5, 25, 25]])),
    "polygon_of_nothing": ("mask_missing", "skip", annotation(segmentation=[[]])),
    "polygon_one_part_short": (
        "polygon_part_too_short",
        "warn",
        annotation(segmentation=[*POLYGON, [5, 5]]),
    ),
    "polygon_odd": ("polygon_odd", "reject", annotation(segmentation=[POLYGON[0][:-1]])),
    "polygon_nan": (
        "polygon_not_finite",
        "reject",
        annotation(segmentation=[[5, 5, float("nan"), 5, 25, 25]]),
    ),
    "polygon_beyond_float": (
        "polygon_not_finite",
        "reject",
        annotation(segmentation=[[5, 5, 10**400, 5, 25, 25]]),
    ),
    "polygon_far": (
        "polygon_far_outside",
        "reject",
        annotation(segmentation=[[5, 5, 1e12, 5, 25, 25]]),
    ),
    "polygon_long": (
        "polygon_too_long",
        "reject",
        annotation(segmentation=[[-600, 5, 600, 5] * 2000]),
    ),
    "rle_no_size": (
        "rle_size_missing",
        "reject",
        annotation(segmentation={"counts": RLE["counts"]}),
    ),
    "rle_other_size": ("rle_size_mismatch", "reject", run_lengths(size=[20, 30])),
    "rle_short": ("rle_sum", "reject", run_lengths(counts=[0, 400])),
    "rle_negative": ("rle_negative", "reject", run_lengths(counts=[0, -400, 2800])),
    "rle_float": ("rle_invalid", "reject", run_lengths(counts=[0, 400.5, 1999.5])),
    "rle_beyond_int64": ("rle_invalid", "reject", run_lengths(counts=[0, 10**30])),
    "rle_bad_text": ("rle_invalid", "reject", run_lengths(counts="~~~")),
    "rle_cut_text": ("rle_invalid", "reject", run_lengths(counts="P")),
    "rle_background_only": ("mask_empty", "skip", run_lengths(counts=[2400])),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Image files, whole and broken, and a good data set of two images."""
    root = tmp_path_factory.mktemp("data")
    files = root / "images"
    (files / "sub").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for name in ("images/a.png", "images/b.png", "secret.png", "images/exif.jpg"):
        exif = Image.Exif()
        exif[images.ORIENTATION] = 6
        Image.fromarray(pixels).save(root / name, **({"exif": exif} if "exif" in name else {}))
    (files / "truncated.jpg").write_bytes((files / "exif.jpg").read_bytes()[:-300])
    (files / "empty.png").touch()
    (files / "text.jpg").write_text("no image")
    (files / "link.png").symlink_to(root / "secret.png")
    os.mkfifo(files / "pipe")
    Image.new("1", (12_000, 12_000)).save(files / "bomb.png")
    return root


def good():
    fields = {
        "category_id": 7,
        "iscrowd": 0,
        "area": 400.0,
        "bbox": [5, 5, 20, 20],
        "segmentation": POLYGON,
    }
    return {
        "images": [
            {"id": n, "file_name": name, "width": 60, "height": 40}
            for n, name in ((1, "a.png"), (2, "b.png"))
        ],
        "categories": [{"id": 7, "name": "thing"}],
        "annotations": [
            {"id": n, "image_id": image_id, **copy.deepcopy(fields)}
            for n, image_id in ((10, 1), (11, 2))
        ],
    }


def write(folder, data, name="case.json"):
    path = folder / name
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


@pytest.mark.parametrize("name", CASES)
def test_each_damage_has_its_code(folder, name, recwarn):
    code, severity, damage = CASES[name]
    data = good() if damage else [good()]
    if damage:
        damage(data)
    report = lint.check(write(folder, data), folder / "images")
    if code is None:
        assert not report.problems
        return
    assert (severity, code) in report.counts(), report.problems
    problem = next(p for p in report.problems if p.code == code)
    assert problem.file and len(problem.message) > 15 and code in str(problem)
    if severity in ("reject", "skip"):
        with pytest.raises(ValueError, match=code):
            report.require()
    else:
        report.require()


@pytest.mark.parametrize("name", CASES)
def test_each_damage_is_mended_left_out_or_named(folder, name):
    data = good()
    if CASES[name][2] is not None:
        CASES[name][2](data)
    path = write(folder, data)
    try:
        repaired = repair(sources.find(path, folder / "images"))
    except ValueError:
        assert lint.check(path, folder / "images").fatal
        return
    for problem in repaired.report.blocking:
        assert problem.scope == "file" or problem.code in OPEN, problem
    again = lint.check(write(folder, repaired.content, "mended.json"), folder / "images")
    assert again.counts() == repaired.report.counts()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "json_invalid"),
        ("{", "json_invalid"),
        ("[" * 100_000, "json_invalid"),
        ('{"images": [' + "9" * 5000 + "]}", "json_invalid"),
        ("0", "not_coco"),
        ('{"images": [], "images": [1]}', "duplicate_key"),
    ],
)
def test_damaged_json(folder, text, code):
    assert code in {p.code for p in lint.check(write(folder, text), folder / "images").problems}


def test_files_that_cannot_be_read(folder):
    with pytest.raises(ValueError, match=r"none\.json: no such file or folder"):
        lint.check(folder / "none.json", folder)


def test_byte_order_mark_and_utf16(folder):
    for encoding in ("utf-8-sig", "utf-16"):
        path = folder / "encoded.json"
        path.write_text(json.dumps(good()), encoding=encoding)
        assert not lint.check(path, folder / "images").blocking


def test_all_problems_are_listed_at_once(folder):
    data = good()
    data["annotations"][0]["bbox"] = [1, 2, -3, 4]
    data["annotations"][1]["category_id"] = 1
    data["images"][1]["file_name"] = "none.png"
    report = lint.check(write(folder, data), folder / "images")
    assert [p.code for p in report.blocking] == [
        "bbox_negative",
        "unknown_category",
        "file_missing",
    ]
    assert [p.annotation_id for p in report.blocking] == [10, 11, None] and report.blocking[
        2
    ].image_id == 2
    with pytest.raises(ValueError, match=r"3 problems[\s\S]*--skip-invalid"):
        report.require()
    report.require(skip_invalid=True)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 70), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.dictionaries(st.sampled_from(["size", "counts", "id", "name"]), inner, max_size=3),
    ),
    max_leaves=8,
)
FIELDS = [(part, key) for part, record in good().items() for key in record[0]] + [
    (part, None) for part in good()
]


@given(st.sampled_from(FIELDS), JSON)
def test_no_value_anywhere_raises(tmp_path_factory, field, value):
    part, key = field
    data = good()
    if key is None:
        data[part] = value
    else:
        data[part][0][key] = value
    path = write(tmp_path_factory.getbasetemp(), data, "fuzz.json")
    for problem in lint.check(path, path.parent, open_images=True).problems:
        assert problem.severity in lint.SEVERITIES and str(problem)
    # Where no repair is known, that is said.
    with contextlib.suppress(ValueError):
        repair(sources.find(path, path.parent))


# Collected damage.

# That file holds a bare 0, so its description cannot be tested; see "crowd_gone".
DEVIATING = {"39_iscrowd_missing.json"}


def test_collected_broken_files(shared_data, monkeypatch):
    folder = shared_data("bad")
    opened = []
    open_image = Image.open
    monkeypatch.setattr(
        Image,
        "open",
        lambda path, **keywords: (opened.append(path), open_image(path, **keywords))[1],
    )
    wrong = []
    for case in json.loads((folder / "cases.json").read_text()):
        if case["file"] in DEVIATING:
            continue
        report = lint.check(folder / case["file"], folder / "images")
        verdicts = {p.severity for p in report.blocking} or {
            "load",
            *(p.severity for p in report.problems),
        }
        allowed = set(re.findall("load|reject|skip|warn", case["suggested"])) | (
            {"load"} if "derive" in case["suggested"] else set()
        )
        if not verdicts & allowed:
            wrong.append((case["file"], case["suggested"], report.counts()))
    assert not wrong
    assert all(path.resolve().is_relative_to((folder / "images").resolve()) for path in opened)
    assert "secret_outside.jpg" not in {path.name for path in opened}


@pytest.mark.parametrize("name", ["coco_tiny", "nuclei"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_data_is_clean(shared_data, name, split):
    folder = shared_data(name)
    report = lint.check(folder / f"{split}.json", folder / "images", open_images=split == "val")
    assert not report.blocking, report.blocking[:5]
