"""engine.predict: readable pictures are drawn and listed, bad ones named, none overwritten."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from support import small

from accelerated.engine.predict import find, predict
from accelerated.structures import Detections

CATEGORIES = [{"id": 4, "name": "disc"}, {"id": 8, "name": "box"}]


class Finder:
    """A stand-in for a model: an object of 2x3 pixels of class 2 at 0.9, and of class 1 at 0.3."""

    weight = torch.zeros(())
    batch_detections = None

    def detect(self, images, run=None):
        height, width = images[0].shape[:2]
        masks = torch.zeros(2, height, width, dtype=torch.bool)
        masks[:, 1:3, 2:5] = True
        return [
            Detections(
                torch.tensor([[2.0, 1, 5, 3]] * 2),
                torch.tensor([0.9, 0.3]),
                torch.tensor([2, 1]),
                masks,
            )
        ]


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
        "b.png",
        "predictions.json",
    ]
    drawn, original = (
        np.asarray(Image.open(folder / "a.png")) for folder in (tmp_path / "out", pictures)
    )
    assert drawn.shape == original.shape and (drawn != original).any()


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


def test_input_pictures_are_never_overwritten(pictures, tmp_path):
    before = (pictures / "a.png").read_bytes()
    with pytest.raises(ValueError, match=r"a\.png is an input picture and would be overwritten"):
        predict(Finder(), [pictures / "a.png"], pictures, categories=CATEGORIES)
    assert (pictures / "a.png").read_bytes() == before


def test_results_survive_an_interrupt(pictures, tmp_path):
    class Interrupted(Finder):
        calls = 0

        def detect(self, images, run=None):
            self.calls += 1
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().detect(images)

    with pytest.raises(KeyboardInterrupt):
        predict(Interrupted(), [pictures], tmp_path / "out", categories=CATEGORIES)
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"]) == 1


def test_find(pictures):
    names = lambda *inputs: [str(path.relative_to(pictures)) for path in find(inputs)]  # noqa: E731
    assert names(pictures) == ["a.png", "b.jpg", "broken.png", "empty.jpg"]
    assert names(pictures / "**" / "a.png") == ["a.png", "more/a.png"]
    assert names(pictures / "a.png", pictures / "a*") == ["a.png"]
    (pictures / "[1].png").write_bytes(b"")
    assert names(pictures / "[1].png") == ["[1].png"]
    for nothing in ([], [pictures / "*.bmp"], [pictures / "more" / ".." / "more" / "x*"]):
        with pytest.raises(ValueError, match="no picture in"):
            find(nothing)
