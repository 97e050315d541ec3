"""What goes into the model, what comes out of it, and what happens between.

Legend: N images, A anchors per cell, T anchors of all levels, P proposals, R RoIs of all images,
G ground truths, D detections, K classes, S side of a mask.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from reference.autodiff import Array


@dataclass
class Target:
    """The true boxes [G, 4] xyxy pixels, labels [G] in 1..K, masks [G, H, W] bool of an image.

    polygons  the outlines of each object, a list of [V, 2] x, y in pixels, or None where there is
              only its mask; None: there are only masks
    """

    boxes: Array
    labels: Array
    masks: Array
    polygons: Any = None


@dataclass
class Detections:
    """The objects in one image, by falling score, in pixels of the image as it came in.

    boxes [D, 4] xyxy, scores [D] in [0, 1], labels [D] in 1..K, masks [D, H, W] bool or None.
    """

    boxes: Array
    scores: Array
    labels: Array
    masks: Array | None


class NetworkDetections(NamedTuple):
    """The detections of one image in pixels of the network's input, by falling score.

    boxes [D, 4] xyxy, scores [D], labels [D] in 1..K, mask_probabilities [D, S, S] or None.
    """

    boxes: Array
    scores: Array
    labels: Array
    mask_probabilities: Array | None = None


@dataclass
class Stages:
    """The intermediate results of one `detect` or `losses`, in the order of computation.

    Pass an empty one as `record`. A field stays None where its stage does not run; "x N" is a list
    over images. Boxes are xyxy in pixels of the network's input. In `MaskRCNN.gradients` a field
    that a gradient runs through is a Variable. The R rows of the box head are the proposals (in
    training the sampled RoIs), those of the mask head the detections (the sampled objects).

    images              [N, 3, H, W]      padded and normalised
    C1 .. C5            [N, C, h, w]      stages of the backbone (C1: VGG only)
    P2 .. P6            [N, C, h, w]      maps for the RPN and the heads; level l has stride 2^l
    rpn_logits          [N, A, h, w]      objectness, a list over levels
    rpn_deltas          [N, 4 A, h, w]    channel 4 a + coordinate, a list over levels
    anchors             [h w A, 4]        a list over levels
    priorities          dict              of the sampling: "rpn" [N, T], "roi" [P + G] x N; training
    rpn_labels          [N, T]            1 object, 0 background, -1 ignored; training only
    rpn_matched         [N, T]            ground truth of highest IoU, for any label; training only
    rpn_target_deltas   [N, T, 4]         0 unless the label is 1; training only
    rpn_sampled         [N, T]            1 positive, 0 negative, -1 not sampled; training only
    proposals           [P, 4] x N        by falling score
    proposal_scores     [P] x N           probabilities or logits (`rpn.nms_score`)
    samples             Samples x N       RoIs that the heads learn from; training only
    sampled_rois        [R_n, 4] x N      their boxes; training only
    roi_labels          [R_n] x N         their labels, 0..K; training only
    box_features        [R, C, P, P]      input of the box head
    class_logits        [R, K + 1]        columns: `labels.class_layout`
    box_deltas          [R, 4 E]          class-major, `labels.delta_layout`
    detections          x N               in pixels of the network's input; detection only
    mask_features       [R, C, P, P]      input of the mask head
    mask_logits         [R, M, S, S]      channels: `labels.mask_layout`
    mask_targets        [R, S, S]         in [0, 1]; training only
    mask_probabilities  [R, S, S]         of the predicted class; detection only
    """

    images: Any = None
    C1: Any = None
    C2: Any = None
    C3: Any = None
    C4: Any = None
    C5: Any = None
    P2: Any = None
    P3: Any = None
    P4: Any = None
    P5: Any = None
    P6: Any = None
    rpn_logits: Any = None
    rpn_deltas: Any = None
    anchors: Any = None
    priorities: Any = None
    rpn_labels: Any = None
    rpn_matched: Any = None
    rpn_target_deltas: Any = None
    rpn_sampled: Any = None
    proposals: Any = None
    proposal_scores: Any = None
    samples: Any = None
    sampled_rois: Any = None
    roi_labels: Any = None
    box_features: Any = None
    class_logits: Any = None
    box_deltas: Any = None
    detections: Any = None
    mask_features: Any = None
    mask_logits: Any = None
    mask_targets: Any = None
    mask_probabilities: Any = None

    def computed(self) -> dict[str, Any]:
        """Return {field: value} of the stages that ran, in order."""
        return {name: value for name, value in vars(self).items() if value is not None}


def keep(record: Stages | None, **values: Any) -> None:
    """Set fields of `record`. Without a record, nothing is kept alive."""
    if record is not None:
        for name in values.keys() - vars(record).keys():
            raise AttributeError(f"Stages has no field {name}")
        vars(record).update(values)
