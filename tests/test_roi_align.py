"""RoIAlign: NumPy, PyTorch and Triton against torchvision, each other, and the operator's laws."""

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.golden_cases import EXTENT, cases
from support.gradients import check_backward, check_float32, compare_with_autograd
from support.strategies import arrays
from support.strategies import boxes as some_boxes

import accelerated.kernels.eager.roi_align
import accelerated.kernels.triton.roi_align_backward
import accelerated.roi_align
import reference.roi_align
from accelerated.kernels.eager.roi_align import Taps, sparse_compact, sparse_padded
from accelerated.verify.equality import (
    GOLDEN_OPERATOR,
    POINTWISE,
    REDUCTION,
    arbitrary_boxes,
    assert_close,
    assert_equal,
    error,
)

EVERY = pytest.mark.parametrize("implementation", ["numpy", "torch", "triton"])
FAST = pytest.mark.parametrize("implementation", ["numpy", "torch"])
BACKENDS = pytest.mark.parametrize("backend", ["torch", "triton"])
AGGREGATES = pytest.mark.parametrize("aggregate", ["mean", "max"])
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLAIN = {"output_size": (2, 3), "spatial_scale": 0.5, "sampling_ratio": 2, "aligned": True}


def tensor(array):
    return torch.as_tensor(array, device=DEVICE)


def pool(implementation, features, rois, image_index, **keywords):
    """The output of any of the three implementations, as an array."""
    if implementation == "numpy":
        return reference.roi_align.roi_align(features, rois, image_index, **keywords)
    arguments = [tensor(x) for x in (features, rois, image_index)]
    return (
        accelerated.roi_align.roi_align(*arguments, **keywords, backend=implementation)
        .cpu()
        .numpy()
    )


def gradient(implementation, grad_out, features, rois, image_index, **keywords):
    if implementation == "numpy":
        return reference.roi_align.roi_align_backward(
            grad_out, features, rois, image_index, **keywords
        )
    features = tensor(features).requires_grad_()
    out = accelerated.roi_align.roi_align(
        features, tensor(rois), tensor(image_index), **keywords, backend=implementation
    )
    return torch.autograd.grad(out, features, tensor(grad_out))[0].cpu().numpy()


def some_rois(rng, count, height, width, dtype=np.float64):
    """Boxes on a grid of 1/8 pixel, at scale 1/2: inside, across the border, outside, points."""
    sizes = np.array([2 * width, 2 * height] * 2)
    corner = rng.uniform(-0.3, 1.1, (count, 2)) * sizes[:2]
    extent = rng.uniform(0, 0.8, (count, 2)) * sizes[:2] * (rng.uniform(size=(count, 1)) > 0.1)
    return (np.concatenate([corner, corner + extent], axis=1) * 8).round().astype(dtype) / 8


# ---- torchvision's numbers


@FAST
@EXTENT
def test_golden(request, implementation, extent):
    for name, case in cases(request, extent, "tv", "roi_align/float64", "roi_operators").items():
        rois, image_index = case["in.rois"][:, 1:], case["in.rois"][:, 0].astype(np.int64)
        keywords = {
            "output_size": (int(case["in.ph"]), int(case["in.pw"])),
            "spatial_scale": float(case["in.scale"]),
            "sampling_ratio": int(case["in.sampling_ratio"]),
            "aligned": bool(case["in.aligned"]),
        }
        out = pool(implementation, case["in.x"], rois, image_index, **keywords)
        grad = gradient(
            implementation, case["in.grad_out"], case["in.x"], rois, image_index, **keywords
        )
        assert_close(out, case["out.y"], GOLDEN_OPERATOR, name)
        assert_close(grad, case["out.dx"], GOLDEN_OPERATOR, name)


@FAST
def test_golden_in_float32_rounds_coordinates_as_torchvision_does(request, implementation):
    """A sample that float32 puts on the wrong side of a cutoff would be an error of order 1."""
    for name, case in cases(request, "complete", "tv", "roi_align/float32").items():
        rois, image_index = case["in.rois"][:, 1:], case["in.rois"][:, 0].astype(np.int64)
        keywords = {
            "output_size": (int(case["in.ph"]), int(case["in.pw"])),
            "spatial_scale": float(case["in.scale"]),
            "sampling_ratio": int(case["in.sampling_ratio"]),
            "aligned": bool(case["in.aligned"]),
        }
        out = pool(implementation, case["in.x"], rois, image_index, **keywords)
        grad = gradient(
            implementation, case["in.grad_out"], case["in.x"], rois, image_index, **keywords
        )
        assert_close(out, case["out.y"], arbitrary_boxes("float32", 13, 17), name)
        assert_close(grad, case["out.dx"], REDUCTION["float32"], name)


def test_golden_in_triton(request):
    """Interpreted kernels are slow: a few RoIs of a few cases."""
    found = cases(request, "subset", "tv", "roi_align/float64", "roi_operators")
    for name in sorted(name for name in found if "/1x1/" in name and "sr0" not in name):
        case = found[name]
        rois, image_index = case["in.rois"][:8, 1:], case["in.rois"][:8, 0].astype(np.int64)
        keywords = {
            "output_size": 1,
            "spatial_scale": float(case["in.scale"]),
            "sampling_ratio": int(case["in.sampling_ratio"]),
        }
        out = pool(
            "triton", case["in.x"], rois, image_index, **keywords, aligned=bool(case["in.aligned"])
        )
        assert_close(out, case["out.y"][:8], GOLDEN_OPERATOR, name)


# ---- what the operator must satisfy


@FAST
@pytest.mark.parametrize("sampling_ratio", [2, 0])
@pytest.mark.parametrize("aligned", [False, True])
@given(data=st.data())
def test_adjoint_and_linear(implementation, sampling_ratio, aligned, data):
    rois = data.draw(some_boxes(14, 18))
    x, y = data.draw(arrays(2, 3, 7, 9)), data.draw(arrays(2, 3, 7, 9))
    grad_out = data.draw(arrays(len(rois), 3, 2, 3))
    arguments = (rois, np.arange(len(rois)) % 2)
    keywords = {
        "output_size": (2, 3),
        "spatial_scale": 0.5,
        "sampling_ratio": sampling_ratio,
        "aligned": aligned,
    }
    out = pool(implementation, x, *arguments, **keywords)
    grad = gradient(implementation, grad_out, x, *arguments, **keywords)
    assert abs((out * grad_out).sum() - (x * grad).sum()) <= 1e-12 * max(
        1e-300, np.linalg.norm(out) * np.linalg.norm(grad_out)
    )
    both = pool(implementation, 2 * x - 3 * y, *arguments, **keywords)
    assert np.allclose(
        both, 2 * out - 3 * pool(implementation, y, *arguments, **keywords), rtol=0, atol=1e-12
    )


@EVERY
@AGGREGATES
def test_constant_map_and_mass_of_the_gradient(implementation, aggregate):
    """A constant gives itself, at the border the fraction in range; gradients keep their sum."""
    features = np.ones((1, 1, 6, 8))
    rois = np.array([[2.0, 2, 10, 9], [-8, 2, 0, 9], [40, 40, 50, 50]])
    keywords = {
        "output_size": 1,
        "spatial_scale": 0.5,
        "sampling_ratio": 2,
        "aligned": False,
        "aggregate": aggregate,
    }
    out = pool(implementation, features, rois, np.zeros(3, np.int64), **keywords)
    assert_close(
        out[:, 0, 0, 0], [1.0, 0.5 if aggregate == "mean" else 1.0, 0.0], 1e-14
    )  # x of the second: -3 and -1
    grad = gradient(
        implementation, np.ones_like(out), features, rois, np.zeros(3, np.int64), **keywords
    )
    assert abs(grad.sum() - out.sum()) < 1e-13


@EVERY
@pytest.mark.parametrize("sampling_ratio", [2, 3, 0])
def test_exact_on_a_ramp(implementation, sampling_ratio):
    """The mean over a bin is the value at its centre; pixel i's centre is at i + 1/2."""
    y, x = np.mgrid[:11, :13]
    features = (3.0 * (y + 0.5) - 2.0 * (x + 0.5) + 1.0)[None, None]
    roi = np.array([[4.0, 6, 21, 19]])
    out = pool(
        implementation, features, roi, np.array([0]), **PLAIN | {"sampling_ratio": sampling_ratio}
    )
    centre_y = (6 + (np.arange(2) + 0.5) * 13 / 2) / 2
    centre_x = (4 + (np.arange(3) + 0.5) * 17 / 3) / 2
    assert_close(out[0, 0], 3.0 * centre_y[:, None] - 2.0 * centre_x + 1.0, 1e-13)


@FAST
@AGGREGATES
def test_shifted_map_and_box(implementation, aggregate, rng):
    features = rng.standard_normal((1, 3, 12, 14))
    rois = np.array([[2.0, 3, 11.5, 9.25], [4, 4, 5, 5]])
    here = pool(implementation, features, rois, np.array([0, 0]), **PLAIN, aggregate=aggregate)
    there = np.roll(features, (3, 2), axis=(2, 3))
    moved = pool(
        implementation,
        there,
        rois + np.array([4, 6, 4, 6]),
        np.array([0, 0]),
        **PLAIN,
        aggregate=aggregate,
    )
    assert_close(moved, here, 1e-14)


@FAST
@AGGREGATES
def test_finite_differences(implementation, aggregate, rng):
    features, direction = rng.standard_normal((2, 2, 2, 7, 9))
    rois = some_rois(rng, 9, 7, 9)
    arguments, keywords = (rois, np.arange(9) % 2), PLAIN | {"aggregate": aggregate}
    grad_out = rng.standard_normal((9, 2, 2, 3))
    step = 1e-6
    ahead, behind = (
        pool(implementation, features + s * direction, *arguments, **keywords)
        for s in (step, -step)
    )
    measured = ((ahead - behind) * grad_out).sum() / (2 * step)
    assert abs(
        measured
        - (gradient(implementation, grad_out, features, *arguments, **keywords) * direction).sum()
    ) < 1e-6 * abs(measured)


@EVERY
def test_the_first_of_equal_samples_takes_the_gradient(implementation):
    """On a flat map that is the one at the top left of the bin, spread by its bilinear weights."""
    keywords = {
        "output_size": 1,
        "spatial_scale": 1.0,
        "sampling_ratio": 2,
        "aligned": True,
        "aggregate": "max",
    }
    features, roi = (
        np.ones((1, 1, 6, 6)),
        np.array([[1.25, 1.0, 5.25, 5.0]]),
    )  # samples at y 1.5, 3.5 and x 1.75, 3.75
    grad = gradient(implementation, np.ones((1, 1, 1, 1)), features, roi, np.array([0]), **keywords)
    expected = np.zeros((6, 6))
    expected[1:3, 1:3] = [[0.125, 0.375], [0.125, 0.375]]
    assert_equal(grad[0, 0], expected)


@AGGREGATES
@pytest.mark.parametrize("aligned", [False, True])
@given(data=st.data())
def test_on_the_tape(aggregate, aligned, data):
    rois = data.draw(some_boxes(14, 18))
    image_index = data.draw(
        st.lists(st.integers(0, 1), min_size=len(rois), max_size=len(rois)).map(
            lambda x: np.array(x, np.int64)
        )
    )
    check_backward_on_the_tape(data.draw(arrays(2, 2, 7, 9)), rois, image_index, aligned, aggregate)


def check_backward_on_the_tape(features, rois, image_index, aligned, aggregate):
    """A maximum has too many kinks for finite differences of more than a few bins."""
    keywords = {
        "output_size": 2,
        "spatial_scale": 0.5,
        "sampling_ratio": 2,
        "aligned": aligned,
        "aggregate": aggregate,
    }

    def function(x):
        return reference.roi_align.roi_align(x, rois, image_index, **keywords)

    def twin(x):
        return eager(x, torch.tensor(rois), torch.tensor(image_index), **keywords)

    if aggregate == "mean":
        check_backward(function, twin, features, linear=[0])
    else:
        compare_with_autograd(function, twin, features)
        check_float32(function, features)


# ---- the interpolation matrix


def test_the_example_of_the_docstring_is_true():
    results = doctest.testmod(reference.roi_align)
    assert results.attempted == 5 and not results.failed


def test_interpolation_matrix():
    check_interpolation_matrix()


def check_interpolation_matrix():
    """By hand: two samples of one bin, first at (-1, 1), (-1.125, 1), (3, 5) and (3, 5.125)."""
    matrix = reference.roi_align.interpolation_matrix
    for low, high, expected in (
        (-2.0, 2.0, [0.5, 0.5, 0, 0, 0]),
        (-2.1875, 2.0625, [0, 0.5, 0, 0, 0]),
        (2.0, 6.0, [0, 0, 0, 0.5, 0.5]),
        (1.9375, 6.1875, [0, 0, 0, 0.5, 0]),
        (0.0, 2.5, [0.1875, 0.375, 0.4375, 0, 0]),
        (4.0, 3.0, [0, 0, 0, 0, 1]),
    ):
        weights = matrix(low, high, bins=1, size=5, sampling_ratio=2, aligned=False)
        assert_equal(weights, [expected], f"{low}, {high}")
    # Half a pixel further left; an RoI that ends before it starts has no samples.
    aligned = {"bins": 1, "size": 5, "sampling_ratio": 1, "aligned": True}
    assert_close(matrix(1.0, 1.6, **aligned), [[0.2, 0.8, 0, 0, 0]], 1e-15)
    assert_equal(matrix(5.0, 4.0, **aligned), np.zeros((1, 5)))
    # Adaptively, a bin of 2.5 pixels has three samples.
    samples = reference.roi_align.sample_matrix(0.0, 5.0, 2, 6, 0, False)
    assert samples.shape == (2, 3, 6)
    assert_close(samples.sum(axis=2), np.ones((2, 3)), 1e-15)


def test_sample_positions():
    """By hand: two bins of 1.5 pixels; half a pixel to the left of the centres if aligned."""
    positions = reference.roi_align.sample_positions
    expected = np.array([[2.375, 3.125], [3.875, 4.625]])
    assert_equal(positions(2.0, 5.0, 2, 2, False), expected)
    assert_equal(positions(2.0, 5.0, 2, 2, True), expected - 0.5)
    # Adaptively, a bin of 1.5 pixels has two samples.
    assert_equal(positions(2.0, 5.0, 2, 0, False), expected)
    # Without the half pixel an RoI is at least one pixel long; with it, one may have no sample.
    assert_equal(positions(5.0, 4.0, 1, 1, False), [[5.5]])
    assert positions(5.0, 4.0, 3, 2, True).shape == (3, 0)
    # In the dtype of the RoI, of which a third has no exact value.
    single = positions(np.float32(0.1), np.float32(0.7), 3, 1, True)
    assert single.dtype == np.float64 and np.array_equal(single, single.astype(np.float32))


def test_neighbours():
    """By hand, on an axis of four pixels; beyond -1 and 4 lies nothing."""
    positions = np.array([[-1.125, -1.0, -0.25, 0.0], [1.75, 3.0, 4.0, 4.125]])
    lower, upper, weight_lower, weight_upper = reference.roi_align.neighbours(positions, 4)
    assert lower.dtype.kind == upper.dtype.kind == "i"
    assert_equal(weight_lower, [[0, 1, 1, 1], [0.25, 1, 1, 0]])
    assert_equal(weight_upper, [[0, 0, 0, 0], [0.75, 0, 0, 0]])
    assert_equal(lower, [[0, 0, 0, 0], [1, 3, 3, 3]])
    assert_equal(upper, [[1, 1, 1, 1], [2, 3, 3, 3]])


@given(st.floats(-9, 9), st.floats(-9, 9), st.integers(0, 3), st.integers(1, 6), st.booleans())
def test_sample_matrix_is_made_of_positions_and_neighbours(
    low, high, sampling_ratio, size, aligned
):
    """On a ramp, whose value is its index, an inside sample reads its position."""
    axis = low, high, 2, sampling_ratio, aligned
    positions = reference.roi_align.sample_positions(*axis)
    weights = reference.roi_align.sample_matrix(low, high, 2, size, sampling_ratio, aligned)
    assert weights.shape == (*positions.shape, size)
    inside = (positions >= -1) & (positions <= size)
    read = np.where(inside, positions.clip(0, size - 1), 0)
    assert_close(weights @ np.arange(size, dtype=float), read, 1e-15)
    assert_close(weights.sum(axis=2), inside.astype(float), 1e-15)


def test_sparse_matrices_by_hand():
    """The example of `sparse_compact` and `sparse_padded`: 2 x 2 bins, a map three pixels wide."""
    half, samples = 0.5, torch.ones(1)
    y = Taps(torch.tensor([[[0, 1], [1, 1]]]), torch.tensor([[[1.0, 0], [1, 0]]]), samples)
    x = Taps(torch.tensor([[[0, 1], [2, 2]]]), torch.tensor([[[half, half], [1, 0]]]), samples)
    arguments = y, x, torch.tensor([0]), torch.tensor([3]), torch.float32
    compact = sparse_compact(*arguments)
    assert compact.index.tolist() == [0, 1, 2, 3, 4, 5]
    assert compact.weight.tolist() == [half, half, 1, half, half, 1]
    assert compact.offsets.tolist() == [0, 2, 3, 5, 6]
    padded = sparse_padded(*arguments, zero_row=6)
    assert padded.index.tolist() == [0, 1, 6, 6, 2, 6, 6, 6, 3, 4, 6, 6, 5, 6, 6, 6]
    assert padded.weight.tolist() == [half, half, 0, 0, 1, 0, 0, 0, half, half, 0, 0, 1, 0, 0, 0]
    assert padded.offsets.tolist() == [0, 4, 8, 12, 16]


# ---- cutoffs, degenerate and bad input


@EVERY
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@AGGREGATES
def test_cutoffs(implementation, dtype, aggregate):
    """Exactly one pixel outside is still in: the border's own value. A little more is out: 0."""
    features = np.arange(1, 31, dtype=dtype).reshape(1, 1, 5, 6)
    centres = np.array(
        [
            (-1, 2),
            (-1.125, 2),
            (5, 2),
            (5.125, 2),
            (2, -1),
            (2, -1.125),
            (2, 6),
            (2, 6.125),
            (-1, -1),
            (5, 6),
        ],
        dtype,
    )
    rois = np.concatenate([centres[:, ::-1] - 1, centres[:, ::-1] + 1], axis=1)
    keywords = {
        "output_size": 1,
        "spatial_scale": 1.0,
        "sampling_ratio": 1,
        "aligned": False,
        "aggregate": aggregate,
    }
    out = pool(implementation, features, rois, np.zeros(10, np.int64), **keywords)
    assert_equal(out[:, 0, 0, 0], [3, 0, 27, 0, 13, 0, 18, 0, 1, 30])


@EVERY
@AGGREGATES
@pytest.mark.parametrize("sampling_ratio", [2, 0])
def test_aligned_rois_that_end_before_they_start_give_nothing(
    implementation, aggregate, sampling_ratio, rng
):
    features = rng.standard_normal((1, 2, 6, 6)) + 9
    rois = np.array([[6.0, 2, 2, 8], [2, 8, 6, 2], [8, 8, 4, 4], [2, 2, 8, 8]])
    keywords = PLAIN | {"sampling_ratio": sampling_ratio, "aggregate": aggregate}
    out = pool(implementation, features, rois, np.zeros(4, np.int64), **keywords)
    assert (out[:3] == 0).all() and (out[3] != 0).all()
    grad = gradient(
        implementation, np.ones_like(out), features, rois, np.zeros(4, np.int64), **keywords
    )
    alone = gradient(
        implementation, np.ones_like(out[3:]), features, rois[3:], np.array([0]), **keywords
    )
    assert_close(grad, alone, 1e-15)


@EVERY
@AGGREGATES
def test_padding(implementation, aggregate, rng):
    """image_index -1: no output and no gradient, whatever the box says."""
    features = rng.standard_normal((2, 2, 6, 6))
    rois = np.array([[2.0, 2, 8, 8], [np.nan, 0, 1, np.inf], [2, 2, 8, 8]])
    image_index = np.array([1, -1, -1])
    keywords = PLAIN | {"aggregate": aggregate}
    out = pool(implementation, features, rois, image_index, **keywords)
    assert (out[1:] == 0).all() and (out[0] != 0).all()
    grad = gradient(implementation, np.ones_like(out), features, rois, image_index, **keywords)
    assert (grad[0] == 0).all()
    assert_close(
        grad,
        gradient(
            implementation, np.ones_like(out[:1]), features, rois[:1], image_index[:1], **keywords
        ),
        1e-15,
    )


@EVERY
def test_bad_rois_are_named(implementation):
    if DEVICE == "cuda" and implementation != "numpy":
        pytest.skip("a GPU is not asked; there they give 0")
    features, rois = np.zeros((1, 1, 4, 4)), np.zeros((3, 4))
    for bad in (np.nan, np.inf):
        rois[2, 1] = bad
        with pytest.raises(ValueError, match=r"rois\[2\]"):
            pool(implementation, features, rois, np.zeros(3, np.int64), **PLAIN)
    with pytest.raises(ValueError, match=r"image_index\[1\]"):
        pool(implementation, features, np.zeros((3, 4)), np.array([0, 1, 0]), **PLAIN)
    with pytest.raises(ValueError, match="aggregate"):
        pool(
            implementation,
            features,
            np.zeros((3, 4)),
            np.zeros(3, np.int64),
            **PLAIN,
            aggregate="median",
        )


@EVERY
@AGGREGATES
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_reaches_the_bins_that_touch_it_and_no_others(implementation, aggregate, value, rng):
    features = rng.standard_normal((1, 2, 6, 6))
    features[0, 1, 2, 3] = value
    rois = np.array([[0.0, 0, 12, 12], [0, 0, 3, 3], [8.5, 6.5, 11, 11], [5, 3, 9, 7]])
    arguments, keywords = (
        (rois, np.zeros(4, np.int64)),
        PLAIN | {"output_size": 3, "aggregate": aggregate},
    )
    touching = pool("numpy", (~np.isfinite(features)).astype(float), *arguments, **keywords) > 0
    out = pool(implementation, features, *arguments, **keywords)
    assert_equal(~np.isfinite(out), touching)
    assert touching.any() and not touching[:, 0].any() and not touching[1].any()


# ---- the twins


@BACKENDS
@AGGREGATES
@pytest.mark.parametrize("sampling_ratio", [2, 0])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_twins(backend, aggregate, sampling_ratio, aligned, dtype, rng):
    channels = {(2, False): 1, (2, True): 3, (0, False): 5, (0, True): 4}[sampling_ratio, aligned]
    features = rng.standard_normal((2, channels, 10, 9)).astype(dtype)
    rois = some_rois(rng, 5, 10, 9, dtype)
    image_index = np.array([0, 1, -1, 1, 0])
    grad_out = rng.standard_normal((5, channels, 2, 3)).astype(dtype)
    keywords = PLAIN | {
        "sampling_ratio": sampling_ratio,
        "aligned": aligned,
        "aggregate": aggregate,
    }
    oracle = [x.astype(np.float64) for x in (features, rois)]
    expected = reference.roi_align.roi_align(*oracle, image_index, **keywords)
    expected_grad = reference.roi_align.roi_align_backward(
        grad_out.astype(np.float64), *oracle, image_index, **keywords
    )
    if dtype == np.float64:  # as strided as a tensor can be
        features = (
            np.repeat(features, 2, axis=3)[..., ::2]
            .transpose(0, 1, 3, 2)
            .copy()
            .transpose(0, 1, 3, 2)
        )
    assert_close(
        pool(backend, features, rois, image_index, **keywords),
        expected,
        arbitrary_boxes(np.dtype(dtype).name, 10, 9),
        "out",
    )
    grad = gradient(backend, grad_out, features, rois, image_index, **keywords)
    assert_close(grad, expected_grad, REDUCTION[np.dtype(dtype).name], "grad")


@AGGREGATES
@given(data=st.data())
def test_twins_on_any_boxes(aggregate, data):
    height, width, channels = (
        data.draw(st.integers(1, 9)),
        data.draw(st.integers(1, 9)),
        data.draw(st.integers(1, 5)),
    )
    rois = data.draw(some_boxes(2 * height, 2 * width))
    features = data.draw(arrays(2, channels, height, width))
    grad_out = data.draw(arrays(len(rois), channels, 2, 3))
    image_index = data.draw(
        st.lists(st.integers(-1, 1), min_size=len(rois), max_size=len(rois)).map(
            lambda x: np.array(x, np.int64)
        )
    )
    keywords = PLAIN | {
        "sampling_ratio": data.draw(st.integers(0, 3)),
        "aligned": data.draw(st.booleans()),
        "aggregate": aggregate,
    }
    out, expected = (pool(i, features, rois, image_index, **keywords) for i in ("torch", "numpy"))
    assert_close(out, expected, POINTWISE["float64"])
    grad, expected = (
        gradient(i, grad_out, features, rois, image_index, **keywords) for i in ("torch", "numpy")
    )
    assert_close(grad, expected, REDUCTION["float64"])


@BACKENDS
@AGGREGATES
def test_all_levels_at_once(backend, aggregate, rng):
    """Two levels in one call equal two calls; tiles, words of RoIs and channels end unevenly."""
    features = [
        tensor(rng.standard_normal((2, 3, 9, 11))),
        tensor(rng.standard_normal((2, 3, 5, 6))),
    ]
    for x in features:
        x.requires_grad_()
    rois, image_index, level_index = (
        some_rois(rng, 6, 9, 11),
        np.array([0, 1, 1, -1, 0, 1]),
        np.array([0, 1, 0, 1, 0, 1]),
    )
    scales, keywords = (
        [0.5, 0.25],
        {"output_size": (2, 3), "sampling_ratio": 2, "aligned": True, "aggregate": aggregate},
    )
    arguments = [tensor(x) for x in (rois, image_index, level_index)]
    out = accelerated.roi_align.multilevel(
        features, *arguments, scales=scales, **keywords, backend=backend
    )
    grad_out = rng.standard_normal(out.shape)
    grads = torch.autograd.grad(out, features, tensor(grad_out))
    for level, (x, grad) in enumerate(zip(features, grads, strict=True)):
        x, here = x.detach().cpu().numpy(), level_index == level
        arguments = (rois[here], image_index[here])
        expected = reference.roi_align.roi_align(
            x, *arguments, spatial_scale=scales[level], **keywords
        )
        assert_close(out[tensor(here)], expected, POINTWISE["float64"])
        expected = reference.roi_align.roi_align_backward(
            grad_out[here], x, *arguments, spatial_scale=scales[level], **keywords
        )
        assert_close(grad, expected, REDUCTION["float64"])


@BACKENDS
def test_more_rois_than_a_word_of_the_backward_holds(backend, rng):
    """All RoIs are of one image; those that reach it lie at the ends of words, and of 32 words."""
    rois, image_index = some_rois(rng, 1060, 9, 4), np.zeros(1060, np.int64)
    near = np.isin(np.arange(1060), [0, 31, 32, 63, 64, 1023, 1024, 1059])
    rois[~near] += 99
    check_gradient(backend, rng, rois, image_index, 1)


@AGGREGATES
def test_more_channels_than_a_program_of_the_backward_has(aggregate, rng, monkeypatch):
    kernels = accelerated.kernels.triton.roi_align_backward
    monkeypatch.setattr(kernels, "MAX_CHANNELS", 16)
    monkeypatch.setitem(kernels.MEAN_CHANNELS, 8, 16)
    image_index = np.array([0, 1, 0])
    rois = some_rois(rng, 3, 9, 10)
    check_gradient("triton", rng, rois, image_index, 2, aggregate, channels=35)


@BACKENDS
@AGGREGATES
def test_rois_in_any_order_of_images(backend, aggregate, rng):
    """Words of images begin and end anywhere; image 1 has no RoI, padding stands between others."""
    image_index = rng.choice([-1, 0, 2, 3], 130, p=[0.1, 0.4, 0.4, 0.1])
    rois = some_rois(rng, 130, 9, 10)
    rois[rng.uniform(size=130) < 0.85] += 99
    check_gradient(backend, rng, rois, image_index, 4, aggregate)


def check_gradient(backend, rng, rois, image_index, images, aggregate="mean", channels=2):
    """Compare the gradients of maps of 9 x 10 alone with the oracle's."""
    features, grad_out = (
        rng.standard_normal((images, channels, 9, 10)),
        rng.standard_normal((len(rois), channels, 2, 3)),
    )
    arguments, keywords = (rois, image_index), PLAIN | {"aggregate": aggregate}
    expected = reference.roi_align.roi_align_backward(grad_out, features, *arguments, **keywords)
    tensors = [tensor(x) for x in (features, *arguments)]
    number = tensor(np.zeros(0, np.int32))
    settings = {**keywords, "scales": [keywords["spatial_scale"]], "output_size": [2, 3]}
    del settings["spatial_scale"]
    levels = torch.zeros_like(tensors[2])
    if aggregate == "max":
        fields = [[tensors[0]], *tensors[1:], levels]
        number = accelerated.roi_align._forward(*fields, **settings, backend="torch")[1]
    [grad] = accelerated.roi_align._backward(
        tensor(grad_out), number, [tensors[0]], *tensors[1:], levels, **settings, backend=backend
    )
    assert_close(grad, expected, REDUCTION["float64"])


def test_weights_of_16_bits(rng):
    """Gradients of nearly equal RoIs with opposite signs show how weights were rounded.

    The weights of the second case, bins of 200 pixels, are near the smallest numbers of 16 bits.
    The interpreter multiplies no bfloat16.
    """
    for roi, sampling_ratio in ([-3.0, 2, 14, 9], 2), ([-380, -400, 420, 390], 0):
        grad_out = torch.as_tensor(rng.standard_normal((1, 2, 2, 2)), device=DEVICE).half() * 4096
        grad_out = torch.cat([grad_out, -grad_out])
        features = torch.zeros(1, 2, 5, 8, dtype=torch.float16, device=DEVICE)
        arguments = np.array([roi, roi]) * [[1], [1.03125]], np.array([0, 0])
        keywords = {"sampling_ratio": sampling_ratio, "aligned": False}
        rois, image_index = (tensor(x) for x in arguments)
        [grad] = accelerated.roi_align._backward(
            grad_out, image_index.int(), [features], rois.float(), image_index, image_index, [0.5],
            [2, 2], **keywords, aggregate="mean", backend="triton",
        )  # fmt: skip
        expected = reference.roi_align.roi_align_backward(
            *(x.double().cpu().numpy() for x in (grad_out, features)), *arguments,
            spatial_scale=0.5, output_size=2, **keywords,
        )  # fmt: skip
        assert_close(grad, expected, 2.0**-11 * 1.01)


@AGGREGATES
def test_fixed_shapes_of_plain_torch(aggregate, rng, monkeypatch):
    """On a GPU the lists keep entries of weight 0, which must not read or write even NaN."""
    monkeypatch.setattr(accelerated.kernels.eager.roi_align, "_fixed_shapes", lambda *_: True)
    features, rois, image_index = (
        rng.standard_normal((2, 3, 7, 9)),
        some_rois(rng, 9, 7, 9),
        np.arange(9) % 3 - 1,
    )
    features[0, 0, 0, 0] = features[1, 2, 6, 8] = np.nan
    grad_out = rng.standard_normal((9, 3, 2, 3))
    grad_out[0] = np.nan  # of a padding RoI
    keywords = PLAIN | {"aggregate": aggregate}
    out = pool("torch", features, rois, image_index, **keywords)
    assert_close(out, pool("numpy", features, rois, image_index, **keywords), POINTWISE["float64"])
    grad = gradient("torch", grad_out, features, rois, image_index, **keywords)
    assert_close(
        grad,
        gradient("numpy", grad_out, features, rois, image_index, **keywords),
        REDUCTION["float64"],
    )


@BACKENDS
def test_no_rois(backend):
    features = torch.ones(2, 3, 5, 5, device=DEVICE, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    out = accelerated.roi_align.roi_align(
        features, torch.zeros(0, 4, device=DEVICE), none, **PLAIN, backend=backend
    )
    assert out.shape == (0, 3, 2, 3)
    out.sum().backward()
    assert (features.grad == 0).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_low_precision_in_plain_torch(dtype, memory_format, rng):
    check_low_precision("torch", "cpu", getattr(torch, dtype), memory_format, "mean", rng)


def check_low_precision(backend, device, dtype, memory_format, aggregate, rng, limit=1.0):
    """Compare with the oracle on the rounded inputs; dtype and memory format are kept."""
    name = str(dtype).removeprefix("torch.")
    features = (
        torch.as_tensor(rng.standard_normal((2, 24, 20, 30)), device=device)
        .to(dtype)
        .contiguous(memory_format=memory_format)
    )
    rois, image_index = some_rois(rng, 40, 20, 30, np.float32), np.arange(40) % 2
    keywords = PLAIN | {"output_size": 7, "aggregate": aggregate}
    features.requires_grad_()
    out = accelerated.roi_align.roi_align(
        features,
        torch.as_tensor(rois, device=device),
        torch.as_tensor(image_index, device=device),
        **keywords,
        backend=backend,
    )
    assert out.dtype == dtype and out.is_contiguous(memory_format=memory_format)
    grad_out = torch.as_tensor(rng.standard_normal(out.shape), device=device).to(dtype)
    [grad] = torch.autograd.grad(out, features, grad_out)
    assert grad.dtype == dtype and grad.stride() == features.stride()
    oracle = features.detach().double().cpu().numpy(), rois.astype(np.float64), image_index
    assert_close(out, reference.roi_align.roi_align(*oracle, **keywords), POINTWISE[name] * limit)
    expected = reference.roi_align.roi_align_backward(
        grad_out.double().cpu().numpy(), *oracle, **keywords
    )
    assert_close(grad, expected, REDUCTION[name] * limit)


def test_memory_format_is_kept():
    for memory_format in (torch.contiguous_format, torch.channels_last):
        features = torch.ones(2, 4, 5, 6).contiguous(memory_format=memory_format)
        out = accelerated.roi_align.roi_align(
            features, torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64), **PLAIN
        )
        assert out.is_contiguous(memory_format=memory_format)


@AGGREGATES
def test_registered_as_an_operator(aggregate):
    """Schema, fake implementation and autograd, also of strided and channels-last features."""
    features = [
        torch.randn(2, 3, 6, 7),
        torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    ]
    rois = torch.tensor([[0.0, 0, 9, 9], [2, 3, 5, 8]])
    index = torch.tensor([0, 1])
    for some in (features, features[::-1]):
        some = [x.clone().requires_grad_() for x in some]
        torch.library.opcheck(
            accelerated.roi_align._forward,
            (some, rois, index, index, [0.5, 0.25], [2, 3], 2, False, aggregate, "torch"),
        )


@AGGREGATES
def test_compiles_into_one_graph(aggregate):
    features, rois = torch.randn(1, 2, 6, 6), torch.tensor([[0.0, 0, 9, 9]])

    def step(features):
        return (
            (
                accelerated.roi_align.roi_align(
                    features, rois, torch.tensor([0]), **PLAIN, aggregate=aggregate
                )
                * 2
            )
            .square()
            .sum()
        )

    grads = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        x = features.clone().requires_grad_()
        function(x).backward()
        grads.append(x.grad)
    assert_close(grads[1], grads[0], 1e-6)


# ---- on the chip


@pytest.mark.gpu
@BACKENDS
@AGGREGATES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_low_precision_on_a_gpu(backend, aggregate, dtype, memory_format, rng):
    check_low_precision(backend, "cuda", dtype, memory_format, aggregate, rng)


def eager(
    features,
    rois,
    image_index,
    *,
    output_size,
    spatial_scale,
    sampling_ratio,
    aligned,
    aggregate="mean",
):
    """RoIAlign in plain PyTorch, products and sums in the features' dtype; x2 >= x1, y2 >= y1."""
    dtype, (height, width) = features.dtype, features.shape[2:]
    axes = []
    for low, high, size in ((rois[:, 1], rois[:, 3], height), (rois[:, 0], rois[:, 2], width)):
        start = low * spatial_scale - 0.5 * aligned
        length = ((high * spatial_scale - 0.5 * aligned) - start).clamp(min=0 if aligned else 1)
        samples = (
            torch.arange(output_size * sampling_ratio, device=rois.device) + 0.5
        ) / sampling_ratio
        position = start[:, None] + samples * (length / output_size)[:, None]
        inside = (position >= -1) & (position <= size)
        hat = (
            1
            - (
                position.clamp(0, size - 1)[:, :, None] - torch.arange(size, device=rois.device)
            ).abs()
        ).clamp(min=0)
        hat = (hat * inside[:, :, None]).unflatten(1, (output_size, sampling_ratio))
        axes.append((hat.mean(2) if aggregate == "mean" else hat).to(dtype))
    if aggregate == "mean":
        return torch.einsum("rph,rchw,rqw->rcpq", axes[0], features[image_index], axes[1])
    return (
        torch.einsum("rpyh,rchw,rqxw->rcpqyx", axes[0], features[image_index], axes[1])
        .flatten(4)
        .max(4)
        .values
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_error_is_near_that_of_eager_pytorch(dtype, rng):
    features = (
        torch.as_tensor(rng.standard_normal((2, 32, 20, 30)), device="cuda")
        .to(dtype)
        .requires_grad_()
    )
    rois = torch.as_tensor(some_rois(rng, 40, 20, 30, np.float32), device="cuda")
    image_index = torch.arange(40, device="cuda") % 2
    keywords = PLAIN | {"output_size": 7}
    outputs = [
        function(features, rois, image_index, **keywords)
        for function in (accelerated.roi_align.roi_align, eager)
    ]
    grad_out = torch.as_tensor(rng.standard_normal(outputs[0].shape), device="cuda").to(dtype)
    grads = [torch.autograd.grad(out, features, grad_out)[0] for out in outputs]
    oracle = (
        features.detach().double().cpu().numpy(),
        rois.double().cpu().numpy(),
        image_index.cpu().numpy(),
    )
    expected = reference.roi_align.roi_align(*oracle, **keywords)
    ours, theirs = (error(out, expected) for out in outputs)
    assert ours <= 2 * theirs
    expected = reference.roi_align.roi_align_backward(
        grad_out.double().cpu().numpy(), *oracle, **keywords
    )
    ours, theirs = (error(grad, expected) for grad in grads)
    assert ours <= 3 * theirs


@pytest.mark.gpu
@BACKENDS
@AGGREGATES
def test_the_same_bits_every_time(backend, aggregate, rng):
    features = torch.as_tensor(
        rng.standard_normal((2, 64, 40, 60)), dtype=torch.float32, device="cuda"
    ).requires_grad_()
    rois = torch.as_tensor(some_rois(rng, 300, 40, 60, np.float32), device="cuda")
    image_index, grad_out = torch.arange(300, device="cuda") % 2, None
    first = None
    for _ in range(5):
        out = accelerated.roi_align.roi_align(
            features, rois, image_index, **PLAIN, aggregate=aggregate, backend=backend
        )
        grad_out = torch.linspace(-1, 1, out.numel(), device="cuda").view(out.shape)
        [grad] = torch.autograd.grad(out, features, grad_out)
        first = first or (out, grad)
        assert torch.equal(out, first[0]) and torch.equal(grad, first[1])


@pytest.mark.gpu
@AGGREGATES
@pytest.mark.parametrize(
    ("backend", "sampling_ratio"), [("triton", 2), ("triton", 0), ("torch", 2)]
)
def test_never_waits_for_the_gpu(backend, sampling_ratio, aggregate, rng):
    features = [
        torch.as_tensor(
            rng.standard_normal((2, 8, 20 >> l, 30 >> l)), device="cuda"
        ).requires_grad_()
        for l in range(2)
    ]
    rois = torch.as_tensor(some_rois(rng, 40, 20, 30), device="cuda")
    index = torch.arange(40, device="cuda") % 2
    keywords = {
        "scales": [0.5, 0.25],
        "output_size": 7,
        "sampling_ratio": sampling_ratio,
        "aligned": True,
        "aggregate": aggregate,
    }

    def step():
        torch.autograd.grad(
            accelerated.roi_align.multilevel(
                features, rois, index, index, **keywords, backend=backend
            ).sum(),
            features,
        )

    step()  # compiles the kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@BACKENDS
def test_a_gpu_yields_nothing_for_bad_rois(backend):
    features = torch.ones(1, 2, 6, 6, device="cuda", requires_grad=True)
    rois = torch.tensor(
        [[float("nan"), 0, 1, 1], [0, 0, float("inf"), 4], [1, 1, 6, 6]], device="cuda"
    )
    out = accelerated.roi_align.roi_align(
        features, rois, torch.zeros(3, dtype=torch.int64, device="cuda"), **PLAIN, backend=backend
    )
    assert (out[:2] == 0).all() and (out[2] != 0).all()
    out.sum().backward()
    assert features.grad.isfinite().all()
