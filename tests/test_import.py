"""The command `import`, round trips between formats, and --split."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from support import annotated, small
from test_formats_written import blob, filled, iou

from accelerated.data import rle, sources
from accelerated.data.coco import CocoDataset
from accelerated.data.formats import conversion
from accelerated.data.split import split


@pytest.fixture
def photos(rng, tmp_path):
    """Write four pictures in folders, with polygons, run lengths, a box and a crowd; COCO's json.

    Returns (json, folder of the pictures, the json's content).
    """
    names = ["a.png", "b/a.png", "b/c d.jpg", "empty.png"]
    images, annotations = [], []
    for number, name in enumerate(names, start=10):
        annotated.picture(tmp_path / "photos" / name, number, (70, 90))
        images.append({"id": number, "file_name": name, "width": 90, "height": 70})

    def add(image, category, **values):
        entry = {"id": len(annotations) + 5, "image_id": image, "category_id": category}
        annotations.append(entry | {"iscrowd": 0} | values)

    triangle, square = [10.125, 10, 60, 15, 30, 45.5], [70, 50, 80, 50, 80, 60, 70, 60]
    for image in (10, 11, 12):
        add(image, 7, segmentation=[triangle], bbox=[10.125, 10, 49.875, 35.5], area=848.9)
    add(10, 3, segmentation=[triangle, square], bbox=[10.125, 10, 69.875, 50], area=948.9)
    mask = blob(rng, parts=2, hole=True)
    runs = {"size": [70, 90], "counts": rle.compress(rle.of_mask(mask)).decode()}
    box = [float(v) for v in annotated.boxes_of_ids(mask.astype(np.uint8))[1]]
    add(11, 3, segmentation=runs, bbox=box, area=float(mask.sum()))
    add(12, 3, segmentation=[], bbox=[20, 10, 30, 20], area=600)
    add(12, 7, segmentation=runs, bbox=box, area=float(mask.sum()), iscrowd=1)
    # Out of order, with gaps, and one that is not used.
    categories = [{"id": 7, "name": "leaf"}, {"id": 3, "name": "stem"}, {"id": 9, "name": "root"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = tmp_path / "photos.json"
    path.write_text(json.dumps(content))
    return path, tmp_path / "photos", content


def mask_of(annotation, image):
    out = np.zeros((image["height"], image["width"]), dtype=bool)
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        polygons = [np.reshape(part, (-1, 2)) for part in segmentation]
        return filled(polygons, out) if polygons else out
    rle.decode_into(rle.decompress(segmentation["counts"]), out)
    return out


@pytest.mark.parametrize("format", ["labelme", "yolo"])
def test_round_trips(format, photos, tmp_path):
    _, root, before = photos
    assert conversion.write(before, tmp_path / "other", format, root) == 1, "the crowd region"
    # Labels that stand beside their pictures, and labels elsewhere.
    source = sources.find(tmp_path / "other", root)
    assert not [p for p in source.problems if p.severity != "note"]
    after = source.content
    assert {c["name"] for c in after["categories"]} == {"leaf", "stem", "root"}
    assert {i["file_name"] for i in after["images"]} == {i["file_name"] for i in before["images"]}
    kept = [annotation for annotation in before["annotations"] if not annotation["iscrowd"]]
    assert len(after["annotations"]) == len(kept)

    def by_image(content):
        names = {c["id"]: c["name"] for c in content["categories"]}
        for image in sorted(content["images"], key=lambda image: image["file_name"]):
            for annotation in content["annotations"]:
                if annotation["image_id"] == image["id"] and not annotation["iscrowd"]:
                    yield image, names[annotation["category_id"]], annotation

    for (image, name, old), (other, new_name, new) in zip(
        by_image(before), by_image(after), strict=True
    ):
        assert (image["width"], image["height"], name) == (
            other["width"],
            other["height"],
            new_name,
        )
        np.testing.assert_allclose(new["bbox"], old["bbox"], atol=0.51)
        assert bool(new["segmentation"]) == bool(old["segmentation"])
        if old["segmentation"]:
            whole = isinstance(old["segmentation"], list)
            # Traced masks may differ in single pixels.
            assert iou(mask_of(old, image), mask_of(new, other)) >= (1 if whole else 0.99)
        if isinstance(old["segmentation"], list) and len(old["segmentation"]) == 1:
            np.testing.assert_allclose(new["segmentation"], old["segmentation"], atol=1e-6)
    # And on to the other one.
    third = {"labelme": "yolo", "yolo": "labelme"}[format]
    assert conversion.write(after, tmp_path / "third", third, root) == 0
    again = sources.find(tmp_path / "third", root).content
    assert len(again["annotations"]) == len(kept)


@pytest.mark.parametrize("name", annotated.ALL)
def test_every_format_becomes_coco(name, command, tmp_path):
    data = annotated.ALL[name](tmp_path / "data")
    code, out, error = command("import", data, tmp_path / "out.json")
    assert code == 0, error
    source = sources.find(data)
    assert json.loads((tmp_path / "out.json").read_text()) == source.content
    words = " ".join(out.split())
    assert f"Read as {source.format}." in words and f"--images {source.image_root}" in words
    again = CocoDataset(tmp_path / "out.json", source.image_root)
    assert len(again) == len(source.content["images"]) and not again.report.blocking


def test_what_import_says(command, photos, tmp_path):
    path, root, _ = photos
    other = tmp_path / "lm"
    code, out, error = command("import", path, other, "--images", root, "--format", "labelme")
    assert code == 0, error
    assert "4 images, 6 objects, 3 classes." in out and "1 annotation." in out
    assert (other / "b/a.json").exists() and (other / "b/c d.json").exists()
    for arguments, said in (
        (("import", path, other), "exists; choose another name"),
        (("import", path, tmp_path / "x", "--format", "pascal"), "expected coco, labelme, yolo"),
        (("import", tmp_path, tmp_path / "x.json", "--images", path), "exchange the two"),
        (("import", path, tmp_path / "x.json"), "photos.json: name the folder of its images"),
    ):
        if "name the folder" in said:
            # Out of the reach of the search beside the file.
            (tmp_path / "far").mkdir()
            shutil.move(root, tmp_path / "far" / "away")
        code, out, error = command(*arguments)
        assert code == 2 and said in error
    assert not (tmp_path / "x.json").exists() and not (tmp_path / "x").exists()


def test_a_file_that_is_broken_is_not_converted(command, tmp_path):
    (tmp_path / "a.json").write_text('{"images": [], "annotations": [], "categories": []}')
    code, out, _ = command("import", tmp_path / "a.json", tmp_path / "b.json")
    assert code == 1 and "Nothing was written" in out and not (tmp_path / "b.json").exists()


@pytest.mark.parametrize(
    ("format", "name", "said"),
    [
        ("coco", "out", "expected the name of a file, such as out.json"),
        ("coco", "out.yaml", "expected the name of a file, such as out.json"),
        ("yolo", "labels.txt", "--format yolo writes a folder"),
        ("labelme", "out.json", "--format labelme writes a folder"),
    ],
)
def test_the_name_of_the_output_fits_its_format(command, photos, tmp_path, format, name, said):
    path, root, _ = photos
    code, _, error = command("import", path, tmp_path / name, "--images", root, "--format", format)
    assert code == 2 and said in error and not (tmp_path / name).exists()


def test_import_splits(command, photos, tmp_path):
    path, root, content = photos
    where = ("--images", root, "--split", 0.5, "--seed", 3)
    code, _, error = command("import", path, tmp_path / "out.json", *where)
    assert code == 0, error
    parts = [json.loads((tmp_path / f"out_{p}.json").read_text()) for p in ("train", "val")]
    for key in ("images", "annotations"):
        ids = [[entry["id"] for entry in part[key]] for part in parts]
        assert sorted(ids[0] + ids[1]) == [entry["id"] for entry in content[key]]
        assert all(ids)
    for part in parts:
        inside = {image["id"] for image in part["images"]}
        assert all(a["image_id"] in inside for a in part["annotations"])
        assert part["categories"] == content["categories"]
        # Both classes are in several images.
        assert {a["category_id"] for a in part["annotations"]} == {3, 7}
    again = CocoDataset(tmp_path / "out_val.json", root, reading=sources_reading())
    assert len(again) == len(parts[1]["images"])


def sources_reading():
    from accelerated.data.reading import Reading

    return Reading(boxes_as_masks=True)


def test_a_part_of_a_data_set(photos):
    path, root, _ = photos
    whole = CocoDataset(path, root, reading=sources_reading())
    whole_coco = whole.coco
    part = whole.subset([2, 0])
    assert part.file_names == ["b/c d.jpg", "a.png"] and part.image_ids == [12, 10]
    assert part.class_names == whole.class_names and part.sizes == [(70, 90)] * 2
    assert len(part) == 2 and len(part[0].target.boxes) == 2
    assert {a["image_id"] for a in part.coco["annotations"]} == {10, 12}
    assert whole.coco is whole_coco and len(whole) == 4


def test_train_holds_a_part_back(command, tmp_path):
    """Trained on LabelMe's files; resumed with the same parts; evaluated on the rest."""
    folder = tmp_path / "photos"
    for k in range(6):
        annotated.picture(folder / f"{k}.png", k)
        shapes = [
            annotated.labelme_shape("stem" if k % 2 else "leaf", annotated.LEAF),
            annotated.labelme_shape("leaf", annotated.STEM),
        ]
        file = annotated.labelme_file(f"{k}.png", shapes)
        (folder / f"{k}.json").write_text(json.dumps(file))
    run, changes = tmp_path / "run", (*small.CHANGES, "--set", "box_head.max_detections=4")
    fixed = ("--preset", "tiny", "--batch-size", 2, "--device", "cpu", *changes)
    where = ("train", "--data", folder, "--output", run, *fixed)
    code, out, error = command(*where, "--iterations", 1, "--split", 0.34, "--seed", 1)
    assert code == 0, error
    assert f"{folder}: read as LabelMe, with images in {folder}" in error
    parts = json.loads((run / "split/split.json").read_text())
    found = [{"leaf", "stem"} if k % 2 else {"leaf"} for k in range(6)]
    train, val = split(found, 0.34, 1)
    assert [parts["train"], parts["val"]] == [[k + 1 for k in part] for part in (train, val)]
    lines = {line.partition("  ")[0]: line for line in out.splitlines()}
    assert "4 images" in lines["Data"] and "2 images" in lines["Validation"]
    assert "Average precision" in out
    code, out, error = command("train", "--output", run, "--resume", "--iterations", 2)
    assert code == 0, error
    assert json.loads((run / "split/split.json").read_text()) == parts
    checked = ("evaluate", run / "last", "--data", run / "split/val.json", "--device", "cpu")
    code, out, error = command(*checked, "--output", tmp_path / "evaluation")
    assert code == 0, error
    assert "the images are read from" not in out and f"images in {run / 'split/images'}" in error
    code, _, error = command(*where, "--iterations", 3, "--split", 0.5, "--seed", 1, "--resume")
    assert code == 2 and "was split with fraction 0.34, not 0.5: choose another folder" in error
    (folder / "6.json").write_text((folder / "5.json").read_text().replace("5.png", "6.png"))
    annotated.picture(folder / "6.png")
    code, _, error = command("train", "--output", run, "--resume", "--iterations", 3)
    assert code == 2 and "lists other images than the data has" in error
    code, _, error = command(*where, "--split", 0.5, "--val", folder, "--resume")
    assert code == 2 and "leave --val out" in error


def test_labels_on_pictures_that_are_displayed_turned(tmp_path):
    """Annotation programs show pictures upright; so their labels ask for --exif apply."""
    from accelerated.data.reading import Reading

    path = annotated.labelme(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((annotated.WIDTH, annotated.HEIGHT, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos" / annotated.NAMES[1], exif=exif)
    with pytest.raises(ValueError, match="--exif apply"):
        CocoDataset(path)
    dataset = CocoDataset(path, reading=Reading(exif="apply"))
    assert dataset[1].image.shape[:2] == (annotated.HEIGHT, annotated.WIDTH)
    # Where the format gives no size, that of the upright picture counts.
    shutil.rmtree(tmp_path / "photos")
    data = annotated.yolo(tmp_path)
    Image.fromarray(pixels).save(tmp_path / "images/train" / annotated.NAMES[1], exif=exif)
    sizes = [(i["width"], i["height"]) for i in sources.find(data).content["images"]]
    assert sizes == [(annotated.WIDTH, annotated.HEIGHT)] * 2
