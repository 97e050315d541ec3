"""From class logits and deltas to the detections (SPEC §8).

Legend: P proposals, K classes, E box deltas per proposal (see labels.delta_layout), D detections.
"""

import numpy as np

from reference import box_coder, nms, transform
from reference.activations import softmax
from reference.boxes import clip, is_valid
from reference.config import BoxHead, Config
from reference.labels import class_layout, delta_layout
from reference.structures import Array, NetworkDetections


def detections(
    class_logits: Array, box_deltas: Array, proposals: Array, size: tuple[int, int], config: Config
) -> NetworkDetections:
    """Decode, score, clip, filter, suppress within each class and keep the best.

    class_logits  [P, K + 1]
    box_deltas    [P, 4 E]
    proposals     [P, 4]  xyxy
    size          (h, w) of the network's input without its padding
    Returns NetworkDetections by falling score; equal scores: lower proposal, then lower label.
    """
    boxes = box_coder.decode(box_deltas, proposals, config.box_head.box_weights)
    layout = delta_layout(config)
    boxes = boxes.reshape(len(proposals), layout.columns, 4)[:, layout.objects]
    scores = softmax(class_logits)[:, class_layout(config).objects]
    return select(boxes, scores, size, config.box_head)


def select(boxes: Array, scores: Array, size: tuple[int, int], head: BoxHead) -> NetworkDetections:
    """Choose the detections among boxes [P, K, 4] with scores [P, K], as in `detections`.

    A proposal with any non-finite value is dropped with all its classes.
    """
    finite = np.isfinite(boxes).all(axis=(1, 2)) & np.isfinite(scores).all(axis=1)
    boxes, scores = boxes[finite], scores[finite]
    boxes = clip(boxes, *size)
    candidate = scores > head.score_threshold
    if head.min_size is not None:
        candidate &= is_valid(boxes, head.min_size, inclusive=True)
    # The order of candidates: proposal by proposal, rising classes within.
    row, column = np.nonzero(candidate)
    boxes, scores, labels = boxes[row, column], scores[row, column], column + 1
    keep = nms.batched_nms(boxes, scores, labels, head.nms_iou)[: head.max_detections]
    return NetworkDetections(boxes[keep], scores[keep], labels[keep])


def rescale(
    boxes: Array, network: tuple[int, int], original: tuple[int, int], config: Config
) -> tuple[Array, Array]:
    """Scale boxes [D, 4] from the network's input (h, w) to the image as it came in (H, W).

    Returns boxes [D, 4] and keep [D] bool. With `box_head.drop_empty` boxes are clipped, and boxes
    without area are not kept.
    """
    boxes = transform.scale_boxes(boxes, network, original, config.transform)
    if not config.box_head.drop_empty:
        return boxes, np.ones(len(boxes), dtype=bool)
    boxes = clip(boxes, *original)
    return boxes, is_valid(boxes, 0, inclusive=False)
