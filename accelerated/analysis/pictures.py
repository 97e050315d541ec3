"""The best and the worst pictures, with their objects and their detections drawn."""

import base64
import io
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from accelerated.analysis.curves import rates
from accelerated.analysis.errors import FALSE, Errors
from accelerated.data import rle
from accelerated.data.dataset import Dataset
from accelerated.drawing import detections as drawing

# Pictures are shrunk to this, and enlarged by a whole number if that stays below.
WIDTH, QUALITY = 640, 80


def rank(errors: Errors, threshold: float, count: int) -> list[dict]:
    """Choose images by the F1 of their detections of at least `threshold`: worst, then best.

    Half of `count` are the worst, half the best, and none is both. Of equal F1, the one with more
    errors is worse, and the one with fewer objects. Images with neither objects nor detections are
    left out.
    Returns [{"image" (index in the order of ids), "rank", "F1", "objects", "found", "false",
    "missed", "errors": [kinds], "labels": [indices of classes]}].
    """
    matches = errors.matches
    counted = (matches.score >= threshold) & ~matches.in_crowd
    objects, right, every = (
        np.bincount(images, minlength=matches.images)
        for images in (
            matches.truth_image[~matches.crowd],
            matches.image[counted & matches.right],
            matches.image[counted],
        )
    )
    some = np.flatnonzero(objects + every)
    f1 = 2 * right[some] / (objects + every)[some]
    wrong = (objects + every - 2 * right)[some]
    ranked = some[np.lexsort((objects[some], -wrong, f1))]
    shown = min(count, len(ranked))
    worst, best = ranked[: -(-shown // 2)], ranked[::-1][: shown // 2]
    chosen = [("worst", image) for image in worst] + [("best", image) for image in best]
    out = []
    for name, image in chosen:
        here = counted & (matches.image == image)
        present = (matches.truth_image == image) & ~matches.crowd
        kinds = [FALSE[kind] for kind in np.unique(errors.kind[here]) if kind >= 0]
        found, total, detected = int(right[image]), int(objects[image]), int(every[image])
        missed = ["missed"] if found < total else []
        labels = np.union1d(matches.label[here], matches.truth_label[present])
        numbers = {
            "image": int(image),
            "rank": name,
            "F1": rates(found, detected, total)[2],
            "objects": total,
            "found": found,
            "false": detected - found,
            "missed": total - found,
        }
        out.append(numbers | {"errors": kinds + missed, "labels": labels.tolist()})
    return out


def draw(
    dataset: Dataset, index: int, results: Sequence[dict], threshold: float
) -> tuple[str, str, int, int]:
    """Draw the objects of an image, and the detections of at least `threshold`, as data URLs.

    results  detections of this image in COCO's result format, with ids of the data set

    Returns both URLs, and the width and height of the image itself.
    Raises ValueError, which names the image, if its file cannot be read.
    """
    try:
        item = dataset[index]
    except ValueError as error:
        raise ValueError(f"{dataset.file_names[index]}: {error}") from None
    height, width = item.image.shape[:2]
    shrink = min(1.0, WIDTH / width)
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    image = np.asarray(Image.fromarray(item.image).resize(size, Image.Resampling.LANCZOS))
    scale = max(1, WIDTH // width)

    def url(boxes, labels, masks, scores=None):
        shown = SimpleNamespace(
            boxes=np.asarray(boxes, dtype=float).reshape(-1, 4) * shrink,
            labels=np.asarray(labels, dtype=int),
            masks=None if masks is None else [_resized(mask, size) for mask in masks],
        )
        if scores is not None:
            shown.scores = np.asarray(scores, dtype=float)
        names = dataset.class_names
        return _url(drawing.draw(image, shown, names, threshold=threshold, scale=scale))

    target = item.target
    truth = url(target.boxes.numpy(), target.labels.numpy(), target.masks.numpy())
    found = [_decoded(result, height, width) for result in results if result["score"] >= threshold]
    boxes, masks, scores, ids = ([row[k] for row in found] for k in range(4))
    label_of = {category: k for k, category in enumerate(dataset.category_ids, start=1)}
    with_masks = masks if all(mask is not None for mask in masks) else None
    prediction = url(boxes, [label_of[i] for i in ids], with_masks, scores)
    return truth, prediction, width, height


def _decoded(result: dict, height: int, width: int) -> tuple[Any, ...]:
    """Return box [x1, y1, x2, y2], mask or None, score and category id of a detection."""
    mask, box = None, result.get("bbox")
    if "segmentation" in result:
        counts = rle.decompress(result["segmentation"]["counts"])
        mask = np.zeros((height, width), dtype=bool)
        rle.decode_into(counts, mask)
        if box is None:
            box = rle.bounds(counts, height) or (0, 0, 0, 0)
            return box, mask, result["score"], result["category_id"]
    x, y, w, h = box or (0, 0, 0, 0)
    return (x, y, x + w, y + h), mask, result["score"], result["category_id"]


def _resized(mask, size):
    if mask.shape[::-1] == size:
        return mask
    picture = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(picture.resize(size, Image.Resampling.NEAREST)).astype(bool)


def _url(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
