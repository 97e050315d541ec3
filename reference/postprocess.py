"""From class logits and deltas to the detections (SPEC §8).

Legend: P proposals, K classes, E box deltas per proposal (see labels.delta_layout), D detections.
"""

from typing import NamedTuple

import numpy as np

from reference import box_coder, nms, transform
from reference.activations import softmax
from reference.boxes import clip, is_valid
from reference.config import BoxHead, Config
from reference.labels import class_layout, delta_layout
from reference.structures import Array, NetworkDetections


class Survivors(NamedTuple):
    """What each step of `select` leaves of boxes [P, K, 4]: index pairs (proposal, column) [., 2].

    Column c holds the boxes of label c + 1.

    candidates    finite, and scored above the threshold: by rising proposal, then by rising column
    sized         those of them whose clipped boxes are long enough, in the same order
    unsuppressed  those of them that non-maximum suppression keeps, by falling score
    kept          the first of them: the detections
    """

    candidates: Array
    sized: Array
    unsuppressed: Array
    kept: Array


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
    row, column = survivors(boxes, scores, size, head).kept.T
    return NetworkDetections(clip(boxes[row, column], *size), scores[row, column], column + 1)


def survivors(boxes: Array, scores: Array, size: tuple[int, int], head: BoxHead) -> Survivors:
    """Return what is left after each step of `select`, whose arguments these are."""
    finite = np.isfinite(boxes).all(axis=(1, 2)) & np.isfinite(scores).all(axis=1)
    candidates = np.argwhere((scores > head.score_threshold) & np.expand_dims(finite, 1))
    clipped = clip(boxes[tuple(candidates.T)], *size)
    min_size = -np.inf if head.min_size is None else head.min_size
    valid = is_valid(clipped, min_size, inclusive=True)
    sized, clipped = candidates[valid], clipped[valid]
    row, column = sized.T
    unsuppressed = sized[nms.batched_nms(clipped, scores[row, column], column, head.nms_iou)]
    return Survivors(candidates, sized, unsuppressed, unsuppressed[: head.max_detections])


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
