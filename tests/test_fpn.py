"""The pyramid: both implementations, every norm, odd sides."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import narrow

from accelerated.fpn import Neck
from accelerated.verify.equality import MODEL, assert_close, assert_equal
from reference import fpn, resnet


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", ["none", "batch", "group"])
@pytest.mark.parametrize("sides", [(24, 40), (19, 27)])
def test_twins(rng, norm, sides, training):
    config = narrow.config("torchvision_r50_fpn")
    config = replace(config, fpn=replace(config.fpn, norm=norm))
    model = narrow.model(config).train(training)
    features, (h, w) = {}, sides
    for level, channels in resnet.channels(config).items():
        features[level] = rng.standard_normal((2, channels, h, w))
        h, w = -(-h // 2), -(-w // 2)
    parameters = narrow.parameters(model)
    expected = fpn.forward(parameters, features, config, {} if training else None)
    actual = model.fpn({level: torch.from_numpy(x) for level, x in features.items()})
    assert list(actual) == list(expected) == [2, 3, 4, 5, 6]
    for level in expected:
        assert_close(actual[level], expected[level], MODEL["float64"], f"P{level}")
    assert_equal(actual[6], actual[5][:, :, ::2, ::2].detach())


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_same_parameters(norm):
    config = narrow.config("torchvision_r50_fpn")
    config = replace(config, fpn=replace(config.fpn, norm=norm))
    shapes = {
        f"fpn.{name}": tuple(t.shape)
        for name, t in Neck(config).state_dict().items()
        if not name.endswith("tracked")
    }
    assert shapes == fpn.parameter_shapes(config)


def test_top_down_path_reaches_the_finest_level(rng):
    """A pixel of C5 changes 8 x 8 pixels of P2, which its 3x3 convolution spreads to 10 x 10."""
    config = narrow.config("torchvision_r50_fpn")
    model = narrow.model(config)
    features = {
        level: torch.zeros(1, c, 64 >> level, 64 >> level, dtype=torch.float64)
        for level, c in resnet.channels(config).items()
    }
    base = model.fpn(features)[2].detach()
    features[5] = features[5].clone()
    features[5][0, :, 1, 0] = 1.0
    changed = (model.fpn(features)[2] - base).abs().sum(1)[0] > 1e-12
    rows, columns = np.nonzero(changed.numpy(force=True))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (7, 15, 0, 8)
