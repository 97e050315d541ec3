"""The benchmark's cases of whole models: a training step and inference, ours and torchvision's.

Both have the same weights and get the same prepared batch, so that neither resizes images.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from accelerated import interop
from accelerated.experiments import timing
from accelerated.experiments.benchmark_cases import (
    Case,
    dtype_name,
    random_batch,
    torchvision_module,
)
from accelerated.interop.torchvision import state_dict
from accelerated.kernels.eager.masks import unpack
from accelerated.mask_rcnn import MaskRCNN
from accelerated.parameters import set_memory_format
from accelerated.structures import Batch
from accelerated.verify import equality
from reference.config import preset

OPERATORS = ("training_step", "detect", "detect_and_paste")
# Other ways to run our call. What the package offers for training and inference belongs here.
VARIANTS: dict[str, Callable[[Callable[[], Any]], Callable[[], Any]]] = {"graph": timing.captured}
# torchvision's model with our operators under it.
OUR_OPERATORS = "our operators"
# Seconds that compiling and measuring a model may take.
COMPILE_LIMIT = 300


def whole_model(
    operator: str,
    *,
    name: str,
    images: int,
    side: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    objects: int = 8,
    checked: bool = True,
) -> Case:
    """Run a model of the preset `name` on random images of a side (H, W).

    operator  of OPERATORS: "training_step" is forward and backward, "detect" ends with 28x28
              masks, "detect_and_paste" with those of the images
    dtype     float32, or bfloat16 by autocast
    objects   per image, in training
    checked   compare with float64, which takes time and memory of its own
    """
    gpu = device.type == "cuda"
    scene = partial(_scene, operator, name, images, side, objects, device)
    model, batch, priorities = scene()

    def ours(backend):
        model.backend = backend
        return partial(_run, operator, model, model.forward, batch, priorities, dtype)

    def oracle():
        exact_model = copy.deepcopy(model).double()
        exact_model.backend = "torch"
        exact_batch = replace(batch, images=batch.images.double(), boxes=batch.boxes.double())
        forward = exact_model.forward
        return _run(operator, exact_model, forward, exact_batch, priorities, torch.float64)

    def compare(actual, expected):
        if operator != "training_step":
            actual, expected = actual[0], expected[0]
        return equality.device_error(actual, expected)

    peer = partial(_peer, operator, model, batch, dtype)
    has_peer = torchvision_module("models.detection") and _fits_torchvision(model)
    return Case(
        operator=operator,
        shape=f"{'R50-FPN' if 'r50' in name else name} {images}x{side[0]}x{side[1]}"
        + (f", {objects} objects" if operator == "training_step" and objects != 8 else ""),
        dtype=dtype,
        layout="",
        ours=ours,
        oracle=oracle if checked else None,
        compare=compare,
        tolerance=equality.MODEL_RERANKED[dtype_name(dtype)],
        peers={"": peer, OUR_OPERATORS: peer} if has_peer else {},
        under={OUR_OPERATORS: interop.use_our_operators},
        backends=("triton",) if gpu else None,
        variants=VARIANTS if gpu and operator != "detect_and_paste" else {},
        compiled=partial(
            _compiled, operator, name, images, side, objects, dtype_name(dtype), device
        ),
        images=images,
    )


def _scene(operator, name, images, side, objects, device):
    """Make a model, a batch, and priorities for its sampling; the same every time."""
    config = preset(name)
    batch = random_batch(config, images, side[0], side[1], objects).to(device)
    torch.manual_seed(0)
    model = MaskRCNN(config).to(device).train(operator == "training_step")
    if model.training:
        set_memory_format(model, torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    ratios = len(config.anchors.ratios)
    cells = sum(-(-side[0] // s) * -(-side[1] // s) for s in (4, 8, 16, 32, 64))
    slots = config.rpn.post_nms_top_n_train + batch.boxes.shape[1]
    priorities = {
        key: torch.rand(images, count, generator=generator).to(device)
        for key, count in (("rpn", ratios * cells), ("roi", slots))
    }
    return model, batch, priorities


def _run(
    operator: str,
    model: MaskRCNN,
    forward: Callable,
    batch: Batch,
    priorities: dict,
    dtype: torch.dtype,
) -> Any:
    """Return the losses after their backward pass, or (scores, masks)."""
    with torch.autocast(batch.images.device.type, dtype, enabled=dtype == torch.bfloat16):
        if operator != "training_step":
            detections = forward(batch)
            if operator == "detect":
                return detections.scores, detections.mask_probabilities
            return detections.scores, [one.masks for one in model.unpad(detections, batch)]
        losses = torch.stack(list(forward(batch, priorities=priorities).values()))
    model.zero_grad()
    losses.sum().backward()
    return losses.detach()


def _peer(operator, ours, batch, dtype, *, compiled=False):
    """Make the call of torchvision's model with our model's weights, convolving channels-last."""
    detection = torchvision_module("models.detection")
    assert detection is not None
    config, training = ours.config, operator == "training_step"
    device, side = batch.images.device, tuple(batch.images.shape[2:])
    backbone = detection.backbone_utils.resnet_fpn_backbone(
        backbone_name=f"resnet{config.backbone.depth}",
        weights=None,
        trainable_layers=5 - config.backbone.frozen_stages,
    )
    model = detection.MaskRCNN(backbone, config.num_classes + 1)
    model.load_state_dict(state_dict(ours))
    model = model.to(device, memory_format=torch.channels_last).train(training)
    images = detection.image_list.ImageList(
        batch.images.to(memory_format=torch.channels_last), [side] * len(batch.images)
    )
    masks = unpack(batch.masks)[..., : side[1]]
    rows = zip(batch.boxes, batch.labels, masks, strict=True)
    targets = [{"boxes": boxes, "labels": labels, "masks": mask} for boxes, labels, mask in rows]

    def forward(images, targets):
        features = model.backbone(images.tensors)
        proposals, rpn_losses = model.rpn(images, features, targets)
        found, losses = model.roi_heads(features, proposals, images.image_sizes, targets)
        return found, {**rpn_losses, **losses}

    forward = torch.compile(forward) if compiled else forward

    def call():
        with (
            torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16),
            torch.set_grad_enabled(training),
        ):
            found, losses = forward(images, targets if training else None)
            if operator == "detect_and_paste":
                sizes = images.image_sizes
                found = model.transform.postprocess(found, sizes, sizes)
        if not training:
            return found
        model.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        return losses

    return call


def _fits_torchvision(model):
    try:
        state_dict(model)
        return model.config.backbone.norm == "frozen"
    except ValueError:
        return False


def _compiled(operator, name, images, side, objects, dtype, device, who, seconds):
    """Measure the compiled call of "torchvision" or of a backend, in a process of its own."""
    if device.type == "cuda":
        # For the other process.
        torch.cuda.empty_cache()
    settings = (operator, name, images, side, objects, dtype, str(device), who, seconds)
    return timing.in_a_process(_measure_compiled, *settings, limit=COMPILE_LIMIT)


def _measure_compiled(operator, name, images, side, objects, dtype, device, who, seconds):
    device, dtype = torch.device(device), getattr(torch, dtype)
    with timing.own_stream(device):
        model, batch, priorities = _scene(operator, name, images, side, objects, device)
        if who == "torchvision":
            call = _peer(operator, model, batch, dtype, compiled=True)
        else:
            model.backend = who
            forward = torch.compile(model.forward, fullgraph=True, dynamic=False)
            call = partial(_run, operator, model, forward, batch, priorities, dtype)
        return timing.quantiles(call, device, seconds)
