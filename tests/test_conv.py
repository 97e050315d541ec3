"""Convolutions and their backwards against PyTorch's in float64; adjointness, chunking, errors."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.gradients import check_backward

from accelerated import conv as accelerated
from accelerated.verify.equality import REDUCTION, assert_close, assert_equal
from reference import conv


@st.composite
def convolutions(draw):
    """(x, weight, bias, keywords), the kernel never larger than the padded image."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    groups = draw(st.sampled_from([1, 1, 2]))
    kernel = draw(st.tuples(*[st.integers(1, 4)] * 2))
    padding, dilation = draw(st.integers(0, 3)), draw(st.integers(1, 2))
    keywords = {
        "stride": draw(st.integers(1, 3)),
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }
    height, width = (
        draw(st.integers(max(1, dilation * (k - 1) + 1 - 2 * padding), 11)) for k in kernel
    )
    x = rng.standard_normal((draw(st.integers(0, 2)), 3 * groups, height, width))
    weight = rng.standard_normal((2 * groups, 3, *kernel))
    return x, weight, draw(st.sampled_from([None, rng.standard_normal(2 * groups)])), keywords


@given(convolutions(), st.sampled_from([1, 200, 8 << 20]))
def test_conv2d(case, chunk_bytes):
    x, weight, bias, keywords = case
    expected = F.conv2d(
        torch.tensor(x),
        torch.tensor(weight),
        None if bias is None else torch.tensor(bias),
        **keywords,
    )
    with pytest.MonkeyPatch.context() as patch:
        # One row, a few rows, everything at once.
        patch.setattr(conv, "CHUNK_BYTES", chunk_bytes)
        assert_close(conv.conv2d(x, weight, bias, **keywords), expected, REDUCTION["float64"])


@given(st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 2))
def test_conv_transpose2d(kernel, stride, with_bias, images):
    rng = np.random.default_rng(kernel * 10 + stride)
    x, weight = rng.standard_normal((images, 3, 5, 4)), rng.standard_normal((3, 2, kernel, kernel))
    bias = rng.standard_normal(2) if with_bias else None
    expected = F.conv_transpose2d(
        torch.tensor(x),
        torch.tensor(weight),
        None if bias is None else torch.tensor(bias),
        stride=stride,
    )
    assert_close(
        conv.conv_transpose2d(x, weight, bias, stride=stride), expected, REDUCTION["float64"]
    )


@given(convolutions())
def test_conv2d_backward(case):
    check_conv2d_backward(*case)


def check_conv2d_backward(x, weight, bias, keywords):
    arrays = [x, weight] if bias is None else [x, weight, bias]
    linear = [0, 1] if bias is None else []
    check_backward(
        lambda *a: conv.conv2d(*a, **keywords),
        lambda *a: F.conv2d(*a, **keywords),
        *arrays,
        linear=linear,
    )


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 2),
    st.integers(0, 2**31),
)
def test_conv_transpose2d_backward(kernel, stride, with_bias, images, seed):
    rng = np.random.default_rng(seed)
    shapes = (images, 3, 5, 4), (3, 2, *kernel), (2,)
    check_conv_transpose2d_backward(
        *(rng.standard_normal(shape) for shape in shapes[: 2 + with_bias]), stride=stride
    )


def check_conv_transpose2d_backward(*arrays, stride):
    linear = [0, 1] if len(arrays) == 2 else []
    twin = F.conv_transpose2d
    check_backward(
        lambda *a: conv.conv_transpose2d(*a, stride=stride),
        lambda *a: twin(*a, stride=stride),
        *arrays,
        linear=linear,
    )


def test_backward_of_a_strided_view(rng):
    x, weight, grad_out = (
        rng.standard_normal((2, 9, 8, 6)),
        rng.standard_normal((2, 3, 3, 3)),
        rng.standard_normal((2, 2, 8, 6)),
    )
    view = x[:, ::3, ::-1]
    for gradient, expected in zip(
        *(conv.conv2d_backward(grad_out, v, weight, padding=1) for v in (view, view.copy())),
        strict=True,
    ):
        assert_equal(gradient, expected)


def test_transpose_is_the_adjoint(rng):
    x, weight = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((3, 2, 3, 3))
    y = rng.standard_normal((2, 2, 9, 11))
    spread = conv.conv_transpose2d(x, weight, stride=2)
    gathered = conv.conv2d(y, weight, stride=2)
    assert abs((spread * y).sum() - (x * gathered).sum()) <= 1e-12 * np.linalg.norm(
        spread
    ) * np.linalg.norm(y)


def test_float32_stays_float32_and_inputs_stay_untouched(rng):
    x, weight, bias = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((1, 2, 6, 6), (4, 2, 3, 3), (4,))
    )
    before = x.copy()
    out = conv.conv2d(x, weight, bias, padding=1)
    assert out.dtype == np.float32
    assert conv.conv_transpose2d(x, weight[:2], bias[:2], stride=2).dtype == np.float32
    assert_equal(x, before)
    exact = conv.conv2d(x.astype(float), weight.astype(float), bias.astype(float), padding=1)
    assert_close(out, exact, REDUCTION["float32"])


def test_a_strided_view_gives_the_same(rng):
    x, weight = rng.standard_normal((2, 9, 8, 6)), rng.standard_normal((2, 3, 3, 3))
    view = x[:, ::3, ::-1]
    assert_equal(conv.conv2d(view, weight, padding=1), conv.conv2d(view.copy(), weight, padding=1))


@pytest.mark.parametrize("shapes", [((1, 2, 5, 5), (3, 4, 1, 1)), ((1, 2, 2, 5), (3, 2, 3, 3))])
def test_what_does_not_fit_raises(shapes):
    with pytest.raises(
        ValueError, match=r"conv2d: 2 channels|kernel of 3 x 3 .* is larger than 2 x 5"
    ):
        conv.conv2d(*(np.zeros(shape) for shape in shapes))


def convolved(tensors, relu, dtype, device):
    """Output and gradients of `accelerated.conv.conv2d` with stride 2 and padding 1."""
    layer = torch.nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False)
    leaves: Any = [y.to(device, dtype).requires_grad_() for y in tensors]
    leaves[0] = leaves[0].detach().to(memory_format=torch.channels_last).requires_grad_()
    x, weight, bias, shortcut = leaves
    out = accelerated.conv2d(layer, x, (weight, bias), shortcut=shortcut, relu=relu)
    grad = torch.cos(torch.arange(out.numel(), device=device)).reshape(out.shape).to(dtype)
    return out, *torch.autograd.grad(out, leaves, grad)


def a_convolution(rng):
    shapes = (3, 6, 12, 20), (8, 6, 3, 3), (8,), (3, 8, 6, 10)
    return [torch.tensor(rng.standard_normal(shape)) for shape in shapes]


@pytest.mark.parametrize("relu", [True, False])
def test_shortcut_and_relu_follow_a_convolution(rng, relu):
    leaves: Any = [y.requires_grad_() for y in a_convolution(rng)]
    expected = F.conv2d(*leaves[:3], stride=2, padding=1) + leaves[3]
    expected = expected.relu() if relu else expected
    grad = torch.cos(torch.arange(expected.numel(), dtype=torch.float32)).reshape(expected.shape)
    grads = torch.autograd.grad(expected, leaves, grad.double())
    arguments = [y.detach() for y in leaves]
    for a, b in zip(
        convolved(arguments, relu, torch.float64, "cpu"), (expected, *grads), strict=True
    ):
        assert_close(a.detach(), b.detach(), REDUCTION["float64"])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_fused_convolution(rng, dtype):
    arguments = [y.to(dtype).double() for y in a_convolution(rng)]
    expected = convolved(arguments, True, torch.float64, "cpu")
    actual = convolved(arguments, True, dtype, "cuda")
    assert "_Fused" in type(actual[0].grad_fn).__name__
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        assert_close(a.detach(), b.detach(), REDUCTION[str(dtype).removeprefix("torch.")])


@pytest.mark.gpu
def test_the_fused_convolution_keeps_nan(rng):
    """So that a loss shows what failed."""
    arguments = a_convolution(rng)
    arguments[0][1] = torch.nan
    out = convolved(arguments, True, torch.bfloat16, "cuda")[0]
    assert out[1].isnan().all() and out[[0, 2]].isfinite().all()
