import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.golden_cases import EXTENT, cases
from support.strategies import boxes as some_boxes

import accelerated.boxes
import accelerated.matcher
import reference.boxes
import reference.matcher
from accelerated.verify.equality import assert_equal


def torch_match(iou, *arguments):
    """Run the accelerated matcher on one image, with a padded truth that would win if read."""
    padded = np.concatenate([iou, np.ones((1, iou.shape[1]), iou.dtype)])
    labels, matched = accelerated.matcher.match(
        torch.tensor(padded)[None], torch.arange(len(padded))[None] < len(iou), *arguments
    )
    return labels[0].numpy(), matched[0].numpy()


MATCHERS = pytest.mark.parametrize(
    "match", [reference.matcher.match, torch_match], ids=["numpy", "torch"]
)


@MATCHERS
@EXTENT
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_torchvision(match, extent, request, dtype):
    for name, case in cases(request, extent, "tv", f"matcher/{dtype}").items():
        labels, matched = match(
            case["in.iou"],
            float(case["in.high"]),
            float(case["in.low"]),
            bool(case["in.low_quality"]),
            True,
        )
        # -1 background, -2 ignored.
        theirs = case["out.matches"]
        assert_equal(labels, np.select([theirs >= 0, theirs == -1], [1, 0], -1), name)
        assert_equal(matched[theirs >= 0], theirs[theirs >= 0], name)
        assert_equal(matched, case["in.iou"].argmax(0), name)


IOU = np.array(
    [
        [0.75, 0.2, 0.5, 0.5, 0.0, 0.3, 0.3],
        [0.10, 0.2, 0.7, 0.6, 0.0, 0.0, 0.1],
        [0.00, 0.4, 0.0, 0.0, 0.0, 0.4, 0.0],
    ]
)


@MATCHERS
def test_by_hand(match):
    labels, matched = match(IOU, 0.7, 0.3, False)
    # The first of equals.
    assert_equal(matched, [0, 2, 1, 1, 0, 2, 0])
    # 0.7 is foreground, 0.3 is not background.
    assert_equal(labels, [1, -1, 1, -1, 0, -1, -1])
    labels, matched = match(IOU, 0.7, 0.3, True)
    # Both best candidates of the last ground truth.
    assert_equal(labels, [1, 1, 1, -1, 0, 1, -1])
    assert_equal(matched, [0, 2, 1, 1, 0, 2, 0])


@MATCHERS
def test_low_quality_candidate_keeps_its_own_match(match):
    # The second truth's best candidate prefers the first truth.
    iou = np.array([[0.8, 0.1], [0.6, 0.5]])
    labels, matched = match(iou, 0.7, 0.3, True)
    assert_equal(labels, [1, -1])
    assert_equal(matched, [0, 1])


@MATCHERS
def test_truth_without_overlap(match):
    iou = np.array([[0.0, 0.0, 0.0], [0.4, 0.0, 0.1]])
    # What both peers do: 0 is the maximum of the first.
    assert_equal(match(iou, 0.7, 0.3, True, True)[0], [1, 1, 1])
    assert_equal(match(iou, 0.7, 0.3, True, False)[0], [1, 0, 0])


@MATCHERS
def test_without_truth_all_is_background(match):
    for low_quality in False, True:
        labels, matched = match(np.zeros((0, 4)), 0.7, 0.3, low_quality)
        assert_equal(labels, np.zeros(4))
        assert_equal(matched, np.zeros(4))


@given(
    some_boxes(20, 20, max_count=5),
    some_boxes(20, 20, min_count=1, max_count=30),
    st.booleans(),
    st.booleans(),
    st.integers(1, 3),
)
def test_twins(truth, candidates, low_quality, zero_iou, chunk):
    """Boxes in, chunks of any size: the same labels and matches."""
    rules = (0.5, 0.25, low_quality, zero_iou)
    expected = reference.matcher.match(reference.boxes.iou(truth, candidates), *rules)
    padded = torch.tensor(np.concatenate([truth, np.zeros((1, 4)), candidates[:1]]))[None]
    valid = torch.arange(len(truth) + 2)[None] < len(truth)
    before, accelerated.matcher.CHUNK = accelerated.matcher.CHUNK, chunk
    try:
        for shape in candidates[None], candidates:
            ours = accelerated.matcher.match_boxes(padded, valid, torch.tensor(shape), *rules)
            for a, b in zip(ours, expected, strict=True):
                assert_equal(a[0], b)
    finally:
        accelerated.matcher.CHUNK = before


def test_reasons_by_hand():
    reasons = reference.matcher.reasons
    above, below, between, best = "above", "below", "between", "best of a truth"
    without = [above, between, above, between, below, between, between]
    assert reasons(IOU, 0.7, 0.3, False).tolist() == without
    # Both best candidates of the last ground truth.
    expected = [above, best, above, between, below, best, between]
    assert reasons(IOU, 0.7, 0.3, True).tolist() == expected
    # A truth without overlap is best met, at 0, by every candidate that misses it.
    iou = np.array([[0.0, 0.0, 0.0], [0.8, 0.0, 0.1]])
    assert reasons(iou, 0.7, 0.3, True, True).tolist() == [above, best, best]
    assert reasons(iou, 0.7, 0.3, True, False).tolist() == [above, below, below]
    assert reasons(np.zeros((0, 3)), 0.7, 0.3, True).tolist() == [below] * 3
    assert reasons(np.zeros((2, 0)), 0.7, 0.3, True).tolist() == []


@given(st.integers(0, 4), st.integers(0, 12), st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_reasons_agree_with_the_definition_and_with_the_labels(
    truths, candidates, low_quality, zero_iou, seed
):
    """IoU in eighths: ties and values on both thresholds are common."""
    iou = np.random.default_rng(seed).integers(0, 7, (truths, candidates)) / 8
    high, low = 0.5, 0.25
    rules = high, low, low_quality, zero_iou
    found = reference.matcher.reasons(iou, *rules)
    labels, _ = reference.matcher.match(iou, *rules)
    for reason, label, column in zip(found, labels, iou.T, strict=True):
        best = max(column, default=-1)
        is_best = any(
            value == row.max() and (zero_iou or value > 0)
            for value, row in zip(column, iou, strict=True)
        )
        if best >= high:
            expected = "above", 1
        elif low_quality and is_best:
            expected = "best of a truth", 1
        elif best < low:
            expected = "below", 0
        else:
            expected = "between", -1
        assert (reason, label) == expected


def test_images_of_a_batch_do_not_mix(rng):
    truth, candidates = (
        np.sort(rng.uniform(0, 30, (2, n, 2, 2)), axis=2).reshape(2, n, 4) for n in (4, 50)
    )
    valid = torch.tensor([[True] * 4, [True, False, False, False]])
    labels, matched = accelerated.matcher.match_boxes(
        torch.tensor(truth), valid, torch.tensor(candidates), 0.5, 0.2, True, False
    )
    for n in range(2):
        iou = reference.boxes.iou(truth[n][valid[n].numpy()], candidates[n])
        expected = reference.matcher.match(iou, 0.5, 0.2, True, False)
        assert_equal(labels[n], expected[0])
        assert_equal(matched[n], expected[1])


def test_compiles_without_a_break(rng):
    boxes = torch.tensor(np.sort(rng.uniform(0, 30, (1, 20, 2, 2)), axis=2).reshape(1, 20, 4))
    valid = torch.ones(1, 20, dtype=torch.bool)
    compiled = torch.compile(accelerated.matcher.match_boxes, fullgraph=True, backend="aot_eager")
    for ours, eager in zip(
        compiled(boxes, valid, boxes[0], 0.7, 0.3, True),
        accelerated.matcher.match_boxes(boxes, valid, boxes[0], 0.7, 0.3, True),
        strict=True,
    ):
        assert_equal(ours, eager)
