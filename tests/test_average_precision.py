"""Average precision: by hand, and against pycocotools, number for number and match for match."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from reference import average_precision as ap
from reference.structures import Detections, Target

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
HEIGHT, WIDTH = 120, 160


def rectangles(boxes, height=HEIGHT, width=WIDTH):
    """The masks of boxes [N, 4], [N, height, width]."""
    y, x = np.mgrid[:height, :width] + 0.5
    x1, y1, x2, y2 = boxes.T[:, :, None, None]
    return (x > x1) & (x < x2) & (y > y1) & (y < y2)


def some_boxes(rng, count):
    """[count, 4] of all sizes, in quarters of a pixel, so that sides and corners do not round."""
    side = rng.choice([8, 24, 44, 115], (count, 1)) * rng.uniform(0.85, 1, (count, 2))
    low = rng.uniform(0, 1, (count, 2)) * np.maximum((WIDTH, HEIGHT) - side, 1)
    return np.round(np.concatenate([low, low + side], axis=1) * 4) / 4


def data_set(rng, images=14, classes=3, most=5, detections=12):
    """Truths, detections, crowds and areas of images.

    Among them are images without truths or detections, a class without truths, crowds, duplicates
    of boxes and equal scores. Areas are not those of the masks.
    """
    truths, found, crowds, areas = [], [], [], []
    for image in range(images):
        count = 0 if image == 1 else int(rng.integers(0, most + 1))
        boxes = some_boxes(rng, count)
        # The highest label has no truth.
        labels = rng.integers(1, classes, count)
        truths.append(Target(boxes, labels, rectangles(boxes)))
        crowds.append(rng.random(count) < 0.2)
        areas.append(np.round(rectangles(boxes).sum(axis=(1, 2)) * rng.uniform(0.5, 1.2, count), 1))
        number = 0 if image == 2 else int(rng.integers(0, detections + 1))
        source = np.concatenate([boxes, some_boxes(rng, 3)])
        rows = rng.integers(0, len(source), number)
        shift = rng.integers(-6, 7, (number, 4)) / 4 * (rng.random((number, 1)) < 0.7)
        moved = source[rows] + shift
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        guess = np.append(labels, rng.integers(1, classes + 1, len(source) - count))[rows]
        wrong = rng.random(number) < 0.05
        guess = np.where(wrong, rng.integers(1, classes + 1, number), guess)
        scores = rng.integers(1, 12, number) / 12
        found.append(Detections(moved, scores, guess, rectangles(moved)))
    return truths, found, crowds, areas


def encoded(mask):
    rle: Any = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return rle


def naive_boundary(mask):
    """The definition, pixel by pixel: a pixel of the mask with background at most d away."""
    height, width = mask.shape
    d = max(1, round(0.02 * np.sqrt(height**2 + width**2)))
    out = np.zeros_like(mask)
    for y, x in zip(*np.nonzero(mask), strict=True):
        near = mask[max(y - d, 0) : y + d + 1, max(x - d, 0) : x + d + 1]
        out[y, x] = near.size < (2 * d + 1) ** 2 or not near.all()
    return out


class BoundaryEval(COCOeval):
    """pycocotools with the overlaps of the published Boundary IoU; of crowds, those of masks."""

    def computeIoU(self, imgId, catId):
        iou = super().computeIoU(imgId, catId)
        truths, found = self._gts[imgId, catId], self._dts[imgId, catId]
        if not truths or not found:
            return iou
        order = np.argsort([-d["score"] for d in found], kind="mergesort")[: len(iou)]
        d, g = (
            [encoded(naive_boundary(coco_mask.decode(x["segmentation"]) > 0)) for x in annotations]
            for annotations in ([found[i] for i in order], truths)
        )
        crowd = np.array([x["iscrowd"] for x in truths])
        return np.where(crowd, iou, np.minimum(iou, coco_mask.iou(d, g, [0] * len(g))))


def annotation(box, mask, **fields):
    corner, side = box[:2], box[2:] - box[:2]
    bbox = np.concatenate([corner, side]).tolist()
    return {"bbox": bbox, "segmentation": encoded(mask)} | fields


def pycocotools(truths, found, crowds, areas, kind, classes):
    """The COCOeval of the same data, evaluated."""
    annotations = [
        annotation(box, mask, image_id=n, category_id=int(label), iscrowd=int(crowd), area=area)
        for n, (truth, some_crowds, some_areas) in enumerate(
            zip(truths, crowds, areas, strict=True)
        )
        for box, mask, label, crowd, area in zip(
            truth.boxes, truth.masks, truth.labels, some_crowds, some_areas.tolist(), strict=True
        )
    ]
    # Number 0 would count as not matched.
    for number, item in enumerate(annotations, start=1):
        item["id"] = number
    results = [
        annotation(box, mask, image_id=n, category_id=int(label), score=score)
        for n, image in enumerate(found)
        for box, mask, label, score in zip(
            image.boxes, image.masks, image.labels, image.scores.tolist(), strict=True
        )
    ]
    if kind != "box":
        # pycocotools would take a detection's area from its box.
        results = [{k: v for k, v in result.items() if k != "bbox"} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": n, "height": HEIGHT, "width": WIDTH} for n in range(len(truths))],
            "categories": [{"id": k, "name": str(k)} for k in range(1, classes + 1)],
            "annotations": annotations,
        }
        coco.createIndex()
        scorer = BoundaryEval if kind == "boundary" else COCOeval
        evaluation = scorer(coco, coco.loadRes(results), "bbox" if kind == "box" else "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def assert_same_matches(evaluation, comparisons, classes):
    """Each image's, class's and area range's matches at each threshold, and its ignored ones."""
    images = len(comparisons)
    for label in range(1, classes + 1):
        for a, area in enumerate(ap.AREAS):
            found = ap.matches(comparisons, label, area)
            start = ((label - 1) * len(ap.AREAS) + a) * images
            for n, theirs in enumerate(evaluation.evalImgs[start : start + images]):
                columns = np.flatnonzero(found.images == n)
                if theirs is None:
                    assert len(columns) == 0
                    continue
                # Within an image, both list by falling score.
                assert found.scores[columns].tolist() == list(theirs["dtScores"])
                ids = [annotation["id"] for annotation in evaluation.cocoGt.imgToAnns[n]]
                numbers = np.append(np.array(ids, int), 0)[found.truths[:, columns]]
                np.testing.assert_array_equal(numbers, theirs["dtMatches"])
                np.testing.assert_array_equal(found.ignored[:, columns], theirs["dtIgnore"])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["box", "mask", "boundary"])
def test_equals_pycocotools(kind, seed):
    """Exactly, in all twelve numbers, in the curves and in each match."""
    data, classes = data_set(np.random.default_rng(seed)), 3
    evaluation = pycocotools(*data, kind, classes)
    truths, found, crowds, areas = data
    numbers = ap.summary(truths, found, kind, crowds, areas)
    assert list(numbers) == NAMES
    assert list(numbers.values()) == evaluation.stats.tolist()
    # All three sizes occur, and no number is trivial.
    assert min(numbers.values()) > 0 and numbers["AP"] < 0.9
    comparisons = [ap.compare(*image[:2], kind, *image[2:]) for image in zip(*data, strict=True)]
    assert_same_matches(evaluation, comparisons, classes)
    for label in range(1, classes + 1):
        theirs = evaluation.eval["precision"][:, :, label - 1, 0, 2]
        matched = ap.matches(comparisons, label)
        if matched.count:
            np.testing.assert_array_equal(ap.precision_recall(matched).interpolated, theirs)
        else:
            assert (theirs == -1).all()


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_more_than_a_hundred_detections_of_a_class(rng, kind):
    """The best hundred of an image count; equal scores are common."""
    data = data_set(rng, images=3, classes=2, most=12, detections=500)
    truths, found, crowds, areas = data
    assert max(np.bincount(image.labels).max(initial=0) for image in found) > 100
    evaluation = pycocotools(*data, kind, 2)
    numbers = ap.summary(truths, found, kind, crowds, areas)
    assert list(numbers.values()) == evaluation.stats.tolist()
    comparisons = [ap.compare(*image[:2], kind, *image[2:]) for image in zip(*data, strict=True)]
    assert_same_matches(evaluation, comparisons, 2)


def test_boxes_whose_sides_round(rng):
    """pycocotools is given widths, which round, and no crowds or areas are given here."""
    truths, found, _, _ = data_set(rng, images=12)
    for item in [*truths, *found]:
        item.boxes += rng.uniform(0, 0.1, item.boxes.shape)
    crowds = [np.zeros(len(truth.labels), bool) for truth in truths]
    areas = [truth.masks.sum(axis=(1, 2)) for truth in truths]
    evaluation = pycocotools(truths, found, crowds, areas, "box", 3)
    numbers = ap.summary(truths, found)
    np.testing.assert_allclose(list(numbers.values()), evaluation.stats, rtol=0, atol=1e-12)


def one_image(truth_boxes, found_boxes, scores, labels=None):
    """A truth and detections in an image of 40 x 40, all of class 1, with masks of rectangles."""
    truth_boxes, found_boxes = (
        np.array(x, float).reshape(-1, 4) for x in (truth_boxes, found_boxes)
    )
    truth = Target(truth_boxes, np.ones(len(truth_boxes), int), rectangles(truth_boxes, 40, 40))
    labels = np.ones(len(scores), int)
    return truth, Detections(
        found_boxes, np.array(scores, float), labels, rectangles(found_boxes, 40, 40)
    )


def test_curve_by_hand():
    """Right, wrong, right: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1."""
    truth, found = one_image(
        [[0, 0, 10, 10], [20, 20, 30, 30]],
        [[20, 20, 30, 30], [0, 20, 10, 30], [0, 0, 10, 10]],
        [0.7, 0.8, 0.9],
    )
    matched = ap.matches([ap.compare(truth, found)], 1, thresholds=np.array([0.5]))
    assert matched.images.tolist() == [0, 0, 0] and matched.rows.tolist() == [2, 1, 0]
    assert matched.truths.tolist() == [[0, -1, 1]] and not matched.ignored.any()
    curve = ap.precision_recall(matched)
    assert curve.recall.tolist() == [[0.5, 0.5, 1]]
    np.testing.assert_allclose(curve.precision, [[1, 1 / 2, 2 / 3]], rtol=0, atol=1e-15)
    np.testing.assert_allclose(curve.interpolated, [[1] * 51 + [2 / 3] * 50], rtol=0, atol=1e-15)
    numbers = ap.summary([truth], [found])
    assert numbers["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-15)
    assert numbers["AR1"] == 0.5 and numbers["AR10"] == 1
    assert numbers["APs"] == numbers["AP"] and numbers["APm"] == numbers["APl"] == -1


def test_a_duplicate_is_wrong_and_a_truth_that_is_missed_is_never_recalled():
    truth, found = one_image([[0, 0, 10, 10], [20, 20, 30, 30]], [[0, 0, 10, 10]] * 2, [0.9, 0.8])
    matched = ap.matches([ap.compare(truth, found)], 1)
    assert (matched.truths == [0, -1]).all()
    assert (ap.precision_recall(matched).interpolated.round(12) == [1] * 51 + [0] * 50).all()


def test_each_threshold_matches_on_its_own():
    """IoU 0.9 and 0.6 with the same truth: the worse takes it where the better falls short."""
    iou, none = np.array([[0.6], [0.9]]), np.zeros(1, bool)
    matched = ap.match(iou, none, none, np.array([0.5, 0.8, 0.95]))
    assert matched.tolist() == [[0, -1], [-1, 0], [-1, -1]]


def test_order_of_truths():
    """Not ignored before ignored, then the highest IoU, then the last of equals."""
    no = np.zeros(3, bool)
    iou, threshold = np.array([[0.8, 0.9, 0.9]] * 4), np.array([0.5])
    assert ap.match(iou, no, no, threshold).tolist() == [[2, 1, 0, -1]]
    ignored = np.array([False, False, True])
    assert ap.match(iou, no, ignored, threshold).tolist() == [[1, 0, 2, -1]]
    assert ap.match(iou, ignored, ignored, threshold).tolist() == [[1, 0, 2, 2]]
    assert ap.match(np.array([[1 - 1e-11]]), no[:1], no[:1], np.array([1.0])).tolist() == [[0]]


def test_a_crowd_takes_what_lies_in_it():
    """Three detections: on the object, in the crowd (IoU 1/16, share 1), across its edge (1/2)."""
    truth, found = one_image(
        [[0, 0, 10, 10], [20, 0, 40, 20]],
        [[0, 0, 10, 10], [25, 5, 30, 10], [15, 10, 25, 20], [14, 10, 24, 20]],
        [0.6, 0.9, 0.8, 0.7],
    )
    crowd = np.array([False, True])
    for kind in "box", "mask":
        compared = ap.compare(truth, found, kind, crowd)
        assert compared.iou[:, 1].tolist() == [0, 1, 0.5, 0.4]
        assert ap.compare(truth, found, kind).iou[1, 1] == 1 / 16
        matched = ap.matches([compared], 1, thresholds=np.array([0.5]))
        assert matched.rows.tolist() == [1, 2, 3, 0] and matched.count == 1
        assert matched.truths.tolist() == [[1, 1, -1, 0]]
        assert matched.ignored.tolist() == [[True, True, False, False]]
        assert ap.precision_recall(matched).recall.tolist() == [[0, 0, 0, 1]]


def test_what_is_out_of_range_is_ignored():
    """A small truth, a large one; found both, and one of either size without truth."""
    truth, found = one_image(
        [[0, 0, 8, 8], [0, 0, 36, 36]],
        [[0, 0, 8, 8], [0, 0, 36, 36], [30, 30, 38, 38], [4, 0, 40, 36]],
        [0.9, 0.8, 0.7, 0.6],
    )
    compared = ap.compare(truth, found)
    small, medium = (
        ap.matches([compared], 1, name, 9, np.array([0.99])) for name in ("small", "medium")
    )
    assert small.truths.tolist() == medium.truths.tolist() == [[0, 1, -1, -1]]
    assert small.ignored.tolist() == [[False, True, False, True]]
    assert medium.ignored.tolist() == [[True, False, True, False]]
    assert small.count == medium.count == 1
    # 32 x 32 is both.
    edge = ap.compare(*one_image([[0, 0, 32, 32]], [], []))
    assert [ap.matches([edge], 1, area).count for area in ap.AREAS] == [1, 1, 1, 0]


@given(st.integers(3, 90), st.integers(3, 90), st.integers(0, 2**31))
def test_boundary_is_what_is_near_the_background(height, width, seed):
    rng = np.random.default_rng(seed)
    low = rng.integers(-5, 0.7 * max(height, width), (2, 2))
    masks = rectangles(np.concatenate([low, low + rng.integers(1, 60, (2, 2))], 1), height, width)
    masks[1] &= rng.random((height, width)) < 0.97
    expected = np.array([naive_boundary(mask) for mask in masks])
    np.testing.assert_array_equal(ap.boundary(masks), expected)


def test_boundary_by_hand():
    """Diagonal 125: 2 % are 2.5 pixels, rounded to the even 2. The image's edge is an outline."""
    mask = np.zeros((1, 75, 100), bool)
    mask[0, 0:20, 10:40] = True
    expected = mask.copy()
    expected[0, 2:18, 12:38] = False
    np.testing.assert_array_equal(ap.boundary(mask), expected)
    assert ap.boundary(mask[:0]).shape == (0, 75, 100)
    # In a small image, one pixel.
    assert ap.boundary(np.ones((1, 5, 5), bool)).sum() == 16


def test_boundary_iou_by_hand():
    """Frames of one pixel around 10 x 10 and 10 x 8: 36 and 32 pixels, 27 of them in both."""
    truth, found = one_image([[4, 4, 14, 14]], [[4, 4, 14, 12]], [0.9])
    assert ap.compare(truth, found, "mask").iou.tolist() == [[0.8]]
    frame = 10 + 2 * 7
    assert ap.compare(truth, found, "boundary").iou.tolist() == [[frame / (36 + 32 - frame)]]
    # A fine mask can have the smaller IoU: a pixel of the frame and the inside are missing.
    found.masks = truth.masks.copy()
    found.masks[0, 6:12, 6:12] = False
    by_mask = ap.compare(truth, found, "mask").iou
    assert by_mask == 64 / 100 and ap.compare(truth, found, "boundary").iou == 36 / (64 - 0)


def test_nothing_to_find():
    truth, found = one_image([], [[0, 0, 9, 9]], [0.9])
    for kind in "box", "mask", "boundary":
        assert set(ap.summary([truth], [found], kind).values()) == {-1.0}
    assert set(ap.summary([], []).values()) == {-1.0}
    with pytest.raises(ValueError, match="no truth to find"):
        ap.precision_recall(ap.matches([ap.compare(truth, found)], 1))
    with pytest.raises(ValueError, match="mask or boundary, got 'segm'"):
        ap.compare(truth, found, "segm")


def test_nothing_found():
    numbers = ap.summary(*([x] for x in one_image([[0, 0, 9, 9]], [], [])))
    assert numbers["AP"] == numbers["AR100"] == numbers["APs"] == 0 and numbers["APm"] == -1
