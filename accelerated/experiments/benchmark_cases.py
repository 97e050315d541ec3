"""What a case of the benchmark is, and the cases of the pooling operators.

NMS, matching and masks are in benchmark_boxes.py, whole models in benchmark_models.py.
"""

import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch

from accelerated import pooler, roi_align, roi_pool
from accelerated.structures import Batch
from accelerated.verify import equality
from reference.config import Config, preset

Call = Callable[[], Any]

EPS32 = torch.finfo(torch.float32).eps
ROI_OPERATORS = ("roi_align", "roi_pool", "pyramid_roi_align", "pyramid_roi_pool")
# Images of a batch whose results are compared with the oracle; all are timed.
CHECKED_IMAGES = 2
STRIDES = (4, 8, 16, 32)


@dataclass
class Case:
    """One thing to measure.

    ours      makes a call without arguments for a backend
    oracle    returns the float64 answer; None: a smaller case checks the same code
    compare   measures the error of our result against that answer
    peers     {variant: makes torchvision's call}; "" is torchvision as it is. Empty without it
    under     {variant: makes the `with` in which that call is measured}
    inputs    what the call has to read: with its result, the bytes that it has to move
    backends  those to measure; None: all
    variants  {name: makes another way to run our call, such as a CUDA graph}
    compiled  measures the compiled call of "torchvision" or of a backend, in its own process
    images    per call, of a whole model, which is timed with the host and counted in FLOP
    facts     more entries of its rows
    """

    operator: str
    shape: str
    dtype: torch.dtype
    layout: str
    ours: Callable[[str], Call]
    oracle: Call | None
    tolerance: float
    compare: Callable[[Any, Any], float] = equality.device_error
    peers: Mapping[str, Callable[[], Call]] = field(default_factory=dict)
    under: Mapping[str, Callable[[], AbstractContextManager]] = field(default_factory=dict)
    inputs: tuple[torch.Tensor, ...] = ()
    backends: tuple[str, ...] | None = None
    variants: Mapping[str, Callable[[Call], Call]] = field(default_factory=dict)
    compiled: Callable[[str, float], dict] | None = None
    images: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)


def pooling(
    operator: str,
    dtype: torch.dtype,
    layout: str,
    device: torch.device,
    *,
    images: int = 2,
    rois: int = 500,
    size: int = 7,
    side: tuple[int, int] = (800, 1344),
) -> Case:
    """Pool RoIs of images of a side (H, W): from one map, or each from its pyramid level.

    operator    a name of ROI_OPERATORS with "_forward" or "_backward"
    rois, size  per image, to size x size bins
    """
    generator = torch.Generator(device).manual_seed(0)
    name, _, direction = operator.rpartition("_")
    pyramid, kind = name.startswith("pyramid"), name.removeprefix("pyramid_")
    strides = STRIDES if pyramid else STRIDES[:1]
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    draw = partial(torch.randn, generator=generator, device=device, dtype=torch.float32)
    shapes = [(images, 256, side[0] // stride, side[1] // stride) for stride in strides]
    maps = [draw(shape).to(dtype, memory_format=memory_format) for shape in shapes]
    count, largest = images * rois, (600 if pyramid else 224) * min(side) // 800
    boxes = random_boxes(count, *side, 16, largest, torch.Generator().manual_seed(0)).to(device)
    image_index = torch.arange(images, device=device).repeat_interleave(rois)
    grad = draw((count, 256, size, size)).to(dtype)

    def pool(boxes, image_index, backend, maps):
        if pyramid:
            settings = replace(
                preset("torchvision_r50_fpn").box_head.pooler,
                operator=kind,
                aligned=True,
                output_size=size,
            )
            levels = dict(enumerate(maps, 2))
            return pooler.pool(levels, boxes, image_index, settings, backend=backend)
        options = {"output_size": size, "spatial_scale": 0.25, "backend": backend}
        if kind == "roi_align":
            options |= {"sampling_ratio": 2, "aligned": True}
            return roi_align.roi_align(maps[0], boxes, image_index, **options)
        return roi_pool.roi_pool(maps[0], boxes, image_index, **options)

    def bind(call, maps, grad):
        """Return the forward call, or the backward call of a forward that is computed here."""
        if direction == "forward":
            return partial(call, maps)
        maps = [x.detach().requires_grad_() for x in maps]
        return partial(torch.autograd.grad, call(maps), maps, grad, retain_graph=True)

    checked = min(images, CHECKED_IMAGES)

    def oracle():
        part = slice(checked * rois)
        # RoIPool rounds coordinates: in another dtype they may fall to another pixel.
        exact_boxes = boxes[part] if kind == "roi_pool" else boxes[part].double()
        exact = [x[:checked].double() for x in maps]
        call = partial(pool, exact_boxes, image_index[part], "torch")
        return bind(call, exact, grad[part].double())()

    def compare(actual, expected):
        if direction == "forward":
            return equality.device_error(actual[: checked * rois], expected)
        return equality.device_error([x[:checked] for x in actual], expected)

    peer = _peer_pooling(kind, pyramid, boxes, image_index, size, dtype, side)
    table = equality.POINTWISE if direction == "forward" else equality.REDUCTION
    sizes = [f"{rows}x{channels}x{h}x{w}" for rows, channels, h, w in shapes]
    return Case(
        operator=operator,
        shape=f"{' + '.join(sizes)}, {count} rois {size}x{size}",
        dtype=dtype,
        layout=layout,
        ours=lambda backend: bind(partial(pool, boxes, image_index, backend), maps, grad),
        oracle=oracle,
        tolerance=table[dtype_name(dtype)] + 2 * EPS32 * 336,
        compare=compare,
        peers={"": lambda: bind(peer, maps, grad)} if peer else {},
        inputs=tuple(maps) if direction == "forward" else (grad,),
        # Plain PyTorch needs many times the time and memory.
        backends=("triton",) if device.type == "cuda" and count > 1000 else None,
    )


def _peer_pooling(kind, pyramid, boxes, image_index, size, dtype, side):
    operators = torchvision_module("ops")
    if operators is None:
        return None
    # torchvision wants boxes and features of one dtype.
    boxes = boxes.to(dtype)
    rows = torch.cat([image_index[:, None].to(dtype), boxes], 1)
    if not pyramid and kind == "roi_pool":
        return lambda maps: operators.roi_pool(maps[0], rows, size, 0.25)
    if not pyramid:
        return lambda maps: operators.roi_align(maps[0], rows, size, 0.25, 2, True)
    names, lists = list("2345"), boxes.split(image_index.bincount().tolist())
    if kind == "roi_align":
        pool = operators.MultiScaleRoIAlign(names, size, 2)
        sizes = [side] * len(lists)
        return lambda maps: pool(dict(zip(names, maps, strict=True)), lists, sizes)
    # torchvision pools from a pyramid by RoIAlign only.
    levels = operators.poolers.LevelMapper(2, 5)(lists)
    chosen = [torch.where(levels == level)[0] for level in range(len(STRIDES))]

    def pool_levels(maps):
        out = maps[0].new_zeros(len(rows), maps[0].shape[1], size, size)
        for x, stride, index in zip(maps, STRIDES, chosen, strict=True):
            out = out.index_put((index,), operators.roi_pool(x, rows[index], size, 1 / stride))
        return out

    return pool_levels


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


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name without the module, such as "float32"."""
    return str(dtype).removeprefix("torch.")


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
