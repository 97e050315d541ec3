"""RoIPool: NumPy, PyTorch and Triton against torchvision and each other, argmax included."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.golden_cases import EXTENT, cases
from support.gradients import check_backward, compare_with_autograd, distinct
from support.strategies import arrays
from support.strategies import boxes as some_boxes

import accelerated.roi_pool
import accelerated.rois
import reference.roi_pool
from accelerated.verify.equality import REDUCTION, assert_close, assert_equal

EVERY = pytest.mark.parametrize("implementation", ["numpy", "torch", "triton"])
FAST = pytest.mark.parametrize("implementation", ["numpy", "torch"])
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLAIN = {"output_size": (2, 3), "spatial_scale": 0.5}


def tensor(array):
    return torch.as_tensor(array, device=DEVICE)


def pool(implementation, features, rois, image_index, *, output_size, spatial_scale):
    """Output and argmax of any of the three implementations, as arrays."""
    if implementation == "numpy":
        return reference.roi_pool.roi_pool_with_argmax(
            features, rois, image_index, output_size=output_size, spatial_scale=spatial_scale
        )
    arguments = [tensor(x) for x in (rois, image_index, np.zeros_like(image_index))]
    size = accelerated.rois.pair(output_size)
    results = accelerated.roi_pool._forward(
        [tensor(features)], *arguments, [spatial_scale], size, implementation
    )
    return [x.cpu().numpy() for x in results]


def gradient(implementation, grad_out, features, rois, image_index, **keywords):
    if implementation == "numpy":
        return reference.roi_pool.roi_pool_backward(
            grad_out, features, rois, image_index, **keywords
        )
    features = tensor(features).requires_grad_()
    out = accelerated.roi_pool.roi_pool(
        features, tensor(rois), tensor(image_index), **keywords, backend=implementation
    )
    return torch.autograd.grad(out, features, tensor(grad_out))[0].cpu().numpy()


def some_case(rng, channels=3, count=6, dtype=np.float64):
    """Few values, so that maxima tie; boxes inside, across the border, outside; one padding RoI."""
    features = rng.integers(-3, 3, (2, channels, 10, 9)).astype(dtype)
    corner = rng.uniform(-6, 20, (count, 2))
    rois = np.concatenate([corner, corner + rng.uniform(0, 16, (count, 2))], axis=1).astype(dtype)
    image_index = np.arange(count) % 2
    image_index[2] = -1
    return features, rois, image_index


@FAST
@EXTENT
def test_golden(request, implementation, extent):
    for name, case in cases(request, extent, "tv", "roi_pool/float64", "roi_operators").items():
        rois, image_index = case["in.rois"][:, 1:], case["in.rois"][:, 0].astype(np.int64)
        keywords = {
            "output_size": (int(case["in.ph"]), int(case["in.pw"])),
            "spatial_scale": float(case["in.scale"]),
        }
        out, argmax = pool(implementation, case["in.x"], rois, image_index, **keywords)
        assert_equal(out, case["out.y"], name)
        assert_equal(argmax, case["out.argmax"], name)
        grad = gradient(
            implementation, case["in.grad_out"], case["in.x"], rois, image_index, **keywords
        )
        assert_close(grad, case["out.dx"], 1e-12, name)


def test_golden_ties_in_triton(request):
    [case] = cases(request, "subset", "tv", "roi_pool/float64/ties", "roi_operators").values()
    rois, image_index = case["in.rois"][:, 1:], case["in.rois"][:, 0].astype(np.int64)
    keywords = {
        "output_size": (int(case["in.ph"]), int(case["in.pw"])),
        "spatial_scale": float(case["in.scale"]),
    }
    out, argmax = pool("triton", case["in.x"], rois, image_index, **keywords)
    assert_equal(out, case["out.y"])
    assert_equal(argmax, case["out.argmax"])
    assert_close(
        gradient("triton", case["in.grad_out"], case["in.x"], rois, image_index, **keywords),
        case["out.dx"],
        1e-12,
    )


@EVERY
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_coordinates_round_half_away_from_zero(implementation, dtype):
    """0.5, 2.5 and -0.5 become 1, 3 and -1 (half to even would make them 0, 2 and 0)."""
    features = np.arange(64, dtype=dtype).reshape(1, 1, 8, 8)
    rois = np.array(
        [
            [0.5, 0.5, 2.5, 2.5],
            [-0.5, -0.5, -0.5, -0.5],
            [0.49999997, 0, 0.49999997, 0],
            [7.5, 7.5, 9, 9],
        ],
        dtype,
    )
    out, argmax = pool(
        implementation, features, rois, np.zeros(4, np.int64), output_size=1, spatial_scale=1.0
    )
    assert_equal(out[:, 0, 0, 0], [27, 0, 0, 0])
    assert_equal(argmax[:, 0, 0, 0], [27, -1, 0, -1])


def test_bins():
    """By hand: rows 1 to 5 overlap in two bins, columns -1 to 2 and 6 to 9 leave the map."""
    rois = np.array([[-1.5, 1.5, 4.0, 10.0], [12.0, 1.5, 18.0, 10.0]])
    rows, columns = reference.roi_pool.bins(rois, (9, 8), (2, 3), 0.5)
    assert rows.dtype == columns.dtype == np.int64
    assert_equal(rows, [[[1, 4], [3, 6]]] * 2)
    assert_equal(columns, [[[0, 1], [0, 2], [1, 3]], [[6, 8], [7, 8], [8, 8]]])


@given(data=st.data())
def test_outputs_are_the_maxima_of_the_bins(data):
    """An output lies where `roi_pool_with_argmax` says, in its bin; an empty bin has none."""
    rois = data.draw(some_boxes(14, 18))
    features = data.draw(arrays(1, 2, 7, 9)).round(1)
    rows, columns = reference.roi_pool.bins(rois, features.shape[2:], (2, 3), 0.5)
    out, argmax = pool("numpy", features, rois, np.zeros(len(rois), int), **PLAIN)
    for (r, c, p, q), value in np.ndenumerate(out):
        inside = features[0, c, slice(*rows[r, p]), slice(*columns[r, q])]
        assert value == (inside.max() if inside.size else 0)
        y, x = divmod(argmax[r, c, p, q], 9)
        if inside.size:
            assert rows[r, p, 0] <= y < rows[r, p, 1] and columns[r, q, 0] <= x < columns[r, q, 1]
            assert features[0, c, y, x] == value
        else:
            assert argmax[r, c, p, q] == -1


@EVERY
def test_the_first_maximum_in_row_major_order_takes_the_gradient(implementation):
    features = np.zeros((1, 1, 4, 4))
    rois, image_index = np.array([[0.0, 0, 3, 3]]), np.array([0])
    keywords = {"output_size": 2, "spatial_scale": 1.0}
    assert_equal(
        pool(implementation, features, rois, image_index, **keywords)[1][0, 0], [[0, 2], [8, 10]]
    )
    grad = gradient(
        implementation, np.array([[[[1.0, 2], [3, 4]]]]), features, rois, image_index, **keywords
    )
    assert_equal(grad[0, 0, ::2, ::2], [[1, 2], [3, 4]])
    assert grad.sum() == 10


@EVERY
def test_nan_reaches_the_bins_it_lies_in_and_no_others(implementation):
    features = np.arange(16.0).reshape(1, 1, 4, 4)
    features[0, 0, 1, 1] = np.nan
    features[0, 0, 3, 3] = np.inf
    out, _ = pool(
        implementation,
        features,
        np.array([[0.0, 0, 3, 3]]),
        np.array([0]),
        output_size=2,
        spatial_scale=1.0,
    )
    assert_equal(out[0, 0], [[np.nan, 7], [13, np.inf]])


@EVERY
def test_bad_rois_are_named(implementation):
    if DEVICE == "cuda" and implementation != "numpy":
        pytest.skip("a GPU is not asked; there they give 0")
    rois = np.zeros((3, 4))
    rois[1, 3] = np.nan
    with pytest.raises(ValueError, match=r"rois\[1\]"):
        pool(implementation, np.zeros((1, 1, 4, 4)), rois, np.zeros(3, np.int64), **PLAIN)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(("dtype", "channels"), [(np.float64, 3), (np.float32, 5)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_twins(backend, dtype, channels, memory_format, rng):
    features, rois, image_index = some_case(rng, channels, dtype=dtype)
    expected, expected_argmax = pool("numpy", features, rois, image_index, **PLAIN)
    grad_out = rng.standard_normal(expected.shape).astype(dtype)
    expected_grad = gradient("numpy", grad_out, features, rois, image_index, **PLAIN)
    features = torch.as_tensor(features).contiguous(memory_format=memory_format)
    out, argmax = pool(backend, features, rois, image_index, **PLAIN)
    assert_equal(out, expected)
    assert_equal(argmax, expected_argmax)
    grad = gradient(backend, grad_out, features, rois, image_index, **PLAIN)
    assert_close(grad, expected_grad, REDUCTION[np.dtype(dtype).name])


@given(data=st.data())
def test_twins_on_any_boxes(data):
    height, width, channels = (
        data.draw(st.integers(1, 9)),
        data.draw(st.integers(1, 9)),
        data.draw(st.integers(1, 5)),
    )
    rois = data.draw(some_boxes(2 * height, 2 * width))
    features = data.draw(arrays(2, channels, height, width)).round(1)
    grad_out = data.draw(arrays(len(rois), channels, 2, 3))
    image_index = np.arange(len(rois)) % 2
    for ours, expected in zip(
        *(pool(i, features, rois, image_index, **PLAIN) for i in ("torch", "numpy")), strict=True
    ):
        assert_equal(ours, expected)
    grad, expected = (
        gradient(i, grad_out, features, rois, image_index, **PLAIN) for i in ("torch", "numpy")
    )
    assert_close(grad, expected, REDUCTION["float64"])


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_all_levels_at_once(backend, rng):
    features = [
        tensor(rng.standard_normal((2, 3, 9, 11))).requires_grad_(),
        tensor(rng.standard_normal((2, 3, 5, 6))).requires_grad_(),
    ]
    _, rois, image_index = some_case(rng)
    level_index, scales = np.array([0, 1, 0, 1, 1, 0]), [0.5, 0.25]
    arguments = [tensor(x) for x in (rois, image_index, level_index)]
    out = accelerated.roi_pool.multilevel(
        features, *arguments, scales=scales, output_size=(2, 3), backend=backend
    )
    grad_out = rng.standard_normal(out.shape)
    grads = torch.autograd.grad(out, features, tensor(grad_out))
    for level, (x, grad) in enumerate(zip(features, grads, strict=True)):
        here, keywords = (
            level_index == level,
            {"output_size": (2, 3), "spatial_scale": scales[level]},
        )
        arguments = (x.detach().cpu().numpy(), rois[here], image_index[here])
        assert_equal(out[tensor(here)], reference.roi_pool.roi_pool(*arguments, **keywords))
        assert_close(
            grad,
            reference.roi_pool.roi_pool_backward(grad_out[here], *arguments, **keywords),
            REDUCTION["float64"],
        )


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_no_rois(backend):
    features = torch.ones(2, 3, 5, 5, device=DEVICE, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    out = accelerated.roi_pool.roi_pool(
        features, torch.zeros(0, 4, device=DEVICE), none, **PLAIN, backend=backend
    )
    assert out.shape == (0, 3, 2, 3)
    out.sum().backward()
    assert (features.grad == 0).all()


def test_finite_differences(rng):
    features, rois, image_index = some_case(rng)
    features += rng.uniform(0, 0.5, features.shape)  # no ties
    direction, step = rng.standard_normal(features.shape), 1e-7
    out, argmax = pool("numpy", features, rois, image_index, **PLAIN)
    grad_out = rng.standard_normal(out.shape)
    ahead, behind = (
        pool("numpy", features + s * direction, rois, image_index, **PLAIN) for s in (step, -step)
    )
    assert (ahead[1] == argmax).all() and (behind[1] == argmax).all()
    measured = ((ahead[0] - behind[0]) * grad_out).sum() / (2 * step)
    assert (
        abs(
            measured
            - (gradient("numpy", grad_out, features, rois, image_index, **PLAIN) * direction).sum()
        )
        < 1e-6
    )


@given(st.data(), st.integers(0, 2**31))
def test_on_the_tape(data, seed):
    rois = data.draw(some_boxes(14, 18))
    check_backward_on_the_tape(
        distinct(np.random.default_rng(seed), (2, 2, 7, 9)), rois, np.arange(len(rois)) % 2
    )


def check_backward_on_the_tape(features, rois, image_index):
    def function(x):
        return reference.roi_pool.roi_pool(
            x, rois, image_index, output_size=(2, 4), spatial_scale=0.5
        )

    def twin(x):
        return eager(x, rois, image_index, output_size=(2, 4), spatial_scale=0.5)

    check_backward(function, twin, features)
    compare_with_autograd(function, twin, features.round(0))  # many ties


def eager(features, rois, image_index, *, output_size, spatial_scale):
    """RoIPool in plain PyTorch, bin by bin; the bins are computed with integers."""
    (height, width), out = features.shape[2:], []
    for roi, n in zip((rois * spatial_scale).tolist(), image_index.tolist(), strict=True):
        x1, y1, x2, y2 = (int(math.copysign(math.floor(abs(v) + 0.5), v)) for v in roi)
        for p, q in np.ndindex(output_size):
            (top, bottom), (left, right) = (
                (
                    min(max(start + i * side // bins, 0), size),
                    min(max(start - (-(i + 1) * side // bins), 0), size),
                )
                for i, bins, start, side, size in (
                    (p, output_size[0], y1, max(y2 - y1 + 1, 1), height),
                    (q, output_size[1], x1, max(x2 - x1 + 1, 1), width),
                )
            )
            bin = features[n, :, top:bottom, left:right].flatten(1)
            out.append(bin.max(1).values if bin.shape[1] else 0 * features[n, :, 0, 0])
    return (
        torch.stack([*out, 0 * features[0, :, 0, 0]])[:-1]
        .unflatten(0, (len(rois), *output_size))
        .permute(0, 3, 1, 2)
    )


def test_registered_as_an_operator():
    features = [
        torch.randn(2, 3, 6, 7, requires_grad=True),
        torch.randn(2, 3, 4, 4, requires_grad=True),
    ]
    rois, index = torch.tensor([[0.0, 0, 9, 9], [2, 3, 5, 8]]), torch.tensor([0, 1])
    torch.library.opcheck(
        accelerated.roi_pool._forward, (features, rois, index, index, [0.5, 0.25], [2, 3], "torch")
    )


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_on_a_gpu(backend, dtype, memory_format, rng):
    """Values and argmax exactly those of the oracle; the same bits every time."""
    features, rois, image_index = some_case(rng, 24, 40, np.float32)
    features = (
        torch.as_tensor(features, device="cuda")
        .to(dtype)
        .contiguous(memory_format=memory_format)
        .requires_grad_()
    )
    arguments = [torch.as_tensor(x, device="cuda") for x in (rois, image_index)]
    expected = reference.roi_pool.roi_pool(
        features.detach().double().cpu().numpy(), rois, image_index, **PLAIN
    )
    grad_out = torch.as_tensor(rng.standard_normal(expected.shape), device="cuda").to(dtype)
    grads = []
    for _ in range(3):
        out = accelerated.roi_pool.roi_pool(features, *arguments, **PLAIN, backend=backend)
        assert_equal(out, expected)
        grads.append(torch.autograd.grad(out, features, grad_out)[0])
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])
    oracle = features.detach().double().cpu().numpy(), rois, image_index
    expected = reference.roi_pool.roi_pool_backward(
        grad_out.double().cpu().numpy(), *oracle, **PLAIN
    )
    assert_close(grads[0], expected, REDUCTION[str(dtype).removeprefix("torch.")])


@pytest.mark.gpu
def test_never_waits_for_the_gpu(rng):
    features, rois, image_index = (torch.as_tensor(x, device="cuda") for x in some_case(rng, 8, 40))
    features.requires_grad_()

    def step():
        torch.autograd.grad(
            accelerated.roi_pool.roi_pool(
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


@FAST
def test_the_first_of_two_nans_is_the_maximum(implementation):
    features = np.arange(36.0).reshape(1, 1, 6, 6)
    features[0, 0, 1, 1] = features[0, 0, 2, 0] = np.nan
    rois, image_index = np.array([[0.0, 0.0, 5.0, 5.0]]), np.array([0])
    keywords = {"output_size": (2, 2), "spatial_scale": 1.0}
    out, argmax = pool(implementation, features, rois, image_index, **keywords)
    assert_equal(out.ravel()[1:], [17, 32, 35])
    assert np.isnan(out.flat[0]) and argmax.flat[0] == 7
