"""Arguments of the commands: devices, data sets, and the annotations of image files."""

import os
from pathlib import Path

import pytest
import torch
import typer
from support import narrow

from accelerated.command_line import loading
from accelerated.data.coco import CocoDataset
from accelerated.data.synthetic import ShapesDataset
from accelerated.engine.evaluate import categories


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Write three small images; return (data set, its json, its image folder)."""
    made = ShapesDataset(3, size=64)
    return made, *made.write_coco(tmp_path_factory.mktemp("shapes"))


def test_a_device_is_checked(monkeypatch):
    monkeypatch.setenv("MASKRCNN_BACKEND", "auto")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert (
        loading.select_device("cpu", "torch") == torch.device("cpu")
        and os.environ["MASKRCNN_BACKEND"] == "torch"
    )
    loading.select_device("cpu", "auto", interpret=True)
    assert os.environ["TRITON_INTERPRET"] == "0", "what the user says stays"
    for device, backend, said in (
        ("quantum", "auto", "expected auto, cpu"),
        ("cuda:99", "auto", "GPUs"),
        ("cpu", "magic", "--backend"),
    ):
        with pytest.raises(ValueError, match=said):
            loading.select_device(device, backend)


def test_annotations_are_found_by_file_name(shapes, monkeypatch):
    made, json_path, folder = shapes
    opened = loading.open_dataset(json_path, "nowhere", open_images=False)
    monkeypatch.chdir(folder)
    third, first = loading.targets_of(
        opened, [folder / "000003.png", Path("000001.png")], categories(opened)
    )
    for target, item in ((third, made[2]), (first, made[0])):
        assert torch.equal(target.boxes, item.target.boxes) and torch.equal(
            target.masks, item.target.masks
        )
    for name in ("000009.png", "x000001.png"):
        with pytest.raises(ValueError, match="no images of this name"):
            loading.targets_of(opened, [folder / name], categories(opened))


def test_folders_in_file_names_tell_images_apart(shapes):
    opened = loading.open_dataset(shapes[1], "nowhere", open_images=False)
    opened.file_names = ["a/1.png", "b/1.png", "1.png"]
    assert len(loading.targets_of(opened, [Path("c/1.png")], categories(opened))) == 1
    with pytest.raises(ValueError, match="2 images of this name"):
        loading.targets_of(opened, [Path("photos/a/1.png")], categories(opened))


def test_a_broken_data_set_is_listed(tmp_path, capsys):
    (tmp_path / "broken.json").write_text(
        '{"images": [{"id": 1}], "annotations": [], "categories": []}'
    )
    with pytest.raises((typer.Exit, ValueError)):
        loading.open_dataset(tmp_path / "broken.json", tmp_path)


@pytest.mark.parametrize(
    "checkpoint, names, fits",
    [
        ("theirs.pth", ["A", "B", "C"], True),
        # One name that is shared makes the other a contradiction.
        ("theirs.pth", ["disc", "B", "C"], False),
        ("run", ["A", "B", "C"], False),
    ],
)
def test_ids_suffice_for_a_file_of_others_if_no_name_is_shared(
    shapes, tmp_path, capsys, checkpoint, names, fits
):
    opened = CocoDataset(*shapes[1:])
    (tmp_path / "run").mkdir()
    model = narrow.model(narrow.config("tiny", num_classes=3), dtype=torch.float32)
    model.categories = [{"id": k, "name": name} for k, name in enumerate(names, start=1)]
    call = (tmp_path / checkpoint, model, shapes[1], opened)
    if fits:
        loading.check_classes(*call)
        assert "are matched by id: its category 1 is 'disc', the model's is 'A'" in (
            capsys.readouterr().err
        )
        return
    with pytest.raises(ValueError, match="does not fit"):
        loading.check_classes(*call)
