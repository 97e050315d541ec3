import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.golden_cases import EXTENT, cases
from support.strategies import boxes as some_boxes

import accelerated.boxes
import accelerated.kernels.eager.matcher
import accelerated.kernels.triton.matcher
import accelerated.matcher
import reference.boxes
import reference.matcher
from accelerated.verify.equality import assert_equal

BACKENDS = pytest.mark.parametrize("backend", ["torch", "triton"])
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


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


@BACKENDS
@given(
    st.sampled_from([np.float64, np.float32]),
    some_boxes(20, 20, max_count=5),
    some_boxes(20, 20, min_count=1, max_count=30),
    st.booleans(),
    st.booleans(),
    st.integers(1, 3),
)
def test_twins(backend, dtype, truth, candidates, low_quality, zero_iou, chunk):
    """Boxes in, blocks and chunks of any size: the same labels and matches."""
    rules = (0.5, 0.25, low_quality, zero_iou)
    truth, candidates = truth.astype(dtype), candidates.astype(dtype)
    expected = reference.matcher.match(reference.boxes.iou(truth, candidates), *rules)
    padded = torch.tensor(np.concatenate([truth, np.zeros((1, 4), dtype), candidates[:1]]))[None]
    valid = torch.arange(len(truth) + 2)[None] < len(truth)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accelerated.kernels.eager.matcher, "CHUNK", chunk)
        patch.setattr(accelerated.kernels.triton.matcher, "BLOCK", 2 ** (chunk + 1))
        for shape in candidates[None], candidates:
            ours = accelerated.matcher.match_boxes(
                *(x.to(DEVICE) for x in (padded, valid, torch.tensor(shape))),
                *rules,
                backend=backend,
            )
            for a, b in zip(ours, expected, strict=True):
                assert_equal(a[0], b)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("low_quality", [False, True])
def test_overlaps_have_the_bits_of_boxes(rng, backend, dtype, low_quality, monkeypatch):
    """Many candidates tie within rounding: the labels are those of the stored IoU, bit for bit."""
    monkeypatch.setattr(accelerated.kernels.triton.matcher, "BLOCK", 256)
    corner = rng.integers(0, 40, (2, 700, 2)) / 3
    candidates = torch.tensor(np.concatenate([corner, corner + 7 / 3], 2), dtype=dtype)
    truth, valid = candidates[:, ::80] + 0.1, torch.tensor(rng.random((2, 9)) < 0.7)
    rules = 0.6, 0.3, low_quality, True
    iou = accelerated.boxes.iou(truth, candidates)
    expected = accelerated.matcher.match(iou, valid, *rules)
    strided = candidates.mT.contiguous().mT
    tensors = [x.to(DEVICE) for x in (truth, valid, strided)]
    ours = accelerated.matcher.match_boxes(*tensors, *rules, backend=backend)
    for a, b in zip(ours, expected, strict=True):
        assert_equal(a, b)
    # A threshold that is some IoU is met exactly.
    rules = float(iou.max()), float(iou[iou > 0.3].min()), low_quality, True
    for a, b in zip(
        accelerated.matcher.match_boxes(*tensors, *rules, backend=backend),
        accelerated.matcher.match(iou, valid, *rules),
        strict=True,
    ):
        assert_equal(a, b)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_boxes_that_are_not_finite(backend, dtype):
    """NaN exceeds all overlaps, reaches no threshold and is the best of no truth."""
    infinite, nan = [0, 0, np.inf, np.inf], [0, 0, np.nan, 4]
    boxes = [[0, 0, 4, 4], infinite, nan, [2, 0, 6, 4], [0, 0, 1e30, 1e30]]
    boxes = torch.tensor(boxes, dtype=dtype, device=DEVICE)[None]
    for order in ([0, 1, 2], [1, 0], [2, 4], [1]):
        truth = boxes[:, order]
        valid = torch.ones(1, len(order), dtype=torch.bool, device=DEVICE)
        rules = 0.5, 0.3, True, True
        expected = accelerated.matcher.match(accelerated.boxes.iou(truth, boxes), valid, *rules)
        ours = accelerated.matcher.match_boxes(truth, valid, boxes, *rules, backend=backend)
        for a, b in zip(ours, expected, strict=True):
            assert_equal(a, b)


@BACKENDS
@pytest.mark.parametrize("low_quality", [False, True])
def test_no_slot_and_no_candidate(backend, low_quality):
    for truths, count in (0, 3), (2, 0), (0, 0):
        labels, matched = accelerated.matcher.match_boxes(
            torch.ones(2, truths, 4, device=DEVICE),
            torch.ones(2, truths, dtype=torch.bool, device=DEVICE),
            torch.ones(count, 4, device=DEVICE),
            0.7,
            0.3,
            low_quality,
            backend=backend,
        )
        assert_equal(labels, np.zeros((2, count)))
        assert_equal(matched, np.zeros((2, count)))
    # Slots, none of them filled.
    labels, matched = accelerated.matcher.match_boxes(
        torch.ones(1, 2, 4, device=DEVICE),
        torch.zeros(1, 2, dtype=torch.bool, device=DEVICE),
        torch.ones(3, 4, device=DEVICE),
        0.7,
        0.3,
        low_quality,
        backend=backend,
    )
    assert_equal(labels, np.zeros((1, 3)))
    assert_equal(matched, np.zeros((1, 3)))


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


@BACKENDS
@pytest.mark.parametrize("shared", [False, True])
def test_images_of_a_batch_do_not_mix(rng, backend, shared):
    """Whether they share their candidates or not."""
    truth, candidates = (
        np.sort(rng.uniform(0, 30, (2, n, 2, 2)), axis=2).reshape(2, n, 4) for n in (4, 50)
    )
    candidates = candidates[0] if shared else candidates
    valid = torch.tensor([[True] * 4, [True, False, False, False]])
    tensors = [torch.as_tensor(x, device=DEVICE) for x in (truth, valid, candidates)]
    labels, matched = accelerated.matcher.match_boxes(
        *tensors, 0.5, 0.2, True, False, backend=backend
    )
    for n in range(2):
        own = candidates if shared else candidates[n]
        iou = reference.boxes.iou(truth[n][valid[n].numpy()], own)
        expected = reference.matcher.match(iou, 0.5, 0.2, True, False)
        assert_equal(labels[n], expected[0])
        assert_equal(matched[n], expected[1])


@BACKENDS
def test_compiles_and_checks_as_an_operator(rng, backend):
    boxes = torch.tensor(np.sort(rng.uniform(0, 30, (1, 20, 2, 2)), axis=2).reshape(1, 20, 4))
    boxes, valid = boxes.to(DEVICE), torch.ones(1, 20, dtype=torch.bool, device=DEVICE)
    arguments = boxes, valid, boxes[0], 0.7, 0.3, True, True, backend
    compiled = torch.compile(accelerated.matcher.match_boxes, fullgraph=True, backend="aot_eager")
    for ours, eager in zip(
        compiled(*arguments), accelerated.matcher.match_boxes(*arguments), strict=True
    ):
        assert_equal(ours, eager)
    torch.library.opcheck(torch.ops.maskrcnn.match_boxes.default, arguments)
