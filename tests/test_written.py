"""engine.written: objects cut out, pictures of object numbers, and names that every system has."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import spots
from support.spots import CATEGORIES, Boxes, Spots, spot

from accelerated.command_line import loading
from accelerated.data import sources
from accelerated.engine.pictures import folders, stems
from accelerated.engine.predict import predict
from accelerated.engine.written import write_crops, write_numbers
from accelerated.structures import Crop, CroppedDetections, Detections

IMAGE = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)


def detections(*masks):
    """Masks (pixels, top, left) of classes 1, 2, 1, 2, .., by falling score."""
    crops = [Crop(torch.from_numpy(pixels), top, left, (20, 30)) for pixels, top, left in masks]
    labels = torch.arange(len(masks)) % 2 + 1
    scores = torch.linspace(0.9, 0.5, len(masks))
    return CroppedDetections(torch.zeros(len(masks), 4), scores, labels, None, crops)


def test_objects_are_cut_out_along_their_masks(tmp_path):
    triangle = np.tril(np.ones((6, 6), bool))
    # Its window is larger than what it fills.
    framed = np.pad(triangle, ((1, 2), (3, 0)))
    found = detections((framed, 4, 5), (np.zeros((3, 3), bool), 0, 0), (triangle, 14, 24))
    paths = write_crops(IMAGE, found, ["disc", "box"], Path("more/a"), tmp_path)
    assert paths == ["disc/more/a_1.png", None, "disc/more/a_3.png"]
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["a_1.png", "a_3.png"]
    cut = np.asarray(Image.open(tmp_path / "disc/more/a_1.png"))
    assert cut.shape == (6, 6, 4)
    assert (cut[..., 3] == 255 * triangle).all()
    assert (cut[triangle][:, :3] == IMAGE[5:11, 8:14][triangle]).all()
    assert not cut[~triangle].any()


def test_without_masks_boxes_are_cut_out(tmp_path):
    boxes = torch.tensor([[2.4, 3.2, 7.1, 9.0], [-5, -5, 99, 4], [8, 5, 8, 9], [40, 3, 50, 9]])
    found = Detections(boxes, torch.ones(4), torch.tensor([1, 1, 1, 1]), None)
    paths = write_crops(IMAGE, found, ["disc"], Path("a"), tmp_path)
    assert paths == ["disc/a_1.png", "disc/a_2.png", None, None]
    first, second = (np.asarray(Image.open(tmp_path / path)) for path in paths[:2])
    assert (first == IMAGE[3:9, 2:8]).all() and (second == IMAGE[:4]).all()


def test_of_two_objects_the_higher_score_has_the_pixel(tmp_path):
    full = np.ones((4, 4), bool)
    found = detections((full, 2, 2), (full, 4, 4), (np.ones((2, 2), bool), 3, 3))
    visible = write_numbers(found, tmp_path / "a.png", (20, 30))
    numbers = np.asarray(Image.open(tmp_path / "a.png"))
    expected = np.zeros((20, 30), int)
    expected[4:8, 4:8], expected[2:6, 2:6] = 2, 1
    assert (numbers == expected).all() and numbers.dtype == np.uint8
    assert visible == [16, 12, 0]


@pytest.mark.parametrize(("count", "dtype"), [(0, np.uint8), (255, np.uint8), (256, np.uint16)])
def test_many_objects_have_16_bits(tmp_path, count, dtype):
    pixel = np.ones((1, 1), bool)
    found = detections(*((pixel, index // 30, index % 30) for index in range(count)))
    visible = write_numbers(found, tmp_path / "a.png", (20, 30))
    numbers = np.asarray(Image.open(tmp_path / "a.png"))
    assert numbers.dtype == dtype and visible == [1] * count
    assert numbers.ravel().tolist() == [*range(1, count + 1), *[0] * (600 - count)]


@pytest.fixture
def photos(tmp_path):
    """Three pictures, of which two differ in their ending and one has nothing on it."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(spot(3, 5)).save(folder / "a.png")
    Image.fromarray(spot(9, 5)).save(folder / "a.jpg", quality=95)
    Image.fromarray(spot(0, 0, side=0)).save(folder / "b.png")
    return folder


def test_everything_at_once(photos, tmp_path):
    out = tmp_path / "out"
    saved = ("json", "png", "csv", "crops", "masks", "labelme", "yolo")
    with pytest.raises(ValueError, match=r"would share the labels a\.txt"):
        predict(Spots(), [photos], tmp_path / "shared", saved=saved)
    (photos / "a.jpg").rename(photos / "c.jpg")
    result = predict(Spots(), [photos], out, saved=saved)
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {
        *("a.png", "b.png", "c.jpg", "predictions.json", "predictions.csv"),
        *("crops/class 2/a_1.png", "crops/class 2/c_1.png"),
        *("masks/a.png", "masks/b.png", "masks/c.png", "masks/objects.csv"),
    } <= written
    assert not [name for name in written if "/." in f"/{name}"]
    content = json.loads((out / "predictions.json").read_text())
    assert content == result.predictions
    assert [image["mask"] for image in content["images"]] == [
        "masks/a.png",
        "masks/b.png",
        "masks/c.png",
    ]
    first = content["annotations"][0]
    assert (first["crop"], first["number"], first["visible"]) == ("crops/class 2/a_1.png", 1, 256)
    with (out / "masks" / "objects.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["mask"], row["number"], row["class"]) for row in rows] == [
        ("a.png", "1", "class 2"),
        ("c.png", "1", "class 2"),
    ]


def test_pictures_that_differ_in_their_ending_have_masks_and_crops_of_their_own(photos, tmp_path):
    predict(Spots(), [photos], tmp_path / "out", saved=("masks", "crops"))
    names = sorted(path.name for path in (tmp_path / "out").rglob("*.png"))
    assert names == ["a.png", "a_1.png", "a_2.png", "a_2_1.png", "b.png"]


def test_masks_of_folders_in_folders_are_listed_by_their_paths(photos, tmp_path):
    (photos / "more").mkdir()
    (photos / "a.jpg").rename(photos / "more" / "a.jpg")
    predict(Spots(), [photos], tmp_path / "out", saved=("masks",), recursive=True)
    with (tmp_path / "out" / "masks" / "objects.csv").open() as file:
        listed = [row["mask"] for row in csv.DictReader(file)]
    assert sorted(listed) == ["a.png", "more/a.png"]
    assert all((tmp_path / "out" / "masks" / name).is_file() for name in listed)


def test_masks_are_read_as_a_data_set(photos, tmp_path):
    (photos / "a.jpg").unlink()
    predict(Spots(), [photos], tmp_path / "out", saved=("masks",))
    source = sources.find(tmp_path / "out" / "masks", photos)
    assert source.format == "instance masks"
    assert [image["file_name"] for image in source.content["images"]] == ["a.png", "b.png"]
    [annotation] = source.content["annotations"]
    assert annotation["bbox"] == [3, 5, 16, 16]


def test_masks_need_masks(photos, tmp_path):
    model = Boxes()
    model.config = spots.without_masks()
    with pytest.raises(ValueError, match="--save masks: the model finds boxes without masks"):
        predict(model, [photos], tmp_path / "out", saved=("masks",))
    assert not (tmp_path / "out").exists()
    predict(model, [photos / "a.png"], tmp_path / "out", saved=("crops",))
    cut = Image.open(tmp_path / "out" / "crops" / "class 2" / "a_1.png")
    assert (cut.mode, cut.size) == ("RGB", (16, 16))


def test_folders_of_classes_are_safe_and_different():
    names = [
        "dog/cat",
        "dog_cat",
        "Dog/Cat",
        "",
        "..",
        " a. ",
        "con",
        "x" * 300,
        "x" * 301,
        "é" * 150,
    ]
    made = folders([*names, "a\nb", "\ud800", "class 4"])
    assert made[:7] == ["dog_cat", "dog_cat_2", "Dog_Cat_3", "class 4", "class 5", "a", "_con"]
    assert made[10:] == ["a_b", "_", "class 4_2"]
    assert len({name.casefold() for name in made}) == len(made)
    assert all(len(name.encode()) < 240 and "/" not in name for name in made)
    assert folders(["cell", "nucleus"]) == ["cell", "nucleus"]


def test_the_longest_names_have_room_for_a_number(tmp_path):
    names = ["x" * 251 + ".png", "x" * 250 + "y.png", "ä" * 125 + ".jpg"]
    pictures = [tmp_path / "in" / name for name in names]
    pictures[0].parent.mkdir()
    for path in pictures:
        Image.fromarray(spot(3, 5)).save(path)
    saved = ("json", "png", "crops", "masks")
    result = predict(Spots(), [tmp_path / "in"], tmp_path / "out", saved=saved)
    assert not result.failed
    drawn = [image["drawing"] for image in result.predictions["images"]]
    assert len(set(drawn)) == 3 and all((tmp_path / "out" / name).exists() for name in drawn)
    assert len(set(stems({path: Path(path.name) for path in pictures}).values())) == 3


def test_a_full_disk_leaves_no_part_of_a_picture(photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    predict(Spots(), [photos / "a.png"], out, saved=("crops", "masks", "csv"))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def full(image, file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        for kind in ("crops", "masks"):
            with pytest.raises(OSError, match="No space left") as caught:
                predict(Spots(), [photos / "a.png"], out, saved=(kind,))
            assert kind in caught.value.filename
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_names_that_are_not_utf8_are_in_the_table(tmp_path):
    if sys.platform != "linux":
        pytest.skip("other systems have no such names")
    name = b"caf\xe9.png".decode(errors="surrogateescape")
    Image.fromarray(spot(3, 5)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / name)
    predict(Spots(), [tmp_path / name], tmp_path / "out", saved=("csv",))
    assert b"caf\xe9.png,64,48,1,class 2," in (tmp_path / "out" / "predictions.csv").read_bytes()


def test_the_command_refuses_what_it_cannot_write(command, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load_model", lambda *_: (Spots(), CATEGORIES))
    Image.fromarray(spot(3, 5)).save(tmp_path / "a.png")
    words = (
        "predict",
        "model",
        tmp_path / "a.png",
        "--output",
        tmp_path / "out",
        "--device",
        "cpu",
    )
    for more, said in (
        (("--save", "json,jpg"), "--save json,jpg: expected one or more of json,png,csv,crops"),
        (("--every", 3), "--every is for videos and cameras"),
        (("--seconds", 3), "--seconds is for videos and cameras"),
    ):
        code, _, error = command(*words, *more)
        assert code == 2 and said in error and not (tmp_path / "out").exists()
    code, out, error = command(*words, "--save", "csv,crops,masks", "--threshold", 0.9)
    assert code == 0, error
    assert "Table: " in out and "crops: " in out and "masks: " in out and "Drawings" not in out
