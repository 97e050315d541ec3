"""Class logits and deltas -> the detections of a batch, in pixels of the network's input, then of the images that came in (SPEC §8).

N images, P proposal slots, K classes, E = K + 1 or K deltas per proposal, D detection slots.
"""

import torch
from torch.nn import functional as F

from accelerated import box_coder, nms
from accelerated.boxes import clip, is_valid
from accelerated.losses import foreground
from accelerated.transform import scale_boxes


def detections(class_logits, box_deltas, proposals, valid, sizes, config, backend="auto"):
    """Decode, score, clip, filter, suppress per class, keep the best; fixed shapes, P >= 1, D = config.box_head.max_detections.

    class_logits [N, P, K + 1]; box_deltas [N, P, 4E]; proposals [N, P, 4]; valid [N, P] bool; sizes [N, 2]: (h, w) of the unpadded
    network inputs; config: config.Config
    Returns boxes [N, D, 4], scores [N, D], labels [N, D], valid [N, D], by falling score (ties: lower proposal, then lower label);
    zeros in empty slots, which come last.
    """
    boxes = box_coder.decode(box_deltas, proposals, config.box_head.box_weights).unflatten(
        -1, (-1, 4)
    )[:, :, foreground(config)]
    scores = class_logits.to(boxes.dtype).softmax(-1)[..., foreground(config)]
    return select(boxes, scores, valid, sizes, config.box_head, backend)


def select(boxes, scores, valid, sizes, config, backend="auto"):
    """The detections among boxes [N, P, K, 4] with scores [N, P, K]; config: config.BoxHead.

    A proposal with any non-finite number is dropped whole. Returns as `detections`.
    """
    count, classes, limit = scores.shape[1], scores.shape[2], config.max_detections
    sound = valid & boxes.isfinite().flatten(2).all(-1) & scores.isfinite().all(-1)
    boxes = clip(boxes, sizes[:, 0, None, None], sizes[:, 1, None, None])
    wanted = sound[..., None] & (scores > config.score_threshold)
    if config.min_size is not None:
        wanted &= is_valid(boxes, config.min_size, inclusive=True)
    scores = torch.where(wanted, scores, -torch.inf)

    order = nms.top_k(scores.mT, count)  # one row per image and class
    if scores.device.type == "cpu" and not torch.compiler.is_compiling():
        order = order[
            ..., : int(wanted.sum(1).max())
        ]  # most scores are below the threshold; counting them is free here
    ranked = scores.mT.take_along_dim(order, 2)
    rows = boxes.transpose(1, 2).take_along_dim(order[..., None], 2).flatten(0, 1)
    keep = nms.keep_mask(
        rows, (ranked > -torch.inf).flatten(0, 1), config.nms_iou, backend=backend
    ).unflatten(0, (-1, classes))
    kept = torch.full_like(scores.mT, -torch.inf).scatter(
        2, order, torch.where(keep, ranked, -torch.inf)
    )

    kept = F.pad(
        kept.mT.flatten(1), (0, max(limit - count * classes, 0)), value=-torch.inf
    )  # proposal after proposal, classes within
    best = nms.top_k(kept, limit)
    scores = kept.take_along_dim(best, 1)
    found = scores > -torch.inf
    best = torch.where(found, best, 0)
    boxes = boxes.flatten(1, 2).take_along_dim(best[..., None], 1)
    boxes = torch.where(found[..., None], boxes, 0)
    return boxes, torch.where(found, scores, 0), torch.where(found, best % classes + 1, 0), found


def rescale(boxes, network, original, config):
    """Boxes [D, 4] of the network's input, sides `network` (h, w), in pixels of the image that came in, sides `original`.

    Returns (boxes [D, 4], keep [D] bool): with `config.box_head.drop_empty` boxes are clipped, and those left without area are not kept.
    """
    boxes = scale_boxes(boxes, network, original, config.transform)
    if not config.box_head.drop_empty:
        return boxes, torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    boxes = clip(boxes, *original)
    return boxes, is_valid(boxes, 0, inclusive=False)
