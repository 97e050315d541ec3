"""Class logits and deltas -> the detections of one image, in pixels of the image that came in (SPEC §8).

P proposals, K classes, E = K + 1 or K deltas per proposal, D detections.
"""

import numpy as np

from reference import box_coder, nms, transform
from reference.activations import softmax
from reference.boxes import clip, is_valid
from reference.losses import foreground


def detections(class_logits, box_deltas, proposals, size, config):
    """Decode, score, clip, filter, suppress per class, keep the best.

    class_logits [P, K + 1]; box_deltas [P, 4E]; proposals [P, 4]; size: (h, w) of the unpadded network input; config: config.Config
    Returns boxes [D, 4], scores [D], labels [D], by falling score (ties: lower proposal, then lower label).
    """
    boxes = box_coder.decode(box_deltas, proposals, config.box_head.box_weights).reshape(
        len(proposals), box_deltas.shape[1] // 4, 4
    )
    return select(
        boxes[:, foreground(config)],
        softmax(class_logits)[:, foreground(config)],
        size,
        config.box_head,
    )


def select(boxes, scores, size, config):
    """The detections among boxes [P, K, 4] with scores [P, K]; config: config.BoxHead.

    A proposal with any non-finite number is dropped whole. Returns as `detections`.
    """
    finite = np.isfinite(boxes).all(axis=(1, 2)) & np.isfinite(scores).all(axis=1)
    boxes, scores = boxes[finite], scores[finite]
    boxes = clip(boxes, *size)
    wanted = scores > config.score_threshold
    if config.min_size is not None:
        wanted &= is_valid(boxes, config.min_size, inclusive=True)
    row, column = np.nonzero(wanted)  # proposal after proposal, classes rising within
    boxes, scores, labels = boxes[row, column], scores[row, column], column + 1
    keep = nms.batched_nms(boxes, scores, labels, config.nms_iou)[: config.max_detections]
    return boxes[keep], scores[keep], labels[keep]


def rescale(boxes, network, original, config):
    """Boxes [D, 4] of the network's input, sides `network` (h, w), in pixels of the image that came in, sides `original`.

    Returns (boxes [D, 4], keep [D] bool): with `config.box_head.drop_empty` boxes are clipped, and those left without area are not kept.
    """
    boxes = transform.scale_boxes(boxes, network, original, config.transform)
    if not config.box_head.drop_empty:
        return boxes, np.ones(len(boxes), dtype=bool)
    boxes = clip(boxes, *original)
    return boxes, is_valid(boxes, 0, inclusive=False)
