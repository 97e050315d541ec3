"""The reference model alone: its parameters, and images with nothing to find or to learn."""

from dataclasses import replace

import numpy as np
import pytest

from reference import config as configuration
from reference.mask_rcnn import MaskRCNN
from reference.parameters import initial_parameters
from reference.structures import Stages, Target

LOSSES = {"rpn_objectness", "rpn_box", "class", "box", "mask"}


def small(**fields):
    """ "tiny" for images of one or two dozen pixels."""
    config = configuration.preset("tiny")
    return replace(
        config,
        norm_groups=4,
        transform=replace(config.transform, min_size=()),
        backbone=replace(config.backbone, width=4, norm=fields.pop("norm", "group")),
        fpn=replace(config.fpn, channels=8),
        box_head=replace(config.box_head, channels=16, **fields),
        mask_head=replace(config.mask_head, channels=8, norm="batch"),
    )


def nothing(height, width):
    return Target(np.zeros((0, 4)), np.zeros(0, int), np.zeros((0, height, width), bool))


@pytest.fixture
def image(rng):
    return rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)


def test_wrong_parameters_are_one_clear_error(rng):
    config = small()
    parameters = initial_parameters(config, rng)
    del parameters["rpn.logits.bias"]
    parameters["fpn.lateral2.weight"] = parameters["fpn.lateral2.weight"][:3]
    parameters["extra"] = np.zeros(1)
    parameters["backbone.bn1.num_batches_tracked"] = np.array(7)  # PyTorch's counter: ignored
    with pytest.raises(ValueError) as raised:
        MaskRCNN(config, parameters)
    message = str(raised.value)
    assert "rpn.logits.bias is missing" in message
    assert "extra is unexpected" in message
    assert "fpn.lateral2.weight has shape [3, 4, 1, 1], expected [8, 4, 1, 1]" in message
    assert "num_batches_tracked" not in message


def test_many_wrong_parameters_are_summarised():
    with pytest.raises(ValueError, match=r"and \d+ more"):
        MaskRCNN(small(), {})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_initial_parameters_compute_in_their_dtype(rng, image, dtype):
    config = small()
    record = Stages()
    MaskRCNN(config, initial_parameters(config, rng, dtype)).detect([image], record)
    assert {
        getattr(record, name).dtype
        for name in ("images", "C5", "P2", "box_features", "class_logits", "mask_logits")
    } == {np.dtype(dtype)}


def test_initial_normalisations_are_the_identity():
    config = small(norm="batch")
    parameters = initial_parameters(config, np.random.default_rng(0))
    assert (parameters["backbone.bn1.weight"] == 1).all() and (
        parameters["backbone.bn1.running_var"] == 1
    ).all()
    assert (parameters["backbone.bn1.running_mean"] == 0).all() and (
        parameters["rpn.conv1.bias"] == 0
    ).all()
    assert 0.005 < parameters["rpn.conv1.weight"].std() < 0.015


def test_no_images(rng):
    model = MaskRCNN(small(), initial_parameters(small(), rng))
    assert model.detect([]) == []
    with pytest.raises(ValueError, match="0 images and 0 targets"):
        model.losses([], [])


def test_as_many_targets_as_images(rng, image):
    model = MaskRCNN(small(), initial_parameters(small(), rng))
    with pytest.raises(ValueError, match="1 images and 2 targets"):
        model.losses([image], [nothing(24, 40)] * 2)


def test_no_detections(rng, image):
    config = small(score_threshold=1.0)
    (found,) = MaskRCNN(config, initial_parameters(config, rng)).detect([image])
    assert (
        found.boxes.shape == (0, 4)
        and found.scores.shape == found.labels.shape == (0,)
        and found.masks.shape == (0, 24, 40)
    )


@pytest.mark.parametrize("kind", ["two_fc", "four_conv_fc"])
def test_no_proposals_and_no_objects(rng, image, kind):
    """If no proposal reaches the minimal size, losses are finite and detection finds nothing."""
    config = small(kind=kind, conv_channels=8, norm="batch")
    config = replace(config, rpn=replace(config.rpn, min_size=1e3))
    model = MaskRCNN(config, initial_parameters(config, rng))
    losses = model.losses([image], [nothing(24, 40)])
    assert set(losses) == LOSSES and np.isfinite(list(losses.values())).all()
    assert losses["rpn_objectness"] > 0
    assert [losses[name] for name in ("rpn_box", "class", "box", "mask")] == [0, 0, 0, 0]
    assert len(model.detect([image])[0].scores) == 0


def test_one_image_with_and_one_without_objects(rng, image):
    config = small()
    model = MaskRCNN(config, initial_parameters(config, rng))
    masks = np.zeros((1, 24, 40), bool)
    masks[0, 4:20, 8:30] = True
    targets = [Target(np.array([[8.0, 4, 30, 20]]), np.array([2]), masks), nothing(30, 20)]
    record = Stages()
    losses = model.losses(
        [image, image[:20].transpose(1, 0, 2)[:30]],
        targets,
        record=record,
        generator=np.random.default_rng(0),
    )
    assert np.isfinite(list(losses.values())).all() and losses["mask"] > 0
    first, second = record.roi_labels
    assert (first == 2).any() and set(first) <= {0, 2} and set(second) == {0}
    again = model.losses(
        [image, image[:20].transpose(1, 0, 2)[:30]], targets, generator=np.random.default_rng(0)
    )
    assert again == losses


def test_batch_statistics_in_training_stored_ones_in_detection(rng, image):
    config = small(norm="batch")
    model = MaskRCNN(config, initial_parameters(config, rng))
    trained, detected = Stages(), Stages()
    model.losses([image], [nothing(24, 40)], record=trained)
    model.detect([image], detected)
    assert not np.allclose(trained.C2, detected.C2)
    first = trained.C2.mean()
    model.parameters["backbone.bn1.running_mean"] = (
        model.parameters["backbone.bn1.running_mean"] + 1
    )
    model.losses([image], [nothing(24, 40)], record=trained)
    assert trained.C2.mean() == first, "stored statistics play no part in training"


def test_ground_truths_have_their_priorities_behind_all_proposal_slots(rng):
    """A proposal and a ground truth compete for one slot: entry post_nms_top_n_train decides."""
    config = small(batch_size=2, positive_fraction=0.5)
    model = MaskRCNN(config, initial_parameters(config, rng))
    box = np.array([[8.0, 4, 30, 20]])
    target = Target(box, np.array([2]), np.ones((1, 24, 40), bool))
    slots = config.rpn.post_nms_top_n_train
    for priority, chosen in ((0.0, 1), (2.0, 0)):
        row = np.ones(slots + 1)
        row[slots] = priority
        assert model.sample(box, target, box, row).indices.tolist() == [chosen]


def test_training_moves_running_statistics_and_leaves_the_old_arrays_alone(rng, image):
    config, name = small(norm="batch"), "backbone.bn1.running_mean"
    model = MaskRCNN(config, initial_parameters(config, rng))
    before = dict(model.parameters)
    kept = before[name].copy()
    model.losses([image], [nothing(24, 40)])
    by_losses = model.parameters[name]
    assert not np.array_equal(by_losses, kept) and np.array_equal(before[name], kept)
    model.parameters = before
    model.gradients([image], [nothing(24, 40)])
    assert np.array_equal(model.parameters[name], by_losses)
    model.parameters = before
    model.detect([image])
    assert model.parameters[name] is before[name], "detection reads stored statistics"
