import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.golden_cases import EXTENT, cases
from support.strategies import arrays

import accelerated.box_coder
import reference.box_coder
from accelerated.verify.equality import GOLDEN_OPERATOR, POINTWISE, assert_close

BOTH = pytest.mark.parametrize(
    "coder, array",
    [(reference.box_coder, np.asarray), (accelerated.box_coder, torch.as_tensor)],
    ids=["numpy", "torch"],
)
WEIGHTS = (10.0, 10.0, 5.0, 5.0)


@st.composite
def proper_boxes(draw, count):
    """[count, 4] float64 with sides from 1/8 to 50 pixels."""
    generator = np.random.default_rng(draw(st.integers(0, 2**31 - 1)))
    corner = generator.uniform(-20, 60, (count, 2))
    return np.concatenate([corner, corner + np.exp(generator.uniform(-2, 4, (count, 2)))], axis=1)


@BOTH
@EXTENT
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_torchvision(coder, array, extent, request, dtype):
    tolerance = GOLDEN_OPERATOR if dtype == "float64" else POINTWISE[dtype]
    for name, case in cases(request, extent, "tv", f"encode/{dtype}").items():
        deltas = coder.encode(array(case["in.gt"]), array(case["in.boxes"]), case["in.weights"])
        assert_close(deltas, case["out.deltas"], tolerance, name)
        assert str(deltas.dtype).endswith(dtype)
    for name, case in cases(request, extent, "tv", f"decode/{dtype}").items():
        boxes = coder.decode(array(case["in.deltas"]), array(case["in.boxes"]), case["in.weights"])
        assert_close(boxes, case["out.boxes"], tolerance, name)
        assert str(boxes.dtype).endswith(dtype)


@BOTH
@EXTENT
def test_detectron2(coder, array, extent, request):
    for name, case in cases(request, extent, "d2", "encode").items():
        deltas = coder.encode(array(case["in.gt"]), array(case["in.boxes"]), case["in.weights"])
        assert_close(deltas, case["out.deltas"], GOLDEN_OPERATOR, name)


@BOTH
def test_by_hand(coder, array):
    box, anchor = array(np.array([[1, 2, 5, 10.0]])), array(np.array([[0, 0, 4, 4.0]]))
    expected = [[10 * 1 / 4, 10 * 4 / 4, 0, 5 * math.log(2)]]
    assert_close(coder.encode(box, anchor, WEIGHTS), expected, 1e-15)
    assert_close(coder.decode(array(np.array(expected)), anchor, WEIGHTS), box, 1e-15)


@BOTH
def test_growth_is_clamped_and_shrinking_is_not(coder, array):
    anchor = array(np.array([[0, 0, 16, 16.0]]))
    grown = coder.decode(array(np.array([[0, 0, 50, 4.2]])), anchor, (1, 1, 1, 1))
    assert_close(grown, [[8 - 500, 8 - 500, 8 + 500, 8 + 500]], 1e-14)
    shrunk = np.asarray(coder.decode(array(np.array([[0, 0, -50, 0.0]])), anchor, (1, 1, 1, 1)))
    assert 0 < shrunk[0, 2] - 8 + 1e-12 < 1e-11


@BOTH
@given(proper_boxes(6), proper_boxes(6))
def test_decode_inverts_encode(coder, array, boxes, anchors):
    # Below the clamp.
    boxes[:, 2:] = np.minimum(boxes[:, 2:], boxes[:, :2] + 60 * (anchors[:, 2:] - anchors[:, :2]))
    deltas = coder.encode(array(boxes), array(anchors), WEIGHTS)
    assert_close(coder.decode(deltas, array(anchors), WEIGHTS), boxes, 1e-12)


@given(proper_boxes(5), arrays(5, 12))
def test_twins(anchors, deltas):
    for dtype, tolerance in POINTWISE.items():
        if dtype not in ("float64", "float32"):
            continue
        a, d = (
            torch.tensor(anchors).to(getattr(torch, dtype)),
            torch.tensor(deltas).to(getattr(torch, dtype)),
        )
        expected = reference.box_coder.decode(d.double().numpy(), a.double().numpy(), WEIGHTS)
        assert_close(accelerated.box_coder.decode(d, a, WEIGHTS), expected, tolerance)
    together = accelerated.box_coder.decode(
        torch.tensor(deltas)[None], torch.tensor(anchors)[None], WEIGHTS
    )
    assert_close(together[0], reference.box_coder.decode(deltas, anchors, WEIGHTS), 1e-12)


def test_classes_are_decoded_one_by_one(rng):
    anchors, deltas = (
        np.sort(rng.uniform(0, 9, (3, 2, 2)), axis=1).reshape(3, 4),
        rng.normal(size=(3, 8)),
    )
    together = reference.box_coder.decode(deltas, anchors, WEIGHTS)
    for k in range(2):
        assert_close(
            together[:, 4 * k : 4 * k + 4],
            reference.box_coder.decode(deltas[:, 4 * k : 4 * k + 4], anchors, WEIGHTS),
            1e-15,
        )


def test_boxes_from_low_precision_deltas_are_float32():
    decoded = accelerated.box_coder.decode(
        torch.zeros(2, 4, dtype=torch.bfloat16),
        torch.tensor([[0.0, 0, 1001, 8]]).expand(2, 4),
        WEIGHTS,
    )
    assert decoded.dtype == torch.float32 and decoded[0, 2] == 1001
