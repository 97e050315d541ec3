"""Test-time augmentation: detect in several views of an image, and merge what they show.

A view is the image at a scale, mirrored or not. As in detectron2, the boxes of all views compete in
one suppression per class; then every view predicts the masks of the boxes that are left, and their
probabilities are averaged before the masks are pasted once.

Legend: N images, V views, D detection slots, S side of a mask, H, W sides of an image.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch

from accelerated import mask_head, nms, transform
from accelerated.boxes import clip
from accelerated.data import inputs
from accelerated.engine import capture
from accelerated.mask_rcnn import MaskRCNN, flatten
from accelerated.structures import Batch, Detections, PaddedDetections, Stages
from reference.config import Transform

SCALES = 0.1, 10.0
# {word: axis of an image that is mirrored}
MIRRORS = {"flip": 1, "flip_vertical": 0}


class View(NamedTuple):
    """An image at `scale` times the size that the model gives it, mirrored along `axes`."""

    scale: float = 1.0
    axes: tuple[int, ...] = ()


class _Seen(NamedTuple):
    """A view of the images of a batch: its feature maps, and sides [N, 2] of its images."""

    view: View
    pyramid: dict[int, torch.Tensor]
    sizes: torch.Tensor


def parse(text: str) -> tuple[View, ...]:
    """Read the value of --tta, such as "flip,0.75,1.5": every combination is a view.

    text  words separated by commas: "flip" (left and right are exchanged), "flip_vertical" (top and
          bottom), and factors of the size of the network's input, from 0.1 to 10. The image as it
          is, at factor 1, is always among the views, and none is seen twice.

    So "flip,0.75,1.5" is six views. Raises ValueError for anything else.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise ValueError("--tta names no view; name some, such as flip,0.75,1.5")
    mirrors, scales = set(), {1.0: None}
    for word in words:
        if word in MIRRORS:
            mirrors.add(MIRRORS[word])
            continue
        try:
            scale = float(word)
        except ValueError:
            scale = np.nan
        if not SCALES[0] <= scale <= SCALES[1]:
            raise ValueError(
                f"--tta {text}: {word} is neither flip nor flip_vertical nor a factor from"
                f" {SCALES[0]:g} to {SCALES[1]:g}"
            )
        scales[scale] = None
    axes = [()]
    for axis in sorted(mirrors, reverse=True):
        axes += [(*before, axis) for before in axes]
    return tuple(View(*pair) for pair in product(scales, axes))


def detect(
    model: MaskRCNN, images: list, views: Sequence[View] | str, crops: bool = False
) -> list[Detections]:
    """Find the objects in each image as `model.detect` does, looking at several views of it.

    images  list of images as `model.detect` takes them
    views   see `parse`, which makes them of a text; with one, at factor 1 and not mirrored, the
            result is that of `model.detect` bit for bit
    crops   return CroppedDetections, with each mask in the window of its box alone
    """
    images = inputs.arrays(images)
    run = detector(model, parse(views) if isinstance(views, str) else views)
    return model.detect(images, run=partial(run, images), crops=crops)


def detector(
    model: MaskRCNN,
    views: Sequence[View] = (),
    compile: str | None = None,
    graph: bool = False,
    amp: bool = False,
) -> Callable[[list, Batch], PaddedDetections]:
    """Return what detects in images [H, W, 3], given with the batch that `model.batch` makes.

    views                none: in the batch alone, by `capture.detector`
    compile, graph, amp  see `capture.detector`

    The result is in the frame of the batch, for `model.unpad`. The feature maps of all views are in
    memory at a time. The model should be in evaluation mode.
    Raises ValueError for several views compiled or captured.
    """
    if not views:
        run = capture.detector(model, compile, graph, amp)
        return lambda _, batch: run(batch)
    if compile is not None or graph:
        option = "--graph" if graph else "--compile"
        raise ValueError(f"--tta and {option} exclude each other: leave one out")
    # Boxes without area would be kept twice.
    views = tuple(dict.fromkeys(views))
    autocast = torch.autocast(model.weight.device.type, torch.bfloat16, enabled=amp)
    return torch.no_grad()(autocast(partial(_detect, model, views)))


def _detect(model: MaskRCNN, views: Sequence[View], images: list, batch: Batch) -> PaddedDetections:
    """Detect in all views, and let them vote."""
    seen, boxes = [], []
    for view in views:
        twin = _boxes_alone(model, view.scale)
        shown = batch
        if view != View():
            shown = twin.batch([_shown(image, view, model.config.transform) for image in images])
        found = twin.batch_detections(shown, record := Stages())
        maps = {level: getattr(record, f"P{level}") for level in range(2, 7)}
        maps = {level: x for level, x in maps.items() if x is not None}
        seen.append(_Seen(view, maps, shown.sizes))
        back = _scaled(found.boxes, shown.sizes, batch.sizes, model)
        back = clip(back, *(side[:, None] for side in batch.sizes.unbind(1)))
        back = _mirrored(back, batch.sizes, view)
        boxes.append(found._replace(boxes=torch.where(found.valid[..., None], back, 0)))
    merged = _best(boxes, model)
    if model.mask_head is None:
        return merged
    probabilities = sum(_probabilities(model, merged, batch.sizes, one) for one in seen)
    return merged._replace(mask_probabilities=probabilities / len(seen))


def _boxes_alone(model, scale):
    """Return a model of the same weights without the mask branch, for images of another scale."""
    settings = model.config.transform
    if settings.min_size and scale != 1:
        sides = [max(round(side * scale), 1) for side in (settings.min_size[-1], settings.max_size)]
        settings = replace(settings, min_size=(sides[0],), max_size=sides[1])
    twin = copy(model)
    twin._modules = {**model._modules, "mask_head": None}
    twin.config = replace(model.config, transform=settings)
    return twin


def _shown(image, view, settings: Transform):
    """Return the pixels of a view; a model that keeps the size of images gets them resized."""
    if view.axes:
        mirror: Any = np.flip if isinstance(image, np.ndarray) else torch.flip
        image = mirror(image, view.axes)
    if settings.min_size or view.scale == 1:
        return image
    pixels = transform.check_image(image)
    size = tuple(max(round(side * view.scale), 1) for side in pixels.shape[1:])
    return transform.resize(pixels, size, settings).permute(1, 2, 0)


def _mirrored(boxes, sizes, view):
    """Mirror boxes [N, D, 4] in images of `sizes` [N, 2] as the view is; twice is not at all."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    height, width = (side[:, None] for side in sizes.unbind(1))
    if MIRRORS["flip"] in view.axes:
        x1, x2 = width - x2, width - x1
    if MIRRORS["flip_vertical"] in view.axes:
        y1, y2 = height - y2, height - y1
    return torch.stack([x1, y1, x2, y2], -1)


def _scaled(boxes, old, new, model):
    """Scale boxes [N, D, 4] of images with sides `old` [N, 2] to sides `new`."""
    pairs = zip(boxes, old.tolist(), new.tolist(), strict=True)
    settings = model.config.transform
    return torch.stack([transform.scale_boxes(*row, settings) for row in pairs])


def _best(found: list[PaddedDetections], model: MaskRCNN) -> PaddedDetections:
    """Let the boxes of all views compete: suppression per class, then the best of each image."""
    head = model.config.box_head
    boxes, scores, labels, valid = (
        torch.cat([getattr(one, name) for one in found], 1)
        for name in ("boxes", "scores", "labels", "valid")
    )
    order = nms.top_k(torch.where(valid, scores, -torch.inf), scores.shape[1])
    boxes = boxes.take_along_dim(order[..., None], 1)
    scores, labels, valid = (x.take_along_dim(order, 1) for x in (scores, labels, valid))
    valid = nms.keep_mask(boxes, valid, head.nms_iou, labels, model.backend)
    best = nms.top_k(torch.where(valid, scores, -torch.inf), head.max_detections)
    scores, labels, valid = (x.take_along_dim(best, 1) for x in (scores, labels, valid))
    return PaddedDetections(
        boxes=torch.where(valid[..., None], boxes.take_along_dim(best[..., None], 1), 0),
        scores=torch.where(valid, scores, 0),
        labels=torch.where(valid, labels, 0),
        valid=valid,
    )


def _probabilities(model, found, sizes, seen: _Seen) -> torch.Tensor:
    """Predict the masks [N, D, S, S] of boxes in images of `sizes`, as one view shows them."""
    config, labels = model.config, found.labels
    # Mirrored at one scale, so that a mirrored image has mirrored boxes to the last bits.
    boxes = _scaled(_mirrored(found.boxes, sizes, seen.view), sizes, seen.sizes, model)
    rois, image_index = flatten(boxes, found.valid)
    x = model.roi_features(seen.pyramid, rois, image_index, config.mask_head.pooler)
    logits = mask_head.logits_of(
        model.mask_head, x, labels.flatten(), image_index >= 0, config, None
    )
    masks = mask_head.probabilities(logits, labels.flatten(), config).unflatten(0, labels.shape)
    return masks.flip([axis - 2 for axis in seen.view.axes])
