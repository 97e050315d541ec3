"""The mask head, both implementations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import narrow

from accelerated import mask_head as fast
from accelerated.verify.equality import MODEL, assert_close
from reference import mask_head
from reference.config import override, preset
from reference.labels import mask_layout


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
    expected = mask_head.forward(
        narrow.parameters(model), pooled[valid], config, {} if training else None
    )
    actual = model.mask_head(torch.from_numpy(pooled), torch.from_numpy(valid))
    assert actual.shape == (6, config.num_classes + (background == "first"), 28, 28)
    assert_close(actual[torch.from_numpy(valid)], expected, MODEL["float64"])


@pytest.mark.parametrize("background", ["first", "last"])
@pytest.mark.parametrize(("convs", "norm"), [(4, "none"), (0, "none"), (2, "batch"), (2, "group")])
def test_same_parameters(convs, norm, background):
    config = settings(convs, norm, background)
    shapes = {
        f"mask_head.{n}": tuple(t.shape)
        for n, t in fast.make(config).state_dict().items()
        if not n.endswith("tracked")
    }
    assert shapes == mask_head.parameter_shapes(config)


VARIANTS = [
    (kind, loss, agnostic)
    for kind in ("fcn", "mlp")
    for loss in ("sigmoid", "softmax")
    for agnostic in (False, True)
]


@pytest.mark.parametrize("background", ["first", "last"])
@pytest.mark.parametrize(("kind", "loss", "agnostic"), VARIANTS)
def test_variants_twins(rng, kind, loss, agnostic, background):
    """As many masks as the loss needs, from either head; padded rows change nothing."""
    config = settings(1, "none", background)
    config = replace(
        config,
        mask_head=replace(
            config.mask_head, kind=kind, loss=loss, class_agnostic=agnostic, mlp_channels=24
        ),
    )
    model = narrow.model(config)
    features, valid = (
        rng.standard_normal((3, config.fpn.channels, 14, 14)),
        np.array([1, 0, 1], bool),
    )
    expected = mask_head.forward(narrow.parameters(model), features[valid], config)
    actual = model.mask_head(torch.from_numpy(features), torch.from_numpy(valid))
    assert expected.shape == (2, mask_layout(config).columns, 28, 28)
    assert_close(actual[torch.from_numpy(valid)], expected, MODEL["float64"])
    assert {
        f"mask_head.{n}": tuple(t.shape) for n, t in model.mask_head.state_dict().items()
    } == mask_head.parameter_shapes(config)
    assert mask_head.forward(narrow.parameters(model), features[:0], config).shape == (
        0,
        *expected.shape[1:],
    ), "no object at all"


def test_the_mlp_has_two_hidden_layers():
    """[Mask R-CNN, table 2e]: of 1024 channels, on 14x14 features; then all pixels of all masks."""
    config = override(preset("paper_r50_fpn"), "mask_head.kind=mlp")
    shapes = mask_head.parameter_shapes(config)
    assert [shapes[f"mask_head.{name}.weight"] for name in ("fc1", "fc2", "logits")] == [
        (1024, 256 * 14 * 14),
        (1024, 1024),
        (80 * 28 * 28, 1024),
    ]
    assert len(shapes) == 6


def test_the_mlp_sees_all_pixels_at_every_pixel_and_the_fcn_its_neighbours(rng):
    features = torch.zeros(1, 16, 14, 14, dtype=torch.float64)
    for kind, far in (("fcn", False), ("mlp", True)):
        config = settings(1, "none")
        model = narrow.model(
            replace(config, mask_head=replace(config.mask_head, kind=kind, mlp_channels=24))
        )
        moved = features.clone()
        moved[0, :, 0, 0] = 1
        changed = (model.mask_head(moved) - model.mask_head(features)).abs().sum(1)[0] > 1e-12
        assert changed[0, 0] and bool(changed[27, 27]) == far


def test_no_mask_branch():
    config = settings(4, "none")
    assert (
        mask_head.parameter_shapes(
            replace(config, mask_head=replace(config.mask_head, kind="none"))
        )
        == {}
    )
