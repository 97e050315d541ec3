"""Average precision of boxes and masks as in COCO, computed by faster-coco-eval."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from rich.progress import track

from accelerated import processes, transform
from accelerated.data import rle
from accelerated.data.dataset import Dataset, categories
from accelerated.data.loader import loader
from accelerated.data.text_files import write_json
from accelerated.engine import group, views
from accelerated.engine.classes import label_ids
from accelerated.engine.tiles import Tiles, tiled
from accelerated.engine.views import View
from accelerated.mask_rcnn import MaskRCNN
from accelerated.structures import CroppedDetections, Detections


def evaluate(
    model: MaskRCNN,
    dataset: Dataset,
    *,
    batch_size: int = 1,
    workers: int = 0,
    output: str | Path | None = None,
    max_detections: int | None = None,
    tta: Sequence[View] = (),
    tiles: Tiles | None = None,
    compile: str | None = None,
    graph: bool = False,
    amp: bool = False,
    bar: bool = False,
) -> dict:
    """Detect objects in every image of `dataset` and score them against its annotations.

    batch_size      a group norm averages over padding too, so that with more than one image the
                    sizes in a batch slightly influence the detections
    output          folder for the files of `write_results` and metrics.json, or None; without
                    annotations in the data set, no metrics.json
    max_detections  per image that count (default: config.box_head.max_detections; COCO's is 100)
    tta, tiles      see `detect`
    compile, graph, amp
                    see `capture.detector`

    Several processes share the images; the first scores all detections and writes the files.
    Returns the metrics, see `score`, in every process.
    """
    limit = max_detections or model.config.box_head.max_detections
    how = {"batch_size": batch_size, "workers": workers, "tta": tta, "tiles": tiles}
    results = detect(model, dataset, **how, compile=compile, graph=graph, amp=amp, bar=bar)
    has_masks = model.config.mask_head.kind != "none"
    found = {}
    if processes.is_first():
        found = score(dataset.coco, results, limit, ("bbox", "segm") if has_masks else ("bbox",))
    if output is not None and processes.is_first():
        write_results(Path(output), results)
        if dataset.coco["annotations"]:
            write_json(Path(output) / "metrics.json", found)
    return group.share(found)


def detect(
    model: MaskRCNN,
    dataset: Dataset,
    *,
    batch_size: int = 1,
    workers: int = 0,
    tta: Sequence[View] = (),
    tiles: Tiles | None = None,
    compile: str | None = None,
    graph: bool = False,
    amp: bool = False,
    bar: bool = False,
) -> list[dict]:
    """Detect objects in every image of `dataset` and return them in COCO's result format.

    A detection has the category id of the model's `categories`, and is left out if the data set has
    no such category; without `categories` the classes are those of the data set.

    tta             what of each image is looked at, see `views.parse`; none: the image as it is
    tiles           detect in tiles of larger images, see `tiles.parse`; then `batch_size` is that
                    of tiles; None: in whole images
    compile, graph, amp
                    see `capture.detector`

    No more masks exist at a time than fill an image once, in tiles more, each in the window of its
    box alone.
    Of several processes each takes its share of the images; the first returns all detections, in
    the order of one process, and the others none.
    """
    run = views.detector(model, tta, compile, graph, amp)
    device = next(model.parameters()).device
    training, results = model.training, []
    ids = label_ids(getattr(model, "categories", None) or categories(dataset), dataset)
    model.eval()
    part = processes.rank(), processes.number()
    config, whole = model.config, not tta and tiles is None
    if not whole:
        # Views and tiles are cut from the pixels of the files.
        config = replace(config, transform=replace(config.transform, min_size=()))

    def in_whole(images: list) -> Sequence[Detections]:
        return model.detect(images, run=partial(run, images), crops=True)

    find = in_whole if tiles is None else tiled(in_whole, tiles, batch_size)
    how = {"workers": workers, "training": False, "part": part, "masks": False}
    # In tiles, a batch is cut from one picture.
    batches = loader(dataset, config, batch_size=batch_size if tiles is None else 1, **how)
    for raw in track(batches, "detecting", total=len(batches), disable=not bar):
        results.append([])
        if whole:
            batch = transform.finish(raw.to(device, non_blocking=True), config.transform)
            found = model.unpad(run([], batch), batch, crops=True)
        else:
            found = find([pixels.permute(1, 2, 0) for pixels in raw.images()])
        for image_id, detections in zip(raw.image_ids, found, strict=True):
            for result in coco_results(detections, ids):
                results[-1].append({"image_id": image_id} | result)
    model.train(training)
    parts = group.collect(results)
    return [] if parts is None else [x for batch in group.alternate(parts) for x in batch]


def coco_results(detections: Detections, category_ids: Sequence[int | None]) -> list[dict]:
    """Convert the detections of one image to COCO's result format.

    category_ids  of the labels 1..K; detections of a label with None are left out
    Returns {"category_id", "bbox", "score"} for each, with masks also "segmentation".
    """
    boxes = detections.boxes.double().cpu().numpy()
    boxes[:, 2:] -= boxes[:, :2]
    labels, scores = detections.labels.tolist(), detections.scores.tolist()
    results = [
        {"category_id": category_ids[label - 1], "bbox": box, "score": score}
        for label, box, score in zip(labels, boxes.tolist(), scores, strict=True)
    ]
    if detections.masks is not None:
        # One at a time, because all at once are held twice.
        for result, mask in zip(results, detections.masks, strict=True):
            counts = rle.compress(rle.of_mask(mask.cpu().numpy()))
            result["segmentation"] = {"size": [*mask.shape], "counts": counts.decode()}
    if isinstance(detections, CroppedDetections):
        for result, crop in zip(results, detections.crops, strict=True):
            counts = rle.compress(rle.of_crop(*crop))
            result["segmentation"] = {"size": [*crop.size], "counts": counts.decode()}
    return [result for result in results if result["category_id"] is not None]


def score(
    truth: dict,
    results: list[dict],
    max_detections: int = 100,
    iou_types: Sequence[str] = ("bbox", "segm"),
) -> dict:
    """Compute COCO's metrics of `results` against `truth`, a data set as in a COCO json.

    Returns {"bbox": {...}, "segm": {...}}, without "segm" for a model without a mask branch. Each
    has AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR<max_detections>, ARs, ARm, ARl in 0..1 and
    "classes": {name: AP}. A metric is None if the ground truth has no object for it.
    Objects are small, medium or large by box area for "bbox", by mask area for "segm".
    The numbers are those of pycocotools but for their last bits: it adds 2^-52 to what a precision
    is divided by.
    """
    classes = in_order(truth["categories"])
    return {
        name: metrics(compare(truth, results, name, max_detections), classes) for name in iou_types
    }


def compare(
    truth: dict, results: list[dict], iou_type: str, max_detections: int = 100
) -> COCOeval_faster:
    """Compare results with the truth as COCO does, and return the library's evaluation.

    iou_type  "bbox", "segm" or "boundary"

    Its images, categories and detections are numbered from 1, the first two `in_order`;
    `eval["precision"]` is [IoU, recall, class, area, limit].
    """
    # faster-coco-eval takes an annotation's id 0 for "no match", and other ids for short integers.
    image_ids, category_ids = (_numbers(truth[part]) for part in ("images", "categories"))

    def numbered(entries: list[dict]) -> list[dict]:
        # Copies, because faster-coco-eval writes into its input.
        return [
            entry
            | {"id": n, "image_id": image_ids[entry["image_id"]]}
            | {"category_id": category_ids.get(entry["category_id"])}
            for n, entry in enumerate(entries, start=1)
        ]

    coco = COCO(
        {
            "images": [image | {"id": image_ids[image["id"]]} for image in truth["images"]],
            "categories": [c | {"id": category_ids[c["id"]]} for c in truth["categories"]],
            "annotations": numbered(truth["annotations"]),
        }
    )
    results = numbered(results)
    if iou_type != "bbox":
        # Boxes would lend their areas to the masks.
        for result in results:
            result.pop("bbox", None)
    # Older versions of loadRes reject an empty list.
    detections = coco.loadRes(results) if results else COCO(coco.dataset | {"annotations": []})
    evaluation = COCOeval_faster(coco, detections, cast(Any, iou_type))
    evaluation.params.maxDets = sorted({1, min(10, max_detections), max_detections})
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def in_order(entries: list[dict]) -> list[dict]:
    """Return images or categories in the order that an evaluation has them in: that of ids."""
    known = {entry["id"]: entry for entry in entries}
    return [known[entry_id] for entry_id in _numbers(entries)]


def metrics(evaluation: COCOeval_faster, classes: Sequence[dict]) -> dict:
    """Compute the numbers of one kind, see `score`, of an evaluation of `classes`."""
    # [IoU, recall, class, area, limit] and [IoU, class, area, limit]
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    numbers: dict[str, Any] = {
        "AP": mean(precision[..., 0, -1]),
        "AP50": mean(precision[0, ..., 0, -1]),
        "AP75": mean(precision[5, ..., 0, -1]),
    }
    for i, size in enumerate("sml", start=1):
        numbers[f"AP{size}"] = mean(precision[..., i, -1])
    for i, limit in enumerate(evaluation.params.maxDets):
        numbers[f"AR{limit}"] = mean(recall[..., 0, i])
    for i, size in enumerate("sml", start=1):
        numbers[f"AR{size}"] = mean(recall[..., i, -1])
    names = [category["name"] for category in classes]
    by_class = {name: mean(precision[:, :, k, 0, -1]) for k, name in enumerate(names)}
    return numbers | {"classes": by_class}


def mean(values: np.ndarray) -> float | None:
    """Return the mean of an evaluation's values, of which -1 is none; None without any."""
    values = values[values > -1]
    return float(values.mean()) if values.size else None


def write_results(folder: Path, results: list[dict]) -> None:
    """Write results.json (COCO's result format) and, of masks, also results_segm.json.

    The second is the same without boxes. Where boxes stand beside masks, pycocotools and COCO's
    server take the sizes of masks, small, medium or large, from the boxes, and score otherwise.
    """
    write_json(folder / "results.json", results)
    if results and "segmentation" in results[0]:
        masks = [{key: x for key, x in result.items() if key != "bbox"} for result in results]
        write_json(folder / "results_segm.json", masks)


def _numbers(entries: list[dict]) -> dict[int | str, int]:
    """Return {id: number}, counted from 1 in the order of ids, texts after numbers."""
    ids = sorted((e["id"] for e in entries), key=lambda i: (isinstance(i, str), i))
    return {i: n for n, i in enumerate(ids, start=1)}
