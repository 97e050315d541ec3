import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.golden_cases import EXTENT, cases
from support.strategies import boxes as some_boxes

import accelerated.kernels.eager.nms
import accelerated.kernels.triton.nms
import accelerated.nms
import reference.boxes
import reference.nms
from accelerated.verify.equality import assert_equal

BACKENDS = pytest.mark.parametrize("backend", ["torch", "triton"])
CPU = pytest.mark.parametrize("implementation", ["numpy", "torch", "triton"])
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def suppress(implementation, boxes, scores, threshold, group=None):
    """Kept indices by any of the three implementations, as an array."""
    if implementation == "numpy":
        module, convert, keywords = reference.nms, np.asarray, {}
    else:
        module, convert, keywords = (
            accelerated.nms,
            lambda x: torch.as_tensor(x, device=DEVICE),
            {"backend": implementation},
        )
    if group is None:
        kept = module.nms(convert(boxes), convert(scores), threshold, **keywords)
    else:
        kept = module.batched_nms(
            convert(boxes), convert(scores), convert(group), threshold, **keywords
        )
    return kept if implementation == "numpy" else kept.cpu().numpy()


def crowd(rng, count, side=60.0, dtype=np.float64):
    """[count, 4] boxes of which many overlap."""
    corner = rng.uniform(0, side, (count, 2))
    return np.concatenate(
        [corner, corner + rng.uniform(side / 8, side / 2, (count, 2))], axis=1
    ).astype(dtype)


@CPU
@EXTENT
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_torchvision(implementation, extent, request, dtype):
    for operator in "nms", "batched_nms":
        for name, case in cases(request, extent, "tv", f"{operator}/{dtype}").items():
            if implementation == "triton" and DEVICE == "cpu" and len(case["in.boxes"]) > 400:
                continue  # interpreted, that would take a minute
            kept = suppress(
                implementation,
                case["in.boxes"],
                case["in.scores"],
                float(case["in.thr"]),
                case.get("in.idxs"),
            )
            assert_equal(kept, case["out.keep"], name)


@CPU
def test_by_hand(implementation):
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 2], [0, 3, 4, 5], [9, 9, 9, 9], [9, 9, 9, 9.0]])
    scores = np.array([0.5, 0.9, 0.8, 0.1, 0.1])
    assert_equal(
        suppress(implementation, boxes, scores, 0.5), [1, 2, 0, 3, 4]
    )  # 0 meets 1 at exactly 0.5; empty boxes stay
    assert_equal(suppress(implementation, boxes, scores, 0.49), [1, 2, 3, 4])
    assert_equal(suppress(implementation, boxes[:0], scores[:0], 0.5), np.zeros(0))


@CPU
def test_what_is_suppressed_suppresses_nothing(implementation):
    boxes = np.array(
        [[x, 0, x + 10, 10.0] for x in range(0, 40, 4)]
    )  # neighbours meet at 6 / 14, the next but one at 2 / 18
    scores = np.linspace(1, 0.1, 10)
    assert_equal(suppress(implementation, boxes, scores, 0.4), np.arange(0, 10, 2))


@CPU
def test_equal_scores_keep_the_lower_index(implementation):
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [50, 0, 60, 10], [50, 1, 60, 11.0]])
    assert_equal(suppress(implementation, boxes, np.full(4, 0.5), 0.5), [0, 2])
    assert_equal(suppress(implementation, boxes[::-1].copy(), np.full(4, 0.5), 0.5), [0, 2])


@CPU
def test_threshold_is_a_float64_number(implementation):
    """IoU 1/3: in float32 that is above the float64 number 1/3, as in torchvision on a CPU."""
    boxes, scores = np.array([[0, 0, 2, 1], [1, 0, 3, 1]]), np.array([0.9, 0.8])
    assert_equal(suppress(implementation, boxes.astype(np.float64), scores, 1 / 3), [0, 1])
    assert_equal(suppress(implementation, boxes.astype(np.float32), scores, 1 / 3), [0])


@CPU
def test_groups_never_meet(implementation):
    boxes, scores = (
        np.repeat([[1e4, 1e4, 1e4 + 1, 1e4 + 1]], 4, axis=0),
        np.array([0.1, 0.4, 0.3, 0.2]),
    )
    assert_equal(
        suppress(implementation, boxes, scores, 0.5, np.array([7, -2, 7, 10**12])), [1, 2, 3]
    )


@CPU
def test_bad_input_is_named(implementation):
    boxes, scores = np.zeros((4, 4)), np.zeros(4)
    if implementation != "numpy" and DEVICE != "cpu":
        pytest.skip("the check would synchronise the GPU")
    boxes[2, 1] = np.nan
    with pytest.raises(ValueError, match="boxes must be finite; row 2"):
        suppress(implementation, boxes, scores, 0.5)
    scores[3] = np.nan
    with pytest.raises(ValueError, match="scores must not be NaN; row 3"):
        suppress(implementation, np.zeros((4, 4)), scores, 0.5)


@given(some_boxes(20, 20, max_count=20), st.data())
def test_properties_of_the_oracle(boxes, data):
    scores = np.array(
        data.draw(st.lists(st.integers(0, 5), min_size=len(boxes), max_size=len(boxes))), float
    )
    threshold = data.draw(st.sampled_from([0.0, 0.3, 0.5, 1.0]))
    kept = reference.nms.nms(boxes, scores, threshold)
    best_first = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
    assert kept.tolist() == [i for i in best_first if i in set(kept.tolist())]
    iou = reference.boxes.iou(boxes, boxes)
    rank = {i: r for r, i in enumerate(best_first)}
    for i in range(
        len(boxes)
    ):  # the definition: dropped exactly when a better kept box overlaps it
        assert (i not in kept) == any(iou[i, j] > threshold and rank[j] < rank[i] for j in kept)
    assert_equal(
        reference.nms.nms(boxes[kept], scores[kept], threshold), np.arange(len(kept))
    )  # idempotent
    distinct = scores + np.linspace(0, 0.5, len(boxes))
    order = np.random.default_rng(len(boxes)).permutation(len(boxes))
    assert_equal(
        order[reference.nms.nms(boxes[order], distinct[order], threshold)],
        reference.nms.nms(boxes, distinct, threshold),
    )


def test_suppressed_by_hand():
    """Box 3 overlaps the kept boxes 0 and 2; the better of them removes it."""
    x = np.array([0, 2, 8, 4, 2.0])
    boxes = np.stack([x, 0 * x, x + 10, 0 * x + 10], axis=1)
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.8])
    removed = reference.nms.suppressed_by
    assert_equal(removed(boxes, scores, 0.4), [-1, 0, -1, 0, 0])
    # Of another group than box 0: box 1 is kept, and of two equals the first removes the second.
    assert_equal(removed(boxes, scores, 0.4, np.array([0, 1, 1, 0, 1])), [-1, -1, -1, 0, 1])
    assert_equal(removed(boxes[:0], scores[:0], 0.4), np.zeros(0))
    with pytest.raises(ValueError, match="boxes must be finite; row 1"):
        removed(np.array([[0, 0, 1, 1], [0, 0, np.inf, 1]]), scores[:2], 0.4)


@given(some_boxes(20, 20, max_count=20), st.data())
def test_suppressed_by_the_first_kept_box_that_overlaps(boxes, data):
    def draw(highest):
        return np.array(
            data.draw(st.lists(st.integers(0, highest), min_size=len(boxes), max_size=len(boxes))),
            int,
        )

    scores, group = draw(5), draw(2)
    threshold = data.draw(st.sampled_from([0.0, 0.3, 0.5, 1.0]))
    removed_by = reference.nms.suppressed_by(boxes, scores, threshold, group)
    kept = reference.nms.batched_nms(boxes, scores, group, threshold)
    iou = reference.boxes.iou(boxes, boxes)
    for row in range(len(boxes)):
        # `kept` is sorted by falling score.
        better = kept[: kept.tolist().index(row)] if row in kept else kept
        removers = [i for i in better if group[i] == group[row] and iou[i, row] > threshold]
        assert removed_by[row] == (removers[0] if removers else -1)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("count", [1, 31, 32, 33, 100])
@BACKENDS
def test_twins(rng, backend, count, dtype):
    boxes, scores, group = (
        crowd(rng, count, dtype=dtype),
        rng.random(count).round(1).astype(dtype),
        rng.integers(0, 3, count),
    )
    for threshold in 0.3, 0.7:
        assert_equal(
            suppress(backend, boxes, scores, threshold), reference.nms.nms(boxes, scores, threshold)
        )
        assert_equal(
            suppress(backend, boxes, scores, threshold, group),
            reference.nms.batched_nms(boxes, scores, group, threshold),
        )


@BACKENDS
@pytest.mark.parametrize("grouped", [False, True])
def test_keep_mask_of_padded_rows(rng, backend, grouped, monkeypatch):
    """Rows are independent; invalid boxes, also NaN, are not kept and suppress nothing."""
    monkeypatch.setattr(accelerated.kernels.eager.nms, "BLOCK", 48)
    monkeypatch.setattr(
        accelerated.kernels.triton.nms, "WORDS", 2
    )  # several reads of the words kept so far
    rows, count = 3, 170
    boxes, group = (
        np.stack([crowd(rng, count) for _ in range(rows)]),
        rng.integers(0, 2, (rows, count)),
    )
    valid = rng.random((rows, count)) < 0.8
    valid[2, :40] = False
    boxes[~valid & (rng.random(valid.shape) < 0.5)] = np.nan
    tensors = [torch.tensor(x, device=DEVICE) for x in (boxes, valid, group)]
    keep = (
        accelerated.nms.keep_mask(
            tensors[0], tensors[1], 0.4, tensors[2] if grouped else None, backend
        )
        .cpu()
        .numpy()
    )
    for b in range(rows):
        alive = np.flatnonzero(valid[b])
        groups = group[b, alive] if grouped else np.zeros(len(alive))
        expected = reference.nms.batched_nms(boxes[b, alive], -np.arange(len(alive)), groups, 0.4)
        assert_equal(np.flatnonzero(keep[b]), alive[expected])


@BACKENDS
def test_long_chain_reaches_the_fixed_point(backend):
    count = 300
    x = np.arange(count) * 4.0
    boxes = np.stack([x, np.zeros(count), x + 10, np.full(count, 10.0)], axis=1)
    assert_equal(suppress(backend, boxes, -np.arange(count), 0.4), np.arange(0, count, 2))


@BACKENDS
def test_no_rows_no_boxes_and_strides(rng, backend):
    for shape in (0, 5), (2, 0):
        valid = torch.ones(shape, dtype=torch.bool, device=DEVICE)
        assert (
            accelerated.nms.keep_mask(
                torch.zeros(*shape, 4, device=DEVICE), valid, 0.5, backend=backend
            ).shape
            == shape
        )
    boxes = torch.tensor(crowd(rng, 40), device=DEVICE)
    valid = torch.tensor(rng.random((2, 40)) < 0.7, device=DEVICE)
    once = accelerated.nms.keep_mask(torch.stack([boxes, boxes]), valid, 0.4, backend=backend)
    strided = torch.stack([boxes, boxes], dim=1).transpose(0, 1), valid.t().contiguous().t()
    assert_equal(accelerated.nms.keep_mask(*strided, 0.4, backend=backend), once)


@BACKENDS
def test_half_precision_boxes_are_compared_in_float32(rng, backend):
    boxes = torch.tensor(crowd(rng, 50), device=DEVICE).half()
    scores = torch.linspace(1, 0, 50, device=DEVICE)
    assert_equal(
        accelerated.nms.nms(boxes, scores, 0.4, backend),
        accelerated.nms.nms(boxes.float(), scores, 0.4, backend),
    )


@BACKENDS
def test_compiles_and_checks_as_an_operator(rng, backend):
    boxes = torch.tensor(crowd(rng, 20), device=DEVICE)[None]
    valid = torch.ones(1, 20, dtype=torch.bool, device=DEVICE)
    compiled = torch.compile(accelerated.nms.keep_mask, fullgraph=True, backend="aot_eager")
    assert_equal(
        compiled(boxes, valid, 0.4, None, backend),
        accelerated.nms.keep_mask(boxes, valid, 0.4, None, backend),
    )
    torch.library.opcheck(
        torch.ops.maskrcnn.nms_keep_mask.default, (boxes, valid, 0.4, None, backend)
    )


@pytest.mark.parametrize("k", [0, 3, 9])
def test_top_k_takes_the_lower_index_of_equals(rng, k):
    scores = rng.integers(0, 3, (4, 6)).astype(float)
    expected = reference.nms.top_k(scores, k)
    assert_equal(accelerated.nms.top_k(torch.tensor(scores), k), expected)
    for row, indices in zip(scores, expected, strict=True):
        assert indices.tolist() == sorted(range(6), key=lambda i: (-row[i], i))[:k]


def special(dtype, device):
    """Return a row of scores with ties, both zeros, infinities, subnormals and several NaN."""
    numbers = [0.5, 0.0, -0.0, 1.0, np.inf, -np.inf, -0.5, 6e-8, -6e-8, np.nan, -np.nan]
    row = torch.tensor(numbers * 3, dtype=dtype, device=device)
    return torch.cat([row, -row, row.abs()])


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64]
)
def test_top_k_is_the_beginning_of_the_stable_sort(rng, dtype):
    """Bit for bit, with NaN, infinities and both zeros; in both orders for the sampler."""
    scores = special(torch.float64, DEVICE)
    scores = scores.nan_to_num(7, 8, -8) if dtype == torch.int64 else scores
    scores = torch.stack([scores[torch.tensor(rng.permutation(len(scores)))] for _ in range(5)])
    scores = scores.to(dtype)
    if dtype == torch.float64:
        # Differ by less than float32 can tell.
        scores[:, ::3] += torch.tensor(rng.random(33) * 1e-12, device=DEVICE)
    for strided in scores, scores.mT.contiguous().mT:
        for descending in False, True:
            expected = strided.argsort(dim=1, descending=descending, stable=True)
            keys = accelerated.nms.keys(strided, descending)
            assert_equal(keys.argsort(dim=1, descending=True), expected)
            assert (keys > accelerated.nms.LOWEST).all()
        for k in 0, 1, 17, 98, 99, 200:
            assert_equal(accelerated.nms.top_k(strided, k), expected[:, :k])


@pytest.mark.gpu
def test_no_synchronisation(rng):
    boxes = torch.tensor(
        np.stack([crowd(rng, 2000, 500.0, np.float32) for _ in range(4)]), device="cuda"
    )
    valid = torch.ones(4, 2000, dtype=torch.bool, device="cuda")
    accelerated.nms.keep_mask(boxes, valid, 0.7, backend="triton")
    torch.cuda.set_sync_debug_mode("error")
    try:
        keep = accelerated.nms.keep_mask(boxes, valid, 0.7, backend="triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_equal(keep, accelerated.nms.keep_mask(boxes.cpu(), valid.cpu(), 0.7, backend="torch"))
