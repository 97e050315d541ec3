"""What goes into the model, what comes out of it, and what happens between.

Legend: N images, A anchors per cell, T anchors of all levels, P proposal slots, B sampled RoIs of
an image, R RoIs of all images, G ground truths, D detection slots, K classes, S side of a mask.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import torch


@dataclass
class Target:
    """The true boxes [G, 4] xyxy pixels, labels [G] in 1..K, masks [G, H, W] bool of an image.

    polygons  the outlines of each object, a list of [V, 2] x, y in pixels, or None where there is
              only its mask; None: there are only masks
    """

    boxes: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor
    polygons: list | None = None


@dataclass
class PackedTarget:
    """A Target after `transform.prepare`, in pixels of the resized image.

    boxes [G, 4], labels [G], masks [G, h, ceil(w / 8)] uint8, packed to bits, the first pixel in
    the highest bit (numpy.packbits); [G, 0, 0] if left out.
    points [V, 2], rings [P + 1], parts [G + 1] are the outlines as in a Batch, or None.
    """

    boxes: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor
    points: torch.Tensor | None = None
    rings: torch.Tensor | None = None
    parts: torch.Tensor | None = None


@dataclass
class BatchTargets:
    """What a batch holds besides its images, in G ground-truth slots per image.

    sizes           [N, 2] int64               (h, w) of the images without padding
    boxes           [N, G, 4]                  xyxy, pixels of the images
    labels          [N, G] int64               1..K, 0 in empty slots
    valid           [N, G] bool                whether a slot holds an object
    masks           [N, G, H, ceil(W / 8)]     uint8, packed to bits; [N, G, 0, 0] if left out
    original_sizes  [(H, W)]                   sides of the images as they came in
    image_ids       list                       one id per image

    The outlines, None without any, in V slots for points and P = V // 3 for outlines per image:
    points          [N, V, 2] float64          x, y in pixels of `images`, outline after outline
    rings           [N, P + 1] int64           outline p has points rings[p] to rings[p + 1]
    parts           [N, G + 1] int64           object g has outlines parts[g] to parts[g + 1]
    """

    sizes: torch.Tensor
    boxes: torch.Tensor
    labels: torch.Tensor
    valid: torch.Tensor
    masks: torch.Tensor
    original_sizes: list[tuple[int, int]]
    image_ids: list
    points: torch.Tensor | None = field(default=None, kw_only=True)
    rings: torch.Tensor | None = field(default=None, kw_only=True)
    parts: torch.Tensor | None = field(default=None, kw_only=True)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the batch on `device`."""
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory, for asynchronous copies (DataLoader calls it)."""
        return self._map(torch.Tensor.pin_memory)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tell the allocator that `stream` uses the batch, made on another."""
        for tensor in self.tensors().values():
            tensor.record_stream(stream)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return {field: tensor}."""
        return {name: x for name, x in vars(self).items() if isinstance(x, torch.Tensor)}

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        tensors = {name: function(tensor) for name, tensor in self.tensors().items()}
        return dataclasses.replace(self, **tensors)


@dataclass
class Batch(BatchTargets):
    """The images and targets of a step.

    images  [N, 3, H, W]  normalised, zeros to the right and below
    """

    images: torch.Tensor


@dataclass
class RawBatch(BatchTargets):
    """A batch from the workers; `transform.finish` makes a Batch of it, on any device.

    pixels        [P]       the images [h, w, 3] RGB one after the other, uint8 or floats in 0..255
    pixel_shapes  [(h, w)]  their sides
    new_shapes    [(h, w)]  their sides after resizing, those in `sizes`
    shape         (H, W)    of the padded batch
    """

    pixels: torch.Tensor
    pixel_shapes: list[tuple[int, int]]
    new_shapes: list[tuple[int, int]]
    shape: tuple[int, int]

    def images(self) -> list[torch.Tensor]:
        """Return the images as views [3, h, w]."""
        parts = self.pixels.split([3 * h * w for h, w in self.pixel_shapes])
        return [
            part.view(h, w, 3).permute(2, 0, 1)
            for part, (h, w) in zip(parts, self.pixel_shapes, strict=True)
        ]


@dataclass
class Detections:
    """The objects in one image, by falling score, in pixels of the image as it came in.

    boxes [D, 4] xyxy, scores [D] in [0, 1], labels [D] in 1..K, masks [D, H, W] bool or None.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor | None


class Crop(NamedTuple):
    """An object's mask in the window that it may fill; outside of it the mask is empty.

    pixels     [h, w] bool, on the CPU
    top, left  first row and column of the window in the image
    size       (H, W) of the image
    """

    pixels: torch.Tensor
    top: int
    left: int
    size: tuple[int, int]


@dataclass
class CroppedDetections(Detections):
    """Detections whose D masks are `crops`, see `masks.Crops`; their `masks` are None."""

    crops: Sequence[Crop]


class PaddedDetections(NamedTuple):
    """The detections of a batch in D slots per image, in pixels of the network's input.

    boxes [N, D, 4] xyxy, scores [N, D], labels [N, D] in 1..K, valid [N, D] bool,
    mask_probabilities [N, D, S, S] (None without a mask branch).
    They are ordered by falling score. Empty slots stand last and hold zeros.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor
    valid: torch.Tensor
    mask_probabilities: torch.Tensor | None = None


@dataclass
class Stages:
    """The intermediate results of one `detect` or `losses`, in the order of computation.

    Pass an empty one as `record`. A field stays None where its stage does not run. Boxes are xyxy
    in pixels of the network's input. The reference has the same fields. Where it has as many rows
    as there are, this one has all slots: `proposal_valid` and `roi_labels` tell which are filled.
    The RoIs of box_features, class_logits and box_deltas are the proposals, in training the sampled
    RoIs; those of mask_* the detections, in training the first slots of the sampled RoIs.

    images              [N, 3, H, W]      padded and normalised
    C1 .. C5            [N, C, h, w]      stages of the backbone (C1: VGG only)
    P2 .. P6            [N, C, h, w]      maps for the RPN and the heads; level l has stride 2^l
    rpn_logits          [N, A, h, w]      objectness, a list over levels
    rpn_deltas          [N, 4 A, h, w]    channel 4 a + coordinate, a list over levels
    anchors             [h w A, 4]        a list over levels
    priorities          dict              of the sampling: "rpn" [N, T], "roi" [N, P + G]; training
    rpn_labels          [N, T]            1 object, 0 background, -1 ignored; training only
    rpn_matched         [N, T]            ground truth of highest IoU, for any label; training only
    rpn_target_deltas   [N, T, 4]         0 unless the label is 1; training only
    rpn_sampled         [N, T]            1 positive, 0 negative, -1 not sampled; training only
    proposals           [N, P, 4]         by falling score
    proposal_scores     [N, P]            probabilities or logits (`rpn.nms_score`)
    proposal_valid      [N, P] bool       whether a slot is filled
    samples             Samples           RoIs that the heads learn from; training only
    sampled_rois        [N, B, 4]         their boxes; training only
    roi_labels          [N, B]            their labels, 0..K, -1 if empty; training only
    box_features        [R, C, P, P]      input of the box head
    class_logits        [R, K + 1]        columns: `labels.class_layout`
    box_deltas          [R, 4 E]          class-major, `labels.delta_layout`
    detections          PaddedDetections  in pixels of the network's input; detection only
    mask_features       [R, C, P, P]      input of the mask head
    mask_logits         [R, M, S, S]      channels: `labels.mask_layout`
    mask_targets        [R, S, S]         in [0, 1]; training only
    mask_probabilities  [N, D, S, S]      of the predicted class; detection only
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
    proposal_valid: Any = None
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
