"""engine.predict: readable pictures are drawn and listed, bad ones named, none overwritten."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from support import small

from accelerated import masks
from accelerated.engine.pictures import drawings, find
from accelerated.engine.predict import predict
from accelerated.mask_rcnn import MaskRCNN
from accelerated.structures import Crop, CroppedDetections, PaddedDetections

CATEGORIES = [{"id": 4, "name": "disc"}, {"id": 8, "name": "box"}]


class Finder:
    """A stand-in for a model: an object of 2x3 pixels of class 2 at 0.9, and of class 1 at 0.3."""

    weight = torch.zeros(())
    categories, class_names = None, ["class 1", "class 2"]

    def batch_detections(self, batch):
        boxes = torch.tensor([[[2.0, 1, 5, 3]] * 3])
        labels, valid = torch.tensor([[2, 1, 0]]), torch.tensor([[True, True, False]])
        return PaddedDetections(boxes, torch.tensor([[0.9, 0.3, 0]]), labels, valid)

    def detect(self, images, run, crops):
        assert crops, "masks of the image's size"
        height, width = images[0].shape[:2]
        found = run(None)
        crop = Crop(torch.ones(2, 3, dtype=torch.bool), 1, 2, (height, width))
        rows = [x[0, found.valid[0]] for x in (found.boxes, found.scores, found.labels)]
        return [CroppedDetections(*rows, None, [crop] * len(rows[0]))]


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(["a.png", "b.jpg", "more/a.png"]):
        Image.fromarray(small.shapes(3)[i].image).save(folder / name)
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_bad_picture_is_named_and_does_not_lose_the_others(pictures, tmp_path):
    result = predict(
        Finder(),
        [pictures, pictures / "more" / "a.png", pictures / "none.png"],
        tmp_path / "out",
        categories=CATEGORIES,
    )
    assert [Path(name).name for name, _ in result.failed] == ["broken.png", "empty.jpg", "none.png"]
    assert all("\n" not in message and message for _, message in result.failed)
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert written == result.predictions and [
        Path(image["file_name"]).name for image in written["images"]
    ] == ["a.png", "b.jpg", "a.png"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "a.png",
        "a_2.png",
        "b.jpg",
        "predictions.json",
    ]
    drawings = [image["drawing"] for image in written["images"]]
    assert drawings == ["a.png", "b.jpg", "a_2.png"]
    drawn, original = (
        np.asarray(Image.open(folder / "a.png")) for folder in (tmp_path / "out", pictures)
    )
    # A small picture is enlarged.
    original = original.repeat(10, 0).repeat(10, 1)
    assert drawn.shape == original.shape == (640, 640, 3)
    assert (drawn != original).any() and (drawn[400:] == original[400:]).all()
    assert (result.found.hidden, result.found.others, result.found.folders) == (0, 1, 1)


def test_the_json_is_a_coco_data_set(pictures, tmp_path):
    predict(Finder(), [pictures / "*.png"], tmp_path / "out", categories=CATEGORIES, threshold=0.5)
    coco = COCO(tmp_path / "out" / "predictions.json")
    (annotation,) = coco.anns.values()
    assert (annotation["category_id"], annotation["bbox"], annotation["area"]) == (
        8,
        [2, 1, 3, 2],
        6,
    )
    assert coco.annToMask(annotation).sum() == 6 and coco.cats[8]["name"] == "box"
    result = predict(
        Finder(), [pictures / "a.png"], tmp_path / "out", categories=CATEGORIES, threshold=0.2
    )
    assert len(result.predictions["annotations"]) == 2


@pytest.mark.parametrize(("threshold", "count"), [(0.91, 0), (0.9, 1), (0.31, 1), (0.3, 2)])
def test_a_score_at_the_threshold_counts(pictures, tmp_path, threshold, count):
    result = predict(Finder(), [pictures / "a.png"], tmp_path / "out", threshold=threshold)
    assert len(result.predictions["annotations"]) == count


def test_input_pictures_are_never_overwritten(pictures, tmp_path):
    before = (pictures / "a.png").read_bytes()
    with pytest.raises(ValueError, match=r"a\.png is an input picture and would be overwritten"):
        predict(Finder(), [pictures / "a.png"], pictures, categories=CATEGORIES)
    assert (pictures / "a.png").read_bytes() == before


def test_results_survive_an_interrupt(pictures, tmp_path):
    class Interrupted(Finder):
        calls = 0

        def detect(self, images, run, crops):
            self.calls += 1
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().detect(images, run, crops)

    with pytest.raises(KeyboardInterrupt):
        predict(Interrupted(), [pictures], tmp_path / "out", categories=CATEGORIES)
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"]) == 1


def test_find(pictures):
    def names(*inputs):
        return [str(path.relative_to(pictures)) for path in find(inputs).pictures]

    assert names(pictures) == ["a.png", "b.jpg", "broken.png", "empty.jpg"]
    assert names(pictures / "**" / "a.png") == ["a.png", "more/a.png"]
    assert names(pictures / "a.png", pictures / "a*") == ["a.png"]
    (pictures / "[1].png").write_bytes(b"")
    assert names(pictures / "[1].png") == ["[1].png"]
    for nothing in ([], [pictures / "*.bmp"], [pictures / "more" / ".." / "more" / "x*"]):
        with pytest.raises(ValueError, match="no picture in"):
            find(nothing)


def test_drawings_never_share_a_name(tmp_path):
    """Two pictures of one name, and a third that has the name which the second would get."""
    inputs = {}
    for name in ("a/x.png", "b/x.png", "c/x_2.png", "c/X.PNG", "d/x.tif", "d/y.JPG", "e/y.jpg"):
        inputs[tmp_path / name] = Path(Path(name).name)
    chosen = drawings(inputs, tmp_path / "out")
    assert [str(path.relative_to(tmp_path / "out")) for path in chosen.values()] == [
        "x.png",
        "x_2.png",
        "y.JPG",
        "x_3.png",
        "X_4.PNG",
        "x_5.png",
        "y_2.jpg",
    ]
    assert list(chosen)[3] == tmp_path / "b/x.png"


def test_recursive_keeps_folders_and_leaves_out_the_drawings(pictures, tmp_path):
    (pictures / ".cache").mkdir()
    (pictures / ".cache" / "c.png").write_bytes(b"")
    (pictures / "more" / ".hidden.png").write_bytes(b"")
    output = pictures / "out"
    for _ in range(2):
        result = predict(Finder(), [pictures], output, recursive=True)
        assert [image["drawing"] for image in result.predictions["images"]] == [
            "a.png",
            "b.jpg",
            "more/a.png",
        ]
        assert (result.found.hidden, result.found.others, result.found.folders) == (2, 1, 0)
    assert (output / "more" / "a.png").exists()
    with pytest.raises(ValueError, match="folders inside were not searched: --recursive"):
        (tmp_path / "deep" / "er").mkdir(parents=True)
        find([tmp_path / "deep"])


def test_nothing_is_written_where_nothing_could_be_read(pictures, tmp_path):
    result = predict(Finder(), [pictures / "broken.png", pictures / "none.png"], tmp_path / "out")
    assert len(result.failed) == 2 and not (tmp_path / "out").exists()


def test_what_is_saved(pictures, tmp_path):
    only = predict(Finder(), [pictures / "a.png"], tmp_path / "json", saved=("json",))
    assert [path.name for path in (tmp_path / "json").iterdir()] == ["predictions.json"]
    assert "drawing" not in only.predictions["images"][0]
    predict(Finder(), [pictures / "a.png"], tmp_path / "png", saved=("png",))
    assert [path.name for path in (tmp_path / "png").iterdir()] == ["a.png"]
    labels = ("labelme", "yolo")
    predict(Finder(), [pictures / "a.png"], tmp_path / "labels", saved=labels, threshold=0.2)
    made = json.loads((tmp_path / "labels" / "labelme" / "a.json").read_text())
    assert [shape["label"] for shape in made["shapes"]] == ["class 2", "class 1"]
    picture = tmp_path / "labels" / "labelme" / made["imagePath"]
    assert picture.resolve() == (pictures / "a.png").resolve()
    rows = (tmp_path / "labels" / "yolo" / "labels" / "a.txt").read_text().splitlines()
    assert [row.split()[0] for row in rows] == ["1", "0"]


def test_pictures_are_upright_unless_told_otherwise(tmp_path):
    """A photograph of 40x20 pixels, stored lying; predictions.json says which frame it means."""
    stored = np.zeros((20, 40, 3), np.uint8)
    stored[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(stored).save(tmp_path / "plain.jpg")
    inputs = [tmp_path / "turned.jpg", tmp_path / "plain.jpg"]
    for choice, sides in (("apply", (20, 40)), ("ignore", (40, 20))):
        result = predict(Finder(), inputs, tmp_path / choice, exif=choice)
        assert result.turned == 1
        turned, plain = result.predictions["images"]
        assert (turned["width"], turned["height"]) == sides and turned["exif"] == choice
        assert (plain["width"], plain["height"]) == (40, 20)
        with Image.open(tmp_path / choice / "turned.jpg") as drawn:
            assert drawn.size == (16 * sides[0], 16 * sides[1]) and not drawn.getexif()
            # White is where the stored picture begins: turned upright, above.
            side = np.asarray(drawn).mean((1 if choice == "apply" else 0, 2))
            assert side[16:90].min() > 200 and side[-300:].max() < 60


def test_deep_pictures_need_a_range(tmp_path):
    deep = np.linspace(0, 4095, 64 * 48).reshape(48, 64).astype(np.int32)
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    [(_, reason)] = predict(Finder(), [tmp_path / "deep.tif"], tmp_path / "out").failed
    assert "--pixel-range" in reason
    result = predict(Finder(), [tmp_path / "deep.tif"], tmp_path / "out", pixel_range=(0, 4095))
    assert not result.failed and (tmp_path / "out" / "deep.png").exists()


def test_masks_of_large_pictures_are_never_of_the_pictures_size(tmp_path):
    """`predict` asks for crops, of the detections above the threshold alone."""
    config = small.config()
    head = dataclasses.replace(config.box_head, score_threshold=0.0)
    torch.manual_seed(0)
    model = MaskRCNN(dataclasses.replace(config, box_head=head)).eval()
    sizes = []

    def paste(probabilities, boxes, height, width, **_):
        sizes.append(len(boxes))
        boxes[:, 2:] = boxes[:, :2] + 40
        pixels = torch.ones(40, 40, dtype=torch.bool)
        return [Crop(pixels, 0, 0, (height, width)) for _ in boxes]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "paste_crops", paste)
        patch.setattr(masks, "paste", lambda *_, **__: pytest.fail("masks of the image's size"))
        Image.fromarray(np.zeros((300, 400, 3), np.uint8)).save(tmp_path / "a.png")
        result = predict(model, [tmp_path / "a.png"], tmp_path / "out", threshold=0.0)
        high = predict(model, [tmp_path / "a.png"], tmp_path / "out", threshold=0.99)
    # What scores below the threshold is not even pasted.
    assert sizes == [len(result.predictions["annotations"]), 0] and sizes[0] > 10
    assert high.predictions["annotations"] == []
    assert all(a["area"] == 1600 for a in result.predictions["annotations"])
    assert result.predictions["categories"][1] == {"id": 2, "name": "class 2"}
