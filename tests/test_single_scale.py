"""A single map: which one, its level and its channels."""

import pytest
import torch
from support import narrow

from accelerated import single_scale as fast
from reference import single_scale
from reference.config import single_map_level

# {preset: (stage, level)}
LEVELS = {
    "detectron2_r50_c4": (4, 4),
    "detectron2_r50_dc5": (5, 4),
    "paper_r50_c5": (5, 5),
    "paper_vgg16": (5, 4),
}


@pytest.mark.parametrize("name", LEVELS)
def test_it_is_the_last_stage_at_the_level_of_its_stride(name):
    stage, level = LEVELS[name]
    config = narrow.config(name)
    maps = {k: torch.full((1, 2, 3, 4), float(k)) for k in range(1, stage + 1)}
    for found in (single_scale.forward({}, maps, config), fast.Neck(config)(maps)):
        assert list(found) == [level] and found[level] is maps[stage]
    assert single_map_level(config) == fast.Neck(config).level == level


@pytest.mark.parametrize("name", LEVELS)
def test_channels_and_no_parameters(name):
    config = narrow.config(name)
    # The stem has 8 channels.
    channels = {"detectron2_r50_c4": 128, "paper_vgg16": 64}.get(name, 256)
    assert single_scale.channels(config) == fast.channels(config) == channels
    assert single_scale.parameter_shapes(config) == {} == dict(fast.Neck(config).state_dict())
