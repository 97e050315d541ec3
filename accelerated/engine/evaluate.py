"""COCO's average precision of boxes and masks, by pycocotools, on the results file that is written here."""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.progress import track

from accelerated.data.loader import loader


def evaluate(
    model, dataset, *, batch_size=1, workers=0, output=None, max_detections=None, bar=False
) -> dict:
    """Detect in every image of `dataset` and score against its annotations.

    batch_size      a group norm averages over the padding too, so that with more than one image their sizes matter a little to each other
    output          folder for results.json (COCO's result format, ids of the data set) and metrics.json, or None
    max_detections  per image that count (default: as many as the model gives, config.box_head.max_detections; COCO's own is 100)
    Returns         as `score`.
    """
    limit = max_detections or model.config.box_head.max_detections
    results = detect(model, dataset, batch_size=batch_size, workers=workers, bar=bar)
    kinds = ("bbox",) if model.config.mask_head.kind == "none" else ("bbox", "segm")
    metrics = score(dataset.coco, results, limit, kinds)
    if output is not None:
        write_json(Path(output) / "results.json", results)
        write_json(Path(output) / "metrics.json", metrics)
    return metrics


def detect(model, dataset, *, batch_size=1, workers=0, bar=False) -> list[dict]:
    """The model's detections in COCO's result format; full masks exist for one image at a time."""
    device = next(model.parameters()).device
    training, results = model.training, []
    model.eval()
    batches = loader(
        dataset,
        model.config,
        batch_size=batch_size,
        workers=workers,
        seed=0,
        training=False,
        start_iteration=0,
    )
    for batch in track(batches, "detecting", total=-(-len(dataset) // batch_size), disable=not bar):
        padded = model.batch_detections(batch.to(device))
        for image_id, detections in zip(batch.image_ids, model.unpad(padded, batch), strict=True):
            results.extend(
                {"image_id": image_id} | entry
                for entry in entries(detections, dataset.category_ids)
            )
    model.train(training)
    return results


def categories(dataset) -> list[dict]:
    """{"id", "name"} of the labels 1..K."""
    return [
        {"id": number, "name": name}
        for number, name in zip(dataset.category_ids, dataset.class_names, strict=True)
    ]


def entries(detections, category_ids) -> list[dict]:
    """Detections of one image -> {"category_id", "bbox", "score", "segmentation"} each, as COCO writes them; the last only with masks."""
    boxes = detections.boxes.double().cpu().numpy()
    boxes[:, 2:] -= boxes[:, :2]
    columns = zip(
        detections.labels.tolist(), boxes.tolist(), detections.scores.tolist(), strict=True
    )
    found = [
        {"category_id": category_ids[label - 1], "bbox": box, "score": score}
        for label, box, score in columns
    ]
    if detections.masks is not None:
        masks = detections.masks.permute(1, 2, 0).cpu().numpy().astype(np.uint8)
        for entry, run in zip(found, coco_mask.encode(np.asfortranarray(masks)), strict=True):
            entry["segmentation"] = run | {"counts": run["counts"].decode()}
    return found


def score(
    truth: dict, results: list[dict], max_detections: int = 100, kinds=("bbox", "segm")
) -> dict:
    """pycocotools' numbers for `results` against `truth`, a data set as in a COCO json.

    Returns {"bbox": {...}, "segm": {...}}, each with AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR<max_detections>, ARs, ARm, ARl in 0..1
    and "classes": {name: AP}. None stands where there is no object to find.
    Objects are small, medium or large by box area for "bbox", by mask area for "segm". A model without a mask branch has no "segm".
    """
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        return {kind: _score(coco, results, kind, max_detections) for kind in kinds}


def _score(coco, results, kind, max_detections):
    # Copies, as pycocotools writes into what it is given; for masks without their box, whose area it would take for theirs.
    results = [
        {key: value for key, value in result.items() if (kind, key) != ("segm", "bbox")}
        for result in results
    ]
    if results:
        found = coco.loadRes(results)
    else:  # loadRes takes no empty list
        found = COCO()
        found.dataset = {
            "images": coco.dataset["images"],
            "categories": coco.dataset["categories"],
            "annotations": [],
        }
        found.createIndex()
    evaluation = COCOeval(coco, found, kind)
    evaluation.params.maxDets = sorted({1, min(10, max_detections), max_detections})
    evaluation.evaluate()
    evaluation.accumulate()
    precision, recall = (
        evaluation.eval["precision"],
        evaluation.eval["recall"],
    )  # [IoU, recall, class, area, limit], [IoU, class, area, limit]
    metrics = {
        "AP": _mean(precision[..., 0, -1]),
        "AP50": _mean(precision[0, ..., 0, -1]),
        "AP75": _mean(precision[5, ..., 0, -1]),
    }
    metrics |= {f"AP{size}": _mean(precision[..., i, -1]) for i, size in enumerate("sml", 1)}
    metrics |= {
        f"AR{limit}": _mean(recall[..., 0, i]) for i, limit in enumerate(evaluation.params.maxDets)
    }
    metrics |= {f"AR{size}": _mean(recall[..., i, -1]) for i, size in enumerate("sml", 1)}
    names = [category["name"] for category in coco.loadCats(evaluation.params.catIds)]
    return metrics | {
        "classes": {name: _mean(precision[:, :, k, 0, -1]) for k, name in enumerate(names)}
    }


def _mean(values):
    values = values[values > -1]
    return float(values.mean()) if values.size else None


def write_json(path, content):
    """The whole file or none of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    with partial.open("w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
