import numpy as np
import pytest
import torch
from hypothesis import given
from support.golden_cases import EXTENT, cases
from support.strategies import boxes as some_boxes

import accelerated.boxes
import reference.boxes
from accelerated.verify.equality import GOLDEN_OPERATOR, POINTWISE, assert_close, assert_equal

BOTH = pytest.mark.parametrize(
    "boxes, array",
    [(reference.boxes, np.asarray), (accelerated.boxes, torch.as_tensor)],
    ids=["numpy", "torch"],
)


@BOTH
@EXTENT
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_torchvision(boxes, array, extent, request, dtype):
    for case in cases(request, extent, "tv", f"box_iou/{dtype}").values():
        overlap = boxes.iou(array(case["in.a"]), array(case["in.b"]))
        assert str(overlap.dtype).endswith(dtype)
        assert_close(overlap, case["out.iou"], POINTWISE[dtype])
    for case in cases(request, extent, "tv", f"clip/{dtype}").values():
        assert_equal(
            boxes.clip(array(case["in.boxes"]), int(case["in.h"]), int(case["in.w"])),
            case["out.boxes"],
        )
    for case in cases(request, extent, "tv", f"small/{dtype}").values():
        kept = boxes.is_valid(array(case["in.boxes"]), float(case["in.min_size"]), True)
        assert_equal(np.flatnonzero(kept), case["out.keep"])


@BOTH
@EXTENT
def test_detectron2(boxes, array, extent, request):
    for name, case in cases(request, extent, "d2", "iou").items():
        assert_close(
            boxes.iou(array(case["in.a"]), array(case["in.b"])),
            case["out.iou"],
            GOLDEN_OPERATOR,
            name,
        )


@BOTH
def test_by_hand(boxes, array):
    a = array(np.array([[0, 0, 4, 2.0], [1, 1, 1, 1]]))
    b = array(np.array([[2, 0, 6, 2.0], [4, 0, 5, 2], [0, 0, 4, 1], [1, 1, 1, 1]]))
    assert_equal(boxes.area(a), [8.0, 0.0])
    # A shared border is no overlap; 0/0 is 0.
    assert_close(boxes.iou(a, b), [[4 / 12, 0, 0.5, 0], [0, 0, 0, 0]], 1e-15)
    assert_equal(
        boxes.clip(array(np.array([[-3.0, 1, 9, 12], [10, -5, 12, -2]])), 5, 8),
        [[0, 1, 8, 5], [8, 0, 8, 0]],
    )
    assert boxes.iou(a[:0], b).shape == (0, 4)


@BOTH
def test_validity_at_the_limit(boxes, array):
    sides = array(
        np.array(
            [
                [0, 0, 0.5, 3],
                [0, 0, 0.25, 3],
                [0, 0, 0, 3],
                [2, 0, 1, 3],
                [0, 0, np.inf, 3],
                [0, np.nan, 1, 3],
            ]
        )
    )
    assert_equal(boxes.is_valid(sides, 0.25, True), [1, 1, 0, 0, 0, 0])
    assert_equal(boxes.is_valid(sides, 0.25, False), [1, 0, 0, 0, 0, 0])
    assert_equal(boxes.is_valid(sides, 0, True), [1, 1, 1, 0, 0, 0])
    assert_equal(boxes.is_valid(sides, 0.0, False), [1, 1, 0, 0, 0, 0])


@BOTH
def test_check_finite_names_the_first_bad_row(boxes, array):
    values = np.zeros((5, 4))
    boxes.check_finite(array(values), "boxes")
    boxes.check_finite(array(values[:0]), "boxes")
    values[[2, 4], 1] = np.inf, np.nan
    with pytest.raises(ValueError, match="boxes must be finite; row 2 is"):
        boxes.check_finite(array(values), "boxes")


def test_a_compiled_check_does_nothing(monkeypatch):
    """It would break the graph."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    accelerated.boxes.check_finite(torch.full((1, 4), torch.nan), "boxes")


@given(some_boxes(30, 40), some_boxes(30, 40))
def test_iou_properties(a, b):
    overlap = reference.boxes.iou(a, b)
    assert ((overlap >= 0) & (overlap <= 1)).all()
    assert_equal(overlap, reference.boxes.iou(b, a).T)
    shift = np.array([3, -5, 3, -5])
    # Dyadic boxes shift exactly.
    assert_equal(reference.boxes.iou(a + shift, b + shift), overlap)
    assert_equal(np.diag(reference.boxes.iou(a, a)), reference.boxes.area(a) > 0)


@given(some_boxes(30, 40), some_boxes(30, 40))
def test_twins_agree_to_the_bit(a, b):
    for dtype in np.float64, np.float32:
        a, b = (a * 0.7).astype(dtype), (b * 0.7).astype(dtype)
        ours = accelerated.boxes.iou(torch.tensor(a), torch.tensor(b))
        assert_equal(ours, reference.boxes.iou(a, b))
        assert_equal(
            accelerated.boxes.clip(torch.tensor(a), 30, 40), reference.boxes.clip(a, 30, 40)
        )


def test_leading_dimensions_and_sizes_per_image(rng):
    a, b = rng.uniform(0, 20, (2, 3, 4)), rng.uniform(0, 20, (2, 5, 4))
    sizes = torch.tensor([[7, 9], [12, 5]])
    overlap = accelerated.boxes.iou(torch.tensor(a), torch.tensor(b))
    clipped = accelerated.boxes.clip(torch.tensor(b), sizes[:, 0, None], sizes[:, 1, None])
    for n in range(2):
        assert_equal(overlap[n], reference.boxes.iou(a[n], b[n]))
        assert_equal(clipped[n], reference.boxes.clip(b[n], *sizes[n].numpy()))
    assert_equal(overlap, reference.boxes.iou(a, b))
