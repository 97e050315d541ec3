"""Normalisations, their backwards and running statistics against PyTorch's and torchvision's."""

import pickle
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support import several_processes
from support.gradients import check_backward, value_and_gradients
from torch._subclasses.fake_tensor import FakeTensorMode

from accelerated import norm as fast
from accelerated.verify.equality import (
    GOLDEN_OPERATOR,
    REDUCTION,
    assert_close,
    assert_equal,
    error,
)
from reference import config, norm

EPS = 1e-5


@pytest.fixture
def case(rng):
    x, weight, bias, mean = rng.standard_normal((2, 6, 5, 4)) * 3 + 1, *rng.standard_normal((3, 6))
    return x, weight, bias, mean, rng.uniform(0.1, 2, 6)


def test_frozen_batch_norm(case):
    x, weight, bias, mean, var = case
    expected = F.batch_norm(*map(torch.tensor, (x, mean, var, weight, bias)), eps=EPS)
    assert_close(norm.frozen_batch_norm(*case, EPS), expected, REDUCTION["float64"])


def test_batch_norm(case):
    x, weight, bias, *_ = case
    expected = F.batch_norm(
        torch.tensor(x),
        None,
        None,
        torch.tensor(weight),
        torch.tensor(bias),
        training=True,
        eps=EPS,
    )
    assert_close(norm.batch_norm(x, weight, bias, EPS), expected, REDUCTION["float64"])


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm(case, groups):
    x, weight, bias, *_ = case
    expected = F.group_norm(torch.tensor(x), groups, torch.tensor(weight), torch.tensor(bias), EPS)
    assert_close(norm.group_norm(x, weight, bias, groups, EPS), expected, REDUCTION["float64"])


def test_group_norm_refuses_uneven_groups(case):
    with pytest.raises(ValueError, match="6 channels do not divide into 4 groups"):
        norm.group_norm(*case[:3], 4, EPS)


@pytest.mark.parametrize("peer", ["torchvision", "detectron2"])
def test_frozen_batch_norm_golden(golden, peer):
    z = golden("norm")
    x, weight, bias, mean, var = (z[f"{peer}/in.{name}"] for name in "xwbmv")
    assert_close(
        norm.frozen_batch_norm(x, weight, bias, mean, var, EPS), z[f"{peer}/out.y"], GOLDEN_OPERATOR
    )


def test_conv_norm_takes_the_statistics_its_kind_says(case, rng):
    x, weight, bias, mean, var = case
    parameters = {"n.weight": weight, "n.bias": bias, "n.running_mean": mean, "n.running_var": var}
    parameters["c.weight"] = rng.standard_normal((6, 6, 1, 1))

    def run(kind, training):
        return norm.conv_norm(
            parameters,
            "c",
            "n",
            x,
            kind,
            config.preset("torchvision_r50_fpn"),
            {} if training else None,
        )

    assert error(run("frozen", True), run("frozen", False)) == 0
    assert error(run("batch", False), run("frozen", False)) == 0
    assert error(run("batch", True), run("batch", False)) > 0.1


def test_float32_stays_float32(case):
    x, weight, bias, mean, var = (a.astype(np.float32) for a in case)
    assert norm.frozen_batch_norm(x, weight, bias, mean, var, EPS).dtype == np.float32
    assert norm.batch_norm(x, weight, bias, EPS).dtype == np.float32
    assert norm.group_norm(x, weight, bias, 2, EPS).dtype == np.float32


def test_batch_norm_of_no_rows_is_empty():
    assert norm.batch_norm(np.zeros((0, 2, 3, 3)), np.ones(2), np.zeros(2), EPS).shape == (
        0,
        2,
        3,
        3,
    )


# ---- backwards


@st.composite
def normalised(draw, max_groups=1):
    """Draw (x, weight, bias, groups).

    At least nine entries share their statistics, so that their gradients do not cancel.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    groups = draw(st.integers(1, max_groups))
    channels = groups * draw(st.integers(2, 3))
    shape = (draw(st.integers(1, 3)), channels, draw(st.integers(3, 5)), draw(st.integers(3, 5)))
    return rng.standard_normal(shape) * 3 + 1, *rng.standard_normal((2, channels)), groups


@given(normalised(), st.booleans())
def test_frozen_batch_norm_backward(case, no_rows):
    x, weight, bias, _ = case
    check_frozen_batch_norm_backward(x[: 0 if no_rows else None], weight, bias)


def check_frozen_batch_norm_backward(x, weight, bias):
    mean, var = bias[::-1] + 0.5, np.linspace(0.1, 2, len(bias))

    def frozen(x, weight, bias, mean=mean):
        return norm.frozen_batch_norm(
            x, weight, bias, mean.astype(x.dtype), var.astype(x.dtype), EPS
        )

    def twin(x, weight, bias, mean=mean):
        return F.batch_norm(x, *map(torch.tensor, (mean, var)), weight, bias, eps=EPS)

    check_backward(frozen, twin, x, weight, bias)
    zeros = np.zeros(len(bias))
    check_backward(
        lambda x, weight: frozen(x, weight, zeros.astype(weight.dtype), zeros),
        lambda x, weight: twin(x, weight, torch.zeros_like(weight), zeros),
        x,
        weight,
        linear=[0, 1],
    )


@given(normalised())
def test_batch_norm_backward(case):
    check_batch_norm_backward(*case[:3])


def check_batch_norm_backward(x, weight, bias):
    check_backward(
        lambda x, weight, bias: norm.batch_norm(x, weight, bias, EPS),
        lambda x, weight, bias: F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS),
        x,
        weight,
        bias,
    )


@given(normalised(max_groups=3))
def test_group_norm_backward(case):
    check_group_norm_backward(*case)


def check_group_norm_backward(x, weight, bias, groups):
    check_backward(
        lambda x, weight, bias: norm.group_norm(x, weight, bias, groups, EPS),
        lambda x, weight, bias: F.group_norm(x, groups, weight, bias, EPS),
        x,
        weight,
        bias,
    )


@pytest.mark.parametrize("kind", ["frozen", "batch", "sync_batch", "group"])
def test_conv_norm_on_the_tape(kind, rng):
    """In training the running statistics are plain arrays, without gradient."""
    full, statistics = replace(config.preset("torchvision_r50_fpn"), norm_groups=2), {}

    def function(x, weight, scale, shift):
        parameters = {
            "c.weight": weight,
            "n.weight": scale,
            "n.bias": shift,
            "n.running_mean": np.ones(4, x.dtype),
            "n.running_var": np.full(4, 2, x.dtype),
        }
        return norm.conv_norm(parameters, "c", "n", x, kind, full, statistics)

    def twin(x, weight, scale, shift):
        x = F.conv2d(x, weight)
        if kind == "group":
            return F.group_norm(x, 2, scale, shift, EPS)
        return F.batch_norm(
            x,
            torch.ones_like(scale),
            torch.full_like(scale, 2),
            scale,
            shift,
            training=kind != "frozen",
            eps=EPS,
        )

    check_backward(
        function,
        twin,
        rng.standard_normal((2, 3, 5, 4)),
        rng.standard_normal((4, 3, 1, 1)),
        *rng.standard_normal((2, 4)),
    )
    updated = {"n.running_mean", "n.running_var"} if kind in ("batch", "sync_batch") else set()
    assert statistics.keys() == updated
    assert all(type(value) is np.ndarray for value in statistics.values())


def test_no_rows_have_no_gradient():
    x, weight, bias = np.zeros((0, 4, 3, 3)), np.ones(4), np.zeros(4)
    for function in (lambda *a: norm.batch_norm(*a, EPS), lambda *a: norm.group_norm(*a, 2, EPS)):
        out, gradients, _ = value_and_gradients(function, x, weight, bias)
        assert out.shape == x.shape
        for gradient, array in zip(gradients, (x, weight, bias), strict=True):
            assert_equal(gradient, np.zeros(array.shape))


# ---- running statistics


def test_running_statistics_are_those_of_pytorch_after_several_steps(rng):
    module = torch.nn.BatchNorm2d(3, dtype=torch.float64)
    running = np.zeros(3), np.ones(3)
    for shape in ((2, 3, 4, 5), (1, 3, 2, 2), (3, 3, 1, 1), (2, 3, 6, 6)):
        x = rng.standard_normal(shape) * 2 + 5
        module(torch.tensor(x))
        before, copies = running, [value.copy() for value in running]
        running = norm.running_statistics(*before, x)
        for old, copy in zip(before, copies, strict=True):
            assert_equal(old, copy, "the old ones do not change")
        for new, name in zip(running, ("running_mean", "running_var"), strict=True):
            assert_close(new, getattr(module, name), REDUCTION["float64"], name)
    for new, old in zip(norm.running_statistics(*running, x[:0]), running, strict=True):
        assert_equal(new, old, "an empty batch changes nothing")


def test_running_statistics_of_float32_stay_float32(rng):
    running = np.zeros(3, np.float32), np.ones(3, np.float32)
    x = rng.standard_normal((2, 3, 4, 4)).astype(np.float32)
    assert {new.dtype for new in norm.running_statistics(*running, x)} == {np.dtype(np.float32)}


def test_running_statistics_are_returned_and_the_stored_ones_stay(case, rng):
    """A norm that is applied twice in one step moves its statistics twice, from where they were."""
    x, weight, bias, mean, var = case
    parameters = {"n.weight": weight, "n.bias": bias, "c.weight": np.eye(6)[:, :, None, None]}
    parameters |= {"n.running_mean": mean.copy(), "n.running_var": var.copy()}
    statistics, running = {}, (mean, var)
    for batch in (x, x[:1] - 3):
        full = config.preset("torchvision_r50_fpn")
        norm.conv_norm(parameters, "c", "n", batch, "batch", full, statistics)
        running = norm.running_statistics(*running, batch)
    for name, stored, expected in zip(("mean", "var"), (mean, var), running, strict=True):
        assert_close(statistics[f"n.running_{name}"], expected, REDUCTION["float64"], name)
        assert_equal(parameters[f"n.running_{name}"], stored, name)


# ---- statistics of several processes


def rank(rng, shape, valid=None):
    """(x, valid, grad_out) of one process; padded rows have no gradient."""
    x, grad_out = rng.standard_normal((2, *shape))
    valid = None if valid is None else torch.tensor(valid, dtype=torch.bool)
    return (
        torch.tensor(2 * x + 3),
        valid,
        torch.tensor(grad_out) * (1 if valid is None else valid[:, None, None, None]),
    )


def pixels(x, valid):
    """[N, C, H, W] -> the pixels of the valid rows, [P, C, 1, 1]."""
    return (x if valid is None else x[valid]).permute(0, 2, 3, 1).reshape(-1, x.shape[1], 1, 1)


def test_two_processes_normalise_as_one(rng, tmp_path):
    """Output, gradients and running statistics are those of one BatchNorm2d on both batches.

    The batches differ in length or in sides; one or both have padded rows; one has no valid row.
    """
    cases = [
        [rank(rng, (2, 3, 4, 5)), rank(rng, (3, 3, 4, 5))],
        [rank(rng, (2, 3, 4, 5)), rank(rng, (1, 3, 6, 2))],
        [rank(rng, (4, 3, 2, 2), [1, 0, 1, 0]), rank(rng, (3, 3, 2, 2), [1, 1, 1])],
        [rank(rng, (2, 3, 2, 2), [0, 0]), rank(rng, (3, 3, 2, 2), [0, 1, 1])],
    ]
    found = several_processes.run(several_processes.normalise, tmp_path, cases)
    for number, case in enumerate(cases):
        layer, joined = (
            torch.nn.BatchNorm2d(3).double(),
            torch.cat([pixels(x, valid) for x, valid, _ in case]).requires_grad_(),
        )
        with torch.no_grad():
            layer.weight.copy_(torch.arange(1.0, 4.0))
        y, grad_out = layer(joined), torch.cat([pixels(g, valid) for _, valid, g in case])
        gradients = torch.autograd.grad((y * grad_out).sum(), [joined, layer.weight, layer.bias])
        ours, theirs = found[0][number], found[1][number]
        for at, expected in ((0, y.detach()), (1, gradients[0])):
            both = [
                pixels(result[at], valid)
                for result, (_, valid, _) in zip((ours, theirs), case, strict=True)
            ]
            assert_close(torch.cat(both), expected, REDUCTION["float64"], f"case {number}, {at}")
        # DistributedDataParallel adds the gradients of the processes.
        for at in (2, 3):
            assert_close(
                ours[at] + theirs[at],
                gradients[at - 1],
                REDUCTION["float64"],
                f"case {number}, parameter {at}",
            )
        for at, expected in ((4, layer.running_mean), (5, layer.running_var)):
            for result in (ours, theirs):
                assert_close(
                    result[at], expected, REDUCTION["float64"], f"case {number}, statistics {at}"
                )


@pytest.mark.parametrize("valid", [None, [1, 0, 1, 1]])
def test_alone_a_synchronised_layer_is_a_plain_one(rng, valid):
    x, valid, grad_out = rank(rng, (4, 3, 2, 3), valid)
    results = []
    for cls in (fast.SyncBatchNorm2d, fast.BatchNorm2d):
        layer = cls(3).double()
        leaf = x.clone().requires_grad_()
        y = layer(leaf, valid)
        results.append(
            [
                y.detach(),
                *torch.autograd.grad((y * grad_out).sum(), [leaf, *layer.parameters()]),
                *layer.buffers(),
            ]
        )
        assert_equal(layer.eval()(x), layer(x, valid), "in evaluation all rows are alike")
    for ours, theirs in zip(*results, strict=True):
        assert_equal(ours, theirs)


@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        ("frozen", fast.FrozenBatchNorm2d),
        ("batch", fast.BatchNorm2d),
        ("sync_batch", fast.SyncBatchNorm2d),
    ],
)
def test_layers_by_kind(kind, cls):
    layer = fast.make(kind, 8, config.preset("torchvision_r50_fpn"))
    assert type(layer) is cls and layer.eps == 1e-5
    names = set(norm.parameter_shapes("c", "n", (8, 3, 1, 1), kind)) - {"c.weight"}
    assert {f"n.{name}" for name in layer.state_dict()} - {"n.num_batches_tracked"} == names


# ---- what a frozen norm remembers


def convolution(rng, dtype=torch.float32):
    """Make a convolution and the frozen norm after it, with random values."""
    layers = torch.nn.ModuleList([torch.nn.Conv2d(3, 4, 3, bias=False)])
    layers.append(fast.FrozenBatchNorm2d(4, EPS))
    layers.load_state_dict(drawn(rng, layers))
    return layers.to(dtype)


def drawn(rng, layers):
    """Draw new values of the state of `layers`, all positive."""
    state = {
        name: torch.as_tensor(rng.uniform(0.5, 2, x.shape))
        for name, x in layers.state_dict().items()
    }
    return {name: x.to(layers[0].weight.dtype) for name, x in state.items()}


def forgetful(layers, x):
    """Compute a convolution and a frozen norm from their tensors as they are."""
    conv, norm = layers
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    return F.conv2d(x, conv.weight * scale[:, None, None, None], shift)


def step(optimizer, **keywords):
    """Return a change of the weight by a step of `optimizer`, after which it has no gradient."""

    def change(layers, rng):
        fast.conv_norm(*layers, torch.ones(1, 3, 5, 5)).sum().backward()
        optimizer(layers.parameters(), lr=0.1, **keywords).step()
        layers.zero_grad()

    return change


def step_after_detection(layers, rng):
    """Detect between the backward pass and the step, which a fused optimizer hides."""
    x = torch.ones(1, 3, 5, 5)
    fast.conv_norm(*layers, x).sum().backward()
    with torch.no_grad():
        fast.conv_norm(*layers, x)
    torch.optim.SGD(layers.parameters(), lr=0.1, fused=True).step()
    layers.zero_grad()


def step_by_hand(layers, rng):
    """Set a gradient by hand and detect before the step."""
    layers[0].weight.grad = torch.ones_like(layers[0].weight)
    with torch.no_grad():
        fast.conv_norm(*layers, torch.ones(1, 3, 5, 5))
    torch.optim.SGD(layers.parameters(), lr=0.1, fused=True).step()
    layers.zero_grad()


def round_trip(layers, rng):
    """Lose precision; the memory of the first weights may be given to the last ones."""
    layers.half().float()


def unseen(layers, rng):
    """Write past the version counter in training mode, as the replay of a CUDA graph does."""
    layers.train()
    layers[0].weight.data.mul_(3)
    layers.eval()


def replace_parameter(layers, rng):
    layers[0].weight = torch.nn.Parameter(layers[0].weight.detach() * 2)


def replace_parameter_in_place(layers, rng):
    """The new parameter has the memory of the old one, and is written as often."""
    weight = torch.nn.Parameter(layers[0].weight.data)
    with torch.no_grad():
        while weight._version < layers[0].weight._version:
            weight.mul_(1)
    weight.data.mul_(2)
    layers[0].weight = weight


def replace_data(layers, rng):
    """Several times, so that the first memory would be used again if it were free."""
    for _ in range(8):
        layers[0].weight.data = layers[0].weight.data * 1.1


def replace_data_by_a_view(layers, rng):
    layers[0].weight.data = layers[0].weight.data.transpose(2, 3)


def replace_buffer(layers, rng):
    layers[1].running_var = layers[1].running_var * 2


def write(index, name):
    def change(layers, rng):
        with torch.no_grad():
            getattr(layers[index], name).mul_(2)

    return change


def write_in_inference_mode(layers, rng):
    with torch.inference_mode():
        layers[0].weight.mul_(2)


def load(assign):
    def change(layers, rng):
        layers.load_state_dict(drawn(rng, layers), assign=assign)

    return change


CHANGES = {
    **{
        f"write {name}": write(1, name)
        for name in ("weight", "bias", "running_mean", "running_var")
    },
    "write the convolution's weight": write(0, "weight"),
    "write in inference mode": write_in_inference_mode,
    "eps": lambda layers, rng: setattr(layers[1], "eps", 0.5),
    "replace the parameter": replace_parameter,
    "replace the parameter in place": replace_parameter_in_place,
    "replace its data": replace_data,
    "replace its data by a view": replace_data_by_a_view,
    "replace a buffer": replace_buffer,
    "load": load(False),
    "load by assignment": load(True),
    "half and back": round_trip,
    "double": lambda layers, rng: layers.double(),
    "fused SGD": step(torch.optim.SGD, fused=True),
    "foreach SGD": step(torch.optim.SGD, foreach=True),
    "fused AdamW": step(torch.optim.AdamW, fused=True),
    "a step after a detection": step_after_detection,
    "a step by hand": step_by_hand,
    "an unseen write in training mode": unseen,
    "channels last": lambda layers, rng: layers.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("no_grad", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_convolution_is_folded_again(rng, change, no_grad):
    """In evaluation, in training and in a copy: what was remembered before never comes back."""
    layers = convolution(rng).eval()
    x = torch.tensor(rng.standard_normal((2, 3, 5, 5)), dtype=torch.float32)
    with no_grad():
        before = fast.conv_norm(*layers, x)
        again = fast.conv_norm(*layers, x)
    assert_equal(before, forgetful(layers, x).detach())
    assert_equal(again, before)
    same = change in (CHANGES["channels last"], CHANGES["double"])
    copies = [deepcopy(layers), pickle.loads(pickle.dumps(layers))]
    assert copies[0][1]._folded.last is copies[1][1]._folded.last is None
    change(layers, rng)
    for changed in (layers, *copies):
        if changed is not layers:
            change(changed, rng)
        x = x.to(changed[0].weight.dtype)
        with no_grad():
            after = fast.conv_norm(*changed, x)
        expected = forgetful(changed, x)
        assert_equal(after, expected.detach())
        assert same or error(after.double(), before.double()) > 1e-4
        # In training, with the gradient of the weight.
        ours = fast.conv_norm(*changed, x)
        assert_equal(ours.detach(), expected.detach())
        for actual, wanted in zip(
            *(torch.autograd.grad(y.square().sum(), changed[0].weight) for y in (ours, expected)),
            strict=True,
        ):
            assert_equal(actual, wanted)


def test_unchanged_tensors_are_folded_once(rng):
    layers, x = convolution(rng), torch.ones(1, 3, 5, 5)
    weight = layers[0].weight
    with torch.no_grad():
        first, second = layers[1].folded(weight), layers[1].folded(weight)
    assert all(a is b for a, b in zip(first, second, strict=True))
    assert layers[1].affine()[0] is layers[1].affine()[0]
    # A weight that is trained is folded at each step, by the same scale.
    assert layers[1].folded(weight)[0] is not layers[1].folded(weight)[0]
    weight.requires_grad_(False)
    assert layers[1].folded(weight)[0] is layers[1].folded(weight)[0]
    assert "_folded" not in "".join(layers.state_dict())
    assert_equal(fast.conv_norm(*layers, x), forgetful(layers, x))


def test_autocast_does_not_mix_with_full_precision(rng):
    layers, x = convolution(rng), torch.ones(1, 3, 5, 5)
    for enabled in (True, False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            for mode in (torch.no_grad, torch.enable_grad):
                with mode():
                    ours, expected = fast.conv_norm(*layers, x), forgetful(layers, x)
                assert ours.dtype == (torch.bfloat16 if enabled else torch.float32)
                assert_equal(ours.detach().float(), expected.detach().float())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        layers.double()
        assert fast.conv_norm(*layers, x.double()).dtype == torch.float64


def test_a_compiled_or_exported_convolution_reads_its_tensors(rng):
    """Nothing that was remembered becomes a constant of the graph."""

    class Folded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = convolution(rng)

        def forward(self, x):
            return fast.conv_norm(*self.layers, x)

    model, x = Folded().eval(), torch.ones(1, 3, 5, 5)
    with torch.no_grad():
        model(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        exported = torch.export.export(model, (x,)).module()
        for _ in range(2):
            for run in (compiled, exported):
                assert_equal(run(x), forgetful(model.layers, x))
            model.layers[0].weight.mul_(2)
            model.layers[1].bias.add_(1)
            exported.load_state_dict(model.state_dict())


def test_what_inference_mode_remembers_serves_a_training_step(rng):
    layers, x = convolution(rng).requires_grad_(False), torch.ones(1, 3, 5, 5, requires_grad=True)
    with torch.inference_mode():
        fast.conv_norm(*layers, x)
    ours, expected = (
        torch.autograd.grad(f(x).sum(), x)[0]
        for f in (lambda x: fast.conv_norm(*layers, x), lambda x: forgetful(layers, x))
    )
    assert_equal(ours, expected)


def test_fake_tensors_are_not_remembered(rng):
    layers, x = convolution(rng), torch.ones(1, 3, 5, 5)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        fast.conv_norm(*layers, x)
    with torch.no_grad():
        assert_equal(fast.conv_norm(*layers, x), forgetful(layers, x))
