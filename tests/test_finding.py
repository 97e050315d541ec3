"""engine.finding: pictures and frames come one by one or in batches, and in their order."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import spots
from support.spots import Spots, spot

import accelerated
from accelerated.data import images
from accelerated.data.synthetic import ShapesDataset
from accelerated.engine import finding, tiles
from accelerated.engine.predict import predict

TINY = Path(__file__).parents[1] / "notebooks" / "data" / "tiny"


@pytest.fixture
def pictures(tmp_path):
    """Landscape and portrait pictures in turn, each with its spot at another column."""
    for i in range(7):
        size = (32, 64) if i % 2 else (64, 32)
        Image.fromarray(spot(i, 4, size)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_the_example_of_the_package(pictures, capsys):
    model = Spots()
    shown = []
    for found in accelerated.detections(model, [pictures], batch_size=4):
        print(found.path, found.class_names, found.detections.boxes)
        shown.append((found.path.name, found.detections.boxes[0, 0].item(), found.size))
    assert [name for name, _, _ in shown] == [f"{i}.png" for i in range(7)]
    assert [left for _, left, _ in shown] == list(range(7))
    assert shown[0][2] == (64, 32) and shown[1][2] == (32, 64)
    assert "0.png ['class 2'] tensor" in capsys.readouterr().out
    # Of one shape each, and as many as there are.
    assert [len(sizes) for sizes in model.passes] == [4, 3]
    assert all(len(set(sizes)) == 1 for sizes in model.passes)


def test_pictures_are_found_when_they_are_asked_for(pictures):
    model = Spots()
    stream = accelerated.detections(model, [pictures])
    first = next(stream)
    assert len(model.passes) == 1
    assert (first.image == spot(0, 4, (64, 32))).all() and first.frame is None
    next(stream)
    assert len(model.passes) == 2


def test_few_pictures_are_looked_at_ahead(pictures, monkeypatch):
    monkeypatch.setattr(finding, "AHEAD", 2)
    model = Spots()
    names = [found.path.name for found in accelerated.detections(model, [pictures], batch_size=2)]
    assert names == [f"{i}.png" for i in range(7)]
    assert [len(sizes) for sizes in model.passes] == [2, 2, 2, 1]


def test_a_bad_picture_is_an_error_or_is_listed(pictures):
    (pictures / "3.png").write_bytes(b"no picture")
    stream = accelerated.detections(Spots(), [pictures], batch_size=2)
    with pytest.raises(ValueError, match=r"3\.png' is not an image"):
        list(stream)
    failed = []
    stream = accelerated.detections(Spots(), [pictures], batch_size=2, failed=failed)
    assert [found.path.stem for found in stream] == ["0", "1", "2", "4", "5", "6"]
    assert [(Path(path).name, "not an image" in reason) for path, reason in failed] == [
        ("3.png", True)
    ]


def test_a_batch_that_is_too_large_is_tried_one_by_one(pictures, tmp_path):
    class Small(Spots):
        def detect(self, images, run, crops):
            if len(images) > 1 or images[0][4, 2].all():
                raise torch.OutOfMemoryError("out of\nmemory")
            return super().detect(images, run, crops)

    result = predict(Small(), [pictures], tmp_path / "out", batch_size=3)
    assert [(Path(path).name, reason) for path, reason in result.failed] == [
        (f"{i}.png", "out of memory") for i in range(3)
    ]
    names = [Path(image["file_name"]).name for image in result.predictions["images"]]
    assert names == ["3.png", "4.png", "5.png", "6.png"]


def test_a_batch_changes_nothing_but_the_last_bits(tmp_path):
    """Of a trained model, on pictures of four sizes that are two shapes for the network."""
    model = accelerated.load(TINY)
    for i, size in enumerate([(96, 128), (128, 96), (90, 128), (128, 90)]):
        shown = ShapesDataset(1, seed=i, size=size)[0].image
        Image.fromarray(shown).save(tmp_path / f"{i}.png")
    alone = list(accelerated.detections(model, [tmp_path], threshold=0.3))
    passes = []
    detect = model.detect
    model.detect = lambda images, **how: passes.append(len(images)) or detect(images, **how)
    together = list(accelerated.detections(model, [tmp_path], threshold=0.3, batch_size=2))
    assert passes == [2, 2]
    assert sum(len(found.class_names) for found in alone) > 4
    for one, other in zip(alone, together, strict=True):
        assert one.path == other.path and one.class_names == other.class_names
        torch.testing.assert_close(one.detections.scores, other.detections.scores)
        torch.testing.assert_close(
            one.detections.boxes, other.detections.boxes, atol=1e-3, rtol=1e-5
        )
        for a, b in zip(one.detections.crops, other.detections.crops, strict=True):
            assert (a.top, a.left, a.size) == (b.top, b.left, b.size)
            assert (a.pixels != b.pixels).float().mean() < 0.01


def test_tables(pictures, tmp_path, monkeypatch):
    [found] = accelerated.detections(Spots(), [pictures / "1.png"])
    table = found.table()
    assert table.to_dict("records") == [
        {
            "picture": str(pictures / "1.png"),
            "picture_width": 64,
            "picture_height": 32,
            "number": 1,
            "class": "class 2",
            "score": pytest.approx(0.9),
            "x": 1.0,
            "y": 4.0,
            "width": 16.0,
            "height": 16.0,
            "area": 256,
        }
    ]
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "black.png")
    [nothing] = accelerated.detections(Spots(), [tmp_path / "black.png"])
    assert list(nothing.table().columns) == list(table.columns) and not len(nothing.table())
    result = predict(Spots(), [pictures], tmp_path / "out", saved=("csv",))
    pandas = pytest.importorskip("pandas")
    written = pandas.read_csv(tmp_path / "out" / "predictions.csv")
    pandas.testing.assert_frame_equal(written, result.table())
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ValueError, match=r"package pandas: pip install 'maskrcnn-triton\[pandas\]"):
        found.table()


def test_frames_have_a_number_and_a_time(tmp_path):
    path = spots.write_video(tmp_path / "film.mp4", [spot(2 * i, 8) for i in range(6)], rate=10)
    model = Spots()
    shown = list(accelerated.detections(model, [path], every=2, batch_size=2))
    assert [(found.frame, found.time) for found in shown] == [(0, 0.0), (2, 0.2), (4, 0.4)]
    lefts = [found.detections.boxes[0, 0].item() for found in shown]
    assert lefts == pytest.approx([0, 4, 8], abs=1.5)
    assert [len(sizes) for sizes in model.passes] == [2, 1]
    assert shown[1].image.shape == (48, 64, 3)
    assert shown[1].table()[["frame", "time"]].values.tolist() == [[2, 0.2]]
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"text\.mp4: cannot be opened as a video"):
        list(accelerated.detections(model, [tmp_path / "text.mp4"]))


def test_in_tiles_one_picture_is_in_memory_at_a_time(tmp_path, monkeypatch):
    """A batch consists of tiles of one picture, for which others would only wait."""
    model, read = Spots(), images.read
    monkeypatch.setattr(images, "read", lambda *x: model.passes.append("read") or read(*x))
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        Image.fromarray(spot(3, 5)).save(path)
    how = {"tiles": tiles.Tiles(40, 10), "batch_size": 2}
    expected = ["read", [(40, 40)] * 2, [(40, 40)] * 2] * 2
    assert len(list(accelerated.detections(model, paths, **how))) == 2
    predict(model, paths, tmp_path / "out", saved=("json",), **how)
    assert model.passes == expected * 2
