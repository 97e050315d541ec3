"""The COCO reader: pixels, boxes, masks, categories; and a round trip of the shapes by disk."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as pycoco

from accelerated.data import images
from accelerated.data.coco import CocoDataset
from accelerated.data.summary import summary
from accelerated.data.synthetic import ShapesDataset
from reference import shapes


@pytest.fixture
def written(tmp_path):
    """write(annotations, sizes) -> CocoDataset over blank images of the given (width, height)."""

    def write(annotations, sizes=((60, 40),), categories=((7, "cat"), (3, "dog")), **keywords):
        for number, size in enumerate(sizes, start=1):
            Image.new("RGB", size, (number, 2, 3)).save(tmp_path / f"{number}.png")
        data = {
            "images": [
                {"id": n, "file_name": f"{n}.png", "width": w, "height": h}
                for n, (w, h) in enumerate(sizes, start=1)
            ],
            "categories": [{"id": number, "name": name} for number, name in categories],
            "annotations": [
                {"id": n, "image_id": 1, "category_id": 7, "iscrowd": 0, "area": 1.0, **a}
                for n, a in enumerate(annotations)
            ],
        }
        (tmp_path / "a.json").write_text(json.dumps(data))
        return CocoDataset(tmp_path / "a.json", tmp_path, **keywords)

    return write


SQUARE = {"bbox": [5, 5, 20, 20], "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]]}


def test_target(written):
    crowd = {
        "iscrowd": 1,
        "bbox": [0, 0, 10, 40],
        "segmentation": {"size": [40, 60], "counts": [0, 400, 2000]},
    }
    column = {
        "category_id": 3,
        "bbox": [-2, 0, 4, 40],
        "segmentation": {"size": [40, 60], "counts": [0, 80, 2320]},
    }
    dataset = written([SQUARE, crowd, column], sizes=((60, 40), (30, 20)))
    # Labels are by rising id, not by position.
    assert dataset.category_ids == [3, 7] and dataset.class_names == ["dog", "cat"]
    assert dataset.sizes == [(40, 60), (20, 30)] and dataset.max_objects == 2 and len(dataset) == 2
    image, target, image_id = dataset[0]
    assert (
        image_id == 1
        and image.shape == (40, 60, 3)
        and image.dtype == np.uint8
        and image[0, 0].tolist() == [1, 2, 3]
    )
    # The crowd region is no training target.
    assert target.labels.tolist() == [2, 1]
    assert target.boxes.tolist() == [[5, 5, 25, 25], [0, 0, 2, 40]]
    expected = np.zeros((2, 40, 60), dtype=bool)
    expected[0, 5:25, 5:25], expected[1, :, :2] = True, True
    np.testing.assert_array_equal(target.masks.numpy(), expected)
    negative = dataset[1].target
    assert (
        negative.boxes.shape == (0, 4)
        and negative.masks.shape == (0, 20, 30)
        and negative.labels.shape == (0,)
    )
    truth = dataset.coco["annotations"]
    # pycocotools takes id 0 for "no match".
    assert [a["id"] for a in truth] == [1, 2, 3]
    assert [a["iscrowd"] for a in truth] == [0, 1, 0]
    assert truth[2]["bbox"] == [0, 0, 2, 40]


def test_skip_invalid_skips_and_counts(written):
    bad = {**SQUARE, "bbox": [5, 5, -20, 20]}
    with pytest.raises(
        ValueError, match=r"1 problem:\n.*annotation 1.*bbox_negative.*\n.*--skip-invalid"
    ):
        written([SQUARE, bad])
    dataset = written([SQUARE, bad], skip_invalid=True)
    assert len(dataset[0].target.labels) == 1 and len(dataset.report.blocking) == 1
    # A problem of the whole file: there is nothing to skip.
    with pytest.raises(ValueError, match="duplicate_category_id"):
        written([SQUARE], categories=((7, "cat"), (7, "dog")), skip_invalid=True)


def test_an_invalid_image_is_skipped_with_its_objects(written, tmp_path):
    written([SQUARE], sizes=((60, 40), (60, 40)))
    (tmp_path / "1.png").write_bytes(b"")
    dataset = CocoDataset(tmp_path / "a.json", tmp_path, skip_invalid=True)
    assert dataset.image_ids == [2] and dataset.max_objects == 0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_of_pixels_becomes_rgb(tmp_path, mode):
    grey = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (8, 1))
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "1":
        image, grey = Image.fromarray(grey > 99), (grey > 99) * np.uint8(255)
    else:
        image = (
            Image.fromarray(grey).convert(mode)
            if mode in "LAP"
            else Image.fromarray(grey).convert("RGB").convert(mode)
        )
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path, **({"transparency": bytes(range(256))} if mode == "P" else {}))
    pixels = images.read(path)
    assert pixels.shape == (8, 64, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - grey[..., None]).max() <= 1


def test_exif_orientation_is_not_applied_and_first_frame_is_taken(tmp_path):
    stored = np.zeros((40, 60, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif)
    assert images.read(tmp_path / "a.jpg").shape == (40, 60, 3)
    frames = [Image.new("L", (6, 4), level) for level in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert images.read(tmp_path / "a.gif").max() == 10


def test_shapes_survive_the_disk(tmp_path):
    made = ShapesDataset(5, seed=3, size=(48, 64))
    read = CocoDataset(*made.write_coco(tmp_path))
    assert not read.report.problems
    assert (read.image_ids, read.sizes, read.class_names) == (
        made.image_ids,
        made.sizes,
        list(shapes.CLASS_NAMES),
    )
    for a, b in zip(made, read, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        for name in ("boxes", "labels", "masks"):
            x, y = (getattr(item.target, name).numpy() for item in (a, b))
            np.testing.assert_array_equal(x, y)
        assert b.target.polygons == [None] * len(b.target.labels), "run lengths have no outline"
    assert read.coco == made.coco
    assert summary(read) == summary(made)


def test_ground_truth_is_what_pycocotools_decodes():
    dataset = ShapesDataset(3, size=40)
    masks = np.concatenate([dataset[i].target.masks.numpy() for i in range(3)])
    decoded = [pycoco.decode(a["segmentation"]) for a in dataset.coco["annotations"]]
    np.testing.assert_array_equal(masks, np.array(decoded, dtype=bool))


def test_summary(written):
    crowd = {
        "iscrowd": 1,
        "bbox": [0, 0, 10, 40],
        "segmentation": {"size": [40, 60], "counts": [0, 400, 2000]},
    }
    numbers = summary(
        written([SQUARE, {**SQUARE, "area": 2000.0}, crowd], sizes=((60, 40), (20, 30)))
    )
    assert (numbers["images"], numbers["objects"], numbers["crowds"], numbers["negatives"]) == (
        2,
        2,
        1,
        1,
    )
    assert numbers["area"] == {"small": 1, "medium": 1, "large": 0}
    assert numbers["objects_per_image"] == {"min": 0, "median": 1.0, "max": 2}
    assert numbers["image_width"] == {"min": 20, "median": 40.0, "max": 60}
    assert [c["objects"] for c in numbers["categories"]] == [0, 2]
    json.dumps(numbers)


@pytest.mark.parametrize("name", ["coco_tiny", "nuclei"])
def test_real_data(shared_data, name):
    """Masks are those of pycocotools, boxes enclose them, everything stays in the image."""
    folder = shared_data(name)
    dataset = CocoDataset(folder / "val.json", folder / "images", open_images=False)
    data = json.loads((folder / "val.json").read_text())
    for index in range(0, len(dataset), 20):
        image, target, image_id = dataset[index]
        height, width = image.shape[:2]
        wanted = [a for a in data["annotations"] if a["image_id"] == image_id and not a["iscrowd"]]
        assert len(target.labels) == len(wanted)
        for annotation, mask, box, label in zip(
            wanted, target.masks.numpy(), target.boxes.numpy(), target.labels.tolist(), strict=True
        ):
            encoded = annotation["segmentation"]
            encoded = (
                pycoco.merge(pycoco.frPyObjects(encoded, height, width))
                if isinstance(encoded, list)
                else encoded
            )
            np.testing.assert_array_equal(mask, pycoco.decode(encoded).astype(bool))
            x, y, w, h = annotation["bbox"]
            np.testing.assert_allclose(box, [x, y, x + w, y + h], atol=1.01)
            assert dataset.category_ids[label - 1] == annotation["category_id"]
