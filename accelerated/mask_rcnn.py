"""Mask R-CNN [Mask R-CNN, He et al. 2017]: the wiring of the stages into detections and losses.

Shapes are fixed: every image has the same number of proposal, sample and detection slots, with a
mask that tells which are filled, and nothing on the way to the losses asks the device for a count.

Legend: N images, T anchors of all levels, P proposal slots, R RoIs, G ground-truth slots,
B sampled RoIs and D detection slots of an image.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn

from accelerated import (
    anchors,
    backbone,
    box_head,
    mask_head,
    masks,
    neck,
    postprocess,
    processes,
    rpn,
    shared_head,
    transform,
)
from accelerated.losses import at_least_float32
from accelerated.pooler import pool
from accelerated.rois import on_filled
from accelerated.structures import (
    Batch,
    CroppedDetections,
    Detections,
    PaddedDetections,
    Stages,
    Target,
    keep,
)
from reference.config import Config, Pooler, check


class MaskRCNN(nn.Module):
    """The model of `config`, initialised for training from scratch.

    backend     "auto", "torch" or "triton": how the operators run
    categories  an attribute: {"id", "name"} of the labels 1..K if they are known, else None
    """

    categories: list[dict] | None = None

    def __init__(self, config: Config, backend: str = "auto"):
        super().__init__()
        check(config)
        self.config = config
        self.backend = backend
        self.backbone = backbone.of(config).Backbone(config)
        self.fpn = neck.of(config).Neck(config)
        self.rpn = rpn.RPN(config)
        self.box_head = box_head.make(config)
        self.mask_head = None if config.mask_head.kind == "none" else mask_head.make(config)

    def forward(self, batch: Batch, **keywords: Any) -> dict[str, torch.Tensor] | PaddedDetections:
        """Run `batch_losses` in training mode, `batch_detections` in evaluation mode.

        This is what DistributedDataParallel and torch.compile wrap.
        """
        if self.training:
            return self.batch_losses(batch, **keywords)
        return self.batch_detections(batch, **keywords)

    def detect(
        self,
        images: list,
        record: Stages | None = None,
        run: Callable[[Batch], PaddedDetections] | None = None,
        crops: bool = False,
    ) -> list[Detections]:
        """Find the objects in each image, in pixels of the images as they came in.

        images  list of [H, W, 3] RGB, uint8 or floats in 0..255; or of paths or Pillow's images,
                see `data.inputs`; may be empty
        record  an empty Stages, which receives the intermediate results
        run     what detects in a batch, see `engine.capture.detector`; None: `batch_detections`
        crops   return CroppedDetections, with each mask in the window of its box alone

        `class_names[label - 1]` names a label.
        """
        # What reads files stands above this module, and is imported when it is used.
        images = import_module("accelerated.data.inputs").arrays(images)
        if not images:
            return []
        with torch.no_grad(), self._mode(training=False):
            batch = self.batch(images)
            found = self.batch_detections(batch, record=record) if run is None else run(batch)
            return list(self.unpad(found, batch, crops))

    def losses(
        self,
        images: list,
        targets: list[Target],
        priorities: dict | None = None,
        record: Stages | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the losses of one training step, whose sum training minimises; in training mode.

        images, record  as in `detect`
        targets         a Target per image, in its pixels; an image may have no object at all
        priorities      {"rpn": [N][T], "roi": [N][P + G]}; where there are more candidates than
                        needed, those of the smallest priority are sampled. A "roi" row holds
                        post_nms_top_n_train entries for proposals, then one per ground truth.
        generator       draws the priorities if there are none, on the model's device; None: default
        Returns {"rpn_objectness", "rpn_box", "class", "box", "mask"}: scalars. Without a mask
        branch there is no "mask".
        """
        if len(images) == 0 or len(images) != len(targets):
            counts = f"{len(images)} images and {len(targets)} targets"
            raise ValueError(f"losses: expected images and a target for each, got {counts}")
        batch = self.batch(images, targets)
        if priorities is not None:
            width = self.config.rpn.post_nms_top_n_train + batch.boxes.shape[1]
            roi_priorities = self._stack(priorities["roi"], width)
            priorities = {"rpn": self._stack(priorities["rpn"]), "roi": roi_priorities}
        with self._mode(training=True):
            return self.batch_losses(batch, priorities, generator, record)

    @torch.no_grad()
    def batch_detections(self, batch: Batch, record: Stages | None = None) -> PaddedDetections:
        """Detect in a batch, in fixed shapes; `unpad` maps the result back to the input images.

        The model should be in evaluation mode. The mask branch runs on the detections only.
        """
        config, sizes = self.config, batch.sizes
        pyramid = self.features(batch.images, record)
        logits, deltas, grid = self.objectness(pyramid, batch.images.shape[-2:], record)
        proposals = rpn.proposals(
            logits, deltas, grid, sizes, config.rpn, training=False, backend=self.backend
        )
        keep(record, proposals=proposals.boxes, proposal_scores=proposals.scores)
        keep(record, proposal_valid=proposals.valid)
        rois, image_index = flatten(proposals.boxes, proposals.valid)
        x = self.roi_features(pyramid, rois, image_index, config.box_head.pooler)
        outputs = on_filled(self.box_head, x, image_index >= 0)
        class_logits, box_deltas = (at_least_float32(y) for y in outputs)
        keep(record, box_features=x, class_logits=class_logits, box_deltas=box_deltas)
        slots, where = proposals.valid.shape, (proposals.boxes, proposals.valid, sizes)
        class_logits, box_deltas = class_logits.unflatten(0, slots), box_deltas.unflatten(0, slots)
        detections = postprocess.detections(
            class_logits, box_deltas, *where, config, backend=self.backend
        )
        keep(record, detections=detections)
        if self.mask_head is None:
            return detections

        labels = detections.labels
        rois, image_index = flatten(detections.boxes, detections.valid)
        x = self.roi_features(pyramid, rois, image_index, config.mask_head.pooler)
        logits = mask_head.logits_of(
            self.mask_head, x, labels.flatten(), image_index >= 0, config, record
        )
        probabilities = mask_head.probabilities(logits, labels.flatten(), config)
        probabilities = probabilities.unflatten(0, labels.shape)
        keep(record, mask_features=x, mask_probabilities=probabilities)
        return detections._replace(mask_probabilities=probabilities)

    def batch_losses(
        self,
        batch: Batch,
        priorities: dict[str, torch.Tensor] | None = None,
        generator: torch.Generator | None = None,
        record: Stages | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the losses of a batch on the model's device: fixed shapes, no synchronisation.

        priorities  {"rpn": [N, T], "roi": [N, P + G]}; None: drawn from `generator`

        The model should be in training mode. With or without an object, each loss depends on every
        parameter on its way. The other arguments and the result are those of `losses`.
        """
        pyramid, losses, samples = self.first_stage(batch, priorities, generator, record)
        return losses | self.head_losses(pyramid, samples, batch, record)

    def first_stage(
        self,
        batch: Batch,
        priorities: dict[str, torch.Tensor] | None,
        generator: torch.Generator | None = None,
        record: Stages | None = None,
    ) -> tuple[dict[int, torch.Tensor], dict[str, torch.Tensor], box_head.Samples]:
        """Return the maps, the losses of the RPN and the RoIs that the heads are to learn from."""
        config = self.config
        pyramid = self.features(batch.images, record)
        logits, deltas, grid = self.objectness(pyramid, batch.images.shape[-2:], record)
        gt_boxes = batch.boxes.to(logits.dtype)
        if priorities is None:
            priorities = self.draw_priorities(logits, gt_boxes, generator)
        answers = rpn.targets(
            torch.cat(grid), gt_boxes, batch.valid, priorities["rpn"], config.rpn, self.backend
        )
        keep(record, priorities=priorities, rpn_labels=answers.labels, rpn_sampled=answers.sampled)
        keep(record, rpn_matched=answers.matched, rpn_target_deltas=answers.deltas)
        rpn_losses = rpn.losses(logits, deltas, answers.sampled, answers.deltas, config.rpn)

        proposals = rpn.proposals(
            logits, deltas, grid, batch.sizes, config.rpn, training=True, backend=self.backend
        )
        keep(record, proposals=proposals.boxes, proposal_scores=proposals.scores)
        keep(record, proposal_valid=proposals.valid)
        truth, order = (gt_boxes, batch.labels, batch.valid), priorities["roi"]
        samples = box_head.targets(
            proposals.boxes, proposals.valid, *truth, order, config.box_head, self.backend
        )
        keep(record, samples=samples, roi_labels=samples.labels, sampled_rois=samples.rois)
        return pyramid, {"rpn_objectness": rpn_losses[0], "rpn_box": rpn_losses[1]}, samples

    def batch(self, images: list, targets: list[Target] | None = None) -> Batch:
        """Prepare images and targets as a Batch on the model's device, at the size of inference."""
        config, weight = self.config.transform, self.weight
        for target in targets or ():
            transform.check_labels(target, self.config.num_classes)
        pairs = zip(images, targets or [None] * len(images), strict=True)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        prepared = [
            transform.prepare(image, target, config, dtype=dtype, device=weight.device)
            for image, target in pairs
        ]
        originals = [tuple(image.shape[:2]) for image in images]
        return transform.collate(prepared, config, originals).to(weight.device)

    def unpad(
        self, detections: PaddedDetections, batch: Batch, crops: bool = False
    ) -> Iterator[Detections]:
        """Yield the Detections of one image of `batch` after the other, in pixels of the images.

        crops  yield CroppedDetections, with each mask in the window of its box alone

        The pasted masks of only one image exist at a time.
        """
        head = self.config.mask_head
        for i, (size, original) in enumerate(
            zip(batch.sizes.tolist(), batch.original_sizes, strict=True)
        ):
            valid = detections.valid[i]
            boxes, keep_row = postprocess.rescale(
                detections.boxes[i, valid], size, original, self.config
            )
            boxes, scores = boxes[keep_row], detections.scores[i, valid][keep_row]
            labels = detections.labels[i, valid][keep_row]
            if detections.mask_probabilities is None:
                yield Detections(boxes, scores, labels, None)
                continue
            paste = masks.paste_crops if crops else masks.paste
            pasted: Any = paste(
                detections.mask_probabilities[i, valid][keep_row],
                boxes,
                *original,
                convention=head.paste,
                threshold=head.threshold,
                backend=self.backend,
            )
            if crops:
                yield CroppedDetections(boxes, scores, labels, None, pasted)
            else:
                yield Detections(boxes, scores, labels, pasted)

    def draw_priorities(
        self,
        logits: torch.Tensor,
        gt_boxes: torch.Tensor,
        generator: torch.Generator | None = None,
    ) -> dict[str, torch.Tensor]:
        """Draw random priorities for the anchors, and for proposal and ground-truth slots."""
        slots = self.config.rpn.post_nms_top_n_train + gt_boxes.shape[1]
        widths = {"rpn": logits.shape[1], "roi": slots}
        draw = partial(processes.rand, len(logits), device=logits.device, generator=generator)
        return {name: draw(width) for name, width in widths.items()}

    def features(
        self, images: torch.Tensor, record: Stages | None = None
    ) -> dict[int, torch.Tensor]:
        """Compute the maps that RPN and heads read: [N, 3, H, W] -> {2: P2, .., 6: P6}, or one."""
        # Convolutions and RoIAlign are fastest on channels-last maps, on a GPU and on a CPU.
        images = images.to(self.weight.dtype, memory_format=torch.channels_last)
        stages = self.backbone(images)
        pyramid = self.fpn(stages)
        keep(record, images=images, **{f"C{level}": x for level, x in stages.items()})
        keep(record, **{f"P{level}": x for level, x in pyramid.items()})
        return pyramid

    def objectness(
        self,
        pyramid: dict[int, torch.Tensor],
        image_shape: tuple[int, ...],
        record: Stages | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Compute logits [N, T] and deltas [N, T, 4] of all anchors, and each level's anchors."""
        maps = self.rpn(pyramid)
        logits, deltas = rpn.flatten(*maps)
        shapes, strides = [x.shape[-2:] for x in pyramid.values()], [2**level for level in pyramid]
        like: Any = {"strides": strides, "dtype": logits.dtype, "device": logits.device}
        grid = anchors.grid(shapes, image_shape, self.config.anchors, **like)
        keep(record, rpn_logits=maps[0], rpn_deltas=maps[1], anchors=grid)
        return logits, deltas, grid

    def roi_features(
        self,
        pyramid: dict[int, torch.Tensor],
        rois: torch.Tensor,
        image_index: torch.Tensor,
        pooler: Pooler,
    ) -> torch.Tensor:
        """Compute what the heads read of rois [R, 4] in images image_index [R]: [R, C, P, P]."""
        pooled = pool(pyramid, rois, image_index, pooler, backend=self.backend)
        return shared_head.forward(self.backbone, pooled, image_index >= 0, self.config)

    def head_losses(
        self,
        pyramid: dict[int, torch.Tensor],
        samples: box_head.Samples,
        batch: Batch,
        record: Stages | None,
    ) -> dict[str, torch.Tensor]:
        """Return the losses of the box branch and, where there is one, of the mask branch."""
        config = self.config
        labels, deltas = samples.labels.flatten(), samples.deltas.flatten(0, 1)
        rois, image_index = flatten(samples.rois, samples.labels >= 0)
        x = self.roi_features(pyramid, rois, image_index, config.box_head.pooler)
        outputs = on_filled(self.box_head, x, image_index >= 0)
        class_logits, box_deltas = (at_least_float32(y) for y in outputs)
        keep(record, box_features=x, class_logits=class_logits, box_deltas=box_deltas)
        classification, box = box_head.losses(class_logits, box_deltas, labels, deltas, config)
        if self.mask_head is None:
            return {"class": classification, "box": box}

        # All objects stand in the first slots of their image.
        slots = int(config.box_head.batch_size * config.box_head.positive_fraction)
        labels, matched = samples.labels[:, :slots], samples.matched[:, :slots].flatten()
        rois, image_index = flatten(samples.rois[:, :slots], labels > 0)
        if config.shared_head == "none":
            x = self.roi_features(pyramid, rois, image_index, config.mask_head.pooler)
        else:
            # The shared stage has already run on these RoIs, in the box branch (SPEC §14).
            x = x.unflatten(0, samples.labels.shape)[:, :slots].flatten(0, 1)
        logits = mask_head.logits_of(
            self.mask_head, x, labels.flatten(), image_index >= 0, config, record
        )
        mask_targets = mask_head.targets(
            batch, image_index, matched, rois, config.mask_head, logits.shape[-1], self.backend
        )
        keep(record, mask_features=x, mask_targets=mask_targets)
        mask = mask_head.loss(logits, labels.flatten(), mask_targets, config)
        return {"class": classification, "box": box, "mask": mask}

    @property
    def class_names(self) -> list[str]:
        """The names of the labels 1..K by `categories`, or "class 1", "class 2", ... without."""
        numbered = [{"name": f"class {label}"} for label in range(1, self.config.num_classes + 1)]
        return [category["name"] for category in self.categories or numbered]

    @property
    def weight(self) -> torch.Tensor:
        """A weight of the model; all have its dtype and device."""
        return self.rpn.logits.weight

    def _stack(self, rows, width=None):
        """Stack rows to [N, width] on the model's device, filled up with infinity."""
        rows = [torch.as_tensor(row, device=self.weight.device) for row in rows]
        width = len(rows[0]) if width is None else width
        return torch.stack(
            [nn.functional.pad(row, (0, width - len(row)), value=torch.inf) for row in rows]
        )

    @contextmanager
    def _mode(self, training):
        modes = {module: module.training for module in self.modules()}
        self.train(training)
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def flatten(rois: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Flatten rois [N, R, 4] to [N R, 4], with their image_index [N R]: -1 where not valid."""
    image = torch.arange(len(rois), device=rois.device)[:, None]
    return rois.flatten(0, 1), torch.where(valid, image, -1).flatten()
