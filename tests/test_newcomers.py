"""What a newcomer types: with the model of the notebooks, and by mistake."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from support import annotated, narrow, shapes_file

from accelerated import interop
from accelerated.command_line import cli
from accelerated.data import synthetic

# A model without an optimizer's state, which only training needs.
TINY = Path(__file__).parents[1] / "notebooks" / "data" / "tiny"
MADE = ("--device", "cpu")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a picture, labels of LabelMe in photos/, and odd files."""
    monkeypatch.chdir(tmp_path)
    annotated.picture(Path("picture.jpg"))
    annotated.labelme(Path("photos"))
    Path("results.json").write_text("[]")
    Path("names.txt").write_text("one\ntwo\ntwo\n")
    Path("via.json").write_text(json.dumps({"_via_settings": {}}))
    return tmp_path


def test_the_model_of_the_notebooks(command, here):
    data, images = synthetic.ShapesDataset(2, size=64).write_coco(here / "shapes")
    picture = next(images.iterdir())
    code, out, error = command("predict", TINY, picture, "--output", "drawn", *MADE)
    assert code == 0 and "in 1 image. Drawings: drawn." in out, error
    code, out, error = command("evaluate", TINY, "--data", data, "--images", images, *MADE)
    assert code == 0 and "triangle" in out, error
    code, out, error = command("verify", TINY, picture, "--proposals", 1, *MADE)
    assert code == 0 and "agree in all" in out, out + error
    training = ("--val", data, "--val-images", images, "--iterations", 1, *MADE)
    where = ("--data", data, "--images", images, "--weights", TINY, "--output", "run")
    code, out, error = command("train", *where, *training)
    assert code == 0 and "has 3 of 3 classes" in out, error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("predict", TINY, "nothing.jpg"), "skipped: nothing.jpg: no such file"),
        (("predict", TINY, "picture.jpg", "--output", "picture.jpg"), "picture.jpg: File exists"),
        (("predict", TINY, "picture.jpg", "--pixel-range", "0:inf"), "expected LOW:HIGH, such as"),
        (("predict", "photos", "picture.jpg"), "photos: neither a run nor a checkpoint, it has no"),
        (
            ("predict", TINY, "picture.jpg", "--names", "none.txt"),
            "(the file cannot be read: No such file or",
        ),
        (("predict", TINY, "picture.jpg", "--names", "names.txt"), "'two' is the name of several"),
        (("predict", TINY, "picture.jpg", "--names", "via.json"), "expected one a line, a list in"),
        (("verify", TINY, "nothing.jpg"), "nothing.jpg: no such file"),
        (("evaluate", TINY, "--data", "fotos"), "fotos: no such file or folder; did you mean"),
        (("inspect", "--data", "fotos"), "fotos: no such file or folder; did you mean 'photos'"),
        (("inspect", "--data", "photos", "--images", "imgs"), "the image folder imgs does not"),
        (("inspect", "--data", "photos:val"), "photos:val: LabelMe has no parts"),
        (("import", "fotos", "out.json"), "fotos: no such file or folder"),
        (("evaluate", "results.json", "--data", "photos", "--set", "x=1"), "--set changes a model"),
        (("evaluate", "results.json", "--data", "photos", "--amp"), "--amp changes a model"),
        (("convert", TINY, "new", "--format", "detectron2"), "new is a folder's name"),
        (("benchmark", "--only", "nothing"), "no operator has 'nothing' in its name: roi_align"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_line(command, here, words, said):
    code, _, error = command(*words)
    assert code == 2 and said in error.splitlines()[-1], error
    assert len(error.splitlines()) == 1 and "Errno" not in error
    assert not (here / "benchmarks").exists() and not (here / "new").exists()


def test_a_run_whose_data_is_gone_names_the_whole_path(command, here):
    changes = ("--set", "transform.min_size=[32]", "--iterations", 1, *MADE)
    code, _, error = command("train", "--data", "photos", "--output", "run", *changes)
    assert code == 0, error
    Path("photos").rename("moved")
    code, _, error = command("train", "--output", "run", "--resume", "--iterations", 2)
    assert code == 2 and f"maskrcnn: {here / 'photos'}: no such file or folder" in error


def test_verify_takes_labels_of_any_format(command, here, monkeypatch):
    def compare(model, images, targets, **_):
        raise ValueError(f"reached with {len(targets[0].boxes)} objects")

    monkeypatch.setattr("accelerated.command_line.loading.check_classes", lambda *_: None)
    monkeypatch.setattr("accelerated.verify.training.compare", compare)
    picture = here / "photos" / "photos" / annotated.NAMES[0]
    # Pictures are not below the working folder.
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    _, _, error = command("verify", TINY, picture, "--train", "--data", "../photos", *MADE)
    assert error.splitlines()[-1] == "maskrcnn: reached with 2 objects"


def test_files_are_written_into_new_folders(command, here, monkeypatch):
    def export(model, *targets, **_):
        for target in targets:
            target.write_text("program")
        return {}

    monkeypatch.setattr("accelerated.interop.export.export", export)
    code, _, error = command("export", TINY, "a/b/model.pt2")
    assert code == 0 and Path("a/b/model.pt2").exists(), error
    config = narrow.config("torchvision_r50_fpn", num_classes=2)
    interop.save(narrow.model(config, dtype=torch.float32), here / "theirs.pth", "torchvision")
    code, _, error = command("convert", "theirs.pth", "c/d/theirs.safetensors")
    assert code == 0 and Path("c/d/theirs.safetensors").exists(), error


def test_help_is_wrapped_by_the_terminal():
    commands = typer.main.get_command(cli.app).commands.values()
    assert all("\n" not in text for c in commands for text in c.help.split("\n\n"))
    assert "CVAT" in next(p.help for p in commands_parameters("inspect") if p.name == "data")


def commands_parameters(name):
    return typer.main.get_command(cli.app).commands[name].params


def test_brush_masks_are_imported_as_objects(command, here):
    pictures = shapes_file.pictures(here / "pictures")
    content = shapes_file.data()
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    Path("cvat.json").write_text(json.dumps(content))
    where = ("cvat.json", "labels", "--images", pictures, "--format", "labelme")
    code, out, error = command("import", *where, "--crowd", "objects")
    assert code == 0 and "labels: 4 images, 8 objects, 2 classes." in out, error
    assert command("inspect", "--data", "labels")[0] == 0


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("state.json", {"categories": [1, 2, 3]}, "the categories in state.json are damaged"),
        ("state.json", {"categories": [{"id": 1}] * 3}, "'name' is missing or of another type"),
        ("state.json", {"categories": 5}, "expected a list, got 5"),
        ("names.json", {"categories": []}, "has 0 names, but the model has 3 classes"),
        ("results.json", {"images": [{"id": 1}], "categories": []}, "'file_name' is missing or"),
        ("results.json", {"images": 5, "categories": []}, "expected a list, got 5"),
        ("results.json", {"images": [], "categories": [5]}, "'id' is missing or of another type"),
    ],
)
def test_damaged_files_are_one_line(command, here, file, change, said):
    words = ("predict", TINY, "picture.jpg", "--names", file)
    if file == "state.json":
        shutil.copytree(TINY, "model")
        change = json.loads(Path("model", file).read_text()) | change
        file, words = Path("model", file), ("predict", "model", "picture.jpg")
    elif file == "results.json":
        words, change = ("evaluate", file, "--data", "photos"), change | {"annotations": []}
    Path(file).write_text(json.dumps(change))
    code, _, error = command(*words)
    assert code == 2 and said in error and len(error.splitlines()) == 1, error


def test_a_name_that_the_terminal_cannot_show(here):
    content = shapes_file.data()
    content["categories"][0]["name"] = "sq\ud800"
    Path("data.json").write_text(json.dumps(content))
    shapes_file.pictures(here / "images")
    words = [sys.executable, "-m", "accelerated", "inspect", "--data", "data.json"]
    environment = os.environ | {"PYTHONPATH": str(TINY.parents[2])}
    shown = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert shown.returncode == 0 and r"sq\ud800" in shown.stdout, shown.stderr
