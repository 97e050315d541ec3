"""The time of evaluation, and that of pycocotools.

`PYTHONPATH=.:tests python -m support.evaluation_time [IMAGES]` simulates objects and 100 detections
per image, for the 5000 images of COCO's validation by default, and prints seconds of processor time
and the largest difference of a number.
"""

import contextlib
import io
import sys
import time

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from accelerated.data import rle
from accelerated.engine import evaluate

SIDE, CLASSES, OBJECTS, DETECTIONS = 96, 80, 7, 100


def instance(rng, image, box, category):
    """Return an ellipse in a box as COCO's results have it."""
    x, y, width, height = box
    rows, columns = np.ogrid[0.5:SIDE, 0.5:SIDE]
    across, down = (columns - x) / width * 2 - 1, (rows - y) / height * 2 - 1
    counts = rle.compress(rle.of_mask(across**2 + down**2 <= 1)).decode()
    return {
        "image_id": image,
        "category_id": category if rng.random() < 0.8 else int(rng.integers(CLASSES)),
        "bbox": [float(side) for side in box],
        "segmentation": {"size": [SIDE, SIDE], "counts": counts},
    }


def simulate(images, rng):
    """Return (data set, results): of five detections, four lie near an object."""
    annotations, results = [], []
    for image in range(images):
        corners = rng.uniform(0, 0.8 * SIDE, (OBJECTS, 2))
        boxes = np.concatenate([corners, rng.uniform(4, 0.6 * SIDE, (OBJECTS, 2))], 1)
        classes = rng.integers(CLASSES, size=OBJECTS).tolist()
        for box, category in zip(boxes, classes, strict=True):
            found = instance(rng, image, box, category)
            area = rle.area(rle.decompress(found["segmentation"]["counts"]))
            ids = {"id": len(annotations) + 1, "iscrowd": int(rng.random() < 0.01)}
            annotations.append(found | ids | {"area": area})
        for _ in range(DETECTIONS):
            k = int(rng.integers(OBJECTS))
            moved = boxes[k] + rng.normal(0, 2 if rng.random() < 0.8 else 20, 4)
            moved[2:] = np.maximum(moved[2:], 2)
            score = float(np.float32(rng.random()))
            results.append(instance(rng, image, moved, classes[k]) | {"score": score})
    truth = {
        "images": [{"id": n, "height": SIDE, "width": SIDE} for n in range(images)],
        "categories": [{"id": n, "name": str(n)} for n in range(CLASSES)],
        "annotations": annotations,
    }
    return truth, results


def pycocotools(truth, results, iou_type):
    """Return the twelve numbers."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        unused = "bbox" if iou_type == "segm" else None
        found = coco.loadRes([{k: x for k, x in r.items() if k != unused} for r in results])
        evaluation = COCOeval(coco, found, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


if __name__ == "__main__":
    truth, results = simulate(int((sys.argv[1:] or [5000])[0]), np.random.default_rng(0))
    for iou_type in ("bbox", "segm"):
        start = time.process_time()
        metrics = evaluate.score(truth, results, iou_types=[iou_type])[iou_type]
        ours = time.process_time()
        expected = pycocotools(truth, results, iou_type)
        theirs = time.process_time()
        # In pycocotools' order; after them stand the classes.
        numbers = [-1 if number is None else number for number in list(metrics.values())[:12]]
        difference = np.abs(np.array(numbers) - expected).max()
        print(
            f"{iou_type}: {ours - start:.1f} s, pycocotools {theirs - ours:.1f} s,"
            f" the twelve numbers differ by {difference:.1e}, AP {metrics['AP']:.3f}"
        )
