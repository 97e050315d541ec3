"""Detections: against torchvision and detectron2; padded twin against ragged reference."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.image_golden import either, read

from accelerated import masks as accelerated_masks
from accelerated import postprocess as accelerated
from accelerated.verify.equality import GOLDEN_OPERATOR, assert_close, assert_equal
from reference import masks as reference_masks
from reference import postprocess as reference
from reference.config import preset

K = 3
TORCHVISION = replace(preset("torchvision_r50_fpn"), num_classes=K)
DETECTRON2 = replace(preset("detectron2_r50_fpn"), num_classes=K)
both_configs = pytest.mark.parametrize(
    "config", [TORCHVISION, DETECTRON2], ids=["torchvision", "detectron2"]
)


def ragged(found, image=0):
    """Return boxes, scores and labels of one image; check that empty slots stand last as zeros."""
    boxes, scores, labels, valid = (x[image] for x in found[:4])
    count = int(valid.sum())
    assert valid[:count].all() and not any(x[count:].any() for x in (boxes, scores, labels))
    return boxes[:count], scores[:count], labels[:count]


def padded(*arrays, rows=0):
    """Each array as a batch of one image, `rows` rows of NaN at its end, and their validity."""
    tensors = [
        torch.from_numpy(np.concatenate([x, np.full((rows, *x.shape[1:]), np.nan)]))[None]
        for x in arrays
    ]
    return *tensors, torch.arange(tensors[0].shape[1])[None] < len(arrays[0])


def select_twins(boxes, scores, size, config, backend="torch", rows=0):
    """Both selections of the same candidates, required to be equal; the reference's."""
    expected = reference.select(boxes, scores, size, config)[:3]
    found = accelerated.select(
        *padded(boxes, scores, rows=rows), torch.tensor([size]), config, backend
    )
    for actual, value, what in zip(
        ragged(found), expected, ("boxes", "scores", "labels"), strict=True
    ):
        assert_equal(actual, value, what)
    assert found[0].shape == (1, config.max_detections, 4)
    return expected


@either
def test_detections_as_torchvision(which, golden, shared_golden):
    case = read(which, golden, shared_golden, "tv/postprocess")
    inputs, size = (
        [case[f"in.{name}"] for name in ("logits", "deltas", "proposals")],
        (int(case["in.h"]), int(case["in.w"])),
    )
    found = accelerated.detections(*padded(*inputs, rows=3), torch.tensor([size]), TORCHVISION)
    for boxes, scores, labels in (
        reference.detections(*inputs, size, TORCHVISION)[:3],
        ragged(found),
    ):
        assert_equal(labels, case["out.labels"])
        assert_close(boxes, case["out.boxes"], GOLDEN_OPERATOR)
        assert_close(scores, case["out.scores"], GOLDEN_OPERATOR)


@either
def test_detections_as_detectron2(which, golden, shared_golden, backend):
    case = read(which, golden, shared_golden, "d2/fast_rcnn_inference")
    boxes, scores = case["in.boxes"].reshape(-1, K, 4), case["in.scores"][:, :K]
    found = select_twins(
        boxes, scores, (int(case["in.h"]), int(case["in.w"])), DETECTRON2.box_head, backend, rows=2
    )
    for actual, value in zip(
        found, (case["out.boxes"], case["out.scores"], case["out.classes"] + 1), strict=True
    ):
        assert_equal(actual, value)


@either
def test_rescaled_and_pasted_as_detectron2(which, golden, shared_golden):
    case = read(which, golden, shared_golden, "d2/postprocess")
    network, original = (
        (int(case[f"in.{h}"]), int(case[f"in.{w}"])) for h, w in (("h", "w"), ("oh", "ow"))
    )
    twins = (
        (reference, reference_masks, np.asarray),
        (accelerated, accelerated_masks, torch.from_numpy),
    )
    for twin, masks, convert in twins:
        boxes, keep = twin.rescale(convert(case["in.boxes"]), network, original, DETECTRON2)
        assert_equal(np.flatnonzero(keep), case["out.kept"])
        assert_close(boxes[keep], case["out.boxes"], GOLDEN_OPERATOR)
        assert_equal(
            masks.paste(
                convert(case["in.masks"])[keep], boxes[keep], *original, convention="detectron2"
            ),
            case["out.masks"],
        )


def test_rescaling_as_torchvision_neither_clips_nor_drops():
    boxes = np.array([[-5.0, 2.0, 90.0, 40.0], [3.0, 3.0, 3.0, 3.0]])
    ratio = np.float32(100) / np.float32(75), np.float32(70) / np.float32(50)
    for twin, convert in ((reference, np.asarray), (accelerated, torch.from_numpy)):
        scaled, keep = twin.rescale(convert(boxes), (50, 75), (70, 100), TORCHVISION)
        assert keep.all()
        assert_equal(scaled, boxes * np.array([*ratio, *ratio], dtype=np.float64))


@given(
    st.sampled_from([TORCHVISION, DETECTRON2]),
    st.integers(0, 30),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(0, 2**31),
)
def test_detections_twins(config, proposals, rows, slots, seed):
    rng = np.random.default_rng(seed)
    config = replace(config, box_head=replace(config.box_head, max_detections=slots))
    entries = K + 1 if config.background == "first" else K
    low = rng.random((proposals, 2)) * 40 - 5
    inputs = (
        rng.standard_normal((proposals, K + 1)) * 2,
        rng.standard_normal((proposals, 4 * entries)),
        np.hstack([low, low + 5 + rng.random((proposals, 2)) * 20]),
    )
    expected = reference.detections(*inputs, (41, 37), config)[:3]
    found = accelerated.detections(*padded(*inputs, rows=rows), torch.tensor([[41, 37]]), config)
    for actual, value in zip(ragged(found), expected, strict=True):
        assert_close(actual, value, 1e-12)
    assert_equal(ragged(found)[2], expected[2])


def test_a_batch_is_its_images(rng, backend):
    boxes, scores = rng.random((2, 20, K, 4)) * 20, rng.random((2, 20, K))
    boxes[..., 2:] += boxes[..., :2]
    sizes, valid = torch.tensor([[30, 40], [25, 20]]), torch.arange(20) < torch.tensor([[20], [13]])
    found = accelerated.select(
        torch.from_numpy(boxes),
        torch.from_numpy(scores),
        valid,
        sizes,
        TORCHVISION.box_head,
        backend,
    )
    for i, count in enumerate((20, 13)):
        expected = reference.select(
            boxes[i, :count], scores[i, :count], sizes[i].tolist(), TORCHVISION.box_head
        )[:3]
        for actual, value in zip(ragged(found, i), expected, strict=True):
            assert_equal(actual, value)


def test_threshold_is_strict_and_ties_keep_their_order():
    """Scores are 0.5, class 3 at the threshold: results go by proposal, then by class."""
    boxes = np.tile(np.arange(4.0)[:, None, None] * 20 + [0, 0, 10, 10], (1, K, 1))
    scores = np.full((4, K), 0.5)
    scores[:, 2] = 0.05
    boxes, scores, labels = select_twins(boxes, scores, (100, 100), TORCHVISION.box_head)
    assert labels.tolist() == [1, 2] * 4 and boxes[:, 0].tolist() == [0, 0, 20, 20, 40, 40, 60, 60]


def test_the_first_of_two_equal_boxes_stays_in_each_class():
    boxes, scores = (
        np.tile([1.0, 1.0, 9.0, 9.0], (2, K, 1)),
        np.array([[0.3, 0.2, 0.1], [0.3, 0.4, 0.1]]),
    )
    _, scores, labels = select_twins(boxes, scores, (20, 20), TORCHVISION.box_head)
    assert labels.tolist() == [2, 1, 3] and scores.tolist() == [0.4, 0.3, 0.1]


@both_configs
def test_a_sliver_goes_under_torchvision_only(config):
    boxes = np.tile([5.0, 5.0, 5.005, 30.0], (1, K, 1))
    boxes[:, 1, 2] = 5.0 + 2**-6  # 0.0156 pixels wide
    found = select_twins(boxes, np.full((1, K), 0.3), (50, 50), config.box_head)
    assert found[2].tolist() == ([2] if config.box_head.min_size else [1, 2, 3])


@both_configs
def test_a_box_of_the_least_side_stays(config):
    boxes = np.tile([0.0, 5.0, 0.01, 30.0], (1, K, 1))
    found = select_twins(boxes, np.full((1, K), 0.3), (50, 50), config.box_head)
    assert found[2].tolist() == [1, 2, 3]


@both_configs
def test_a_proposal_with_anything_not_finite_goes_whole(config):
    boxes, scores = (
        np.tile([5.0, 5.0, 25.0, 30.0], (4, K, 1)) + np.arange(4)[:, None, None] * 30,
        np.full((4, K), 0.3),
    )
    boxes[1, 0, 2], boxes[2, 2, 1], scores[3, 1] = np.inf, np.nan, np.nan
    assert (
        select_twins(boxes, scores, (200, 200), config.box_head)[0].tolist() == [[5, 5, 25, 30]] * K
    )


def test_many_classes(rng):
    config, low = preset("detectron2_r50_fpn"), rng.random((60, 80, 2)) * 50
    boxes, scores = (
        np.concatenate([low, low + 2 + rng.random((60, 80, 2)) * 30], axis=-1),
        rng.random((60, 80)),
    )
    assert len(select_twins(boxes, scores**4, (70, 70), config.box_head, rows=5)[0]) == 100
    assert len(select_twins(boxes, scores * 0.05, (70, 70), config.box_head)[0]) == 0


def test_survivors_of_every_step():
    """Two classes; each step takes the boxes that it alone would take away."""
    rows = [[0, 0, 10, 10], [0, 1, 10, 11], [40, 40, 50, 50], [200, 0, 210, 10], [70, 70, 80, 80]]
    boxes = np.repeat(np.array(rows, float)[:, None], 2, axis=1)
    boxes[4, 1, 3] = np.nan
    scores = np.array([[0.8, 0.5], [0.9, 0.04], [0.7, 0.05], [0.6, 0.01], [0.9, 0.9]])
    head = replace(TORCHVISION.box_head, max_detections=2)
    found = reference.survivors(boxes, scores, (100, 100), head)
    # The last proposal has a value that is not finite.
    assert found.candidates.tolist() == [[0, 0], [0, 1], [1, 0], [2, 0], [3, 0]]
    assert found.sized.tolist() == [[0, 0], [0, 1], [1, 0], [2, 0]]
    assert found.unsuppressed.tolist() == [[1, 0], [2, 0], [0, 1]]
    assert found.kept.tolist() == [[1, 0], [2, 0]]
    detections = reference.select(boxes, scores, (100, 100), head)
    assert_equal(detections.boxes, boxes[[1, 2], 0])
    assert detections.scores.tolist() == [0.9, 0.7] and detections.labels.tolist() == [1, 1]
    unsized = reference.survivors(boxes, scores, (100, 100), DETECTRON2.box_head)
    assert_equal(unsized.sized, unsized.candidates)


def test_survivors_of_no_proposals():
    found = reference.survivors(np.zeros((0, K, 4)), np.zeros((0, K)), (9, 9), TORCHVISION.box_head)
    assert [x.shape for x in found] == [(0, 2)] * 4
