"""The whole model: both implementations against each other and against torchvision; fixed shapes, gradients, empty images."""

from dataclasses import replace

import narrow
import numpy as np
import pytest
import torch
from tolerances import GOLDEN_MODEL, MODEL, assert_close, assert_equal, error

from accelerated import interop
from accelerated.transform import Target
from reference import config as configuration
from reference import mask_rcnn, transform

LOSSES = ("rpn_objectness", "rpn_box", "class", "box", "mask")
SHAPES, OBJECTS = ((96, 128), (80, 100)), (3, 2)


def twins(config, **keywords):
    model = narrow.model(config, **keywords)
    return model, mask_rcnn.MaskRCNN(config, narrow.parameters(model))


def valid_rows(record, name):
    """A padded record [N, S, ...] as the reference's list over images, by the first slots that are valid."""
    return [rows[valid] for rows, valid in zip(record[name], record["proposal_valid"], strict=True)]


@pytest.mark.parametrize("name", narrow.PRESETS)
def test_detect_twins(rng, name):
    config = narrow.config(name)
    model, oracle = twins(config)
    images, _ = narrow.scene(rng, SHAPES, OBJECTS)
    model.train()
    record, expected_record = {}, {}
    detections, expected = model.detect(images, record=record), oracle.detect(images, record=expected_record)
    assert model.training and all(m.training for m in model.modules()), "the mode is restored"
    for key in ("images", "C2", "C5", "P2", "P6"):
        assert_close(record[key], expected_record[key], MODEL["float64"], key)
    for key in ("rpn_logits", "rpn_deltas", "anchors"):
        for level in range(5):
            assert_close(record[key][level], expected_record[key][level], MODEL["float64"], key)
    for i in range(2):
        assert_close(valid_rows(record, "proposals")[i], expected_record["proposals"][i], MODEL["float64"], "proposals")
    for actual, e in zip(detections, expected, strict=True):
        assert len(e.labels) > 3, "a test that finds nothing tests nothing"
        assert_equal(actual.labels, e.labels, "labels")
        assert_close(actual.boxes, e.boxes, MODEL["float64"], "boxes")
        assert_close(actual.scores, e.scores, MODEL["float64"], "scores")
        assert_equal(actual.masks, e.masks, "masks")


@pytest.mark.parametrize("objects", [OBJECTS, (0, 2), (0, 0)])
@pytest.mark.parametrize("name", narrow.PRESETS)
def test_losses_twins(rng, name, objects):
    config = narrow.config(name)
    model, oracle = twins(config)
    images, targets = narrow.scene(rng, SHAPES, objects)
    priorities = narrow.priorities(rng, config, SHAPES, objects)
    record, expected_record = {}, {}
    actual = model.losses(images, [Target(**t) for t in targets], priorities, record=record)
    expected = oracle.losses(images, [transform.Target(**t) for t in targets], priorities, record=expected_record)
    assert not model.training
    for key in ("rpn_labels", "rpn_sampled"):
        assert_equal(record[key], expected_record[key], key)
    sampled = record["roi_labels"] >= 0
    for key in ("sampled_rois", "roi_labels"):
        assert_close(record[key][sampled], np.concatenate(expected_record[key]), MODEL["float64"], key)
    for key in ("box_features", "class_logits", "box_deltas"):
        assert_close(record[key][sampled.flatten()], expected_record[key], MODEL["float64"], key)
    slots = int(config.box_head.batch_size * config.box_head.positive_fraction)
    foreground = (record["roi_labels"][:, :slots] > 0).flatten()
    for key in ("mask_features", "mask_logits", "mask_targets"):
        assert_close(record[key][foreground], expected_record[key], MODEL["float64"], key)
    assert tuple(actual) == tuple(expected) == LOSSES
    for loss in LOSSES:
        assert_close(actual[loss], expected[loss], MODEL["float64"], loss)
    if sum(objects):
        assert min(expected.values()) > 0


@pytest.mark.parametrize("objects", [OBJECTS, (0, 2), (0, 0)])
@pytest.mark.parametrize("name", narrow.PRESETS)
def test_every_parameter_has_a_finite_gradient(rng, name, objects):
    """With objects, in one image only, and without any: what trains has a gradient, and it is a number."""
    config = narrow.config(name)
    model = narrow.model(config)
    images, targets = narrow.scene(rng, SHAPES, objects)
    sum(model.losses(images, [Target(**t) for t in targets]).values()).backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{parameter_name} has no gradient"
            assert parameter.grad.isfinite().all(), f"{parameter_name}: gradient not finite"
        else:
            assert parameter.grad is None
    touched = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    if objects == OBJECTS:
        assert touched == {n for n, p in model.named_parameters() if p.requires_grad}
    assert any(n.startswith("backbone") for n in touched)


def test_the_batch_does_not_matter_to_an_image(rng):
    """Frozen norms: an image's detections are the same alone and beside another of its padded size."""
    config = narrow.config("torchvision_r50_fpn")
    model = narrow.model(config)
    images, _ = narrow.scene(rng, ((96, 128), (70, 99)), (1, 1))
    together = model.detect(images)[0]
    alone = model.detect(images[:1])[0]
    assert_close(together.boxes, alone.boxes, MODEL["float64"])
    assert_equal(together.masks, alone.masks)


def test_slots_beyond_the_objects_do_not_matter(rng):
    """More ground-truth slots than objects (`max_objects`), the same losses."""
    from accelerated.transform import collate, prepare

    config = narrow.config("torchvision_r50_fpn_v2")
    model = narrow.model(config).train()
    images, targets = narrow.scene(rng, SHAPES, OBJECTS)
    prepared = [prepare(i, Target(**t), config.transform, dtype=torch.float64) for i, t in zip(images, targets, strict=True)]
    priorities = {k: torch.tensor(np.stack(v)) for k, v in narrow.priorities(rng, config, SHAPES, (9, 9)).items()}
    results = []
    for slots in (3, 9):
        batch = collate(prepared, config.transform, SHAPES, max_objects=slots)
        own = priorities | {"roi": priorities["roi"][:, : config.rpn.post_nms_top_n_train + slots]}
        results.append(model.batch_losses(batch, own))
    for loss in LOSSES:
        assert_close(results[0][loss], results[1][loss].detach(), MODEL["float64"], loss)


def test_priorities_are_drawn_from_the_generator(rng):
    config = narrow.config("tiny")
    model = narrow.model(config)
    images, targets = narrow.scene(rng, SHAPES, OBJECTS)
    targets = [Target(**t) for t in targets]
    one, same, other = (model.losses(images, targets, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert all(one[loss] == same[loss] for loss in LOSSES)
    assert one["rpn_objectness"] != other["rpn_objectness"]


def test_forward_follows_the_mode(rng):
    config = narrow.config("tiny")
    model = narrow.model(config)
    images, targets = narrow.scene(rng, SHAPES, OBJECTS)
    batch = model.batch(images, [Target(**t) for t in targets])
    found = model(batch)
    assert found.boxes.shape == (2, config.box_head.max_detections, 4) and found.mask_probabilities.shape[2:] == (28, 28)
    assert (found.labels[~found.valid] == 0).all() and (found.labels[found.valid] > 0).all()
    assert set(model.train()(batch)) == set(LOSSES)


def test_no_images(rng):
    model = narrow.model(narrow.config("tiny"))
    assert model.detect([]) == []
    with pytest.raises(ValueError, match="expected images"):
        model.losses([], [])
    with pytest.raises(ValueError, match="a target for each"):
        model.losses(narrow.scene(rng)[0], [])


@pytest.mark.parametrize("name", narrow.PRESETS)
def test_float32_is_near_float64(rng, name):
    """The same samples, by handing in the priorities: losses within the table's tolerance, as no discrete choice is close."""
    config = narrow.config(name)
    images, targets = narrow.scene(rng, SHAPES, OBJECTS)
    targets = [Target(**t) for t in targets]
    priorities = narrow.priorities(rng, config, SHAPES, OBJECTS)
    double, single = (narrow.model(config, dtype=dtype).losses(images, targets, priorities) for dtype in (torch.float64, torch.float32))
    for loss in LOSSES:
        assert single[loss].dtype == torch.float32
        assert_close(single[loss], double[loss].detach(), MODEL["float32"], loss)


def test_autocast(rng):
    """bfloat16 convolutions; boxes, scores and losses stay float32."""
    config = narrow.config("tiny")
    model = narrow.model(config, dtype=torch.float32)
    images, targets = narrow.scene(rng, SHAPES, OBJECTS)
    record = {}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.losses(images, [Target(**t) for t in targets], narrow.priorities(rng, config, SHAPES, OBJECTS), record=record)
        found = model.detect(images)
    assert record["P2"].dtype == torch.bfloat16
    for x in (*losses.values(), record["proposals"], record["proposal_scores"], record["sampled_rois"], found[0].boxes, found[0].scores):
        assert x.dtype == torch.float32 and x.isfinite().all()
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_compiles_to_one_graph(rng):
    """`torch.compile(fullgraph=True)`: no graph break, no data-dependent shape, on the way to the losses."""
    config = narrow.config("tiny", mask_head=replace(narrow.config("tiny").mask_head, convs=1))
    model = narrow.model(config).train()
    images, targets = narrow.scene(rng, SHAPES, OBJECTS)
    batch = model.batch(images, [Target(**t) for t in targets])
    priorities = {k: torch.tensor(np.stack(v)) for k, v in narrow.priorities(rng, config, SHAPES, (3, 3)).items()}
    eager = model.batch_losses(batch, priorities)
    compiled = torch.compile(model.batch_losses, backend="eager", fullgraph=True)(batch, priorities)
    for loss in LOSSES:
        assert_close(compiled[loss].detach(), eager[loss].detach(), MODEL["float64"], loss)


def test_triton_twin(rng):
    """The whole model on Triton's kernels (interpreted without a GPU) finds what it finds in plain PyTorch."""
    config = narrow.config("tiny")
    config = replace(
        config,
        rpn=replace(config.rpn, post_nms_top_n_train=6, post_nms_top_n_test=4, pre_nms_top_n_train=12, pre_nms_top_n_test=8),
        box_head=replace(config.box_head, batch_size=4, max_detections=2),
        fpn=replace(config.fpn, channels=4),
    )
    images, targets = narrow.scene(rng, ((48, 64),), (2,))
    targets = [Target(**t) for t in targets]
    priorities = narrow.priorities(rng, config, ((48, 64),), (2,))
    models = [narrow.model(config, backend=backend) for backend in ("torch", "triton")]
    first, second = (model.losses(images, targets, priorities) for model in models)
    for loss in LOSSES:
        assert_close(second[loss].detach(), first[loss].detach(), MODEL["float64"], loss)
    for losses in (first, second):
        sum(losses.values()).backward()
    for (name, p), (_, q) in zip(*(model.named_parameters() for model in models), strict=True):
        if p.grad is not None:
            assert_close(q.grad, p.grad, MODEL["float64"], name)
    a, b = (model.detect(images)[0] for model in models)
    assert_equal(b.labels, a.labels)
    assert_close(b.boxes, a.boxes, MODEL["float64"])
    assert_equal(b.masks, a.masks)


def golden_model(z):
    """torchvision's model of the golden file: nothing resized, every convolution trained, frozen norms with eps 1e-5."""
    config = configuration.preset("torchvision_r50_fpn")
    config = replace(
        config,
        transform=replace(config.transform, min_size=()),
        backbone=replace(config.backbone, frozen_stages=0),
    )
    return interop.load({k[2:]: torch.from_numpy(z[k]).double() for k in z.files if k.startswith("w.")}, config)


def golden_scene(z):
    images = [np.moveaxis(z[f"in.image.{i}"], 0, -1) * 255 for i in range(2)]
    targets = [Target(*(torch.from_numpy(z[f"in.gt_{k}.{i}"]) for k in ("boxes", "labels", "masks"))) for i in range(2)]
    return images, targets


def golden_order(mask):
    """Priorities that choose what the golden run chose: perm[i] = (7919 i + 13) mod n of the candidates, listed by rising index."""
    positions = np.flatnonzero(mask)
    n = len(positions)
    out = np.ones(len(mask))
    for rank in range(n):
        out[positions[(7919 * rank + 13) % n]] = rank / (2 * len(mask))
    return out


def golden_priorities(z, model, images, targets):
    """From the labels the golden run recorded."""
    post = model.config.rpn.post_nms_top_n_train
    rpn, roi = [], []
    for i in range(2):
        labels = z[f"train.rpn.labels.{i}"]
        rpn.append(np.where(labels == 1, golden_order(labels == 1), golden_order(labels == 0)))
        labels, count = z[f"train.roi.all_labels.{i}"], len(z[f"train.rpn.proposals.{i}"])
        row = np.where(labels > 0, golden_order(labels > 0), golden_order(labels == 0))
        roi.append(np.concatenate([row[:count], np.ones(post - count), row[count:]]))
    return {"rpn": rpn, "roi": roi}


def test_golden_detections(shared_golden):
    z = shared_golden("tv_fpn_f64")
    images, _ = golden_scene(z)
    for i, found in enumerate(golden_model(z).detect(images)):
        assert_equal(found.labels, z[f"eval.out.labels.{i}"], "labels")
        assert_close(found.boxes, z[f"eval.out.boxes.{i}"], GOLDEN_MODEL, "boxes")
        assert_close(found.scores, z[f"eval.out.scores.{i}"], GOLDEN_MODEL, "scores")
        shape = z[f"eval.out.masks_bool.{i}#shape"]
        expected = np.unpackbits(z[f"eval.out.masks_bool.{i}"])[: np.prod(shape)].reshape(shape)[:, 0]
        assert_equal(found.masks, expected, "masks")


def test_golden_losses_and_gradients(shared_golden):
    z = shared_golden("tv_fpn_f64")
    model = golden_model(z)
    images, targets = golden_scene(z)
    record = {}
    losses = model.losses(images, targets, golden_priorities(z, model, images, targets), record=record)
    assert_equal(record["rpn_labels"], np.stack([z[f"train.rpn.labels.{i}"] for i in range(2)]))
    names = {"class": "classifier", "box": "box_reg", "mask": "mask", "rpn_box": "rpn_box_reg"}
    for loss, name in names.items():
        assert_close(losses[loss], z[f"train.loss.loss_{name}"], GOLDEN_MODEL, loss)
    assert_close(losses["rpn_objectness"], z["train.loss.loss_objectness"], 1e-6, "torchvision rounds this one to float32 (SPEC §7)")
    sum(losses.values()).backward()
    gradients = {interop.torchvision.their_name(n, model.config): p.grad for n, p in model.named_parameters()}
    checked = 0
    for key in z.files:
        if key.startswith("train.gradnorm."):
            assert_close(gradients[key[15:]].norm(), z[key], GOLDEN_MODEL, key)
            checked += 1
        elif key.startswith("train.grad."):
            assert error(gradients[key[11:]], z[key]) <= GOLDEN_MODEL, key
    assert checked == len(gradients)
