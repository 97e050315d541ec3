"""Everything that a report shows, as one dictionary that JSON can hold."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accelerated.analysis import calibration, curves, errors, pictures
from accelerated.analysis.confusion import confusion
from accelerated.analysis.matching import IOU, Matches, match
from accelerated.data.dataset import Dataset
from accelerated.engine import evaluate
from accelerated.engine import log as engine_log

SHORT = ("AP", "AP50", "AP75")


def evaluation(
    dataset: Dataset,
    results: list[dict],
    *,
    iou_types: Sequence[str] = ("bbox", "segm"),
    max_detections: int = 100,
    threshold: float = 0.5,
    count: int = 12,
    boundary: bool = True,
) -> dict:
    """Analyse detections against a data set: metrics, curves, errors and pictures.

    results         in COCO's result format, with ids of the data set
    iou_types       "bbox", "segm" or both; with masks, these are matched, else boxes
    max_detections  per image and class that count
    threshold       score from which on a detection counts in `confusion`, `sizes` and `pictures`
    count           pictures to draw, half the worst and half the best; 0 opens no image
    boundary        compute boundary AP of masks

    docs/report.md explains each entry. What has no value, such as the AP of a class without
    objects, is None.
    """
    truth = dataset.coco
    categories = evaluate.in_order(truth["categories"])
    names, kind = [category["name"] for category in categories], iou_types[-1]
    compared = {name: evaluate.compare(truth, results, name, max_detections) for name in iou_types}
    metrics: dict[str, Any] = {
        name: evaluate.metrics(found, categories) for name, found in compared.items()
    }
    matches, precision = match(compared[kind]), compared[kind].eval["precision"]
    by_recall = curves.by_recall(compared[kind], names)
    metrics["boundary"] = None
    if kind == "segm" and boundary:
        found = evaluate.compare(truth, results, "boundary", max_detections)
        numbers = evaluate.metrics(found, categories)
        metrics["boundary"] = {key: numbers[key] for key in (*SHORT, "classes")}
    average = {
        key: (metrics.get(name) or {}).get("classes", {})
        for key, name in (("box_AP", "bbox"), ("mask_AP", "segm"), ("boundary_AP", "boundary"))
    }
    objects = matches.objects()
    detections = np.bincount(matches.label[~matches.in_crowd], minlength=matches.classes)
    classes = [
        {"id": category["id"], "name": category["name"]}
        | {"objects": int(objects[k]), "detections": int(detections[k])}
        | {key: values.get(category["name"]) for key, values in average.items()}
        | {"AP50": evaluate.mean(precision[0, :, k, 0, -1])}
        | curves.best_threshold(matches, k)
        for k, category in enumerate(categories)
    ]
    return {
        "images": matches.images,
        "objects": int(objects.sum()),
        "crowds": int(matches.crowd.sum()),
        "detections": int(detections.sum()),
        "in_crowds": int(matches.in_crowd.sum()),
        "kind": kind,
        "iou": IOU,
        "threshold": threshold,
        "metrics": metrics,
        "classes": classes,
        "curves": [
            curve | curves.by_score(matches, label)
            for curve, label in zip(by_recall, (None, *range(len(names))), strict=True)
        ],
        "confusion": confusion(matches, threshold, names),
        "sizes": calibration.sizes(matches, threshold),
        "scores": calibration.scores(matches),
        "calibration": calibration.calibration(matches),
        "errors": errors.summary(matches),
        "pictures": _pictures(dataset, results, matches, threshold, count),
    }


def _pictures(dataset, results, matches: Matches, threshold, count):
    images = evaluate.in_order(dataset.coco["images"])
    index_of = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    names = [category["name"] for category in evaluate.in_order(dataset.coco["categories"])]
    found = []
    for row in pictures.rank(errors.find(matches), threshold, count):
        position, labels = row.pop("image"), row.pop("labels")
        image = images[position]
        numbers = matches.number[(matches.image == position) & ~matches.in_crowd]
        here = [results[number] for number in numbers.tolist()]
        index = index_of[image["id"]]
        truth, prediction, width, height = pictures.draw(dataset, index, here, threshold)
        about = {"image_id": image["id"], "file_name": image["file_name"]}
        found.append(
            about
            | {"width": width, "height": height}
            | row
            | {"classes": [names[k] for k in labels], "truth": truth, "prediction": prediction}
        )
    return found


def log(path: Path) -> dict | None:
    """Read the log of a run: its steps, its evaluations and the best one; None without a file.

    Returns {"steps": lines, "evaluations": [{"iteration", "bbox" and "segm": AP, AP50, AP75,
    "validation": losses on validation data, if known}], "best": iteration or None}.
    """
    if not path.exists():
        return None
    steps, evaluations, best = [], {}, None
    for line in engine_log.read(path):
        if "loss" in line:
            steps.append(line)
        if "evaluation" not in line and "validation" not in line:
            continue
        entry = evaluations.setdefault(line["iteration"], {"iteration": line["iteration"]})
        for branch, numbers in line.get("evaluation", {}).items():
            entry[branch] = {key: numbers.get(key) for key in SHORT}
        entry |= {"validation": line["validation"]} if "validation" in line else {}
        best = line.get("best", best)
    return {"steps": steps, "evaluations": [*evaluations.values()], "best": best}
