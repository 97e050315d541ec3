"""Made-up content of a report, plausible and always the same, for any number of runs."""

import base64
import io

import numpy as np
from PIL import Image, ImageDraw

NAMES = (
    "person bicycle car motorcycle airplane bus train truck boat traffic-light fire-hydrant"
    " stop-sign parking-meter bench bird cat dog horse sheep cow elephant bear zebra giraffe"
    " backpack umbrella handbag tie suitcase frisbee skis snowboard sports-ball kite baseball-bat"
    " baseball-glove skateboard surfboard tennis-racket bottle wine-glass cup fork knife spoon bowl"
    " banana apple sandwich orange broccoli carrot hot-dog pizza donut cake chair couch"
    " potted-plant bed dining-table toilet tv laptop mouse remote keyboard cell-phone microwave"
    " oven toaster sink refrigerator book clock vase scissors teddy-bear hair-drier toothbrush"
)
KINDS = ("class", "localisation", "both", "duplicate", "background", "missed")
LOSSES = {"rpn_objectness": 0.6, "rpn_box": 0.15, "class": 1.1, "box": 0.4, "mask": 0.7}
SIZES = [float(edge) for edge in np.geomspace(4, 512, 15)]
BINS = [round(0.05 * i, 2) for i in range(21)]
THRESHOLDS = [round(0.05 * i, 2) for i in range(1, 20)]


def content(runs=1, classes=6, *, log=True, evaluation=True, pictures=6, names=None, title=None):
    """The dictionary of a report: the run with index i is a little better than the one before."""
    chosen = names or [name.replace("-", " ") for name in NAMES.split()[:classes]]
    made = []
    for index in range(runs):
        rng = np.random.default_rng(index)
        made.append(
            {
                "name": f"runs/{('mine', 'wider-augmentation', 'long')[index % 3]}{index or ''}",
                "log": training(rng, index) if log else None,
                "evaluation": scores(rng, index, chosen, pictures) if evaluation else None,
            }
        )
    return {"title": title or made[0]["name"], "version": "0.2.0", "runs": made}


def training(rng, index):
    """The log of a run of 2,500 steps, evaluated ten times."""
    steps = []
    for iteration in range(10, 2501, 10):
        progress = iteration / 2500
        noise = rng.normal(1, 0.06, len(LOSSES))
        fall = 0.12 + 0.88 * np.exp(-(4 + index) * progress)
        losses = {
            name: float(start * fall * n)
            for (name, start), n in zip(LOSSES.items(), noise, strict=True)
        }
        rate = 0.02 * min(1, iteration / 200) * (0.1 if progress > 0.8 else 1)
        step = {"iteration": iteration, **losses, "loss": sum(losses.values())}
        steps.append(step | {"gradient_norm": float(3 * fall), "learning_rate": rate})
    evaluations = []
    for iteration in range(250, 2501, 250):
        rise = 1 - np.exp(-iteration / 700) - 0.03 * (iteration > 2000)
        at = steps[iteration // 10 - 1]
        evaluations.append(
            {
                "iteration": iteration,
                "bbox": {m: float(v * rise) for m, v in metrics(index, 0.02).items()},
                "segm": {m: float(v * rise) for m, v in metrics(index, 0.0).items()},
                "validation": {n: at[n] * (1 + iteration / 6000) for n in [*LOSSES, "loss"]},
            }
        )
    return {"steps": steps, "evaluations": evaluations, "best": 2000}


def metrics(index, more):
    """COCO's numbers of the last step."""
    level = 0.38 + 0.035 * index + more
    shares = {"AP": 1, "AP50": 1.55, "AP75": 1.08, "APs": 0.5, "APm": 1.06, "APl": 1.3}
    return {name: level * share for name, share in shares.items()}


def scores(rng, index, names, pictures):
    """The evaluation of a run."""
    objects = np.maximum(1, (rng.pareto(1.1, len(names)) * 12).astype(int))
    # A class without objects has no average precision.
    objects[-1] = 0 if len(names) > 5 else objects[-1]
    quality = np.clip(rng.normal(0.62 + 0.03 * index, 0.13, len(names)), 0.05, 0.97)
    found = rng.binomial(objects, quality)
    matrix = confusion(rng, objects, found)
    classes, curves = [], [curve(rng, "all", 0.65 + 0.05 * index)]
    for i, (name, level) in enumerate(zip(names, quality.tolist(), strict=True)):
        curves.append(curve(rng, name, level))
        f1 = max(curves[-1]["F1"])
        best = curves[-1]["F1"].index(f1)
        present = bool(objects[i])
        classes.append(
            {
                "id": i + 1,
                "name": name,
                "objects": int(objects[i]),
                "detections": int(objects[i] * 1.4 + 2),
                "box_AP": level * 0.63 if present else None,
                "mask_AP": level * 0.6 if present else None,
                "boundary_AP": level * 0.4 if present else None,
                "AP50": level if present else None,
                "best_threshold": THRESHOLDS[best] if present else None,
                "best_F1": f1 if present else None,
                "precision": curves[-1]["precision"][best] if present else None,
                "recall": curves[-1]["recall_by_score"][best] if present else None,
            }
        )
    all_ = {"classes": {entry["name"]: entry["mask_AP"] for entry in classes}}
    masks = metrics(index, 0.0)
    boundary = {name: masks[name] * 0.7 for name in ("AP", "AP50", "AP75")}
    sizes, total = np.array(SIZES), int(objects.sum())
    by_size = (total * np.diff(np.tanh((np.log(sizes) - 3.4) / 1.6))).astype(int)
    share = np.clip(0.25 + 0.08 * np.arange(14) + 0.03 * index, 0, 0.95)
    centers = np.array(BINS[:-1]) + 0.025
    right = (total * 0.08 * (0.3 + 3 * centers**3)).astype(int)
    wrong = (total * 0.25 * np.exp(-4.5 * centers)).astype(int)
    precision = right / np.maximum(right + wrong, 1)
    bins = [
        {"low": low, "high": low + 0.05, "count": int(r + w), "score": float(c), "precision": p}
        for low, r, w, c, p in zip(
            BINS[:-1], right, wrong, centers, precision.tolist(), strict=True
        )
    ]
    weights = np.array([b["count"] for b in bins])
    ece = float((weights * abs(precision - centers)).sum() / max(weights.sum(), 1))
    costs = rng.dirichlet([2, 5, 0.7, 0.5, 3, 5]) * 0.3
    return {
        "data": "annotations/val.json",
        "iteration": 2000,
        "images": 50,
        "objects": total,
        "crowds": 2,
        "detections": int((right + wrong).sum()),
        "kind": "segm",
        "iou": 0.5,
        "threshold": 0.5,
        "metrics": {
            "bbox": metrics(index, 0.02) | all_,
            "segm": masks | all_,
            "boundary": boundary | all_,
        },
        "classes": classes,
        "curves": curves,
        "confusion": {"labels": [*names, "background"], "matrix": matrix.tolist()},
        "sizes": {
            "edges": SIZES,
            "objects": by_size.tolist(),
            "found": (by_size * share).astype(int).tolist(),
            "detections": (by_size * 1.3).astype(int).tolist(),
        },
        "scores": {"edges": BINS, "right": right.tolist(), "wrong": wrong.tolist()},
        "calibration": {"bins": bins, "ece": ece},
        "errors": {
            "AP50": masks["AP50"],
            "kinds": [
                {"kind": kind, "count": int(400 * cost), "cost": cost}
                for kind, cost in zip(KINDS, costs.tolist(), strict=True)
            ],
            "false_positives": float(costs[:5].sum() * 0.9),
            "false_negatives": float(costs[5] * 1.2),
        },
        "pictures": [picture(rng, i, names, i < pictures / 2) for i in range(pictures)],
    }


def confusion(rng, objects, found):
    """Counts [K + 1, K + 1]: the objects that are not found are taken for others, or missed."""
    count = len(objects)
    matrix = np.zeros((count + 1, count + 1), int)
    for i, missing in enumerate(objects - found):
        others = np.full(count + 1, 0.25 / count)
        others[(i + 1) % count] += 0.3
        others[-1] += 0.9
        others[i] = 0
        matrix[i] = rng.multinomial(missing, others / others.sum())
        matrix[i, i] = found[i]
    matrix[-1, :-1] = rng.poisson(0.2 * objects)
    return matrix


def curve(rng, name, level):
    """Precision by recall, and precision, recall and F1 by score."""
    recall = np.linspace(0, 1, 101)
    noise = np.minimum.accumulate(1 - 0.1 * rng.random(101) * recall)

    def falling(end):
        return np.where(recall < end, noise * (1 - 0.5 * (recall / end) ** 3), 0)

    score = np.array(THRESHOLDS)
    precision = 1 - (1 - level) * (1 - score) ** 0.7
    found = level * (1 - score**3)
    return {
        "class": name,
        "recall": recall.tolist(),
        "precision50": falling(min(level * 1.2, 0.99)).tolist(),
        "precision75": (falling(level * 0.8) * 0.9).tolist(),
        "scores": THRESHOLDS,
        "precision": precision.tolist(),
        "recall_by_score": found.tolist(),
        "F1": (2 * precision * found / (precision + found)).tolist(),
    }


def picture(rng, index, names, worst):
    """A picture, drawn twice: with all objects, and with some."""
    objects = int(rng.integers(3, 9))
    found = int(rng.integers(0, 2)) if worst else objects - int(rng.integers(0, 2))
    false = int(rng.integers(1, 4)) if worst else 0
    boxes = [
        (x, y, x + w, y + h)
        for x, y, w, h in zip(
            rng.integers(0, 250, objects),
            rng.integers(0, 170, objects),
            rng.integers(20, 70, objects),
            rng.integers(20, 70, objects),
            strict=True,
        )
    ]
    sides = []
    for drawn in (boxes, boxes[:found]):
        image = Image.new("RGB", (320, 240), (70 + 10 * index, 90, 110))
        pen = ImageDraw.Draw(image)
        for box in boxes:
            pen.ellipse([int(v) for v in box], fill=(190, 170, 150))
        for box in drawn:
            pen.rectangle([int(v) for v in box], outline=(86, 180, 233), width=3)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=70)
        sides.append("data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode())
    missed = objects - found
    return {
        "image_id": index + 1,
        "file_name": f"images/val/{index:06d}.jpg",
        "width": 320,
        "height": 240,
        "rank": "worst" if worst else "best",
        "F1": 2 * found / (2 * found + false + missed),
        "objects": objects,
        "found": found,
        "false": false,
        "missed": missed,
        "errors": [*(["localisation"] * (false > 1)), *(["missed"] * (missed > 0))],
        "classes": sorted({names[int(i)] for i in rng.integers(0, len(names), 3)}),
        "truth": sides[0],
        "prediction": sides[1],
    }
