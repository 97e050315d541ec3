from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.golden_cases import EXTENT, cases
from support.gradients import check_backward, check_float32, compare_with_autograd, distinct
from support.strategies import boxes as some_boxes

import accelerated.pooler
import reference.pooler
from accelerated.verify.equality import (
    GOLDEN_OPERATOR,
    POINTWISE,
    REDUCTION,
    assert_close,
    assert_equal,
)
from reference.autodiff import Tape
from reference.config import Pooler

BOTH = pytest.mark.parametrize("implementation", ["numpy", "torch"])
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OUTSIDE, INSIDE = Pooler(), Pooler(level_epsilon="inside")
SMALL = Pooler(output_size=2, canonical_size=16.0, max_level=4)  # three levels of a small image


def assign(implementation, rois, pooler):
    if implementation == "numpy":
        return reference.pooler.assign(rois, pooler)
    return accelerated.pooler.assign(torch.as_tensor(rois, device=DEVICE), pooler).cpu().numpy()


def pool(implementation, features, rois, image_index, pooler):
    if implementation == "numpy":
        return reference.pooler.pool(features, rois, image_index, pooler)
    features = {level: torch.as_tensor(x, device=DEVICE) for level, x in features.items()}
    arguments = [torch.as_tensor(x, device=DEVICE) for x in (rois, image_index)]
    return (
        accelerated.pooler.pool(features, *arguments, pooler, backend=implementation).cpu().numpy()
    )


def squares(sides, dtype=np.float64):
    sides = np.array(sides, dtype=dtype)
    return np.stack([np.zeros_like(sides), np.zeros_like(sides), sides, sides], axis=1)


@BOTH
@EXTENT
@pytest.mark.parametrize(("peer", "pooler"), [("tv", OUTSIDE), ("d2", INSIDE)])
def test_golden_levels(request, implementation, extent, peer, pooler):
    for name, case in cases(request, extent, peer, "levels", "roi_operators").items():
        assert_equal(
            assign(implementation, case["in.boxes"], pooler), case["out.levels"] + 2, name
        )  # their 0 is P2


@BOTH
@pytest.mark.parametrize("pooler", [OUTSIDE, INSIDE])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_limits_belong_to_the_upper_level(implementation, pooler, dtype):
    sides = [0, 1, 111, 112, 223, 224, 447, 448, 5000]
    assert_equal(assign(implementation, squares(sides, dtype), pooler), [2, 2, 2, 3, 3, 4, 4, 5, 5])


@BOTH
def test_the_epsilon_outside_lifts_what_the_one_inside_does_not(implementation):
    rois = squares([111.99995, 111.9999])
    assert_equal(assign(implementation, rois, OUTSIDE), [3, 2])
    assert_equal(assign(implementation, rois, INSIDE), [2, 2])


@BOTH
@pytest.mark.parametrize("pooler", [OUTSIDE, INSIDE])
def test_no_area_is_the_lowest_level(implementation, pooler):
    assert_equal(
        assign(
            implementation, np.array([[5.0, 5, 5, 900], [900, 0, 0, 900], [1, 1, 1, 1]]), pooler
        ),
        [2, 2, 2],
    )


def test_assigns_any_leading_shape():
    rois = squares([100, 200, 300, 900]).reshape(2, 2, 4)
    assert accelerated.pooler.assign(torch.as_tensor(rois), OUTSIDE).tolist() == [[2, 3], [4, 5]]


@BOTH
@pytest.mark.parametrize("size", [7, 14])
def test_golden_pyramid_of_torchvision(shared_golden, implementation, size):
    z = shared_golden("tv_ops")
    features = {level: z[f"ms/float64/in.feats.{level - 2}"] for level in range(2, 6)}
    rois = np.concatenate([z["ms/float64/in.rois.0"], z["ms/float64/in.rois.1"]])
    out = pool(implementation, features, rois, np.repeat([0, 1], 12), Pooler(output_size=size))
    assert_close(out, z[f"ms/float64/out.y{size}"], GOLDEN_OPERATOR)


@BOTH
def test_golden_pooler_of_detectron2(shared_golden, implementation):
    z = shared_golden("d2_ops_f64")
    names = {
        key.split("/in.")[0] for key in z.files if key.startswith("roi_pooler/") and "/in." in key
    }
    assert names
    for name in names:
        kind = str(z[f"{name}/in.kind"])
        pooler = Pooler(
            output_size=int(z[f"{name}/in.out"]),
            operator="roi_pool" if kind == "ROIPool" else "roi_align",
            sampling_ratio=int(z[f"{name}/in.sampling_ratio"]),
            aligned=kind == "ROIAlignV2",
            level_epsilon="inside",
        )
        features = {level: z[f"{name}/in.feats.{level - 2}"] for level in range(2, 6)}
        out = pool(
            implementation,
            features,
            z[f"{name}/in.rois_list"].reshape(-1, 4),
            np.repeat([0, 1], 12),
            pooler,
        )
        assert_close(out, z[f"{name}/out.y"], GOLDEN_OPERATOR, name)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("operator", ["roi_align", "roi_pool", "roi_warp"])
def test_twins(backend, operator, rng):
    pooler = replace(SMALL, operator=operator)
    features = {level: rng.standard_normal((2, 2, 48 >> level, 40 >> level)) for level in (2, 3, 4)}
    rois = np.array(
        [
            [3.0, 4, 9, 11],
            [2, 2, 20, 15],
            [5, 0, 35, 40],
            [30, 30, 50, 60],
            [1, 1, 1, 1],
            [0, 0, 9, 9],
        ]
    )
    image_index = np.array([0, 1, 0, 1, 1, -1])
    assert set(reference.pooler.assign(rois, pooler)) == {2, 3, 4}
    expected = pool("numpy", features, rois, image_index, pooler)
    inputs = {
        level: torch.as_tensor(x, device=DEVICE).requires_grad_() for level, x in features.items()
    }
    arguments = [torch.as_tensor(x, device=DEVICE) for x in (rois, image_index)]
    out = accelerated.pooler.pool(inputs, *arguments, pooler, backend=backend)
    assert_close(out, expected, POINTWISE["float64"])
    as_list = accelerated.pooler.pool(list(inputs.values()), *arguments, pooler, backend="torch")
    assert_close(as_list, expected, POINTWISE["float64"])
    grad_out = rng.standard_normal(expected.shape)
    grads = torch.autograd.grad(
        out, list(inputs.values()), torch.as_tensor(grad_out, device=DEVICE)
    )
    expected_grads = reference.pooler.pool_backward(grad_out, features, rois, image_index, pooler)
    for level, grad in zip(features, grads, strict=True):
        assert_close(grad, expected_grads[level], REDUCTION["float64"])


@pytest.mark.parametrize(
    ("operator", "aggregate"), [("roi_align", "mean"), ("roi_align", "max"), ("roi_pool", "mean")]
)
@given(rois=some_boxes(48, 40), seed=st.integers(0, 2**31))
def test_on_the_tape(operator, aggregate, rois, seed):
    pooler = replace(SMALL, operator=operator, aggregate=aggregate)
    check_backward_on_the_tape(np.random.default_rng(seed), rois, np.arange(len(rois)) % 2, pooler)


def check_backward_on_the_tape(rng, rois, image_index, pooler):
    """All three maps are cut out of one array, in which the mean of RoIAlign is linear."""
    shapes = {level: (2, 2, 48 >> level, 40 >> level) for level in (2, 3, 4)}
    ends = np.cumsum([0, *(np.prod(shape) for shape in shapes.values())])

    def maps(x):
        return {
            level: x[a:b].reshape(*shape)
            for (level, shape), a, b in zip(shapes.items(), ends[:-1], ends[1:], strict=True)
        }

    def function(x):
        return reference.pooler.pool(maps(x), rois, image_index, pooler)

    def twin(x):
        return accelerated.pooler.pool(
            maps(x), torch.tensor(rois), torch.tensor(image_index), pooler, backend="torch"
        )

    x = distinct(rng, (ends[-1],))
    if pooler.aggregate == "max":  # of interpolated samples: too many kinks for finite differences
        compare_with_autograd(function, twin, x)
        check_float32(function, x)
    else:
        check_backward(function, twin, x, linear=[0] if pooler.operator == "roi_align" else [])


@pytest.mark.parametrize("operator", ["roi_align", "roi_pool", "roi_warp"])
def test_levels_that_no_roi_reads_have_no_gradient(operator, rng):
    """Levels of the pooler without an RoI get zeros; a level above them, such as P6, gets none."""
    pooler, tape = replace(SMALL, operator=operator), Tape()
    features = {
        level: tape.variable(rng.standard_normal((1, 2, 48 >> level, 40 >> level)))
        for level in (2, 3, 4, 5)
    }
    out = reference.pooler.pool(features, squares([5, 6]), np.zeros(2, int), pooler)
    tape.backward(out.sum())
    assert features[2].grad.any() and not features[3].grad.any() and not features[4].grad.any()
    assert features[5].grad is None


@pytest.mark.parametrize("operator", ["roi_align", "roi_pool", "roi_warp"])
def test_no_rois_give_zeros(operator):
    tape = Tape()
    features = {
        level: tape.variable(np.ones((1, 2, 48 >> level, 40 >> level), np.float32))
        for level in (2, 3, 4)
    }
    out = reference.pooler.pool(
        features, np.zeros((0, 4)), np.zeros(0, int), replace(SMALL, operator=operator)
    )
    assert out.shape == (0, 2, 2, 2)
    tape.backward(out.sum())
    for x in features.values():
        assert x.grad.dtype == np.float32
        assert_equal(x.grad, np.zeros(x.shape))


@pytest.mark.parametrize("implementation", ["numpy", "torch"])
def test_a_bad_roi_is_named_by_its_row_in_the_batch(implementation):
    features = {level: np.zeros((1, 1, 48 >> level, 40 >> level)) for level in (2, 3, 4)}
    rois = np.array([[0.0, 0, 9, 9], [0, 0, 30, 30], [0, 0, np.nan, 9]])
    with pytest.raises(ValueError, match=r"rois\[2\]"):
        pool(implementation, features, rois, np.zeros(3, np.int64), SMALL)
