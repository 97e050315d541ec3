"""The kinds of neck: each has what the wiring asks of it, in both implementations."""

from typing import get_args

import numpy as np
import pytest
import torch
from support import narrow

from accelerated import neck as fast
from accelerated.verify.equality import MODEL, assert_close
from reference import backbone, neck
from reference.config import Config


def test_every_kind_is_there():
    assert (
        set(get_args(Config.__dataclass_fields__["neck"].type))
        == set(neck.KINDS)
        == set(fast.KINDS)
    )


@pytest.mark.parametrize("name", narrow.LAYOUTS)
def test_twins(rng, name):
    """Level l has stride 2^l, and as many channels as it says."""
    config = narrow.config(name)
    body, model = backbone.of(config), narrow.model(config)
    stages = range(config.backbone.out_stage + 1)
    stages = {
        k: rng.standard_normal((1, c, 64 // body.strides(config)[k], 96 // body.strides(config)[k]))
        for k, c in body.channels(config).items()
        if k in stages
    }
    expected = neck.of(config).forward(narrow.parameters(model), stages, config)
    actual = model.fpn({k: torch.from_numpy(x) for k, x in stages.items()})
    assert list(actual) == list(expected)
    for level, x in expected.items():
        assert x.shape == (
            1,
            neck.of(config).channels(config),
            64 >> level,
            -(-96 >> level) if level < 6 else 2,
        )
        assert_close(actual[level], x, MODEL["float64"], f"P{level}")
    assert fast.of(config).channels(config) == neck.of(config).channels(config)
    shapes = {
        f"fpn.{key}": np.shape(x)
        for key, x in model.fpn.state_dict().items()
        if not key.endswith("tracked")
    }
    assert shapes == neck.of(config).parameter_shapes(config)
