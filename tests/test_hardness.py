"""data.hardness and data.duplicates, and what `inspect` says: nothing, or what helps."""

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

from accelerated.command_line import advice
from accelerated.data import duplicates, hardness, images
from accelerated.data.coco import CocoDataset
from reference.config import override, preset

CONFIG = override(preset("small"), "transform.min_size=[]")


def a_file(folder, pictures, objects, name="data.json", classes=("leaf", "stem"), size=(256, 256)):
    """Write a data set of objects (image, class, x, y, width, height); return it opened."""
    height, width = size
    content = {
        "images": [
            {"id": n, "file_name": f"{picture}.png", "width": width, "height": height}
            for n, picture in enumerate(pictures)
        ],
        "categories": [{"id": n, "name": label} for n, label in enumerate(classes, start=1)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": label, "iscrowd": 0}
            | {"bbox": [x, y, w, h], "area": w * h}
            | {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
            for n, (image, label, x, y, w, h) in enumerate(objects, start=1)
        ],
    }
    path = folder / name
    path.write_text(json.dumps(content))
    return CocoDataset(path, folder, open_images=False)


def spread(count, image=0, label=1, side=24):
    """Objects in rows that do not touch."""
    per_row = 256 // (side + 4)
    return [
        (image, label, 4 + (side + 4) * (n % per_row), 4 + (side + 4) * (n // per_row), side, side)
        for n in range(count)
    ]


def said(dataset, config=CONFIG):
    found = hardness.measure(dataset, config)
    json.dumps(asdict(found), allow_nan=False)
    return advice.settings(found, config) + advice.classes(found)


def changed(lines, config=CONFIG):
    """The configuration with all that the lines advise."""
    changes = [change for line in lines for change in re.findall(r"--set (\S+)", line)]
    return override(config, *(change.rstrip(".,") for change in changes))


def test_an_easy_data_set_is_not_commented_on(tmp_path):
    dataset = a_file(tmp_path, "ab", spread(25) + spread(25, image=1, label=2))
    assert said(dataset) == []


@pytest.mark.parametrize(
    ("objects", "config", "expected"),
    [
        # Two of 26 objects with IoU 2/3.
        (
            [*spread(24), (0, 1, 10, 200, 25, 20), (0, 1, 15, 200, 25, 20)],
            (),
            "7.7% of the objects",
        ),
        (spread(30), ["box_head.max_detections=20"], "1 image has more objects than the 20"),
        (spread(30), ["box_head.max_detections=20"], "33.3% of all objects"),
        (spread(30), ["rpn.post_nms_top_n_test=80"], "The fullest image has 30 objects, and 80"),
        (spread(30, side=6), (), "100.0% too small for the smallest, 16"),
        ([(0, 1, 2, 2, 250, 250)] * 30, ["anchors.sizes=[[8],[16],[32],[64],[128]]"], "too large"),
        ([(0, 1, 4, 8 * n, 96, 6) for n in range(30)], (), "100.0% longer than 2:1"),
    ],
)
def test_what_does_not_fit_and_the_setting_that_does(tmp_path, objects, config, expected):
    """With the settings that a line advises it is said no more."""
    config = override(CONFIG, *config)
    dataset = a_file(tmp_path, "a", objects)
    lines = [line for line in said(dataset, config) if expected in line]
    assert len(lines) == 1
    start = re.sub(r"[\d.%]+", "", lines[0])[:40]
    later = said(dataset, changed(lines, config))
    assert not [line for line in later if re.sub(r"[\d.%]+", "", line)[:40] == start], later


def test_images_of_several_scales(tmp_path):
    dataset = a_file(tmp_path, "ab", spread(25) + spread(25, image=1, label=2))
    dataset.sizes = [(256, 256), (1024, 1024)]
    (line,) = said(dataset, preset("small"))
    assert "256 to 1024" not in line and "transform.min_size=[]" in line and "by 2 to 0.5" in line
    assert said(dataset, changed([line], preset("small"))) == []


def test_classes(tmp_path):
    objects = spread(25) + spread(3, image=1, label=2)
    found = hardness.measure(a_file(tmp_path, "ab", objects), CONFIG)
    assert (found.class_objects, found.class_images) == (
        {"leaf": 25, "stem": 3},
        {"leaf": 1, "stem": 1},
    )
    (line,) = advice.classes(found)
    assert line.startswith("1 of 2 classes has fewer than 20 objects") and "stem 3" in line
    assert "2 classes are in only one image" in advice.single_images(found)[0]
    counts = {"leaf": 900, "stem": 45, "root": 0}
    (line,) = advice.classes(replace(found, class_objects=counts))
    assert "'leaf' has 900 objects, 'stem' 45" in line


def test_validation_data(tmp_path):
    train = a_file(tmp_path, "ab", spread(25) + spread(25, image=1, label=2))
    val = a_file(tmp_path, "c", spread(5, label=2), "val.json")
    first, second = (hardness.measure(part, CONFIG) for part in (train, val))
    missing, few = advice.validation(first, second, "val.json", False)
    assert "1 class of the training data has no object in val.json" in missing
    assert "leaf" in missing and "--split" in missing and "stem 5" in few
    assert "label another" in advice.validation(first, second, "val.json", True)[0]
    alone = advice.validation(second, first, "x", False)[-1]
    assert "only in x" in alone and "leaf" in alone


def test_without_an_object(tmp_path):
    assert said(a_file(tmp_path, "a", [])) == []
    assert said(a_file(tmp_path, "a", spread(3)).subset([])) == []


@pytest.fixture
def noise(rng):
    """Five pictures of other blobs, and variants of the first."""
    small = rng.integers(0, 256, (6, 12, 12, 3), dtype=np.uint8)
    pictures = {
        name: np.asarray(Image.fromarray(pixels).resize((96, 80), Image.Resampling.BICUBIC))
        for name, pixels in zip("abcdef", small, strict=True)
    }
    a = Image.fromarray(pictures["a"])
    dark = (pictures["a"] * 0.6).astype(np.uint8)
    return pictures | {"dark": dark, "small": np.asarray(a.resize((48, 40)))}


def test_near_duplicates(tmp_path, noise):
    """The same picture darker and smaller, but not a mirrored one, nor pictures without content."""
    noise |= {"mirrored": noise["a"][:, ::-1], "white": noise["a"] * 0 + 255}
    noise |= {"grey": noise["white"] // 2}
    for name, pixels in noise.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    first = duplicates.thumbnails(a_file(tmp_path, list(noise), []))
    assert len(first.names) == len(noise) - 2
    assert duplicates.copies(first) == [("a.png", "dark.png"), ("a.png", "small.png")]
    second = duplicates.thumbnails(a_file(tmp_path, ["b", "small"], [], "val.json"))
    between = duplicates.copies(second, first)
    assert between == [("b.png", "b.png"), ("a.png", "small.png")]
    assert duplicates.copies(duplicates.thumbnails(a_file(tmp_path, "a", []).subset([]))) == []


def test_copies_across_blocks(tmp_path, noise, monkeypatch):
    """Each is found with the first that it is like, however many are compared at a time."""
    for name, pixels in noise.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    small = duplicates.thumbnails(a_file(tmp_path, list(noise), []))
    expected = duplicates.copies(small), duplicates.copies(small, small)
    assert len(expected[0]) == 2 and len(expected[1]) == len(noise)
    for block in (1, 3):
        monkeypatch.setattr(duplicates, "BLOCK", block)
        assert (duplicates.copies(small), duplicates.copies(small, small)) == expected


def test_overlaps_in_crowded_images(rng, monkeypatch):
    corner = rng.uniform(0, 50, (60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 30, (60, 2))], axis=1)
    labels, images = rng.integers(0, 2, 60), np.sort(rng.integers(0, 3, 60))
    expected = hardness._overlaps(boxes, labels, images)
    assert expected.max() > 0.3
    monkeypatch.setattr(hardness, "BLOCK", 7)
    assert np.array_equal(hardness._overlaps(boxes, labels, images), expected)


def test_thumbnails_of_deep_and_transparent_pictures(tmp_path, noise):
    """16 bits are stretched; what is transparent is dropped."""
    grey = np.asarray(Image.fromarray(noise["a"]).convert("L"))
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 16).save(tmp_path / "deep.png")
    Image.fromarray(np.dstack([noise["a"], grey])).save(tmp_path / "alpha.png")
    expected = images.thumbnail(tmp_path / "grey.png", 16).astype(int)
    deep = images.thumbnail(tmp_path / "deep.png", 16).astype(int)
    assert np.corrcoef(expected.ravel(), deep.ravel())[0, 1] > 0.999
    assert abs(images.thumbnail(tmp_path / "alpha.png", 16) - expected).max() <= 1


def test_inspect_says_it(command, tmp_path, noise):
    for name, pixels in noise.items():
        Image.fromarray(pixels).resize((256, 256)).save(tmp_path / f"{name}.png")
    a_file(tmp_path, "abc", spread(25) + spread(3, image=1, label=2))
    a_file(tmp_path, ["dark", "d"], spread(12), "val.json")
    data, val = tmp_path / "data.json", tmp_path / "val.json"
    options = ("--data", data, "--images", tmp_path, "--preset", "tiny")
    code, out, error = command("inspect", *options, "--set", "box_head.max_detections=20")
    assert code == 0, error
    out = " ".join(out.split())
    assert "* 1 image has more objects than the 20 detections" in out
    assert "1 of 2 classes has fewer than 20 objects" in out and "in only one image" in out
    code, out, error = command("inspect", *options, "--val", val)
    out = " ".join(out.split())
    assert code == 0 and "has no object in" in out and "stem" in out, error
    assert f"1 picture of {val} is nearly the same" in out and "a.png and dark.png" in out
    assert "in only one image" not in out
    code, out, _ = command("inspect", *options, "--split", 0.4)
    assert code == 0 and "the validation part" in out
    code, _, error = command("inspect", *options, "--split", 0.4, "--val", val)
    assert code == 2 and "leave --val out" in error
