"""Both optimizers against each other and against torch's plain, unfused optimizers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import accelerated.optimizer
import reference.optimizer
from accelerated.verify.equality import assert_close, assert_equal
from reference.config import Optimizer

NAMES = {
    "conv1.weight": True,
    "bn1.weight": True,
    "downsample.0.weight": True,
    "downsample.1.bias": True,
    "out_norm.weight": True,
    "frozen.weight": False,
}


class Model(nn.Module):
    """A parameter of each group, and a frozen one, with gradients that depend on the parameters."""

    def __init__(self, rng):
        super().__init__()
        for name, trained in NAMES.items():
            owner = self
            *path, leaf = name.split(".")
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner._modules[part]
            owner.register_parameter(
                leaf, nn.Parameter(torch.from_numpy(rng.normal(size=(3, 4))), requires_grad=trained)
            )


def gradients(parameters, iteration):
    return {
        name: np.sin(3 * parameters[name] + iteration) * (1 + iteration)
        for name, trained in NAMES.items()
        if trained
    }


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("max_norm", [0.0, 2.0])
def test_twins_and_torch_agree_over_many_steps(kind, max_norm, rng):
    config = Optimizer(
        kind=kind,
        learning_rate=0.1,
        batch_size=4,
        weight_decay=0.05,
        norm_weight_decay=0.2,
        warmup_iterations=3,
        warmup_factor=0.1,
        clip_gradient_norm=max_norm,
    )
    model = Model(rng)
    parameters = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    plain = {
        name: torch.tensor(value, requires_grad=NAMES[name]) for name, value in parameters.items()
    }
    groups = [
        {
            "params": [
                plain[n] for n in NAMES if NAMES[n] and reference.optimizer.is_norm(n) == norm
            ],
            "weight_decay": d,
        }
        for norm, d in ((False, 0.05), (True, 0.2))
    ]
    judge = (
        torch.optim.SGD(groups, lr=1.0, momentum=0.9, foreach=False)
        if kind == "sgd"
        else torch.optim.AdamW(groups, lr=1.0, foreach=False)
    )
    optimizer, state = accelerated.optimizer.build(model, config), reference.optimizer.State()
    for iteration in range(9):
        rate = reference.optimizer.learning_rate(config, iteration, 9, batch_size=2)
        assert rate == accelerated.optimizer.learning_rate(config, iteration, 9, batch_size=2)
        raw = gradients(parameters, iteration)
        for name, g in raw.items():
            model.get_parameter(name).grad = torch.from_numpy(g.copy())
            plain[name].grad = torch.from_numpy(g.copy())
        clipped, norm = reference.optimizer.clip(raw, max_norm)
        parameters, state = reference.optimizer.step(parameters, clipped, state, rate, config)
        assert_close(
            accelerated.optimizer.step(optimizer, rate, max_norm), norm, 1e-12, "gradient norm"
        )
        if max_norm:
            nn.utils.clip_grad_norm_([p for p in plain.values() if p.requires_grad], max_norm)
        for group in judge.param_groups:
            group["lr"] = rate
        judge.step()
        for name, value in parameters.items():
            assert_close(model.get_parameter(name), value, 1e-12, f"{name} after step {iteration}")
            assert_close(plain[name], value, 1e-12, f"torch's {name} after step {iteration}")


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_nothing_moves_once_a_step_failed(kind, rng):
    model = Model(rng)
    optimizer = accelerated.optimizer.build(model, Optimizer(kind=kind))
    trained = [p for p in model.parameters() if p.requires_grad]
    failed = torch.zeros(())
    for value, fails in ((1.0, 0), (float("nan"), 1), (1.0, 1), (float("inf"), 1)):
        before = [p.detach().clone() for p in trained]
        for p in trained:
            p.grad = torch.full_like(p, value)
        norm = accelerated.optimizer.step(optimizer, 0.1, 1.0, failed)
        assert failed.item() == fails and norm.isfinite().item() == np.isfinite(value)
        assert all(torch.equal(a, b) == bool(fails) for a, b in zip(before, trained, strict=True))
        state = [t for s in optimizer.state.values() for t in s.values()]
        assert all(t.isfinite().all() for t in state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_tensor_of_the_rate_updates_to_the_bits_of_a_number(kind, dtype, rng, device):
    config = Optimizer(kind=kind, learning_rate=0.1, warmup_iterations=3, warmup_factor=0.1)
    seed = rng.integers(2**31)
    models = [Model(np.random.default_rng(seed)).to(device, dtype) for _ in range(2)]
    by_tensor, by_number = (accelerated.optimizer.build(model, config) for model in models)
    is_number = device.type == "cuda" and dtype == torch.float64
    rates = [group["lr"] for group in by_tensor.param_groups]
    assert all(isinstance(rate, float if is_number else torch.Tensor) for rate in rates)
    for group in by_number.param_groups:
        group["lr"] = 0.0
    for iteration in range(6):
        rate = accelerated.optimizer.learning_rate(config, iteration, 6, 7)
        if device.type == "cuda" and dtype == torch.float32:
            rate = float(np.float32(rate))
        for model, optimizer in zip(models, (by_tensor, by_number), strict=True):
            for name, p in model.named_parameters():
                p.grad = (3 * p.detach() + iteration).sin() if NAMES[name] else None
            accelerated.optimizer.step(optimizer, rate, 1.0)
        for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
            assert torch.equal(a, b), f"{name} after step {iteration}"
    # The same tensor at all steps: a captured update reads it where it was.
    assert is_number or all(
        a is group["lr"] for a, group in zip(rates, by_tensor.param_groups, strict=True)
    )


def test_norm_parameters_are_told_by_name():
    for twin in (reference.optimizer, accelerated.optimizer):
        for name in (
            "backbone.bn1.weight",
            "backbone.layer1.0.bn2.bias",
            "backbone.layer2.0.downsample.1.weight",
            "fpn.lateral2_norm.bias",
            "mask_head.conv1_norm.weight",
        ):
            assert twin.is_norm(name), name
        for name in (
            "backbone.conv1.weight",
            "backbone.layer2.0.downsample.0.weight",
            "rpn.conv1.bias",
            "box_head.fc6.weight",
            "mask_head.deconv.bias",
        ):
            assert not twin.is_norm(name), name


@given(
    iteration=st.integers(0, 999),
    batch_size=st.integers(1, 64),
    schedule=st.sampled_from(["step", "cosine"]),
    warmup=st.integers(0, 500),
)
def test_schedule(iteration, batch_size, schedule, warmup):
    config = Optimizer(schedule=schedule, warmup_iterations=warmup)
    rate = reference.optimizer.learning_rate(config, iteration, 1000, batch_size)
    assert rate == accelerated.optimizer.learning_rate(config, iteration, 1000, batch_size)
    assert 0 < rate <= 0.02 * batch_size / 16
    # Linear scaling.
    assert_close(
        reference.optimizer.learning_rate(config, iteration, 1000, 2 * batch_size), 2 * rate, 1e-15
    )
    assert_close(
        reference.optimizer.learning_rate(
            replace(config, learning_rate=0.06), iteration, 1000, batch_size
        ),
        3 * rate,
        1e-15,
    )


def test_schedule_at_its_corners():
    def rate(iteration, **changes):
        return reference.optimizer.learning_rate(Optimizer(**changes), iteration, 90000, 16)

    assert_close(rate(0), 0.02 * 0.001, 1e-15)
    assert_close(rate(500), 0.02 * (0.001 * 0.5 + 0.5), 1e-15)
    assert_equal([rate(1000), rate(59999)], [0.02, 0.02])
    assert_close(
        [rate(60000), rate(79999), rate(80000), rate(89999)], [0.002, 0.002, 0.0002, 0.0002], 1e-14
    )
    assert_close(
        [rate(i, schedule="cosine", warmup_iterations=0) for i in (0, 45000, 90000)],
        [0.02, 0.01, 0.0],
        1e-15,
    )
