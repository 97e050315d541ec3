"""engine.results and `evaluate FILE.json`: detections of a file are scored without a model."""

import json
import re
from dataclasses import replace

import pytest
import torch
from support import small

from accelerated.data.coco import CocoDataset
from accelerated.engine import checkpoint, evaluate, results
from accelerated.mask_rcnn import MaskRCNN
from accelerated.optimizer import build


@pytest.fixture
def data(tmp_path):
    """Five images in COCO format, image ids 1..5 and category ids 1..3."""
    return small.shapes(5).write_coco(tmp_path / "data")[0]


@pytest.fixture
def found(data, rng):
    """Detections that are right here and there, in COCO's result format."""
    truth = json.loads(data.read_text())["annotations"]
    keys = ("image_id", "category_id", "bbox", "segmentation")
    out = [{key: a[key] for key in keys} | {"score": float(rng.random())} for a in truth]
    for entry in out[::3]:
        entry["bbox"] = [x + 6 for x in entry["bbox"]]
    return out


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def test_a_file_scores_what_its_detections_score(command, data, found, tmp_path):
    file = write(tmp_path / "found.json", found)
    code, out, error = command("evaluate", file, "--data", data, "--output", tmp_path / "out")
    assert code == 0 and error == "", error
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics == evaluate.score(json.loads(data.read_text()), found)
    assert 0.1 < metrics["bbox"]["AP"] < 1 and f"{metrics['bbox']['AP']:.3f}" in out
    assert f"{len(found)} detections." in out and "Note" not in out
    assert not (tmp_path / "out" / "results.json").exists()


def test_boxes_alone_and_masks_alone(command, data, found, tmp_path):
    """Only what the detections hold is scored, and boxes need no masks in the data."""
    content = json.loads(data.read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    boxes = write(tmp_path / "boxes.json", content)
    for kind, other, truth in (("bbox", "segmentation", boxes), ("segm", "bbox", data)):
        entries = [{k: x for k, x in entry.items() if k != other} for entry in found]
        file = write(tmp_path / f"{kind}.json", entries)
        code, _, error = command("evaluate", file, "--data", truth, "--output", tmp_path)
        assert code == 0, error
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        assert metrics == evaluate.score(json.loads(data.read_text()), entries, iou_types=(kind,))


def test_uncompressed_counts(data, found):
    dataset = CocoDataset(data, data.parent, open_images=False)
    listed = json.loads(json.dumps(found))
    for entry in listed:
        counts = results.rle.decompress(entry["segmentation"]["counts"])
        entry["segmentation"]["counts"] = counts.tolist()
    file = write(data.parent / "found.json", listed)
    assert results.fit(results.read(file), dataset, "d") == found


def test_images_without_a_detection_are_counted(command, data, found, tmp_path):
    file = write(tmp_path / "found.json", [x for x in found if x["image_id"] not in (2, 4)])
    where = ("--data", data, "--output", tmp_path / "out")
    code, out, _ = command("evaluate", file, *where)
    assert code == 0 and "Note: 2 of 5 images have no detection." in out
    code, out, _ = command(
        "evaluate", write(file, []), "--data", data, "--output", tmp_path / "out"
    )
    assert code == 0 and "Note: 5 of 5 images have no detection." in out and "0.000" in out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x[2].update(image_id=77), "1 of {n} detections have a image_id that .* is 77"),
        (lambda x: [e.update(image_id=str(e["image_id"])) for e in x], "is a text here and a num"),
        (lambda x: x[0].update(category_id=0), "have a category_id that .*; the first is 0"),
        (lambda x: x[0].pop("score"), "detection 1 of {n}: it has no score; is this a file of ann"),
        (lambda x: x[1].update(category_id={}), "category_id is {}"),
        (lambda x: x[1].update(score=float("nan")), "score is nan"),
        (lambda x: x[1].update(bbox=[1, 2, 3]), "bbox is .1, 2, 3., not .x, y, width, height"),
        (lambda x: x[1].update(bbox=[9, 9, -3, 3]), "has a negative side"),
        (lambda x: x[1].pop("bbox"), "of {n} detections have a bbox; give one to all"),
        (lambda x: x[1].update(segmentation=[[1, 2, 3, 4, 5, 6]]), "detection 2, .*no run-length"),
        (lambda x: x[1]["segmentation"].update(size=[9, 9]), "has size .9, 9., the image .64, 64."),
        (lambda x: x[1]["segmentation"].update(counts="11"), "do not fill an image of 64x64"),
        (lambda x: x[1]["segmentation"].update(counts="~~"), "outside '0'"),
        (lambda x: x.append(3), "expected a list of detections"),
    ],
)
def test_what_does_not_belong_to_the_data_is_one_line(command, data, found, tmp_path, change, said):
    count = len(found)
    change(found)
    file = write(tmp_path / "found.json", found)
    code, out, error = command("evaluate", file, "--data", data, "--output", tmp_path / "out")
    assert code == 2 and out == "" and len(error.splitlines()) == 1
    assert re.search(said.replace("{n}", str(count)), error), error
    assert "found.json" in error and not (tmp_path / "out").exists()


def test_predictions_json_has_ids_of_its_own(command, data, found, tmp_path):
    """Images are found by their names, categories by theirs."""
    images = [f"000{k:03d}.png" for k in (3, 1, 5)]
    own, numbers = {3: 1, 1: 2, 5: 3}, {1: 12, 2: 11, 3: 10}
    names = {12: "disc", 11: "rectangle", 10: "triangle"}
    kept = [entry for entry in found if entry["image_id"] in own]
    predictions = {
        "images": [
            {"id": k, "file_name": f"some/where/{name}", "width": 64, "height": 64}
            for k, name in enumerate(images, start=1)
        ],
        "categories": [{"id": k, "name": name} for k, name in names.items()],
        "annotations": [
            entry
            | {"image_id": own[entry["image_id"]], "category_id": numbers[entry["category_id"]]}
            for entry in kept
        ],
    }
    file = write(tmp_path / "predictions.json", predictions)
    code, out, error = command("evaluate", file, "--data", data, "--output", tmp_path / "out")
    assert code == 0 and "2 of 5 images have no detection" in out, error
    assert "Note: the lowest score is 0." in out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics == evaluate.score(json.loads(data.read_text()), kept)

    for change, said in (
        (lambda p: p["images"][0].update(file_name="z.png"), "1 of 3 pictures are not in .*z.png"),
        (lambda p: p["images"][0].update(width=32), "32x64 here and 64x64"),
        (lambda p: p["images"][0].update(file_name="000001.png"), "another picture are the same"),
        (lambda p: p["categories"][0].update(name="cat"), "has no category 'cat'"),
    ):
        spoilt = json.loads(json.dumps(predictions))
        change(spoilt)
        with pytest.raises(ValueError, match=said):
            dataset = CocoDataset(data, data.parent, open_images=False)
            results.fit(results.read(write(file, spoilt)), dataset, data)


@pytest.mark.parametrize(
    ("part", "key"), [("images", "width"), ("images", "file_name"), ("categories", "name")]
)
def test_a_damaged_predictions_json_is_refused(tmp_path, part, key):
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 4, "height": 3}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [],
    }
    assert results.read(write(tmp_path / "right.json", content)).categories == content["categories"]
    del content[part][0][key]
    with pytest.raises(ValueError, match=r"wrong\.json: images and categories are damaged"):
        results.read(write(tmp_path / "wrong.json", content))


def test_data_without_annotations_is_not_scored(command, data, tmp_path):
    """Like COCO's test-dev: results are written to be submitted, AP of nothing is not."""
    config = small.config()
    config = replace(config, box_head=replace(config.box_head, score_threshold=0.0))
    torch.manual_seed(0)
    model = MaskRCNN(config)
    optimizer = build(model, config.optimizer)
    categories = evaluate.categories(CocoDataset(data, data.parent / "images"))
    checkpoint.save(tmp_path / "model", model, config, categories, optimizer, 0)
    content = json.loads(data.read_text())
    del content["annotations"]
    bare = write(tmp_path / "test-dev.json", content)
    words = ("evaluate", tmp_path / "model", "--data", bare, "--device", "cpu")
    words += ("--images", data.parent / "images", "--output", tmp_path / "out")
    code, out, error = command(*words)
    assert code == 0 and "has no annotations to score 5 images by. To submit:" in out, error
    assert "results_segm.json" in out and "AP" not in out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "results.json" in names and "metrics.json" not in names
    # But other commands need them.
    assert command("inspect", "--data", bare, "--images", data.parent / "images")[0] == 1
    file = write(tmp_path / "found.json", [])
    code, _, error = command("evaluate", file, "--data", bare)
    assert code == 2 and len(error.splitlines()) == 1
