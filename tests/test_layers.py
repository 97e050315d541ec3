"""engine.layers: parameters are frozen and get their rates by patterns of their names."""

from dataclasses import replace

import pytest
import torch
from support import small

from accelerated import optimizer as optim
from accelerated.engine import checkpoint, layers
from accelerated.engine.train import train
from accelerated.mask_rcnn import MaskRCNN


def run(output, iterations=2, config=None, **options):
    options = {"batch_size": 2, "log_every": 1, "bar": False} | options
    return train(
        config or small.config(), small.shapes(6), output, iterations=iterations, **options
    )


def tensors(output):
    folder = checkpoint.find(output)
    return {
        f"{file}: {name}": tensor.clone()
        for file in ("model", "optimizer")
        for name, tensor in checkpoint._tensors(folder / f"{file}.safetensors").items()
    }


def with_batch_norms(**optimizer):
    config = small.config(**optimizer)
    return replace(config, backbone=replace(config.backbone, norm="batch"))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_what_is_frozen_does_not_change(kind, tmp_path):
    """Neither by gradients nor by weight decay, and norms keep their statistics."""
    config = with_batch_norms(kind=kind, learning_rate=0.1, weight_decay=0.5)
    torch.manual_seed(0)
    before = MaskRCNN(config).state_dict()
    patterns = ["backbone.*", "rpn.deltas.?ias"]
    options = {"freeze": patterns, "evaluation": small.shapes(1), "evaluate_every": 1}
    result = run(tmp_path, 2, config, **options)
    for name, tensor in result.model.state_dict().items():
        is_frozen = name.startswith("backbone.") or name == "rpn.deltas.bias"
        assert torch.equal(tensor, before[name]) == is_frozen, name
    stored = tensors(tmp_path)
    assert stored and not [name for name in stored if "/backbone." in name]
    refused = r"freeze = \['backbone\.\*', 'rpn\.deltas\.\?ias'\], not \[\]"
    with pytest.raises(ValueError, match=refused):
        run(tmp_path, 2, config, resume=True)
    run(tmp_path, 2, config, resume=True, resume_from=1, **options)
    assert all(torch.equal(tensor, tensors(tmp_path)[name]) for name, tensor in stored.items())


def test_a_group_norm_after_frozen_layers_is_trained(tmp_path):
    """PyTorch's backward would crash."""
    torch.manual_seed(0)
    before = MaskRCNN(small.config()).state_dict()
    ours = run(tmp_path, 1, freeze=["backbone.conv1.*"]).model.state_dict()
    assert torch.equal(ours["backbone.conv1.weight"], before["backbone.conv1.weight"])
    assert not torch.equal(ours["backbone.bn1.weight"], before["backbone.bn1.weight"])


def test_norms_with_something_to_train_go_on_counting():
    model = MaskRCNN(with_batch_norms()).train()
    layers.freeze_parameters(model, ["backbone.layer1.*", "backbone.bn1.weight"])
    assert model.backbone.bn1.training and not model.backbone.layer1[0].bn1.training
    model.eval()
    model.train()
    assert model.backbone.bn1.training and not model.backbone.layer1[0].bn1.training


def test_the_last_pattern_decides_the_rate():
    model = MaskRCNN(with_batch_norms())
    factors = layers.factors(model, ["backbone.*=0.1", "*.bias=2", "backbone.bn1.*=0.5"])
    optimizer = optim.build(model, small.config().optimizer, factors)
    optim.set_rate(optimizer, 0.25)
    rates = {
        name: float(group["lr"])
        for group in optimizer.param_groups
        for name in group["param_names"]
    }
    assert rates.keys() == {name for name, _ in model.named_parameters()}
    for name, rate in rates.items():
        factor = 0.1 if name.startswith("backbone.") else 1
        factor = 2 if name.endswith(".bias") else factor
        factor = 0.5 if name.startswith("backbone.bn1.") else factor
        assert rate == pytest.approx(0.25 * factor), name


def test_a_rate_acts_and_is_kept(tmp_path):
    """A step of SGD from the same weights moves them by as much less."""
    config = small.config(learning_rate=0.1)
    torch.manual_seed(0)
    before = MaskRCNN(config).state_dict()
    plain, slow = (
        run(tmp_path / name, 1, config, rates=rates).model.state_dict()
        for name, rates in (("plain", []), ("slow", ["backbone.*=0.125"]))
    )
    moved = 0
    for name, tensor in plain.items():
        change, ours = tensor - before[name], slow[name] - before[name]
        expected = change / 8 if name.startswith("backbone.") else change
        assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-7), name
        moved += int(name.startswith("backbone.") and bool(change.any()))
    assert moved > 10
    with pytest.raises(ValueError, match=r"rates = \['backbone\.\*=0\.125'\], not \[\]"):
        run(tmp_path / "slow", 2, config, resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": ["*"]}, r"--freeze \*: nothing is left to train"),
        ({"freeze": ["backbone"]}, r"--freeze backbone: no parameter has .* backbone\.\*"),
        ({"freeze": ["xyz"]}, r"--freeze xyz: no parameter has this name; there are .*fpn\.\*"),
        ({"rates": ["rpn.logit.bias=2"]}, r"--rate rpn\.logit\.bias: .* are rpn\.logits\.bias"),
        ({"rates": ["backbone.*"]}, r"--rate backbone\.\*: expected PATTERN=FACTOR"),
        ({"rates": ["backbone.*=0"]}, r"expected PATTERN=FACTOR with a factor above 0"),
        ({"rates": ["backbone.*=nan"]}, r"expected PATTERN=FACTOR with a factor above 0"),
    ],
)
def test_patterns_that_do_nothing_are_refused_before_training(options, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        run(tmp_path / "run", **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "run" / "log.jsonl").exists()
