"""The kinds of backbone: each has what the wiring asks of it, in both implementations."""

from typing import get_args

import pytest
from support import narrow
from torch import nn

from accelerated import backbone as fast
from reference import backbone
from reference.config import Backbone


def test_every_kind_is_there():
    kinds = get_args(Backbone.__dataclass_fields__["kind"].type)
    assert set(kinds) == set(backbone.KINDS) == set(fast.KINDS)


@pytest.mark.parametrize(
    "name",
    ["tiny", "torchvision_r50_fpn", "detectron2_r50_c4", "detectron2_r50_dc5", "paper_vgg16"],
)
def test_twins_say_the_same_of_themselves(name):
    config = narrow.config(name)
    ours, theirs = backbone.of(config), fast.of(config)
    assert ours.channels(config) == theirs.channels(config) and ours.strides(
        config
    ) == theirs.strides(config)
    model = theirs.Backbone(config)
    assert isinstance(model, nn.Module)
    shapes = {
        f"backbone.{key}": tuple(x.shape)
        for key, x in model.state_dict().items()
        if not key.endswith("tracked")
    }
    assert shapes == ours.parameter_shapes(config)
    trained = {f"backbone.{key}" for key, p in model.named_parameters() if p.requires_grad}
    assert not any(key.startswith(ours.frozen(config)) for key in trained)
    assert trained | {key for key in shapes if key.startswith(ours.frozen(config))} <= shapes.keys()
