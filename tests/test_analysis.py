"""accelerated.analysis: kinds of errors by hand, and sums that must agree with COCO's numbers."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerated.analysis import content, errors
from accelerated.analysis.matching import match
from accelerated.data import rle
from accelerated.engine import evaluate
from reference import average_precision as ap
from reference.structures import Detections, Target

SIDE = 40


def a_mask(box):
    """A rectangle x, y, width, height as run lengths, in an image of 40 x 40."""
    mask = np.zeros((SIDE, SIDE), bool)
    x, y, w, h = box
    mask[y : y + h, x : x + w] = True
    return {"size": [SIDE, SIDE], "counts": rle.compress(rle.of_mask(mask)).decode()}


def a_set(objects, images=1, classes=2):
    """A data set of objects (image, class, box, crowd); ids of images and classes count from 1."""
    annotations = [
        {"id": n, "image_id": image, "category_id": label, "iscrowd": int(crowd)}
        | {"bbox": list(map(float, box)), "area": float(box[2] * box[3])}
        | {"segmentation": a_mask(box)}
        for n, (image, label, box, crowd) in enumerate(objects, start=1)
    ]
    names = [f"{n}.png" for n in range(1, images + 1)]
    truth = {
        "images": [
            {"id": n, "file_name": name, "width": SIDE, "height": SIDE}
            for n, name in enumerate(names, start=1)
        ],
        "categories": [{"id": n, "name": f"class {n}"} for n in range(1, classes + 1)],
        "annotations": annotations,
    }
    ids = list(range(1, images + 1))
    return SimpleNamespace(coco=truth, image_ids=ids)


def some(found):
    """Detections (image, class, box, score) in COCO's result format."""
    return [
        {"image_id": image, "category_id": label, "score": score}
        | {"bbox": list(map(float, box)), "segmentation": a_mask(box)}
        for image, label, box, score in found
    ]


def analyse(dataset, results, **options):
    numbers = content.evaluation(dataset, results, count=0, **options)
    # What cannot be written to a file must not be in it.
    return json.loads(json.dumps(numbers, allow_nan=False))


def kinds(numbers):
    return {kind["kind"]: kind["count"] for kind in numbers["errors"]["kinds"] if kind["count"]}


def costs(numbers):
    return {kind["kind"]: kind["cost"] for kind in numbers["errors"]["kinds"] if kind["count"]}


BOX = (10, 10, 10, 10)
ONE = {
    # IoU 10 * 10 / 100 with an object of the other class.
    "class": ((1, 2, BOX, 0.9), {"class": 1}),
    # 4 of 10 columns in common: IoU 40 / 160.
    "localisation": ((1, 1, (16, 10, 10, 10), 0.9), {"localisation": 1}),
    "both": ((1, 2, (16, 10, 10, 10), 0.9), {"both": 1, "missed": 1}),
    # 1 of 10 columns in common: IoU 10 / 190 is less than 0.1.
    "background": ((1, 1, (19, 10, 10, 10), 0.9), {"background": 1, "missed": 1}),
}


@pytest.mark.parametrize("kind", ONE)
@pytest.mark.parametrize("iou_types", [("bbox",), ("bbox", "segm")])
def test_one_object_and_one_error(kind, iou_types):
    """A second class has an object that is found, so that AP50 is 1/2."""
    found, expected = ONE[kind]
    dataset = a_set([(1, 1, BOX, False), (1, 2, (0, 30, 10, 10), False)])
    numbers = analyse(dataset, some([found, (1, 2, (0, 30, 10, 10), 0.95)]), iou_types=iou_types)
    assert numbers["kind"] == iou_types[-1] and numbers["errors"]["AP50"] == 0.5
    assert kinds(numbers) == expected
    # Mended, the object of class 1 is found; both and background are mended with it missed.
    wins = 0.5 if kind in ("class", "localisation") else 0.0
    assert costs(numbers)[kind] == pytest.approx(wins)
    # A class without objects left has AP 1 if no false detection is left: that of both is of 2.
    if "missed" in expected:
        assert costs(numbers)["missed"] == (0.5 if kind == "both" else 0.0)


def test_a_duplicate_costs_what_comes_after_it():
    """Right, duplicate, right of two objects: precision 1 up to recall 1/2, then 2/3."""
    dataset = a_set([(1, 1, BOX, False), (1, 1, (25, 25, 10, 10), False)], classes=1)
    found = [(1, 1, BOX, 0.9), (1, 1, (11, 10, 10, 10), 0.8), (1, 1, (25, 25, 10, 10), 0.7)]
    numbers = analyse(dataset, some(found))
    assert kinds(numbers) == {"duplicate": 1}
    base = (51 + 50 * 2 / 3) / 101
    assert numbers["errors"]["AP50"] == pytest.approx(base, abs=1e-12)
    assert costs(numbers)["duplicate"] == pytest.approx(1 - base, abs=1e-12)
    assert numbers["errors"]["false_positives"] == pytest.approx(1 - base, abs=1e-12)
    assert numbers["errors"]["false_negatives"] == 0
    best = numbers["classes"][0]
    assert best["best_threshold"] == 0.7 and best["best_F1"] == pytest.approx(4 / 5)
    assert best["precision"] == pytest.approx(2 / 3) and best["recall"] == 1


def test_the_first_kind_that_fits():
    """The order is localisation, class, duplicate: each fits what comes later too."""
    ours, theirs = (10, 10, 10, 10), (12, 10, 10, 10)
    dataset = a_set([(1, 1, ours, False), (1, 2, theirs, False)])
    right = [(1, 1, ours, 0.9)]
    # IoU 1 with the object that is found, and 2/3 with that of the other class.
    assert kinds(analyse(dataset, some([*right, (1, 1, ours, 0.8)]))) == {"class": 1}
    # IoU 3/7 with that of its class, and 2/3 with that of the other.
    dataset = a_set([(1, 1, ours, False), (1, 2, (16, 10, 10, 10), False)])
    found = [(1, 1, (14, 10, 10, 10), 0.8)]
    assert kinds(analyse(dataset, some(found))) == {"localisation": 1, "missed": 1}


def test_an_object_that_nothing_touches_is_missed():
    dataset = a_set([(1, 1, BOX, False), (2, 1, BOX, False)], images=2, classes=1)
    numbers = analyse(dataset, some([(1, 1, BOX, 0.9)]))
    assert kinds(numbers) == {"missed": 1}
    assert costs(numbers)["missed"] == pytest.approx(50 / 101)
    assert numbers["errors"]["false_negatives"] == pytest.approx(50 / 101)


def test_of_two_errors_at_an_object_the_better_is_mended():
    """Both are off by 3 of 10 columns and more, IoU below 1/2: one is right then, one vanishes."""
    dataset = a_set([(1, 1, BOX, False)], classes=1)
    found = [(1, 1, (14, 10, 10, 10), 0.9), (1, 1, (10, 14, 10, 10), 0.8)]
    numbers = analyse(dataset, some(found))
    assert kinds(numbers) == {"localisation": 2}
    assert costs(numbers)["localisation"] == 1


def test_an_error_at_an_object_that_is_found_vanishes():
    """Were it right, recall would be 1, although an object is missed."""
    dataset = a_set([(1, 1, BOX, False), (1, 1, (25, 25, 10, 10), False)], classes=1)
    numbers = analyse(dataset, some([(1, 1, BOX, 0.9), (1, 1, (16, 10, 10, 10), 0.8)]))
    assert costs(numbers) == {"localisation": 0, "missed": pytest.approx(50 / 101)}


def test_confusion_by_hand():
    """Right, confused, missed, on the background, too weak to count, and in a crowd region."""
    objects = [(1, 1, BOX, False), (1, 1, (25, 0, 10, 10), False), (1, 2, (0, 25, 10, 10), False)]
    dataset = a_set([*objects, (2, 1, (0, 0, 40, 40), True)], images=2)
    found = [
        (1, 1, BOX, 0.9),
        (1, 2, (25, 0, 10, 10), 0.8),
        (1, 2, (20, 20, 5, 5), 0.7),
        (1, 2, (0, 25, 10, 10), 0.4),
        (2, 1, (5, 5, 10, 10), 0.9),
        (2, 2, (5, 5, 10, 10), 0.9),
    ]
    numbers = analyse(dataset, some(found), threshold=0.5)
    assert numbers["confusion"] == {
        "labels": ["class 1", "class 2", "background"],
        "matrix": [[1, 1, 0], [0, 0, 1], [0, 2, 0]],
    }
    assert (numbers["detections"], numbers["in_crowds"], numbers["crowds"]) == (5, 1, 1)
    assert numbers["scores"]["edges"][18] == 0.9
    assert (numbers["scores"]["right"][8], numbers["scores"]["right"][18]) == (1, 1)
    assert sum(numbers["scores"]["wrong"]) == 3
    # Sides of 10: between 8 and 11.3; one of 5: between 4 and 5.7.
    sizes = numbers["sizes"]
    assert sizes["edges"] == [4, 5.66, 8, 11.31]
    assert sizes["objects"] == [0, 0, 3] and sizes["found"] == [0, 0, 1]
    assert sizes["detections"] == [1, 0, 3]


def test_an_object_is_confused_once_and_so_is_a_detection():
    """Two detections of class 2 at one object of class 1; one at two objects."""
    dataset = a_set([(1, 1, BOX, False)])
    found = [(1, 2, BOX, 0.9), (1, 2, BOX, 0.8)]
    matrix = analyse(dataset, some(found))["confusion"]["matrix"]
    assert matrix == [[0, 1, 0], [0, 0, 0], [0, 1, 0]]
    dataset = a_set([(1, 1, BOX, False), (1, 1, (11, 10, 10, 10), False)])
    matrix = analyse(dataset, some(found[:1]))["confusion"]["matrix"]
    assert matrix == [[0, 1, 1], [0, 0, 0], [0, 0, 0]]


def test_of_equal_overlaps_the_last_object_is_taken():
    """The first detection overlaps both alike and takes the second, the only one of the other."""
    dataset = a_set([(1, 1, (8, 10, 10, 10), False), (1, 1, (12, 10, 10, 10), False)], classes=1)
    found = some([(1, 1, BOX, 0.9), (1, 1, (14, 10, 10, 10), 0.8)])
    numbers = analyse(dataset, found)
    assert kinds(numbers) == {"duplicate": 1, "missed": 1}
    assert numbers["errors"]["AP50"] == pytest.approx(numbers["metrics"]["segm"]["AP50"])


def test_detections_of_equal_score_count_together():
    """Right and wrong at 0.5: no score takes the right one alone."""
    dataset = a_set([(1, 1, BOX, False)], images=2, classes=1)
    (best,) = analyse(dataset, some([(1, 1, BOX, 0.5), (2, 1, BOX, 0.5)]))["classes"]
    assert (best["best_threshold"], best["precision"], best["recall"]) == (0.5, 0.5, 1)


def test_detections_above_the_limit_do_not_count():
    dataset = a_set([(1, 1, BOX, False), (1, 2, BOX, False)])
    found = some([(1, 1, (25, 25, 5, 5), 0.9), (1, 1, BOX, 0.8), (1, 2, BOX, 0.7)])
    numbers = analyse(dataset, found, max_detections=1)
    assert numbers["detections"] == 2 and numbers["errors"]["AP50"] == 0.5
    assert numbers["metrics"]["segm"]["AP50"] == 0.5


def test_calibration_by_hand():
    """Two of three at 0.9 are right: 0.9 against 2/3; one at 0.25 is right."""
    dataset = a_set([(n, 1, BOX, False) for n in (1, 2, 3)], images=4, classes=1)
    found = [(1, 1, BOX, 0.9), (2, 1, BOX, 0.9), (4, 1, BOX, 0.9), (3, 1, BOX, 0.25)]
    result = analyse(dataset, some(found))["calibration"]
    full = {b["low"]: (b["count"], b["score"], b["precision"]) for b in result["bins"]}
    assert full[0.9] == (3, pytest.approx(0.9), pytest.approx(2 / 3))
    assert full[0.2] == (1, 0.25, 1) and full[0.5] == (0, None, None)
    assert result["ece"] == pytest.approx((3 * (0.9 - 2 / 3) + 0.75) / 4)


CORNERS = st.tuples(st.integers(0, 24), st.integers(0, 24), st.integers(4, 16), st.integers(4, 16))
NEAR = st.sampled_from([(0, 0, 10, 10), (2, 0, 10, 10), (5, 0, 10, 10), (0, 8, 10, 10)])
BOXES = st.one_of(NEAR, CORNERS)
OBJECTS = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), BOXES, st.booleans()))
SCORES = st.integers(0, 20).map(lambda n: n / 20)
FOUND = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), BOXES, SCORES), max_size=12)


@given(objects=OBJECTS, found=FOUND, masks=st.booleans())
def test_every_error_has_one_kind_and_sums_agree(objects, found, masks):
    # A crowd region in four at most.
    objects = [(*o[:3], o[3] and n % 2 == 0) for n, o in enumerate(objects)]
    dataset, results = a_set(objects, images=3, classes=3), some(found)
    iou_types = ("bbox", "segm") if masks else ("bbox",)
    matches = match(evaluate.compare(dataset.coco, results, iou_types[-1]))
    found_errors = errors.find(matches)
    np.testing.assert_array_equal(found_errors.kind >= 0, matches.wrong)
    states = np.stack([matches.right, matches.wrong, matches.in_crowd])
    assert (states.sum(0) == 1).all()
    targets = np.unique(found_errors.target[found_errors.target >= 0])
    covered = np.isin(np.arange(len(matches.crowd)), targets) & (matches.found_by < 0)
    states = np.stack([matches.found_by >= 0, found_errors.missed, covered, matches.crowd])
    assert (states.sum(0) == 1).all()

    numbers = analyse(dataset, results, iou_types=iou_types, boundary=False)
    metrics = numbers["metrics"]
    assert metrics[iou_types[-1]] == evaluate.score(dataset.coco, results)[iou_types[-1]]
    average = metrics[iou_types[-1]]["AP50"]
    assert numbers["errors"]["AP50"] == pytest.approx(average, abs=1e-12)
    for curve in numbers["curves"]:
        for key in ("precision50", "precision75"):
            expected = metrics[iou_types[-1]][f"AP{key[-2:]}"]
            if curve["class"] == "all" and expected is not None:
                assert np.mean(curve[key]) == pytest.approx(expected, abs=1e-12)
            assert len(curve[key]) == 101 and (expected is None) <= (curve[key][0] is None)
    repaired = errors.repaired(found_errors, list(errors.KINDS))
    assert repaired == (None if average is None else pytest.approx(1))
    # Only float sums in another order make a gain negative.
    assert all((kind["cost"] or 0) > -1e-12 for kind in numbers["errors"]["kinds"])

    matrix = np.array(numbers["confusion"]["matrix"])
    counted = (matches.score >= 0.5) & ~matches.in_crowd
    by_class = np.bincount(matches.label[counted], minlength=3)
    np.testing.assert_array_equal(matrix[:3].sum(1), matches.objects())
    np.testing.assert_array_equal(matrix[:, :3].sum(0), by_class)
    assert np.trace(matrix) == (matches.right & counted).sum()
    sizes, total = numbers["sizes"], numbers["detections"]
    assert sum(sizes["objects"]) == numbers["objects"] and sum(sizes["detections"]) == counted.sum()
    assert sum(numbers["scores"]["right"]) + sum(numbers["scores"]["wrong"]) == total
    assert sum(b["count"] for b in numbers["calibration"]["bins"]) == total
    assert sum(c["detections"] for c in numbers["classes"]) == total


@given(found=FOUND)
def test_classes_with_the_same_detections_have_the_same_numbers(found):
    objects = [(n, label, BOX, False) for n in (1, 2, 3) for label in (1, 2)]
    twice = [(image, label, box, score) for image, _, box, score in found for label in (1, 2)]
    one, two = analyse(a_set(objects, images=3), some(twice), boundary=False)["classes"]
    assert {k: one[k] for k in one if k not in ("id", "name")} == {
        k: two[k] for k in two if k not in ("id", "name")
    }


@pytest.mark.parametrize("iou_types", [("bbox",), ("bbox", "segm"), ("segm",)])
@pytest.mark.parametrize("crowd", [None, True, False])
@pytest.mark.parametrize("detect", [False, True])
def test_nothing_is_none(iou_types, crowd, detect):
    """No annotation, only a crowd region, or an object; with and without a detection."""
    dataset = a_set([] if crowd is None else [(1, 1, BOX, crowd)], images=2)
    numbers = analyse(dataset, some([(1, 1, BOX, 0.9)] if detect else []), iou_types=iou_types)
    average = float(detect) if crowd is False else None
    assert numbers["errors"]["AP50"] == numbers["metrics"][iou_types[-1]]["AP50"] == average
    assert numbers["classes"][1]["AP50"] is None and numbers["classes"][1]["best_F1"] is None
    assert ("segm" in numbers["metrics"]) == ("segm" in iou_types)
    assert (numbers["metrics"]["boundary"] is None) == ("segm" not in iou_types)
    assert numbers["curves"][0]["precision50"][0] == average


def test_boundary_average_precision_is_that_of_the_reference(rng):
    """Of masks that are shifted a little, with a crowd region."""
    objects, found = [], []
    for image in range(1, 5):
        for label in (1, 2):
            x, y, w, h = rng.integers((0, 0, 12, 12), (20, 20, 19, 19)).tolist()
            objects.append((image, label, (x, y, w, h), image == 2 and label == 1))
            dx, dy = rng.integers(0, 2, 2).tolist()
            found.append((image, label, (x + dx, y, w, h + dy), float(rng.random())))
    numbers = analyse(a_set(objects, images=4), some(found))["metrics"]

    def masks(boxes):
        return np.stack([np.zeros((SIDE, SIDE), bool) | _drawn(box) for box in boxes])

    def _drawn(box):
        out = np.zeros((SIDE, SIDE), bool)
        rle.decode_into(rle.decompress(a_mask(box)["counts"]), out)
        return out

    truths, detections, crowds = [], [], []
    for image in range(1, 5):
        mine = [o for o in objects if o[0] == image]
        theirs = [f for f in found if f[0] == image]
        boxes = np.array([o[2] for o in mine], float)
        labels = np.array([o[1] for o in mine])
        truths.append(Target(boxes, labels, masks([o[2] for o in mine])))
        scores = np.array([f[3] for f in theirs])
        detections.append(Detections(boxes, scores, labels, masks([f[2] for f in theirs])))
        crowds.append(np.array([o[3] for o in mine]))
    expected = ap.summary(truths, detections, "boundary", crowds)
    assert 0.1 < expected["AP"] < numbers["segm"]["AP"]
    for key in ("AP", "AP50", "AP75"):
        assert numbers["boundary"][key] == pytest.approx(expected[key], abs=1e-12)


def crowded(seed, images=12, classes=3):
    """Draw objects, and detections with every kind of error."""
    draw = random.Random(seed).random
    objects, found = [], []
    for image in range(1, images + 1):
        for _ in range(int(5 * draw())):
            x, y = int(24 * draw()), int(24 * draw())
            w, h = 4 + int(12 * draw()), 4 + int(12 * draw())
            label = 1 + int(classes * draw())
            objects.append((image, label, (x, y, w, h), False))
            for _ in range(int(4 * draw())):
                reach = 1 + int(5 * draw())
                dx, dy = int(reach * draw()), int(reach * draw())
                other = label if draw() < 0.7 else 1 + int(classes * draw())
                box = min(x + dx, SIDE - 1 - w), min(y + dy, SIDE - 1 - h), w, h
                found.append((image, other, box, round(draw(), 6)))
        box = int(24 * draw()), int(24 * draw()), 6, 6
        found.append((image, 1 + int(classes * draw()), box, round(draw(), 6)))
    return a_set(objects, images, classes), some(found)


def test_costs_are_those_of_the_program_of_tide():
    """Recorded from tidecv 1.0.1, which counts costs in percent."""
    expected = {
        "class": (8, 9.24415518474925),
        "localisation": (16, 24.171915817955398),
        "both": (5, 1.9158795578806078),
        "duplicate": (10, 1.3689142023446124),
        "background": (7, 2.451983293567462),
        "missed": (5, 5.777595616704524),
    }
    dataset, results = crowded(2)
    found = errors.summary(match(evaluate.compare(dataset.coco, results, "segm", 100)))
    assert found["AP50"] == pytest.approx(0.2471074030479969, rel=1e-12)
    for kind in found["kinds"]:
        count, cost = expected[kind["kind"]]
        assert kind["count"] == count
        assert kind["cost"] == pytest.approx(cost / 100, rel=1e-12), kind
    assert found["false_positives"] == pytest.approx(0.3304503527275807, rel=1e-12)
    assert found["false_negatives"] == pytest.approx(0.18690326450227435, rel=1e-12)
