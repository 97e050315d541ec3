"""The command `inspect`: what it prints, what it writes, and how it ends."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from support import shapes_file

from accelerated.command_line import cli
from accelerated.data import lint


@pytest.fixture
def inspect(monkeypatch, capsys, tmp_path):
    """Return a function: inspect(content, *options) -> (exit code, output, errors)."""
    root = shapes_file.pictures(tmp_path / "images")

    def call(content, *options):
        path = tmp_path / "data.json"
        path.write_text(json.dumps(content))
        words = ["maskrcnn", "inspect", "--data", path, "--images", root, *options]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return stop.value.code or 0, " ".join(printed.out.split()), printed.err

    return call


def test_a_cause_is_shown_instead_of_what_it_explains(inspect):
    content = shapes_file.data()
    for image in content["images"]:
        image["file_name"] = "images\\" + image["file_name"]
    code, out, _ = inspect(content)
    assert code == 1 and "data.json: 4 problems" in out and "4 of 4" in out
    assert out.count("file_missing") == 0 and "Correct the file" in out
    assert inspect(content, "--all")[1].count("file_missing") == 4


def test_a_repaired_copy_is_written_once(inspect, tmp_path):
    content = shapes_file.data()
    for image in content["images"]:
        image["file_name"] = "images\\" + image["file_name"]
    out_path, changes = tmp_path / "out.json", tmp_path / "out.changes.json"
    code, out, _ = inspect(content, "--fix", out_path)
    assert code == 0 and "The repaired copy is ready for training." in out
    assert "4 file_missing images file_name written" in out and str(changes) in out
    assert json.loads((tmp_path / "data.json").read_text()) == content
    assert json.loads(out_path.read_text()) == shapes_file.data()
    written = json.loads(changes.read_text())
    assert [c["before"] for c in written] == [i["file_name"] for i in content["images"]]
    assert [c["id"] for c in written] == [1, 2, 3, 4]
    assert not lint.check(out_path, tmp_path / "images").problems
    before = out_path.read_bytes()
    code, _, error = inspect(content, "--fix", out_path)
    assert code == 2 and "exists; choose another name" in error
    assert out_path.read_bytes() == before


def test_nothing_is_written_where_nothing_is_mended(inspect, tmp_path):
    code, out, _ = inspect(shapes_file.data(), "--fix", tmp_path / "out.json")
    assert code == 0 and "There is no problem: " in out and not (tmp_path / "out.json").exists()
    content = shapes_file.data()
    for entry in content["annotations"]:
        entry["segmentation"] = []
    code, out, _ = inspect(content, "--fix", tmp_path / "out.json")
    assert code == 1 and "No repair is known" in out and not (tmp_path / "out.json").exists()


def test_nothing_left_to_train_on(inspect):
    content = shapes_file.data()
    for entry in content["annotations"]:
        entry["iscrowd"] = 1
    code, out, _ = inspect(content)
    assert code == 1 and "8 of 8 annotations have iscrowd 1" in out and "no object to train" in out
    assert inspect(content, "--crowd", "objects")[0] == 0
    code, out, _ = inspect(content | {"annotations": []})
    assert code == 0 and "no object to train on" in out


def test_thousands_of_problems_are_a_page(inspect):
    content = shapes_file.data()
    good = content["annotations"]
    content["annotations"] = [
        good[k % 8] | {"id": k, "bbox": [5, 5, -1, 1 + k]} for k in range(2_000)
    ] + [good[0] | {"id": -1, "category_id": 9}]
    code, out, _ = inspect(content)
    assert code == 1 and out.count("bbox_negative") == 6 and "... and 1995 more; --all" in out
    assert "unknown_category" in out and "2001 problems" in out


def test_what_counts_nothing_is_left_out(inspect):
    content = shapes_file.data()
    for image in content["images"]:
        image["file_name"] = "nothing-" + image["file_name"]
    code, out, _ = inspect(content)
    assert code == 1 and "Data set" not in out and "What train sees" not in out
    code, out, _ = inspect(shapes_file.data() | {"annotations": []})
    assert code == 0 and "images 4" in out and "objects 0 crowd" in out
    assert "Classes" not in out and "What train sees" not in out


def test_a_repair_is_named_where_it_helps(inspect, tmp_path):
    content = shapes_file.data()
    for image in content["images"]:
        image["file_name"] = "images\\" + image["file_name"]
    code, out, _ = inspect(content)
    assert code == 1
    assert "4. Correct the file, or write a repaired copy with --fix OUT.json." in out
    # Options that do not exist elsewhere are named with their command.
    assert "inspect --fix OUT.json writes these names" in out
    content = shapes_file.data()
    content["annotations"][0]["bbox"] = [5, 5, -1, 1]
    content["annotations"][1]["segmentation"] = []
    code, out, _ = inspect(content)
    assert code == 1 and "2. Correct them, or train with --skip-invalid, or write" in out
    assert "a repaired copy without 1 of them with --fix OUT.json" in out
    content = shapes_file.data()
    content["annotations"][1]["segmentation"] = []
    assert inspect(content)[1].endswith("1. Correct them, or train with --skip-invalid.")
    assert "with --fix" not in inspect(content, "--fix", tmp_path / "out.json")[1]


def test_what_training_sees(inspect, tmp_path):
    """A row of versions of each image, as large as the network's input; errors are one line."""
    path, tiny = tmp_path / "sample.png", ("--preset", "tiny", "--set", "transform.min_size=[32]")
    everything = ("--set", "augment.mosaic=1", "--set", "augment.scale=[1,2]")
    options = ("--augment", "--samples", 7, "--output", path, *tiny, *everything)
    assert inspect(shapes_file.data(), *options)[0] == 0
    first = np.asarray(Image.open(path))
    # Two rows of four batches of 32 x 64 pixels, with six pixels around each.
    assert first.shape == (2 * 38 + 6, 4 * 70 + 6, 3)
    cells = [first[6:38, left : left + 64] for left in range(6, 286, 70)]
    assert len({cell.tobytes() for cell in cells}) == 4
    assert inspect(shapes_file.data(), *options)[0] == 0
    np.testing.assert_array_equal(np.asarray(Image.open(path)), first)
    for options, message in (
        (("--augment",), "--augment draws a picture: name its file with --output"),
        (
            ("--augment", "--output", path, "--set", "augment.hue=2"),
            "augment.hue: expected 0 to 0.5",
        ),
    ):
        code, _, error = inspect(shapes_file.data(), *options)
        assert code == 2 and message in error and error.count("\n") == 1
