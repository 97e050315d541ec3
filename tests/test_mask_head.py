"""The mask head, both implementations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import narrow

from accelerated import mask_head as fast
from accelerated.structures import Stages, Target
from accelerated.verify.equality import MODEL, assert_close, assert_equal
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


@pytest.mark.parametrize("rows", [6, 0])
@pytest.mark.parametrize("agnostic", [False, True])
def test_the_logits_of_one_class_are_a_channel_of_all(rng, agnostic, rows):
    """Values and gradients, of which those of a class without RoI are exactly 0."""
    config = settings(1, "none")
    config = replace(config, mask_head=replace(config.mask_head, class_agnostic=agnostic))
    head = narrow.model(config).mask_head
    labels = torch.tensor([1, 3, 3, 0, -1, 1])[:rows]
    columns = fast.mask_layout(config).column(labels)
    features = torch.from_numpy(rng.standard_normal((rows, config.fpn.channels, 14, 14)))
    grad_out = torch.from_numpy(rng.standard_normal((rows, 28, 28)))
    grad_out[labels < 1] = 0
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = features.contiguous(memory_format=layout).requires_grad_()
        every = head(leaf).take_along_dim(columns[:, None, None, None], 1)[:, 0]
        own, again = head(leaf, None, columns, every=True)
        assert_equal(again.detach(), head(leaf).detach())
        for maps in (every, own):
            leaves = [leaf, *head.parameters()]
            results.append([maps.detach(), *torch.autograd.grad(maps, leaves, grad_out)])
    for result in results[1:]:
        for ours, expected in zip(result, results[0], strict=True):
            assert_close(ours, expected, MODEL["float64"])
    names = ["maps", "features", *(name for name, _ in head.named_parameters())]
    gradients = dict(zip(names, results[1], strict=True))
    if not agnostic:
        without = [column for column in range(config.num_classes + 1) if column not in (1, 3)]
        assert not gradients["logits.weight"][without].any()
        assert not gradients["logits.bias"][without].any()


@pytest.mark.parametrize("name", ["torchvision_r50_fpn", "detectron2_r50_c4"])
@pytest.mark.parametrize(
    ("loss", "kind"), [("sigmoid", "fcn"), ("softmax", "fcn"), ("sigmoid", "mlp")]
)
def test_a_record_has_all_classes_and_changes_nothing(rng, name, loss, kind):
    """In training and in detection, with the same bits."""
    config = narrow.config(name)
    config = replace(
        config, mask_head=replace(config.mask_head, kind=kind, loss=loss, mlp_channels=24)
    )
    model = narrow.model(config)
    images, targets = narrow.scene(rng, [(90, 110)], [2])
    targets, records = [Target(**t) for t in targets], (Stages(), Stages())
    runs = []
    for record in (None, records[0]):
        model.zero_grad()
        losses = model.losses(images, targets, record=record, generator=torch.manual_seed(0))
        losses["mask"].backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        runs.append([losses["mask"].detach(), *gradients])
    for ours, expected in zip(*runs, strict=True):
        assert_equal(ours, expected)
    plain, recorded = model.detect(images)[0], model.detect(images, records[1])[0]
    assert_equal(plain.masks, recorded.masks)
    for record in records:
        assert record.mask_logits.shape[1] == mask_layout(config).columns
    probabilities = fast.probabilities(
        records[1].mask_logits, records[1].detections.labels.flatten(), config
    )
    assert_close(records[1].mask_probabilities.flatten(0, 1), probabilities, MODEL["float64"])


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
