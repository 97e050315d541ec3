"""From class logits and deltas to the detections (SPEC §8).

Legend: N images, P proposal slots, K classes, E box deltas per proposal (see labels.delta_layout),
D detection slots.
"""

import torch
from torch.nn import functional as F

from accelerated import box_coder, nms
from accelerated.boxes import clip, is_valid
from accelerated.labels import class_layout, delta_layout
from accelerated.structures import PaddedDetections
from accelerated.transform import scale_boxes
from reference.config import BoxHead, Config


def detections(
    class_logits: torch.Tensor,
    box_deltas: torch.Tensor,
    proposals: torch.Tensor,
    valid: torch.Tensor,
    sizes: torch.Tensor,
    config: Config,
    backend: str = "auto",
) -> PaddedDetections:
    """Decode, score, clip, filter, suppress within each class and keep the best, in fixed shapes.

    class_logits  [N, P, K + 1]
    box_deltas    [N, P, 4 E]
    proposals     [N, P, 4]  xyxy; P >= 1
    valid         [N, P] bool
    sizes         [N, 2]  (h, w) of the network's inputs without their padding
    Returns PaddedDetections in D = max_detections slots; equal scores: lower proposal, then lower
    label first.
    """
    layout = delta_layout(config)
    boxes = box_coder.decode(box_deltas, proposals, config.box_head.box_weights)
    boxes = boxes.unflatten(-1, (layout.columns, 4))[:, :, layout.objects]
    scores = class_logits.to(boxes.dtype).softmax(-1)[..., class_layout(config).objects]
    return select(boxes, scores, valid, sizes, config.box_head, backend)


def select(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    valid: torch.Tensor,
    sizes: torch.Tensor,
    head: BoxHead,
    backend: str = "auto",
) -> PaddedDetections:
    """Choose the detections among boxes [N, P, K, 4] with scores [N, P, K], as in `detections`.

    A proposal with any non-finite value is dropped with all its classes.
    """
    count, classes, limit = scores.shape[1], scores.shape[2], head.max_detections
    finite = valid & boxes.isfinite().flatten(2).all(-1) & scores.isfinite().all(-1)
    boxes = clip(boxes, sizes[:, 0, None, None], sizes[:, 1, None, None])
    candidate = finite[..., None] & (scores > head.score_threshold)
    if head.min_size is not None:
        candidate &= is_valid(boxes, head.min_size, inclusive=True)
    scores = torch.where(candidate, scores, -torch.inf)

    # One row per image and class.
    order = nms.top_k(scores.mT, count)
    if scores.device.type == "cpu" and not torch.compiler.is_compiling():
        # Most scores are below the threshold, and counting them costs nothing on a CPU.
        order = order[..., : int(candidate.sum(1).max())]
    ranked = scores.mT.take_along_dim(order, 2)
    rows = boxes.transpose(1, 2).take_along_dim(order[..., None], 2).flatten(0, 1)
    ranked_valid = (ranked > -torch.inf).flatten(0, 1)
    keep = nms.keep_mask(rows, ranked_valid, head.nms_iou, backend=backend)
    ranked = torch.where(keep.unflatten(0, (-1, classes)), ranked, -torch.inf)
    kept = torch.full_like(scores.mT, -torch.inf).scatter(2, order, ranked)

    # The order of candidates: proposal by proposal, rising classes within.
    missing = max(limit - count * classes, 0)
    kept = F.pad(kept.mT.flatten(1), (0, missing), value=-torch.inf)
    best = nms.top_k(kept, limit)
    scores = kept.take_along_dim(best, 1)
    filled = scores > -torch.inf
    best = torch.where(filled, best, 0)
    boxes = boxes.flatten(1, 2).take_along_dim(best[..., None], 1)
    return PaddedDetections(
        boxes=torch.where(filled[..., None], boxes, 0),
        scores=torch.where(filled, scores, 0),
        labels=torch.where(filled, best % classes + 1, 0),
        valid=filled,
    )


def rescale(
    boxes: torch.Tensor, network: tuple[int, int], original: tuple[int, int], config: Config
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale boxes [D, 4] from the network's input (h, w) to the image as it came in (H, W).

    Returns boxes [D, 4] and keep [D] bool. With `box_head.drop_empty` boxes are clipped, and boxes
    without area are not kept.
    """
    boxes = scale_boxes(boxes, network, original, config.transform)
    if not config.box_head.drop_empty:
        return boxes, torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    boxes = clip(boxes, *original)
    return boxes, is_valid(boxes, 0, inclusive=False)
