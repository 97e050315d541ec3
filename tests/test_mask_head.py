"""The mask head, both implementations."""

from dataclasses import replace

import narrow
import numpy as np
import pytest
import torch
from tolerances import MODEL, assert_close

from accelerated import mask_head as fast
from reference import mask_head


def settings(convs, norm, background="first"):
    full = narrow.config("torchvision_r50_fpn", background=background)
    return replace(full, mask_head=replace(full.mask_head, convs=convs, norm=norm))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("background", ["first", "last"])
@pytest.mark.parametrize(("convs", "norm"), [(4, "none"), (0, "none"), (2, "batch"), (2, "group")])
def test_twins(rng, convs, norm, background, training):
    config = settings(convs, norm, background)
    model = narrow.model(config).train(training)
    pooled = rng.standard_normal((6, config.fpn.channels, 14, 14))
    valid = np.array([1, 0, 1, 1, 0, 1], bool)
    expected = mask_head.forward(narrow.parameters(model), pooled[valid], config, training)
    actual = model.mask_head(torch.from_numpy(pooled), torch.from_numpy(valid))
    assert actual.shape == (6, config.num_classes + (background == "first"), 28, 28)
    assert_close(actual[torch.from_numpy(valid)], expected, MODEL["float64"])


@pytest.mark.parametrize("background", ["first", "last"])
@pytest.mark.parametrize(("convs", "norm"), [(4, "none"), (0, "none"), (2, "batch"), (2, "group")])
def test_same_parameters(convs, norm, background):
    config = settings(convs, norm, background)
    shapes = {f"mask_head.{n}": tuple(t.shape) for n, t in fast.make(config).state_dict().items() if not n.endswith("tracked")}
    assert shapes == mask_head.parameter_shapes(config)
