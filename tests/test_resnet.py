"""The backbone: both implementations, every norm and block, training and evaluation."""

from dataclasses import replace
from math import prod

import pytest
import torch
import torch.nn.functional as F
from support import narrow

from accelerated.resnet import Backbone, channels
from accelerated.verify.equality import MODEL, assert_close
from reference import resnet
from reference.config import preset

CASES = [
    (18, "group", False),
    (34, "frozen", False),
    (50, "frozen", True),
    (50, "batch", False),
    (101, "frozen", False),
]


def settings(depth, norm, stride_in_1x1):
    full = narrow.config("torchvision_r50_fpn")
    return replace(
        full, backbone=replace(full.backbone, depth=depth, norm=norm, stride_in_1x1=stride_in_1x1)
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("depth", "norm", "stride_in_1x1"), CASES)
def test_twins(rng, depth, norm, stride_in_1x1, training):
    config = settings(depth, norm, stride_in_1x1)
    model = narrow.model(config).train(training)
    # Odd sides: every stage rounds up.
    images = rng.standard_normal((2, 3, 75, 97))
    parameters = narrow.parameters(model)
    expected = resnet.forward(parameters, images, config, {} if training else None)
    actual = model.backbone(torch.from_numpy(images))
    assert (
        {level: x.shape[1] for level, x in actual.items()}
        == channels(config)
        == resnet.channels(config)
    )
    for level in (2, 3, 4, 5):
        assert_close(actual[level], expected[level], MODEL["float64"], f"C{level}")


@pytest.mark.parametrize(("depth", "norm", "stride_in_1x1"), CASES)
def test_same_parameters(depth, norm, stride_in_1x1):
    config = settings(depth, norm, stride_in_1x1)
    shapes = {
        f"backbone.{name}": tuple(t.shape)
        for name, t in Backbone(config).state_dict().items()
        if not name.endswith("tracked")
    }
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
    assert not [
        name for name, _ in backbone.named_parameters() if "bn" in name or "downsample.1" in name
    ]


def test_frozen_norm_takes_no_pass_of_its_own(rng):
    """Folding the norm into the convolution changes nothing, not even the weight's gradient."""
    config = settings(18, "frozen", False)
    backbone = narrow.model(
        replace(config, backbone=replace(config.backbone, frozen_stages=0))
    ).backbone
    x = torch.from_numpy(rng.standard_normal((1, 3, 33, 40)))
    folded = backbone(x)[2]
    y = torch.max_pool2d(backbone.bn1(backbone.conv1(x)).relu(), 3, 2, 1)
    for block in backbone.layer1:
        y = (block.bn2(block.conv2(block.bn1(block.conv1(y)).relu())) + y).relu()
    assert_close(folded, y.detach(), MODEL["float64"])
    gradients = [
        torch.autograd.grad(out.square().sum(), backbone.conv1.weight)[0] for out in (folded, y)
    ]
    assert_close(*gradients, MODEL["float64"])


# ---- ResNeXt, dilation, and models that end before stage 5

VARIANTS = [
    {"groups": 2, "group_width": 4},
    {"groups": 4, "group_width": 2, "norm": "group", "stride_in_1x1": True},
    {"dilation": 2},
    {"dilation": 2, "stride_in_1x1": True, "norm": "batch"},
    {"dilation": 2, "depth": 18},
    {"out_stage": 4},
    {"out_stage": 2, "depth": 18},
]


def variant(**backbone):
    """On one map, as none of these takes a pyramid."""
    full = narrow.config("paper_r50_c5")
    backbone = replace(full.backbone, **backbone)
    level = backbone.out_stage - (backbone.dilation == 2)
    heads = {
        name: replace(head, pooler=replace(head.pooler, min_level=level, max_level=level))
        for name, head in vars(full).items()
        if name in ("box_head", "mask_head")
    }
    return replace(full, backbone=backbone, **heads)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_variants_twins(rng, fields, training):
    config = variant(**fields)
    model = narrow.model(config).train(training)
    images = rng.standard_normal((2, 3, 75, 97))
    expected = resnet.forward(narrow.parameters(model), images, config, {} if training else None)
    actual = model.backbone(torch.from_numpy(images))
    assert list(expected) == list(actual) == list(range(2, config.backbone.out_stage + 1))
    for stage, x in expected.items():
        stride = resnet.strides(config)[stage]
        assert x.shape[1:] == (resnet.channels(config)[stage], -(-75 // stride), -(-97 // stride))
        assert_close(actual[stage], x, MODEL["float64"], f"C{stage}")
    shapes = {
        f"backbone.{name}": tuple(t.shape)
        for name, t in model.backbone.state_dict().items()
        if not name.endswith("tracked")
    }
    assert shapes == resnet.parameter_shapes(config)


def plain_bottleneck(p, name, x, stride, dilation, groups):
    """A bottleneck that strides in its 3x3 convolution, with a frozen norm, in plain PyTorch."""

    def conv_norm(x, conv, norm, **keywords):
        x = F.conv2d(x, p[f"{name}.{conv}.weight"], **keywords)
        return F.batch_norm(
            x,
            *(
                p[f"{name}.{norm}.{part}"]
                for part in ("running_mean", "running_var", "weight", "bias")
            ),
        )

    y = conv_norm(x, "conv1", "bn1").relu()
    y = conv_norm(
        y, "conv2", "bn2", stride=stride, padding=dilation, dilation=dilation, groups=groups
    ).relu()
    y = conv_norm(y, "conv3", "bn3")
    return (
        y
        + (
            conv_norm(x, "downsample.0", "downsample.1", stride=stride)
            if f"{name}.downsample.0.weight" in p
            else x
        )
    ).relu()


@pytest.mark.parametrize(("dilation", "groups"), [(2, 1), (1, 2), (2, 2)])
def test_stage_5_by_hand(rng, dilation, groups):
    """DC5: no block strides; the 3x3 of all blocks has dilation 2 and padding 2 (SPEC §14)."""
    config = variant(dilation=dilation, groups=groups, group_width=4, stride_in_1x1=False)
    model = narrow.model(config).backbone
    x = torch.from_numpy(rng.standard_normal((2, 128, 7, 9)))
    expected, p = x, model.state_dict()
    for i in range(3):
        expected = plain_bottleneck(
            p, f"layer4.{i}", expected, 2 if i == 0 and dilation == 1 else 1, dilation, groups
        )
    assert expected.shape == ((2, 256, 7, 9) if dilation == 2 else (2, 256, 4, 5))
    assert_close(model.stage(x, 5), expected, MODEL["float64"])
    parameters = {f"backbone.{name}": t.numpy() for name, t in p.items()}
    assert_close(resnet.stage(parameters, x.numpy(), 5, config), expected, MODEL["float64"])


def weights(config):
    """{parameter: shape} of the backbone without stored statistics."""
    return {
        name: shape
        for name, shape in resnet.parameter_shapes(config).items()
        if ".running_" not in name
    }


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # The 25,557,032 of torchvision without its classifier.
        ("torchvision_r50_fpn", 23_508_032),
        # Stage 5 belongs to the heads.
        ("detectron2_r50_c4", 23_508_032),
        ("detectron2_r50_dc5", 23_508_032),
        ("paper_r101_fpn", 42_500_160),
        ("detectron2_x101_fpn", 86_742_336),
    ],
)
def test_size(name, count):
    """At full width, norms included; one of ResNeXt is wider where it is grouped."""
    assert sum(map(prod, weights(preset(name)).values())) == count


def test_shapes_at_full_width():
    shapes = weights(preset("detectron2_x101_fpn"))
    assert shapes["backbone.layer1.0.conv2.weight"] == (256, 8, 3, 3) and shapes[
        "backbone.layer4.2.conv2.weight"
    ] == (2048, 64, 3, 3)
    assert shapes["backbone.layer3.22.conv3.weight"] == (1024, 1024, 1, 1)
    assert (
        resnet.strides(preset("detectron2_r50_dc5"))[5] == 16
        and resnet.strides(preset("paper_r50_c5"))[5] == 32
    )


def test_stage_5_is_there_where_it_is_used():
    config = variant(out_stage=4)
    assert not [
        name for name in resnet.parameter_shapes(config) if "layer4" in name
    ] and not hasattr(Backbone(config), "layer4")
    config = narrow.config("detectron2_r50_c4")
    assert "backbone.layer4.0.conv1.weight" in resnet.parameter_shapes(config) and hasattr(
        Backbone(config), "layer4"
    )


@pytest.mark.parametrize("frozen", [0, 2, 4, 5])
@pytest.mark.parametrize("name", ["detectron2_r50_c4", "detectron2_r50_dc5"])
def test_frozen_stages_of_single_maps(name, frozen):
    """Stage 5 counts as the fifth, whoever runs it."""
    config = narrow.config(name)
    config = replace(config, backbone=replace(config.backbone, frozen_stages=frozen))
    trained = {
        f"backbone.{name}" for name, p in Backbone(config).named_parameters() if p.requires_grad
    }
    assert trained == {
        n
        for n in resnet.parameter_shapes(config)
        if not n.startswith(resnet.frozen(config)) and ".bn" not in n and ".downsample.1" not in n
    }
    assert {name.split(".")[1] for name in trained} == {
        "conv1",
        "layer1",
        "layer2",
        "layer3",
        "layer4",
    } - set(["conv1", "layer1", "layer2", "layer3", "layer4"][:frozen])
