"""What the heads read of a RoI: the pooled features, or stage 5 of the backbone on them."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from support import narrow

from accelerated import shared_head as fast
from accelerated.verify.equality import MODEL, assert_close, assert_equal
from reference import resnet, shared_head
from reference.config import Config

SHARED = [
    ("torchvision_r50_fpn", "none"),
    ("detectron2_r50_c4", "res5"),
    ("paper_r50_c4", "res5_unstrided"),
]


def test_every_kind_is_there():
    assert (
        set(get_args(Config.__dataclass_fields__["shared_head"].type))
        == set(shared_head.SHARED)
        == set(fast.SHARED)
    )


@pytest.mark.parametrize("norm", ["frozen", "batch", "group"])
@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize(("name", "kind"), SHARED)
def test_twins(rng, name, kind, side, norm):
    """Padded rows change nothing, not even batch statistics. The shape is the announced one."""
    config = narrow.config(name)
    config = replace(config, backbone=replace(config.backbone, norm=norm))
    assert config.shared_head == kind
    pooler = replace(config.box_head.pooler, output_size=side)
    model = narrow.model(config).train()
    channels = shared_head.neck.of(config).channels(config)
    pooled, valid = rng.standard_normal((5, channels, side, side)), np.array([1, 0, 1, 1, 0], bool)
    expected = shared_head.forward(narrow.parameters(model), pooled[valid], config, {})
    actual = fast.forward(model.backbone, torch.from_numpy(pooled), torch.from_numpy(valid), config)
    assert_close(actual[torch.from_numpy(valid)], expected, MODEL["float64"])
    assert shared_head.shape(config, pooler) == fast.shape(config, pooler) == expected.shape[1:3]
    assert expected.shape[2] == expected.shape[3] == {"res5": -(-side // 2)}.get(kind, side)


def test_without_a_shared_stage_nothing_is_done(rng):
    config, pooled = narrow.config("tiny"), rng.standard_normal((2, 3, 4, 4))
    assert shared_head.forward({}, pooled, config) is pooled
    assert fast.forward(None, pooled, None, config) is pooled


def test_res5_is_the_stage_that_a_c5_model_runs_on_the_image(rng):
    """The same three blocks: on a map of stage 4 they give stage 5."""
    c4 = narrow.config("detectron2_r50_c4")
    whole = replace(c4, shared_head="none", backbone=replace(c4.backbone, out_stage=5))
    parameters = narrow.parameters(narrow.model(c4))
    stages = resnet.forward(parameters, rng.standard_normal((1, 3, 64, 96)), whole)
    assert_equal(shared_head.forward(parameters, stages[4], c4), stages[5])
