"""The whole model on a GPU: against the CPU, deterministic, without synchronisation, bf16."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from support import narrow

from accelerated import masks
from accelerated.structures import Target
from accelerated.transform import collate, prepare
from accelerated.verify.equality import MODEL, assert_close, assert_equal, error

pytestmark = pytest.mark.gpu
SHAPES, OBJECTS = ((96, 128), (80, 100)), (3, 2)


@contextmanager
def no_synchronisation():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def a_batch(rng, config, dtype=torch.float64):
    images, targets = narrow.scene(rng, SHAPES, OBJECTS)
    prepared = [
        prepare(i, Target(**t), config.transform, dtype=dtype)
        for i, t in zip(images, targets, strict=True)
    ]
    own = {
        k: torch.tensor(np.stack(v))
        for k, v in narrow.priorities(rng, config, SHAPES, (3, 3)).items()
    }
    return collate(prepared, config.transform, SHAPES), own


def step(model, batch, priorities, amp=False):
    """Losses and gradients of every parameter that trains, by name."""
    model.zero_grad(set_to_none=True)
    with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=amp):
        losses = model.batch_losses(batch, priorities)
    sum(losses.values()).backward()
    return losses | {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def on(device, batch, priorities):
    return batch.to(device), {name: value.to(device) for name, value in priorities.items()}


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("name", narrow.LAYOUTS)
def test_losses_and_gradients_equal_those_of_the_cpu(rng, name, backend):
    config = narrow.config(name)
    model = narrow.model(config).train()
    batch, priorities = a_batch(rng, config)
    expected = {
        key: value.detach().clone() for key, value in step(model, batch, priorities).items()
    }
    model.to("cuda").backend = backend
    for key, value in step(model, *on("cuda", batch, priorities)).items():
        assert_close(value, expected[key], MODEL["float64"], key)


@pytest.mark.parametrize("name", narrow.LAYOUTS)
def test_detections_equal_those_of_the_cpu(rng, name):
    model = narrow.model(narrow.config(name))
    images, _ = narrow.scene(rng, SHAPES, OBJECTS)
    expected = model.detect(images)
    model.to("cuda").backend = "triton"
    assert sum(len(e.labels) for e in expected) > 4, "a test that finds nothing tests nothing"
    for actual, e in zip(model.detect(images), expected, strict=True):
        assert_equal(actual.labels, e.labels, "labels")
        assert_close(actual.boxes, e.boxes, MODEL["float64"], "boxes")
        assert_equal(actual.masks, e.masks, "masks")


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("name", narrow.LAYOUTS)
def test_a_training_step_never_waits_for_the_gpu(rng, name, amp):
    config = narrow.config(name)
    model = narrow.model(config, dtype=torch.float32, backend="triton").train().to("cuda")
    batch, priorities = on("cuda", *a_batch(rng, config, torch.float32))
    step(model, batch, priorities, amp)  # compiles the kernels
    with no_synchronisation():
        step(model, batch, priorities, amp)
        step(model, batch, None, amp)  # priorities drawn on the device


def test_a_training_step_gives_the_same_bits_every_time(rng):
    config = narrow.config("tiny")
    model = narrow.model(config, dtype=torch.float32, backend="triton").train().to("cuda")
    batch, priorities = on("cuda", *a_batch(rng, config, torch.float32))
    with torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        first = {
            key: value.detach().clone() for key, value in step(model, batch, priorities).items()
        }
        for _ in range(3):
            for key, value in step(model, batch, priorities).items():
                assert torch.equal(value, first[key]), key


def test_bf16_losses_are_near_float64(rng):
    config = narrow.config("torchvision_r50_fpn")
    model = narrow.model(config).train()
    batch, priorities = a_batch(rng, config)
    expected = {
        key: value.detach().clone() for key, value in step(model, batch, priorities).items()
    }
    model.to("cuda", torch.float32).backend = "triton"
    batch, priorities = on("cuda", batch, priorities)
    batch.images = batch.images.float()
    actual = step(model, batch, priorities, amp=True)
    for loss in ("rpn_objectness", "class", "mask"):
        assert error(actual[loss], expected[loss]) <= MODEL["bfloat16"], loss


@pytest.mark.parametrize("name", ["torchvision_r50_fpn", "detectron2_r50_fpn"])
def test_mask_targets_and_pasting_equal_those_of_the_cpu(rng, name):
    config = narrow.config(name)
    batch, _ = a_batch(rng, config)
    rois = batch.boxes.flatten(0, 1)
    rois = rois + torch.tensor(rng.uniform(-9, 9, rois.shape))
    image_index = torch.arange(2).repeat_interleave(batch.boxes.shape[1])
    matched, valid = torch.arange(batch.boxes.shape[1]).repeat(2), batch.valid.flatten()
    own = {"head": config.mask_head, "size": 28}
    expected = masks.targets(
        batch.masks, image_index, matched, rois, valid, **own, sizes=batch.sizes, backend="torch"
    )
    cuda = [x.cuda() for x in (batch.masks, image_index, matched, rois, valid)]
    actual = masks.targets(*cuda, **own, sizes=batch.sizes.cuda(), backend="triton")
    assert_close(actual, expected, MODEL["float64"], "targets")
    probabilities = torch.tensor(rng.uniform(0, 1, (len(rois), 28, 28)))
    expected = masks.paste(probabilities, rois, 96, 128, convention=config.mask_head.paste)
    assert_equal(
        masks.paste(probabilities.cuda(), rois.cuda(), 96, 128, convention=config.mask_head.paste),
        expected,
        "pasted",
    )
