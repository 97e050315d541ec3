"""Predictions and data sets written as LabelMe and YOLO."""

import json

import numpy as np
import pytest
from support import annotated

from accelerated.data import lint, rle, sources
from accelerated.data.formats import labelme, outlines, yolo


def blob(rng, height=70, width=90, parts=1, hole=False):
    """Draw a mask of smooth blobs, of at least 30 pixels across, that differ for each call."""
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), dtype=bool)
    for part in range(parts):
        centre = 20 + 48 * part + rng.uniform(-3, 3), rng.uniform(25, 45)
        angle = np.arctan2(y - centre[1], x - centre[0])
        radius = np.hypot(x - centre[0], y - centre[1])
        rim = 17 + 2 * np.sin(3 * angle + rng.uniform(0, 6)) + rng.uniform(-1, 1)
        mask |= (radius < rim) & (radius > 6 * hole)
    return mask


def filled(polygons, mask):
    out = np.zeros_like(mask)
    text = rle.of_polygons([polygon.ravel() for polygon in polygons], *mask.shape)
    rle.decode_into(rle.decompress(text), out)
    return out


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("hole", [False, True])
def test_outlines_give_the_mask_again(rng, parts, hole):
    for _ in range(5):
        mask = blob(rng, parts=parts, hole=hole)
        # A mask that touches the border.
        mask[:, 0] |= mask[:, 20]
        traced = outlines.of_mask(mask)
        assert iou(filled(traced, mask), mask) > 0.999
        assert iou(filled([outlines.joined(traced)], mask), mask) > 0.999
        assert not outlines.of_mask(np.zeros((5, 5)))
        # Diagonals are straight.
        assert sum(map(len, traced)) < 0.8 * sum(
            np.count_nonzero(np.diff(mask, axis=axis)) for axis in (0, 1)
        )


def prediction(mask, names=("photos/a/1.png", "photos/b/1.png")):
    y, x = np.nonzero(mask)
    box = [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
    size = list(mask.shape)
    found = {
        "id": 1,
        "image_id": 1,
        "category_id": 7,
        "bbox": [float(side) for side in box],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "score": 0.75,
        "segmentation": {"size": size, "counts": rle.compress(rle.of_mask(mask)).decode()},
    }
    images = [
        {"id": k, "file_name": name, "width": mask.shape[1], "height": mask.shape[0]}
        for k, name in enumerate(names, start=1)
    ]
    box_only = {key: value for key, value in found.items() if key != "segmentation"}
    return {
        "images": images,
        "categories": [{"id": 7, "name": "leaf"}, {"id": 9, "name": "stem: thin"}],
        "annotations": [found, box_only | {"id": 2, "image_id": 2, "category_id": 9}],
    }


def test_predictions_as_labelme(rng, tmp_path):
    mask = blob(rng, parts=2, hole=True)
    labelme.write(prediction(mask), tmp_path / "out")
    written = json.loads((tmp_path / "out/a/1.json").read_text())
    assert written["imagePath"].endswith("photos/a/1.png")
    assert (written["imageHeight"], written["imageWidth"]) == mask.shape
    shapes = written["shapes"]
    assert [(s["label"], s["group_id"], s["score"]) for s in shapes] == [("leaf", 1, 0.75)] * 2
    assert iou(filled([np.array(shape["points"]) for shape in shapes], mask), mask) >= 0.99
    (box,) = json.loads((tmp_path / "out/b/1.json").read_text())["shapes"]
    assert (box["shape_type"], box["label"]) == ("rectangle", "stem: thin")
    assert (tmp_path / "out/labels.txt").read_text() == "leaf\nstem: thin\n"


def test_crowd_regions_are_left_out(rng, tmp_path):
    content = prediction(blob(rng))
    content["annotations"][0]["iscrowd"] = 1
    labelme.write(content, tmp_path / "labelme")
    assert json.loads((tmp_path / "labelme/a/1.json").read_text())["shapes"] == []
    yolo.write(content, tmp_path / "yolo")
    assert (tmp_path / "yolo/labels/a/1.txt").read_text() == ""


def test_predictions_as_yolo(rng, tmp_path):
    mask = blob(rng, parts=2, hole=True)
    yolo.write(prediction(mask), tmp_path)
    label, *numbers = (tmp_path / "labels/a/1.txt").read_text().split()
    points = np.array(numbers, dtype=float).reshape(-1, 2) * [mask.shape[1], mask.shape[0]]
    assert label == "0" and iou(filled([points], mask), mask) >= 0.99
    row = (tmp_path / "labels/b/1.txt").read_text().split()
    assert row[0] == "1" and len(row) == 5
    assert (tmp_path / "labels/classes.txt").read_text() == "leaf\nstem: thin\n"
    with pytest.raises(ValueError, match="share the labels"):
        yolo.write(prediction(mask, ("a/1.png", "a/1.jpg")), tmp_path)


@pytest.mark.parametrize("write", [labelme.write, yolo.write])
def test_labels_of_predictions_are_read_where_they_are_written(rng, tmp_path, write, monkeypatch):
    """Pictures of one folder, of several, and below a folder that has the name of its parent."""
    monkeypatch.chdir(tmp_path)
    mask = blob(rng)
    for number, names in enumerate(
        [("photos/1.png", "photos/2.png"), ("a/1.png", "b/1.png"), ("x/1.png", "x/x/1.png")]
    ):
        for name in names:
            annotated.picture(tmp_path / name, size=mask.shape)
        content = prediction(mask, names)
        content["annotations"][1] = content["annotations"][0] | {"id": 2, "image_id": 2}
        folder = tmp_path / f"out{number}" / "labels of"
        write(content, folder)
        source = sources.find(folder)
        assert not lint.check(folder).blocking
        read = sorted(
            (source.image_root / image["file_name"]) for image in source.content["images"]
        )
        assert [path.resolve() for path in read] == sorted(tmp_path / name for name in names)
        assert len(source.content["annotations"]) == 2
        # Again into the same folder, and where a folder of that name exists.
        write(content, folder)
        (folder / "images").unlink()
        (folder / "images").mkdir()
        write(content, folder)
        assert not (folder / "images").is_symlink()


def test_pictures_of_two_disks_have_no_folder_in_common(rng, tmp_path):
    labelme.write(prediction(blob(rng), ("/one/1.png", "/two/1.png")), tmp_path / "out")
    assert not (tmp_path / "out" / "images").exists()


def test_a_name_is_first_looked_for_where_it_leads(rng, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mask = blob(rng)
    for name in ("x/1.png", "x/x/1.png"):
        annotated.picture(tmp_path / name, size=mask.shape)
    labelme.write(prediction(mask, ("x/1.png",)) | {"annotations": []}, tmp_path / "out")
    assert [i["file_name"] for i in sources.find(tmp_path / "out").content["images"]] == ["1.png"]
