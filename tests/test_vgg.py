"""VGG-16: both implementations, its known size, its stages and what of them is frozen."""

from dataclasses import replace
from math import prod

import pytest
import torch
from support import narrow

from accelerated import vgg as fast
from accelerated.verify.equality import MODEL, assert_close
from reference import box_head, vgg
from reference.config import preset


def settings(**backbone):
    config = narrow.config("paper_vgg16")
    return replace(config, backbone=replace(config.backbone, width=4, **backbone))


def test_configuration_d():
    """Thirteen convolutions, 14,714,688 numbers [Simonyan & Zisserman 2014, table 2]."""
    config = preset("paper_vgg16")
    shapes = vgg.parameter_shapes(config)
    assert len(shapes) == 2 * 13 and sum(map(prod, shapes.values())) == 14_714_688
    assert shapes["backbone.conv5_3.weight"] == (512, 512, 3, 3) and shapes[
        "backbone.conv1_1.weight"
    ] == (64, 3, 3, 3)
    assert vgg.channels(config) == fast.channels(config) == {1: 64, 2: 128, 3: 256, 4: 512, 5: 512}
    assert vgg.strides(config) == fast.strides(config) == {1: 1, 2: 2, 3: 4, 4: 8, 5: 16}


@pytest.mark.parametrize("out_stage", [1, 3, 5])
def test_twins(rng, out_stage):
    config = settings(out_stage=out_stage)
    torch.manual_seed(0)
    model = fast.Backbone(config).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.uniform_(-1, 1)
    # Odd sides: every stage rounds down.
    images = rng.standard_normal((2, 3, 37, 50))
    parameters = {f"backbone.{name}": x.numpy(force=True) for name, x in model.state_dict().items()}
    assert {name: x.shape for name, x in parameters.items()} == vgg.parameter_shapes(config)
    expected, actual = vgg.forward(parameters, images, config), model(torch.from_numpy(images))
    assert list(expected) == list(actual) == list(range(1, out_stage + 1))
    for stage, x in expected.items():
        stride, channels = vgg.strides(config)[stage], vgg.channels(config)[stage]
        assert x.shape == (2, channels, 37 // stride, 50 // stride)
        assert_close(actual[stage], x, MODEL["float64"], f"C{stage}")


@pytest.mark.parametrize("frozen", [0, 2, 5])
def test_frozen_stages(frozen):
    config = settings(frozen_stages=frozen)
    trained = {
        f"backbone.{name}"
        for name, p in fast.Backbone(config).named_parameters()
        if p.requires_grad
    }
    assert trained == {
        name for name in vgg.parameter_shapes(config) if not name.startswith(vgg.frozen(config))
    }
    assert trained == {
        name for name in vgg.parameter_shapes(config) if int(name[len("backbone.conv")]) > frozen
    }


def test_the_head_has_the_two_layers_of_4096():
    shapes = box_head.parameter_shapes(preset("paper_vgg16"))
    assert shapes["box_head.fc6.weight"] == (4096, 512 * 7 * 7) and shapes[
        "box_head.fc7.weight"
    ] == (4096, 4096)
