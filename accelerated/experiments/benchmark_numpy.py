"""The benchmark of whole models in NumPy and in PyTorch, on the CPU's threads in float32."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch

from accelerated import optimizer
from accelerated.experiments.benchmark_cases import random_batch
from accelerated.experiments.timing import in_a_process, memory_mb, quantiles
from accelerated.mask_rcnn import MaskRCNN
from reference.config import preset

# (operator, preset, images, height, width)
CASES = (
    ("detect", "torchvision_r50_fpn", 1, 800, 1333),
    ("training_step", "tiny", 4, 128, 128),
    ("training_step", "torchvision_r50_fpn", 1, 320, 480),
)


def numpy_and_torch(seconds: float, only: str = "") -> Iterator[dict]:
    """Yield a row for PyTorch and one for NumPy, with the ratio of their times, for each case.

    memory_mb is the resident memory that the call adds to a process of its own.
    """
    for operator, name, *shape in CASES:
        if only not in operator:
            continue
        facts = {
            "operator": operator,
            "shape": f"{name} {'x'.join(map(str, shape))}",
            "dtype": "float32",
            "layout": "nchw",
        }
        measured = {
            backend: in_a_process(measure, operator, name, shape, backend, seconds)
            for backend in ("torch", "numpy")
        }
        yield {**facts, "backend": "torch", **measured["torch"]}
        ratio = measured["numpy"]["p50_ms"] / measured["torch"]["p50_ms"]
        yield {**facts, "backend": "numpy", **measured["numpy"], "times_torch": round(ratio, 2)}


def measure(operator: str, name: str, shape: Sequence[int], backend: str, seconds: float) -> dict:
    """Measure time and memory of one call; meant to run in a process of its own."""
    from accelerated.verify import detection, training

    torch.manual_seed(0)
    config, (count, height, width) = preset(name), shape
    # Every step is like the first one.
    still = replace(config.optimizer, learning_rate=0.0)
    config = replace(config, transform=replace(config.transform, min_size=()), optimizer=still)
    generator = np.random.default_rng(0)
    images = list(generator.integers(0, 256, (count, height, width, 3), dtype=np.uint8))
    batch = random_batch(config, count, height, width)
    masks = np.unpackbits(batch.masks.numpy(), axis=-1, count=width).astype(bool)
    targets = [
        SimpleNamespace(boxes=boxes.numpy(), labels=labels.numpy(), masks=mask, polygons=None)
        for boxes, labels, mask in zip(batch.boxes, batch.labels, masks, strict=True)
    ]
    model = MaskRCNN(config).train(operator != "detect")
    if operator == "detect" and backend == "torch":
        call = partial(model.detect, images)
    elif operator == "detect":
        call = partial(detection.reference_model(model, "float32").detect, images)
    elif backend == "torch":
        updates = optimizer.build(model, config.optimizer)
        call = partial(_training_step, model, updates, images, targets)
    else:
        call = partial(training.reference_step(model, "float32"), images, targets)
    before, _ = memory_mb()
    times = quantiles(call, torch.device("cpu"), seconds)
    return times | {"memory_mb": round(memory_mb()[1] - before)}


def _training_step(model, updates, images, targets):
    losses = model.losses(images, targets)
    updates.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    settings = model.config.optimizer
    optimizer.step(updates, settings.learning_rate, settings.clip_gradient_norm)
