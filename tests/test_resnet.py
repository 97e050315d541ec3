"""The backbone: both implementations, every norm and block, training and evaluation."""

from dataclasses import replace

import narrow
import pytest
import torch
from tolerances import MODEL, assert_close

from accelerated.resnet import Backbone, channels
from reference import resnet

CASES = [(18, "group", False), (34, "frozen", False), (50, "frozen", True), (50, "batch", False), (101, "frozen", False)]


def settings(depth, norm, stride_in_1x1):
    full = narrow.config("torchvision_r50_fpn")
    return replace(full, backbone=replace(full.backbone, depth=depth, norm=norm, stride_in_1x1=stride_in_1x1))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("depth", "norm", "stride_in_1x1"), CASES)
def test_twins(rng, depth, norm, stride_in_1x1, training):
    config = settings(depth, norm, stride_in_1x1)
    model = narrow.model(config).train(training)
    images = rng.standard_normal((2, 3, 75, 97))  # odd sides: every stage rounds up
    parameters = narrow.parameters(model)
    expected = resnet.forward(parameters, images, config, training)
    actual = model.backbone(torch.from_numpy(images))
    assert {level: x.shape[1] for level, x in actual.items()} == channels(config) == resnet.channels(config)
    for level in (2, 3, 4, 5):
        assert_close(actual[level], expected[level], MODEL["float64"], f"C{level}")


@pytest.mark.parametrize(("depth", "norm", "stride_in_1x1"), CASES)
def test_same_parameters(depth, norm, stride_in_1x1):
    config = settings(depth, norm, stride_in_1x1)
    shapes = {f"backbone.{name}": tuple(t.shape) for name, t in Backbone(config).state_dict().items() if not name.endswith("tracked")}
    assert shapes == resnet.parameter_shapes(config)


@pytest.mark.parametrize("frozen", range(6))
def test_frozen_stages(frozen):
    config = settings(18, "group", False)
    backbone = Backbone(replace(config, backbone=replace(config.backbone, frozen_stages=frozen)))
    trained = {name.split(".")[0] for name, p in backbone.named_parameters() if p.requires_grad}
    stages = [{"conv1", "bn1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}]
    assert trained == set().union(*stages[frozen:])


def test_frozen_norm_is_no_parameter():
    backbone = Backbone(settings(50, "frozen", False))
    assert not [name for name, _ in backbone.named_parameters() if "bn" in name or "downsample.1" in name]


def test_frozen_norm_takes_no_pass_of_its_own(rng):
    """Folding the norm into the convolution changes nothing, the gradient of the convolution's weight included."""
    config = settings(18, "frozen", False)
    backbone = narrow.model(replace(config, backbone=replace(config.backbone, frozen_stages=0))).backbone
    x = torch.from_numpy(rng.standard_normal((1, 3, 33, 40)))
    folded = backbone(x)[2]
    y = torch.max_pool2d(backbone.bn1(backbone.conv1(x)).relu(), 3, 2, 1)
    for block in backbone.layer1:
        y = (block.bn2(block.conv2(block.bn1(block.conv1(y)).relu())) + y).relu()
    assert_close(folded, y.detach(), MODEL["float64"])
    gradients = [torch.autograd.grad(out.square().sum(), backbone.conv1.weight)[0] for out in (folded, y)]
    assert_close(*gradients, MODEL["float64"])
