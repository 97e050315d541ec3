"""engine.evaluate: perfect detections score 1, none score 0, all numbers are pycocotools'."""

import contextlib
import copy
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support import small

from accelerated.data import rle
from accelerated.data.coco import CocoDataset
from accelerated.engine import evaluate
from accelerated.mask_rcnn import MaskRCNN
from accelerated.structures import Detections
from reference.config import preset


class Oracle(torch.nn.Module):
    """A stand-in for a model: detects the objects of the data set, changed by `change`."""

    categories = None

    def __init__(self, dataset, change=lambda detections: detections):
        super().__init__()
        self.config, self.change = small.config(), change
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.items = {item.image_id: item for item in (dataset[i] for i in range(len(dataset)))}

    def batch_detections(self, batch):
        assert not self.training
        return None

    def unpad(self, padded, batch, crops=False):
        for image_id in batch.image_ids:
            target = self.items[image_id].target
            yield self.change(
                Detections(
                    target.boxes,
                    torch.linspace(0.9, 0.5, len(target.labels)),
                    target.labels,
                    target.masks,
                )
            )


def pycocotools(truth, results_path, iou_type):
    """Score the two files as a user would."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(truth)
        evaluation = COCOeval(coco, coco.loadRes(str(results_path)), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_perfect_detections_score_one(tmp_path):
    dataset = small.shapes(5)
    metrics = evaluate.evaluate(Oracle(dataset), dataset, batch_size=2, output=tmp_path)
    for iou_type in ("bbox", "segm"):
        scores = metrics[iou_type]
        assert scores["AP"] == scores["AP50"] == scores["AP75"] == scores["AR20"] == 1.0
        assert scores["classes"] == dict.fromkeys(dataset.class_names, 1.0)
        # No object of 96 pixels fits into an image of 64.
        assert scores["APl"] is None
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics


def test_annotation_ids_count_from_anywhere():
    """pycocotools' matcher takes an annotation with the id 0 for none."""
    boxes = [[10.0 * k, 10.0, 8.0, 8.0] for k in range(2)]
    shared = {"image_id": 1, "category_id": 1}
    truth: dict = {
        "images": [{"id": 1, "width": 64, "height": 64}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            shared | {"id": k, "bbox": box, "area": 64, "iscrowd": 0} for k, box in enumerate(boxes)
        ],
    }
    results = [shared | {"bbox": box, "score": 0.9} for box in boxes]
    assert evaluate.score(truth, results, iou_types=["bbox"])["bbox"]["AP"] == 1.0
    assert [a["id"] for a in truth["annotations"]] == [0, 1]


def test_equals_pycocotools_on_the_results_file(tmp_path, rng):
    """Boxes shifted, masks eroded, labels and scores wrong here and there."""
    dataset = small.shapes(12, seed=3)
    truth, _ = dataset.write_coco(tmp_path / "data")

    def spoil(detections):
        shift = torch.from_numpy(rng.normal(0, 2, (len(detections.labels), 1))).float()
        masks = detections.masks.clone()
        masks[:, :: int(rng.integers(3, 30))] = False
        labels = torch.where(
            torch.from_numpy(rng.random(len(detections.labels)) < 0.2), 1, detections.labels
        )
        return Detections(
            detections.boxes + shift,
            torch.from_numpy(rng.random(len(detections.labels))),
            labels,
            masks,
        )

    model = Oracle(dataset, spoil)
    metrics = evaluate.evaluate(model, dataset, batch_size=5, output=tmp_path, max_detections=100)
    for iou_type, name in (("bbox", "results.json"), ("segm", "results_segm.json")):
        expected = pycocotools(str(truth), tmp_path / name, iou_type)
        assert twelve(metrics[iou_type]) == pytest.approx(expected, abs=1e-15)
        assert 0.05 < metrics[iou_type]["AP"] < 0.95
    assert metrics["bbox"]["AP"] != metrics["segm"]["AP"]
    whole, masks = (
        json.loads((tmp_path / name).read_text()) for name in ("results.json", "results_segm.json")
    )
    assert masks == [{k: x for k, x in result.items() if k != "bbox"} for result in whole]


NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


def twelve(metrics):
    """Return pycocotools' numbers, of which -1 means None."""
    return [-1 if metrics[name] is None else metrics[name] for name in NAMES]


@st.composite
def scenes(draw):
    """Draw (a data set, results) on a coarse grid: equal scores and overlaps, crowds, nothing."""
    shape = (8, 9)
    corner, side = st.integers(0, 7), st.integers(0, 6)

    def drawn():
        x, y, width, height = (draw(part) for part in (corner, corner, side, side))
        mask = np.zeros(shape, bool)
        mask[y : y + height, x : x + width] = True
        counts = rle.compress(rle.of_mask(mask)).decode()
        return {
            "image_id": draw(st.integers(0, 2)),
            "category_id": draw(st.integers(0, 1)),
            "bbox": [x, y, width, height],
            "segmentation": {"size": [*shape], "counts": counts},
        }

    areas = st.lists(st.sampled_from([0, 9, 1024, 1025, 9216, 20000]), max_size=6)
    scores = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=12)
    annotations = [
        drawn() | {"id": n, "area": area, "iscrowd": draw(st.sampled_from([0, 0, 1]))}
        for n, area in enumerate(draw(areas), start=1)
    ]
    truth = {
        "images": [{"id": n, "height": shape[0], "width": shape[1]} for n in (2, 0, 1)],
        "categories": [{"id": n, "name": f"class {n}"} for n in (1, 0)],
        "annotations": annotations,
    }
    return truth, [drawn() | {"score": score} for score in draw(scores)]


def accumulated(truth, results, iou_type, limit):
    """Return pycocotools' precision and recall of data in memory."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco, found = COCO(), COCO()
        coco.dataset = truth | {"annotations": [dict(a) for a in truth["annotations"]]}
        found.dataset = truth | {"annotations": []}
        coco.createIndex(), found.createIndex()
        if results:
            unused = {"bbox"} if iou_type == "segm" else set()
            found = coco.loadRes([{k: r[k] for k in r.keys() - unused} for r in results])
        evaluation = COCOeval(coco, found, iou_type)
        evaluation.params.maxDets = sorted({1, min(10, limit), limit})
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


@given(scenes(), st.sampled_from([1, 3, 10, 100]), st.sampled_from(["bbox", "segm"]))
def test_equals_pycocotools_everywhere(scene, limit, iou_type):
    """Every class, size and number of detections, whatever the ids of images and classes are."""
    truth, results = scene
    precision, recall = accumulated(truth, results, iou_type, limit)
    numbers = {"AP": precision[..., 0, -1], "AP50": precision[0, ..., 0, -1]}
    numbers |= {"AP75": precision[5, ..., 0, -1]}
    for k, size in enumerate("sml", start=1):
        numbers |= {f"AP{size}": precision[..., k, -1], f"AR{size}": recall[..., k, -1]}
    for k, most in enumerate(sorted({1, min(10, limit), limit})):
        numbers[f"AR{most}"] = recall[..., 0, k]
    expected = {name: mean(values) for name, values in numbers.items()}
    classes = {f"class {k}": mean(precision[:, :, k, 0, -1]) for k in (0, 1)}
    # Each keeps the order of ids, in which equal scores follow each other: numbers before texts.
    for image, category in (
        (lambda n: n, lambda n: n),
        (lambda n: n - 2**70, lambda n: n - 5),
        (lambda n: f"{n}.png", lambda n: n),
        (lambda n: f"{n}.png" if n else 7, lambda n: n + 2**40),
    ):
        images = [i | {"id": image(i["id"])} for i in truth["images"]]
        categories = [c | {"id": category(c["id"])} for c in truth["categories"]]
        annotations, found = (
            [
                e | {"image_id": image(e["image_id"]), "category_id": category(e["category_id"])}
                for e in entries
            ]
            for entries in (truth["annotations"], results)
        )
        renamed = {"images": images, "categories": categories, "annotations": annotations}
        before = copy.deepcopy((renamed, found))
        metrics = evaluate.score(renamed, found, limit, [iou_type])[iou_type]
        assert (renamed, found) == before
        assert metrics.pop("classes") == pytest.approx(classes, abs=1e-15)
        assert metrics == pytest.approx(expected, abs=1e-15)


def mean(values):
    values = values[values > -1]
    return values.mean() if values.size else None


def test_results_are_in_coco_format_with_the_data_sets_ids():
    masks = torch.zeros(2, 10, 12, dtype=torch.bool)
    masks[0, 2:5, 3:9] = True
    detections = Detections(
        torch.tensor([[3.0, 2, 9, 5], [0, 0, 1.5, 2.5]]),
        torch.tensor([0.75, 0.5]),
        torch.tensor([2, 1]),
        masks,
    )
    first, second = json.loads(json.dumps(evaluate.coco_results(detections, [11, 90])))
    assert (first["category_id"], first["bbox"], first["score"]) == (90, [3, 2, 6, 3], 0.75)
    assert (second["category_id"], second["bbox"], second["score"]) == (11, [0, 0, 1.5, 2.5], 0.5)
    np.testing.assert_array_equal(coco_mask.decode(first["segmentation"]), masks[0].numpy())
    assert (
        evaluate.coco_results(
            Detections(
                *(
                    x[:0]
                    for x in (
                        detections.boxes,
                        detections.scores,
                        detections.labels,
                        detections.masks,
                    )
                )
            ),
            [11, 90],
        )
        == []
    )


def test_no_detection_at_all_scores_zero():
    dataset = small.shapes(3)
    nothing = Oracle(
        dataset,
        lambda detections: Detections(
            detections.boxes[:0], detections.scores[:0], detections.labels[:0], detections.masks[:0]
        ),
    )
    metrics = evaluate.evaluate(nothing, dataset)
    assert metrics["bbox"]["AP"] == metrics["segm"]["AP"] == metrics["segm"]["AR20"] == 0.0


def test_more_detections_than_coco_counts(tmp_path):
    """An image of 150 objects: 100 detections find two thirds of them, 150 all."""
    json_path = tmp_path / "many.json"
    places = [(x, y) for y in range(10) for x in range(15)]
    runs = coco_mask.encode(np.asfortranarray(np.stack([_square(x, y) for x, y in places], axis=2)))
    truth = {
        "images": [{"id": 7, "file_name": "a.png", "height": 40, "width": 60}],
        "categories": [{"id": 3, "name": "cell"}],
        "annotations": [
            {
                "id": i + 1,
                "image_id": 7,
                "category_id": 3,
                "bbox": [4 * x, 4 * y, 3, 3],
                "area": 9,
                "iscrowd": 0,
            }
            | {"segmentation": run | {"counts": run["counts"].decode()}}
            for i, ((x, y), run) in enumerate(zip(places, runs, strict=True))
        ],
    }
    json_path.write_text(json.dumps(truth))
    results = [
        {"score": 1 - i / 1000}
        | {k: a[k] for k in ("image_id", "category_id", "bbox", "segmentation")}
        for i, a in enumerate(truth["annotations"])
    ]
    assert evaluate.score(truth, results)["segm"]["AR100"] == pytest.approx(2 / 3)
    assert (
        evaluate.score(truth, results, 150)["segm"]["AP"]
        == evaluate.score(truth, results, 150)["bbox"]["AR150"]
        == 1.0
    )


def test_the_size_of_a_mask_is_its_own_area_not_its_boxs(tmp_path):
    """A wrong detection, an L of 700 pixels in a box of 1600: its mask is small, its box medium."""
    right, wrong = np.zeros((2, 60, 60), np.uint8)
    right[:20, 40:] = 1
    wrong[20:, :10] = wrong[50:, :40] = 1
    right, wrong = (
        run | {"counts": run["counts"].decode()}
        for run in coco_mask.encode(np.asfortranarray(np.stack([right, wrong], axis=2)))
    )
    object_ = {"image_id": 1, "category_id": 1, "bbox": [40, 0, 20, 20], "segmentation": right}
    truth = {
        "images": [{"id": 1, "height": 60, "width": 60}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [object_ | {"id": 1, "area": 400, "iscrowd": 0}],
    }
    mistake = {
        "image_id": 1,
        "category_id": 1,
        "bbox": [0, 20, 40, 40],
        "segmentation": wrong,
        "score": 0.9,
    }
    found = [object_ | {"score": 0.5}, mistake]
    metrics = evaluate.score(truth, found)
    assert (metrics["segm"]["APs"], metrics["bbox"]["APs"]) == pytest.approx((0.5, 1.0))
    # Plain pycocotools finds so in our files, but not where boxes stand beside masks.
    evaluate.write_results(tmp_path, found)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    for iou_type, name in (("bbox", "results.json"), ("segm", "results_segm.json")):
        expected = pycocotools(tmp_path / "truth.json", tmp_path / name, iou_type)
        assert twelve(metrics[iou_type]) == pytest.approx(expected, abs=1e-15)
    misled = pycocotools(tmp_path / "truth.json", tmp_path / "results.json", "segm")
    assert misled[3] != metrics["segm"]["APs"]


def _square(x, y):
    mask = np.zeros((40, 60), np.uint8)
    mask[4 * y : 4 * y + 3, 4 * x : 4 * x + 3] = 1
    return mask


def test_detections_on_a_crowd_are_no_mistakes(shared_data):
    root = shared_data("coco_tiny")
    dataset = CocoDataset(root / "train.json", root / "images", skip_invalid=True)
    crowds = [a for a in dataset.coco["annotations"] if a["iscrowd"]]
    results = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": a["bbox"],
            "segmentation": a["segmentation"],
            "score": 0.9 if a["iscrowd"] else 0.5,
        }
        for a in dataset.coco["annotations"]
    ]
    assert crowds
    metrics = evaluate.score(dataset.coco, results)
    assert metrics["bbox"]["AP"] == metrics["segm"]["AP"] == 1.0


def test_a_model_that_knows_nothing_is_evaluated_too(tmp_path):
    config = replace(small.config(), box_head=replace(small.config().box_head, score_threshold=0.0))
    torch.manual_seed(0)
    model = MaskRCNN(config).train()
    metrics = evaluate.evaluate(model, small.shapes(3), batch_size=2, output=tmp_path)
    assert model.training and 0 <= metrics["segm"]["AP"] < 0.5
    results = json.loads((tmp_path / "results.json").read_text())
    assert results and {result["image_id"] for result in results} <= {1, 2, 3}
    assert all(result["segmentation"]["size"] == [64, 64] for result in results)
    # Unless asked to, `detect` does nothing to be fast that would change a bit.
    again = evaluate.detect(model, small.shapes(3), batch_size=2)
    assert json.loads(json.dumps(again)) == results and model.training


def test_crops_give_the_results_of_full_masks():
    """Evaluation never builds a mask of the image's size; its results are the same bytes."""
    torch.manual_seed(0)
    config = preset("tiny")
    model = MaskRCNN(replace(config, box_head=replace(config.box_head, score_threshold=0.0))).eval()
    images = [torch.rand(90, 130, 3) * 255, torch.rand(64, 50, 3) * 255]
    batch = model.batch(images)
    with torch.no_grad():
        padded = model.batch_detections(batch)
    ids = range(1, config.num_classes + 1)
    whole = [evaluate.coco_results(found, ids) for found in model.unpad(padded, batch)]
    assert whole == [evaluate.coco_results(x, ids) for x in model.unpad(padded, batch, crops=True)]
    assert all(len(results) > 10 for results in whole)
