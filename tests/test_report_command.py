"""`report`: what it takes for a run, what it assumes, what it refuses, and what it writes."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from support import small

from accelerated.analysis import content
from accelerated.data.coco import CocoDataset
from accelerated.engine import evaluate


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Six images in COCO format."""
    return small.shapes(6).write_coco(tmp_path_factory.mktemp("data"))[0]


def detections(data, moved=0):
    """The objects of a file, each third one moved, as detections of falling score."""
    keys = ("image_id", "category_id", "bbox", "segmentation")
    found = json.loads(data.read_text())["annotations"]
    out: list[dict] = [
        {key: a[key] for key in keys} | {"score": 1 - n / 100} for n, a in enumerate(found)
    ]
    for entry in out[::3] if moved else ():
        entry["bbox"] = [entry["bbox"][0] + moved, *entry["bbox"][1:]]
    return out


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


@pytest.fixture
def run(shapes, tmp_path):
    """The folder of a run with two evaluations, of which the first is the best."""
    folder = tmp_path / "run"
    for step, moved in ((10, 0), (20, 6)):
        found = detections(shapes, moved)
        evaluation = folder / "evaluations" / f"{step:08d}"
        write(evaluation / "results.json", found)
        truth = json.loads(shapes.read_text())
        write(evaluation / "metrics.json", evaluate.score(truth, found, 20))
        (folder / "checkpoints" / f"{step:08d}").mkdir(parents=True)
    (folder / "best").symlink_to("checkpoints/00000010")
    write(folder / "run.json", {"val": str(shapes), "images": None, "exif": None})
    metrics = json.loads((evaluation / "metrics.json").read_text())
    lines = [
        {"iteration": 10, "loss": 2.0, "box": 1.0},
        {"iteration": 10, "evaluation": metrics, "best": 10},
        {"iteration": 20, "loss": 1.0, "box": 0.5},
        {"iteration": 20, "evaluation": metrics, "best": 10},
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def read(page):
    return json.loads(page.with_suffix(".json").read_text())


def test_a_run_is_that_of_its_best_evaluation(command, run, tmp_path):
    page = tmp_path / "out" / "page.html"
    code, out, error = command("report", run, "--output", page, "--pictures", 4)
    assert code == 0, error
    assert f"the evaluation of step 10 ({run / 'best'}) on" in error and str(page) in out
    assert page.read_text().startswith("<!")
    (part,) = read(page)["runs"]
    steps, evaluations = part["log"]["steps"], part["log"]["evaluations"]
    assert [step["loss"] for step in steps] == [2.0, 1.0] and part["log"]["best"] == 10
    assert [e["iteration"] for e in evaluations] == [10, 20]
    assert set(evaluations[0]["segm"]) == {"AP", "AP50", "AP75"}
    found = part["evaluation"]
    kept = json.loads((run / "evaluations" / "00000010" / "metrics.json").read_text())
    # The same limit of detections as in training, 20.
    assert {kind: found["metrics"][kind] for kind in kept} == kept
    assert (found["iteration"], found["images"], found["kind"]) == (10, 6, "segm")
    assert [picture["rank"] for picture in found["pictures"]] == ["worst"] * 2 + ["best"] * 2
    assert all(p["truth"].startswith("data:image/jpeg") for p in found["pictures"])


def test_without_a_best_one_the_newest_and_another_by_its_folder(command, run, tmp_path):
    (run / "best").unlink()
    page = tmp_path / "page.html"
    named = run / "evaluations" / "00000010"
    code, _, error = command("report", run, named, "--output", page, "--pictures", 0)
    assert code == 0 and "step 20 (the newest)" in error and "step 10 (as named)" in error
    newest, other = read(page)["runs"]
    assert newest["evaluation"]["iteration"] == 20 and newest["evaluation"]["pictures"] == []
    assert other["name"] == str(named) and other["evaluation"]["metrics"]["bbox"]["AP"] == 1
    assert newest["evaluation"]["metrics"]["bbox"]["AP"] < 1


def test_what_is_typed_of_how_data_is_read_replaces_what_the_run_did(command, run, tmp_path):
    data = json.loads((run / "run.json").read_text())["val"]
    truth = json.loads(Path(data).read_text())
    truth["annotations"][0]["iscrowd"] = 1
    write(run / "run.json", {"val": data, "crowd": "objects"})
    other = ("--data", write(Path(data).parent / "crowd.json", truth), "--pictures", 0)
    page = tmp_path / "page.html"
    for typed, crowds in (((), 0), (("--crowd", "ignore"), 1)):
        code, _, error = command("report", run, *other, *typed, "--output", page)
        assert code == 0, error
        assert read(page)["runs"][0]["evaluation"]["crowds"] == crowds


def test_a_split_run_and_a_run_without_evaluation(command, run, shapes, tmp_path):
    write(run / "run.json", {"val": None, "split": 0.5})
    write(run / "split" / "val.json", json.loads(shapes.read_text()))
    (run / "split" / "images").symlink_to(shapes.parent / "images")
    page = tmp_path / "page.html"
    assert command("report", run, "--output", page, "--pictures", 2)[0] == 0
    assert read(page)["runs"][0]["evaluation"]["data"] == "val.json"
    shutil.rmtree(run / "evaluations")
    code, _, error = command("report", run, "--output", page)
    assert code == 0 and "only losses" in error
    assert read(page)["runs"][0]["evaluation"] is None


def test_several_and_the_same_twice(command, shapes, tmp_path):
    first = write(tmp_path / "first.json", detections(shapes))
    second = write(tmp_path / "second.json", detections(shapes, 6))
    page = tmp_path / "page.html"
    options = ("--data", shapes, "--output", page, "--pictures", 0)
    code, _, error = command("report", first, second, first, *options)
    assert code == 0 and "other data" not in error, error
    content_ = read(page)
    names = [run["name"] for run in content_["runs"]]
    assert names == [str(first), str(second), f"{first} (2)"] and content_["notes"] == []
    one, two, again = (run["evaluation"] for run in content_["runs"])
    assert one == again and one["metrics"]["bbox"]["AP"] > two["metrics"]["bbox"]["AP"]


def test_evaluate_says_how_to_make_the_report(command, shapes, tmp_path, monkeypatch):
    """With the options of how the data is read, which the report needs to show the same numbers."""
    found = write(tmp_path / "all of them.json", detections(shapes))
    options = ("--data", shapes, "--images", shapes.parent / "images", "--crowd", "objects")
    options = (*options, "--skip-invalid", "--output", tmp_path / "evaluation")
    code, out, error = command("evaluate", found, *options)
    [line] = [line for line in out.splitlines() if line.startswith("What is missed")]
    name, *words = shlex.split(line.partition(": ")[2])
    monkeypatch.chdir(tmp_path)
    assert code == 0 and name == "maskrcnn" and words[0] == "report", error
    assert words[-3:] == ["--skip-invalid", "--crowd", "objects"]
    assert command(*words, "--pictures", 0)[0] == 0 and (tmp_path / "report.html").exists()


def test_runs_on_different_data_are_said_to_be(command, run, shapes, tmp_path):
    changed = json.loads(shapes.read_text())
    changed["images"] = changed["images"][:5]
    ids = {image["id"] for image in changed["images"]}
    changed["annotations"] = [a for a in changed["annotations"] if a["image_id"] in ids]
    other, page = tmp_path / "other", tmp_path / "page.html"
    shutil.copytree(run, other, symlinks=True)
    write(other / "run.json", {"val": str(write(shapes.parent / "fewer.json", changed))})
    for path in other.glob("evaluations/*/results.json"):
        write(path, [d for d in json.loads(path.read_text()) if d["image_id"] in ids])
    code, _, error = command("report", run, other, "--output", page, "--pictures", 0)
    assert code == 0 and f"{other} was compared with other data than {run}" in error
    assert len(read(page)["notes"]) == 1


@pytest.mark.parametrize(
    "case", ["nothing", "folder", "data", "fit", "page", "replace", "picture", "run.json"]
)
def test_refusals_are_one_line_and_write_nothing(command, run, shapes, tmp_path, case):
    found = write(tmp_path / "found.json", detections(shapes))
    page, data = tmp_path / "page.html", ("--data", shapes)
    arguments, expected = {
        "nothing": ((tmp_path / "none", *data), "no such file or folder"),
        "folder": ((tmp_path, *data), "no folder of a run"),
        "data": ((found,), "--data"),
        "fit": ((found, *data), "image_id that"),
        "page": ((found, *data, "--output", tmp_path / "page.pdf"), "page.pdf"),
        "replace": ((found, *data, "--output", tmp_path / "found.html"), "would replace"),
        "picture": ((found, *data), "--pictures 0"),
        "run.json": ((run,), "run.json"),
    }[case]
    if case == "fit":
        write(found, [detections(shapes)[0] | {"image_id": 99}])
    if case == "run.json":
        (run / "run.json").write_text("[]")
    if case == "picture":
        moved = tmp_path / "moved"
        shutil.copytree(shapes.parent, moved)
        arguments = (found, "--data", moved / shapes.name, "--images", moved / "images")
        for path in (moved / "images").iterdir():
            path.write_bytes(b"damaged")
    output = () if "--output" in arguments else ("--output", page)
    code, _, error = command("report", *arguments, *output)
    lines = [line for line in error.splitlines() if "read as" not in line]
    assert code == 2 and expected in lines[-1], error
    assert not page.exists() and not page.with_suffix(".json").exists()
    assert json.loads(found.read_text())


def test_masks_alone_are_drawn(shapes):
    """Detections without boxes, and of an image that has none."""
    found = [{k: x for k, x in d.items() if k != "bbox"} for d in detections(shapes)]
    dataset = CocoDataset(shapes)
    numbers = content.evaluation(dataset, found[:1], iou_types=("segm",), count=6)
    assert len(numbers["pictures"]) == len({p["image_id"] for p in numbers["pictures"]}) > 2
