"""RoIWarp: NumPy, PyTorch and Triton against each other, RoIAlign, and numbers worked by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.gradients import check_backward, check_float32, compare_with_autograd
from support.strategies import arrays
from support.strategies import boxes as some_boxes
from test_roi_align import eager

import accelerated.roi_warp
import reference.roi_warp
from accelerated.rois import whole_pixels as fast_whole_pixels
from accelerated.verify.equality import POINTWISE, REDUCTION, assert_close, assert_equal
from reference.roi_align import roi_align
from reference.rois import whole_pixels

EVERY = pytest.mark.parametrize("implementation", ["numpy", "torch", "triton"])
FAST = pytest.mark.parametrize("implementation", ["numpy", "torch"])
BACKENDS = pytest.mark.parametrize("backend", ["torch", "triton"])
AGGREGATES = pytest.mark.parametrize("aggregate", ["mean", "max"])
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLAIN = {"output_size": (2, 3), "spatial_scale": 0.5, "sampling_ratio": 2}


def tensor(array):
    return torch.as_tensor(array, device=DEVICE)


def pool(implementation, features, rois, image_index, **keywords):
    """The output of any of the three implementations, as an array."""
    if implementation == "numpy":
        return reference.roi_warp.roi_warp(features, rois, image_index, **keywords)
    arguments = [tensor(x) for x in (features, rois, image_index)]
    return (
        accelerated.roi_warp.roi_warp(*arguments, **keywords, backend=implementation).cpu().numpy()
    )


def gradient(implementation, grad_out, features, rois, image_index, **keywords):
    if implementation == "numpy":
        return reference.roi_warp.roi_warp_backward(
            grad_out, features, rois, image_index, **keywords
        )
    features = tensor(features).requires_grad_()
    out = accelerated.roi_warp.roi_warp(
        features, tensor(rois), tensor(image_index), **keywords, backend=implementation
    )
    return torch.autograd.grad(out, features, tensor(grad_out))[0].cpu().numpy()


def some_rois(rng, dtype=np.float64):
    """Inside, across the border, outside, without area, reversed, padding; none on a half pixel."""
    rois = np.array(
        [
            [2, 3, 11, 9],
            [-6, -5, 7, 30],
            [40, 40, 50, 60],
            [5, 5, 5, 5],
            [9, 8, 4, 2],
            [1, 1, 12, 12],
        ],
        dtype,
    )
    return rois + rng.uniform(0.1, 0.4, (6, 4)).astype(dtype), np.array([0, 1, 1, 0, 1, -1])


# ---- by hand


@EVERY
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_coordinates_round_half_away_from_zero_and_the_end_is_inclusive(implementation, dtype):
    """[0.5, 1.5, 2.5, 3.5] spans pixels 1..3 and 2..4: its middle is (2.5, 3.5)."""
    y, x = np.mgrid[:8, :9].astype(dtype)
    features = (x + 10 * y)[None, None]
    rois = np.array(
        [
            [0.5, 1.5, 2.5, 3.5],
            [2.5, 2.5, 2.5, 2.5],
            [-0.5, 0.5, 0.5, 1.5],
            [3.4999, 4.5, 3.5001, 4.4999],
        ],
        dtype,
    )
    out = pool(
        implementation,
        features,
        rois,
        np.zeros(4, np.int64),
        output_size=1,
        spatial_scale=1.0,
        sampling_ratio=1,
    )
    assert_close(out[:, 0, 0, 0], [37.5, 38.5, 20.5, 59.0], 1e-6 if dtype == np.float32 else 1e-14)


def test_whole_pixels():
    """Half away from zero; an end before its start gives one pixel; 1/16 of -8 and 8 pixels."""
    rois = np.array(
        [[-8.0, 8, 24, 40], [-8.1, -7.9, 7.9, 8.1], [24, 24, 8, 8], [-40, -24, -24, -40]]
    )
    expected = [[-1, 1, 3, 4], [-1, 0, 1, 2], [2, 2, 3, 3], [-3, -2, -1, -1]]
    assert_equal(whole_pixels(rois, 1 / 16), expected)
    assert_equal(
        fast_whole_pixels(torch.from_numpy(rois), torch.full((4,), 1 / 16, dtype=torch.float64)),
        expected,
    )


@FAST
@AGGREGATES
def test_rois_on_whole_pixels_are_those_of_roi_align(implementation, aggregate, rng):
    """In feature pixels, with the end one pixel further: RoIWarp's is inclusive."""
    features, image_index = rng.standard_normal((2, 3, 8, 9)), np.array([0, 1, 1, 0])
    whole = np.array([[1, 2, 5, 6], [-2, 0, 3, 11], [4, 4, 5, 5], [0, 0, 9, 8]], float)
    keywords = {"output_size": 2, "sampling_ratio": 2, "aggregate": aggregate}
    inclusive = (whole - np.array([0, 0, 1, 1])) * 4  # stride 4
    out = pool(implementation, features, inclusive, image_index, **keywords, spatial_scale=0.25)
    expected = roi_align(features, whole, image_index, **keywords, spatial_scale=1.0, aligned=False)
    assert_close(out, expected, POINTWISE["float64"])
    moved = pool(
        implementation,
        features,
        inclusive + np.array([1.9, -1.9, 1.9, -1.9]),
        image_index,
        **keywords,
        spatial_scale=0.25,
    )
    assert_equal(moved, out, "less than half a feature pixel is lost")


# ---- gradients of the reference


@AGGREGATES
@given(data=st.data())
def test_on_the_tape(aggregate, data):
    rois = data.draw(some_boxes(14, 18))
    image_index = data.draw(
        st.lists(st.integers(0, 1), min_size=len(rois), max_size=len(rois)).map(
            lambda x: np.array(x, np.int64)
        )
    )
    check_backward_on_the_tape(data.draw(arrays(2, 2, 7, 9)), rois, image_index, aggregate)


def check_backward_on_the_tape(features, rois, image_index, aggregate):
    """Against RoIAlign in plain PyTorch; a maximum has too many kinks for finite differences."""
    keywords = {"output_size": 2, "sampling_ratio": 2, "aggregate": aggregate}
    scaled = 0.5 * rois
    whole = np.trunc(scaled + np.copysign(0.5, scaled))
    whole[:, 2:] = np.maximum(whole[:, 2:], whole[:, :2]) + 1

    def function(x):
        return reference.roi_warp.roi_warp(x, rois, image_index, **keywords, spatial_scale=0.5)

    def twin(x):
        return eager(
            x,
            torch.tensor(whole),
            torch.tensor(image_index),
            **keywords,
            spatial_scale=1.0,
            aligned=False,
        )

    if aggregate == "mean":
        check_backward(function, twin, features, linear=[0])
    else:
        compare_with_autograd(function, twin, features)
        check_float32(function, features)


# ---- the twins


CASES = [
    ("torch", a, s, d) for a in ("mean", "max") for s in (2, 0) for d in (np.float64, np.float32)
]
CASES += [
    ("triton", "mean", 2, np.float64),
    ("triton", "max", 0, np.float32),
]  # its kernels are RoIAlign's


@pytest.mark.parametrize(("backend", "aggregate", "sampling_ratio", "dtype"), CASES)
def test_twins(backend, aggregate, sampling_ratio, dtype, rng):
    channels = 3 if sampling_ratio else 1
    features = rng.standard_normal((2, channels, 7, 9)).astype(dtype)
    rois, image_index = some_rois(rng, dtype)
    grad_out = rng.standard_normal((6, channels, 2, 3)).astype(dtype)
    keywords, name = (
        PLAIN | {"sampling_ratio": sampling_ratio, "aggregate": aggregate},
        np.dtype(dtype).name,
    )
    oracle = [x.astype(np.float64) for x in (features, rois)]
    expected = pool("numpy", *oracle, image_index, **keywords)
    expected_grad = gradient("numpy", grad_out.astype(np.float64), *oracle, image_index, **keywords)
    assert (expected[2] == 0).all() and (expected[5] == 0).all(), "outside the map, and padding"
    assert (expected[[0, 1, 3, 4]] != 0).any((1, 2, 3)).all()
    if dtype == np.float64:  # as strided as a tensor can be
        features = (
            np.repeat(features, 2, axis=3)[..., ::2]
            .transpose(0, 1, 3, 2)
            .copy()
            .transpose(0, 1, 3, 2)
        )
    assert_close(
        pool(backend, features, rois, image_index, **keywords), expected, POINTWISE[name], "out"
    )
    assert_close(
        gradient(backend, grad_out, features, rois, image_index, **keywords),
        expected_grad,
        REDUCTION[name],
        "grad",
    )


@AGGREGATES
@given(data=st.data())
def test_twins_on_any_boxes(aggregate, data):
    height, width, channels = (
        data.draw(st.integers(1, 9)),
        data.draw(st.integers(1, 9)),
        data.draw(st.integers(1, 5)),
    )
    rois = data.draw(some_boxes(2 * height, 2 * width))
    features, grad_out = (
        data.draw(arrays(2, channels, height, width)),
        data.draw(arrays(len(rois), channels, 2, 3)),
    )
    image_index = data.draw(
        st.lists(st.integers(-1, 1), min_size=len(rois), max_size=len(rois)).map(
            lambda x: np.array(x, np.int64)
        )
    )
    keywords = PLAIN | {"sampling_ratio": data.draw(st.integers(0, 3)), "aggregate": aggregate}
    out, expected = (pool(i, features, rois, image_index, **keywords) for i in ("torch", "numpy"))
    assert_close(out, expected, POINTWISE["float64"])
    grad, expected = (
        gradient(i, grad_out, features, rois, image_index, **keywords) for i in ("torch", "numpy")
    )
    assert_close(grad, expected, REDUCTION["float64"])


@pytest.mark.parametrize(
    ("backend", "aggregate"), [("torch", "mean"), ("torch", "max"), ("triton", "mean")]
)
def test_all_levels_at_once(backend, aggregate, rng):
    """Two levels in one call are the two calls: each RoI is rounded on its own level."""
    features = [
        tensor(rng.standard_normal((2, 3, 7, 9))).requires_grad_(),
        tensor(rng.standard_normal((2, 3, 4, 5))).requires_grad_(),
    ]
    (rois, image_index), level_index = some_rois(rng), np.array([0, 1, 0, 1, 1, 1])
    scales, keywords = [0.5, 0.25], {"output_size": 2, "sampling_ratio": 2, "aggregate": aggregate}
    arguments = [tensor(x) for x in (rois, image_index, level_index)]
    out = accelerated.roi_warp.multilevel(
        features, *arguments, scales=scales, **keywords, backend=backend
    )
    grad_out = rng.standard_normal(out.shape)
    grads = torch.autograd.grad(out, features, tensor(grad_out))
    for level, (x, grad) in enumerate(zip(features, grads, strict=True)):
        x, here = x.detach().cpu().numpy(), level_index == level
        arguments = (x, rois[here], image_index[here])
        assert_close(
            out[tensor(here)],
            pool("numpy", *arguments, **keywords, spatial_scale=scales[level]),
            POINTWISE["float64"],
        )
        expected = gradient(
            "numpy", grad_out[here], *arguments, **keywords, spatial_scale=scales[level]
        )
        assert_close(grad, expected, REDUCTION["float64"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_in_plain_torch(dtype, rng):
    check_low_precision("torch", "cpu", dtype, rng)


@pytest.mark.gpu
@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_on_a_gpu(backend, dtype, rng):
    check_low_precision(backend, "cuda", dtype, rng)


def check_low_precision(backend, device, dtype, rng):
    """Coordinates keep the dtype of the boxes; dtype and memory format of the features are kept."""
    name = str(dtype).removeprefix("torch.")
    features = (
        torch.as_tensor(rng.standard_normal((2, 8, 7, 9)), device=device)
        .to(dtype)
        .contiguous(memory_format=torch.channels_last)
    )
    features.requires_grad_()
    rois, image_index = some_rois(rng, np.float32)
    arguments = [torch.as_tensor(x, device=device) for x in (rois, image_index)]
    out = accelerated.roi_warp.roi_warp(features, *arguments, **PLAIN, backend=backend)
    assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
    grad_out = torch.as_tensor(rng.standard_normal(out.shape), device=device).to(dtype)
    [grad] = torch.autograd.grad(out, features, grad_out)
    assert grad.dtype == dtype
    oracle = features.detach().double().cpu().numpy(), rois.astype(np.float64), image_index
    assert_close(out, pool("numpy", *oracle, **PLAIN), POINTWISE[name])
    assert_close(
        grad, gradient("numpy", grad_out.double().cpu().numpy(), *oracle, **PLAIN), REDUCTION[name]
    )


# ---- bad input


@EVERY
def test_a_padding_roi_may_be_anything(implementation, rng):
    features = rng.standard_normal((1, 2, 6, 6))
    rois = np.array([[2.0, 2, 8, 8], [np.nan, 0, np.inf, 1], [-np.inf, 0, 3, 3]])
    out = pool(implementation, features, rois, np.array([0, -1, -1]), **PLAIN)
    grad = gradient(
        implementation, np.ones_like(out), features, rois, np.array([0, -1, -1]), **PLAIN
    )
    assert (out[1:] == 0).all() and (out[0] != 0).all()
    assert abs(grad.sum() - 2 * 6) < 1e-12


@EVERY
def test_bad_rois_are_named(implementation):
    if DEVICE == "cuda" and implementation != "numpy":
        pytest.skip("a GPU is not asked; there they give 0")
    for bad in (np.nan, np.inf):
        rois = np.zeros((3, 4))
        rois[2, 1] = bad
        with pytest.raises(ValueError, match=r"rois\[2\]"):
            pool(implementation, np.zeros((1, 1, 4, 4)), rois, np.zeros(3, np.int64), **PLAIN)
    with pytest.raises(ValueError, match=r"image_index\[1\]"):
        pool(implementation, np.zeros((1, 1, 4, 4)), np.zeros((3, 4)), np.array([0, 1, 0]), **PLAIN)


@FAST
def test_no_rois(implementation):
    arguments = np.ones((2, 3, 5, 5)), np.zeros((0, 4)), np.zeros(0, np.int64)
    assert pool(implementation, *arguments, **PLAIN).shape == (0, 3, 2, 3)
    assert (gradient(implementation, np.zeros((0, 3, 2, 3)), *arguments, **PLAIN) == 0).all()


def test_no_gradient_reaches_the_rois(rng):
    rois, image_index = map(torch.as_tensor, some_rois(rng))
    out = accelerated.roi_warp.roi_warp(
        torch.ones(2, 1, 7, 9, requires_grad=True).double(),
        rois.requires_grad_(),
        image_index,
        **PLAIN,
    )
    out.sum().backward()
    assert rois.grad is None


def test_compiles_into_one_graph():
    features, rois = torch.randn(1, 2, 6, 6), torch.tensor([[0.3, 0, 9, 9]])

    def step(features):
        return (
            (accelerated.roi_warp.roi_warp(features, rois, torch.tensor([0]), **PLAIN) * 2)
            .square()
            .sum()
        )

    grads = []
    for function in (step, torch.compile(step, fullgraph=True, backend="eager")):
        x = features.clone().requires_grad_()
        function(x).backward()
        grads.append(x.grad)
    assert_close(grads[1], grads[0], 1e-6)


@pytest.mark.gpu
def test_never_waits_for_the_gpu(rng):
    rois, image_index = (torch.as_tensor(x, device="cuda") for x in some_rois(rng, np.float32))
    features = torch.ones(2, 8, 7, 9, device="cuda", requires_grad=True)

    def step():
        torch.autograd.grad(
            accelerated.roi_warp.roi_warp(
                features, rois, image_index, **PLAIN, backend="triton"
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
