"""The cases of the benchmark: inputs, our call, the float64 answer, and torchvision's call."""

import copy
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch

from accelerated import nms, pooler, roi_align, roi_pool
from accelerated.mask_rcnn import MaskRCNN
from accelerated.structures import Batch
from accelerated.verify import equality
from reference.config import Config, preset

EPS32 = torch.finfo(torch.float32).eps
ROI_OPERATORS = ("roi_align", "roi_pool", "pyramid_roi_align")


@dataclass
class Case:
    """One thing to measure.

    ours     makes a call without arguments for a backend
    oracle   returns the float64 answer
    peer     torchvision's call; None without torchvision
    """

    operator: str
    shape: str
    dtype: torch.dtype
    layout: str
    ours: Callable[[str], Callable[[], Any]]
    oracle: Callable[[], Any]
    tolerance: float
    peer: Callable[[], Any] | None = None


def cases(device: torch.device) -> Iterator[tuple[str, Callable[[str], Case]]]:
    """Yield (operator, function that makes its case), so that one case is in memory at a time."""
    gpu = device.type == "cuda"
    for dtype in (torch.float32, torch.float16, torch.bfloat16) if gpu else (torch.float32,):
        for layout in ("nchw", "channels_last"):
            for name in ROI_OPERATORS:
                make = partial(pooling, dtype=dtype, layout=layout, device=device)
                yield f"{name}_forward", make
                yield f"{name}_backward", make
    yield "batched_nms", partial(suppression, device=device)
    for dtype in (torch.float32, torch.bfloat16) if gpu else (torch.float32,):
        yield "training_step", partial(whole_model, dtype=dtype, device=device)
        yield "detect", partial(whole_model, dtype=dtype, device=device)


def pooling(operator: str, dtype: torch.dtype, layout: str, device: torch.device) -> Case:
    """Pool 1000 RoIs of two 800x1344 images to 7x7: from one map, or each from its pyramid level.

    operator   a name of ROI_OPERATORS with "_forward" or "_backward"
    """
    generator = torch.Generator().manual_seed(0)
    name, _, direction = operator.rpartition("_")
    pyramid = name == "pyramid_roi_align"
    strides = (4, 8, 16, 32) if pyramid else (4,)
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    shapes = [(2, 256, 800 // stride, 1344 // stride) for stride in strides]
    features = [
        torch.randn(shape, generator=generator).to(device, dtype, memory_format=memory_format)
        for shape in shapes
    ]
    rois = random_boxes(1000, 800, 1344, 16, 600 if pyramid else 224, generator).to(device)
    image_index = (torch.arange(1000) % 2).to(device)
    grad = torch.randn((1000, 256, 7, 7), generator=generator).to(device, dtype)

    def pool(features, rois, backend):
        if pyramid:
            levels = dict(enumerate(features, 2))
            settings = replace(preset("torchvision_r50_fpn").box_head.pooler, aligned=True)
            return pooler.pool(levels, rois, image_index, settings, backend=backend)
        if name == "roi_pool":
            return roi_pool.roi_pool(
                features[0],
                rois,
                image_index,
                output_size=7,
                spatial_scale=0.25,
                backend=backend,
            )
        return roi_align.roi_align(
            features[0],
            rois,
            image_index,
            output_size=7,
            spatial_scale=0.25,
            sampling_ratio=2,
            aligned=True,
            backend=backend,
        )

    def bind(call, features, grad):
        """Return the forward call, or the backward call of a forward that is computed here."""
        if direction == "forward":
            return partial(call, features)
        features = [x.detach().requires_grad_() for x in features]
        return partial(torch.autograd.grad, call(features), features, grad, retain_graph=True)

    def ours(backend):
        return bind(lambda x: pool(x, rois, backend), features, grad)

    def oracle():
        # RoIPool rounds coordinates: in another dtype they may fall to another pixel.
        exact_rois = rois if name == "roi_pool" else rois.double()
        exact = [x.double() for x in features]
        return bind(lambda x: pool(x, exact_rois, "torch"), exact, grad.double())()

    peer = _peer_pooling(name, rois, image_index, dtype)
    table = equality.POINTWISE if direction == "forward" else equality.REDUCTION
    return Case(
        operator=operator,
        shape=" + ".join("x".join(map(str, shape)) for shape in shapes) + ", 1000 rois 7x7",
        dtype=dtype,
        layout=layout,
        ours=ours,
        oracle=oracle,
        tolerance=table[dtype_name(dtype)] + 2 * EPS32 * 336,
        peer=bind(peer, features, grad) if peer else None,
    )


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name without the module, such as "float32"."""
    return str(dtype).removeprefix("torch.")


def _peer_pooling(name, rois, image_index, dtype):
    operators = torchvision_module("ops")
    # torchvision has no bfloat16 kernels.
    if operators is None or dtype == torch.bfloat16:
        return None
    if name == "pyramid_roi_align":
        peer = operators.MultiScaleRoIAlign(list("2345"), 7, 2)
        rows = [rois[image_index == index].to(dtype) for index in (0, 1)]
        sizes = [(800, 1344)] * 2
        return lambda features: peer(dict(zip("2345", features, strict=True)), rows, sizes)
    indexed_rois = torch.cat([image_index[:, None].to(dtype), rois.to(dtype)], 1)
    if name == "roi_pool":
        return lambda features: operators.roi_pool(features[0], indexed_rois, 7, 0.25)
    return lambda features: operators.roi_align(features[0], indexed_rois, 7, 0.25, 2, True)


def suppression(operator: str, device: torch.device) -> Case:
    """Suppress 4 x 1000 proposals per level.

    Boxes have whole-pixel corners, so that no IoU lies within rounding of the threshold.
    """
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(4000, 800, 1344, 8, 200, generator).round().to(device)
    scores = torch.rand(4000, generator=generator).to(device)
    group = (torch.arange(4000) // 1000).to(device)
    operators = torchvision_module("ops")
    peer = partial(operators.batched_nms, boxes, scores, group, 0.7) if operators else None
    exact = (boxes.double(), scores.double(), group, 0.7)
    return Case(
        operator=operator,
        shape="4 x 1000 boxes, IoU 0.7",
        dtype=torch.float32,
        layout="",
        ours=lambda backend: partial(nms.batched_nms, boxes, scores, group, 0.7, backend=backend),
        oracle=partial(nms.batched_nms, *exact, backend="torch"),
        tolerance=0.0,
        peer=peer,
    )


def whole_model(operator: str, dtype: torch.dtype, device: torch.device) -> Case:
    """Run R50-FPN on a GPU, `tiny` on a CPU.

    operator   "training_step" (forward and backward) or "detect" (up to 28x28 masks)
    """
    gpu, training = device.type == "cuda", operator == "training_step"
    config, height, width = preset("tiny"), 128, 128
    if gpu:
        config, height, width = preset("torchvision_r50_fpn"), 800, 1344
    batch = random_batch(config, 2, height, width).to(device)
    torch.manual_seed(0)
    model = MaskRCNN(config).to(device).train(training)
    generator = torch.Generator().manual_seed(0)
    anchors = 3 * sum(-(-height // s) * -(-width // s) for s in (4, 8, 16, 32, 64))
    counts = {"rpn": anchors, "roi": config.rpn.post_nms_top_n_train + batch.boxes.shape[1]}
    priorities = {
        name: torch.rand(2, count, generator=generator).to(device) for name, count in counts.items()
    }

    def call(model, batch, dtype):
        with torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
            if not training:
                return model.batch_detections(batch).scores
            losses = torch.stack(list(model.batch_losses(batch, priorities).values()))
        model.zero_grad()
        losses.sum().backward()
        return losses.detach()

    def ours(backend):
        model.backend = backend
        return partial(call, model, batch, dtype)

    def oracle():
        exact_model = copy.deepcopy(model).double()
        exact_model.backend = "torch"
        exact_batch = replace(batch, images=batch.images.double(), boxes=batch.boxes.double())
        return call(exact_model, exact_batch, torch.float64)

    return Case(
        operator=operator,
        shape=f"{'R50-FPN' if gpu else 'tiny'} 2x{height}x{width}",
        dtype=dtype,
        layout="",
        ours=ours,
        oracle=oracle,
        tolerance=equality.MODEL_RERANKED[dtype_name(dtype)],
        peer=_peer_model(training, batch, dtype) if gpu else None,
    )


def _peer_model(training, batch, dtype):
    """Make the same call of torchvision's R50-FPN with random weights; None without torchvision."""
    detection = torchvision_module("models.detection")
    if detection is None:
        return None
    device, width = batch.images.device, batch.images.shape[3]
    model = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    model = model.to(device).train(training)
    masks = np.unpackbits(batch.masks.cpu().numpy(), axis=-1, count=width)
    rows = zip(batch.boxes, batch.labels, torch.from_numpy(masks).to(device), strict=True)
    targets = [{"boxes": boxes, "labels": labels, "masks": mask} for boxes, labels, mask in rows]

    def call():
        with (
            torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16),
            torch.set_grad_enabled(training),
        ):
            out = model(list(batch.images.sigmoid()), targets if training else None)
        if training:
            model.zero_grad()
            torch.stack(list(out.values())).sum().backward()

    return call


def random_batch(config: Config, count: int, height: int, width: int, objects: int = 8) -> Batch:
    """Draw `count` images of noise with rectangles as objects, of the size the network sees."""
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(count * objects, height, width, height / 16, height / 2, generator)
    boxes = boxes.reshape(count, objects, 4)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    x1, y1, x2, y2 = boxes[..., None, None].unbind(2)
    masks = ((x >= x1) & (x < x2) & (y >= y1) & (y < y2)).numpy()
    return Batch(
        images=torch.randn(count, 3, height, width, generator=generator),
        sizes=torch.tensor([[height, width]] * count),
        boxes=boxes,
        labels=torch.randint(1, config.num_classes + 1, (count, objects), generator=generator),
        valid=torch.ones(count, objects, dtype=torch.bool),
        masks=torch.from_numpy(np.packbits(masks, axis=-1)),
        original_sizes=[(height, width)] * count,
        image_ids=list(range(count)),
    )


def random_boxes(
    count: int, height: int, width: int, low: float, high: float, generator: torch.Generator
) -> torch.Tensor:
    """Draw boxes [count, 4] xyxy inside the image, sides log-uniform in [low, high] pixels."""
    size = low * (high / low) ** torch.rand(count, 2, generator=generator)
    corner = torch.rand(count, 2, generator=generator) * (torch.tensor([width, height]) - size)
    return torch.cat([corner, corner + size], 1)


def can_import(name: str) -> bool:
    """Return whether `import name` works; a broken installation may raise anything."""
    try:
        importlib.import_module(name)
        return True
    except Exception:
        return False


def torchvision_module(name: str) -> ModuleType | None:
    """Import a module of torchvision; None without torchvision."""
    return importlib.import_module(f"torchvision.{name}") if can_import("torchvision") else None
