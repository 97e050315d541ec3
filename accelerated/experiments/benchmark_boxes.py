"""The benchmark's cases of NMS, matching, mask targets and pasting, at the sizes of R50-FPN."""

from functools import partial
from typing import Any

import torch

from accelerated import anchors, masks, matcher, nms
from accelerated.experiments.benchmark_cases import (
    CHECKED_IMAGES,
    EPS32,
    Case,
    random_batch,
    random_boxes,
    torchvision_module,
)
from accelerated.kernels.eager.masks import unpack
from accelerated.verify import equality
from reference.config import preset

# Share of labels or pixels that rounding may decide otherwise than float64 does.
DECIDED_BY_ROUNDING = 1e-5
SIDE = (800, 1344)


def suppression(operator: str, device: torch.device) -> Case:
    """Suppress 4 x 1000 proposals per level.

    Boxes have whole-pixel corners, so that no IoU lies within rounding of the threshold.
    """
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(4000, *SIDE, 8, 200, generator).round().to(device)
    scores = torch.rand(4000, generator=generator).to(device)
    group = (torch.arange(4000) // 1000).to(device)
    operators = torchvision_module("ops")
    exact = (boxes.double(), scores.double(), group, 0.7)
    return Case(
        operator=operator,
        shape="4 x 1000 boxes, IoU 0.7",
        dtype=torch.float32,
        layout="",
        ours=lambda backend: partial(nms.batched_nms, boxes, scores, group, 0.7, backend=backend),
        oracle=partial(nms.batched_nms, *exact, backend="torch"),
        tolerance=0.0,
        peers=_peer(operators, lambda ops: partial(ops.batched_nms, boxes, scores, group, 0.7)),
        inputs=(boxes, scores, group),
    )


def proposal_suppression(
    operator: str, device: torch.device, *, images: int = 16, count: int = 2000
) -> Case:
    """Suppress the sorted proposals of 5 levels of a batch, as a training step does."""
    generator = torch.Generator().manual_seed(0)
    rows = 5 * images
    boxes = random_boxes(rows * count, *SIDE, 8, 200, generator).round().to(device)
    boxes = boxes.view(rows, count, 4)
    valid = torch.ones(rows, count, dtype=torch.bool, device=device)
    operators = torchvision_module("ops")
    # Sorted by falling score; torchvision gets one image at a time.
    scores = torch.arange(count, 0, -1, device=device).repeat(5) / count
    group = torch.arange(5, device=device).repeat_interleave(count)
    per_image = boxes.view(images, 5 * count, 4)
    few = slice(5 * CHECKED_IMAGES)
    return Case(
        operator=operator,
        shape=f"{images} x 5 x {count} boxes, IoU 0.7",
        dtype=torch.float32,
        layout="",
        ours=lambda backend: partial(nms.keep_mask, boxes, valid, 0.7, backend=backend),
        oracle=lambda: nms.keep_mask(boxes[few].double(), valid[few], 0.7, backend="torch"),
        compare=lambda actual, expected: differing(actual[few], expected),
        tolerance=0.0,
        peers=_peer(
            operators,
            lambda ops: lambda: [ops.batched_nms(x, scores, group, 0.7) for x in per_image],
        ),
        inputs=(boxes, valid),
        backends=("triton",) if device.type == "cuda" else None,
    )


def matching(
    operator: str,
    device: torch.device,
    *,
    images: int = 16,
    objects: int = 20,
    side: tuple[int, int] = SIDE,
) -> Case:
    """Match all anchors of a batch, without their IoU matrix; torchvision's by image."""
    config = preset("torchvision_r50_fpn")
    rpn, strides = config.rpn, [4, 8, 16, 32, 64]
    shapes = [(-(-side[0] // s), -(-side[1] // s)) for s in strides]
    grid = torch.cat(
        anchors.grid(
            shapes,
            side,
            config.anchors,
            strides=strides,
            dtype=torch.float32,
            device=device,
        )
    )
    generator = torch.Generator().manual_seed(0)
    largest = min(side) // 2
    boxes = random_boxes(images * objects, *side, 16, largest, generator).round().to(device)
    boxes = boxes.view(images, objects, 4)
    valid = torch.ones(images, objects, dtype=torch.bool, device=device)
    settings = (rpn.foreground_iou, rpn.background_iou, rpn.low_quality_matches)
    few = slice(CHECKED_IMAGES)
    detection = torchvision_module("models.detection")

    def peer(detection):
        match = detection._utils.Matcher(*settings[:2], allow_low_quality_matches=settings[2])
        box_iou = detection.roi_heads.box_ops.box_iou
        return lambda: [match(box_iou(rows, grid)) for rows in boxes]

    def compare(actual, expected):
        return max(differing(a[few], e) for a, e in zip(actual, expected, strict=True))

    return Case(
        operator=operator,
        shape=f"{images} x {objects} objects, {len(grid)} anchors",
        dtype=torch.float32,
        layout="",
        ours=lambda backend: partial(
            matcher.match_boxes, boxes, valid, grid, *settings, backend=backend
        ),
        oracle=lambda: matcher.match_boxes(
            boxes[few].double(), valid[few], grid.double(), *settings, backend="torch"
        ),
        compare=compare,
        tolerance=DECIDED_BY_ROUNDING,
        peers=_peer(detection, peer),
        inputs=(boxes, valid, grid),
    )


def mask_targets(
    operator: str,
    device: torch.device,
    *,
    images: int = 16,
    rois: int = 128,
    side: tuple[int, int] = SIDE,
) -> Case:
    """Make 28x28 targets of the RoIs of a batch with 8 objects an image."""
    head = preset("torchvision_r50_fpn").mask_head
    batch = random_batch(preset("torchvision_r50_fpn"), images, *side).to(device)
    index = torch.arange(images, device=device).repeat_interleave(rois)
    matched = torch.arange(images * rois, device=device) % batch.boxes.shape[1]
    noise = torch.rand(images * rois, 4, generator=torch.Generator().manual_seed(0)).to(device)
    boxes = batch.boxes[index, matched] + 8 * noise
    valid = torch.ones(images * rois, dtype=torch.bool, device=device)
    detection = torchvision_module("models.detection")
    checked = CHECKED_IMAGES * rois

    def call(boxes, count, backend):
        part = (x[:count] for x in (index, matched, boxes, valid))
        return partial(
            masks.targets, batch.masks, *part, head, 28, sizes=batch.sizes, backend=backend
        )

    def peer(detection):
        dense = unpack(batch.masks)[..., : side[1]].float()
        project = detection.roi_heads.project_masks_on_boxes
        chosen = matched.view(images, rois)
        return lambda: [
            project(image, rows, which, 28)
            for image, rows, which in zip(dense, boxes.split(rois), chosen, strict=True)
        ]

    return Case(
        operator=operator,
        shape=f"{images}x8x{side[0]}x{side[1]} masks, {images * rois} rois 28x28",
        dtype=torch.float32,
        layout="",
        ours=lambda backend: call(boxes, len(boxes), backend),
        oracle=lambda: call(boxes.double(), checked, "torch")(),
        compare=lambda actual, expected: equality.device_error(actual[:checked], expected),
        tolerance=equality.POINTWISE["float32"] + 2 * EPS32 * max(side),
        peers=_peer(detection, peer),
        inputs=(batch.masks, boxes),
        backends=("triton",) if device.type == "cuda" else None,
    )


def pasting(
    operator: str, device: torch.device, *, count: int = 100, side: tuple[int, int] = SIDE
) -> Case:
    """Paste the 28x28 masks of an image; torchvision yields probabilities, which it thresholds."""
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(count, *side, 16, min(side) * 3 // 4, generator).to(device)
    probabilities = torch.rand(count, 28, 28, generator=generator).to(device)
    paste = partial(masks.paste, height=side[0], width=side[1], convention="torchvision")
    heads = torchvision_module("models.detection.roi_heads")
    return Case(
        operator=operator,
        shape=f"{count} masks 28x28 to {side[0]}x{side[1]}",
        dtype=torch.float32,
        layout="",
        ours=lambda backend: partial(paste, probabilities, boxes, backend=backend),
        oracle=lambda: paste(probabilities.double(), boxes.double(), backend="torch"),
        compare=differing,
        tolerance=DECIDED_BY_ROUNDING,
        peers=_peer(
            heads,
            lambda heads: (
                lambda: heads.paste_masks_in_image(probabilities[:, None], boxes, side) >= 0.5
            ),
        ),
        inputs=(probabilities, boxes),
    )


def differing(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the share of entries that differ; infinite if shapes do."""
    if actual.shape != expected.shape:
        return float("inf")
    return float((actual != expected).double().mean()) if expected.numel() else 0.0


def _peer(module: Any, make: Any) -> dict:
    return {"": partial(make, module)} if module else {}
