"""Mask R-CNN [He et al. 2017, arXiv 1703.06870]: the wiring of backbone, pyramid, proposals and heads; losses and detections.

Shapes are fixed: every image has the same number of proposal, sample and detection slots, with a mask of validity beside them, and
nothing on the way to the losses asks the device for a count.

N images, T anchors, G ground-truth slots, P proposal slots, B sampled RoIs and M mask slots of an image, D detection slots,
K classes, E entries of deltas, S side of a mask.
"""

from contextlib import contextmanager

import torch
from torch import nn

from accelerated import (
    anchors,
    backbone,
    box_head,
    losses,
    mask_head,
    masks,
    neck,
    postprocess,
    rpn,
    sampler,
    shared_head,
    transform,
)
from accelerated import pooler as pooling
from accelerated.structures import Detections, PaddedDetections
from reference import config as configuration


class MaskRCNN(nn.Module):
    """The model of a `reference.config.Config`, initialised for training from scratch.

    backend   "auto", "torch" or "triton": how the operators run
    record    wherever it is accepted: a dict that receives intermediate results under the reference's names. Where the reference has a
              list over images of as many rows as there are, here stand all slots, with "proposal_valid" [N, P] and
              "roi_labels" [N, B] (-1 in empty slots) to tell them apart; "mask_*" are those of each image's first slots
    """

    def __init__(self, config, backend="auto"):
        super().__init__()
        configuration.check(config)
        self.config = config
        self.backend = backend
        self.backbone = backbone.of(config).Backbone(config)
        self.fpn = neck.of(config).Neck(config)
        self.rpn = rpn.RPN(config)
        self.box_head = box_head.make(config)
        self.mask_head = None if config.mask_head.kind == "none" else mask_head.make(config)

    def forward(self, batch, **keywords):
        """`batch_losses` in training mode, else `batch_detections`: what DistributedDataParallel or torch.compile wrap."""
        return (
            self.batch_losses(batch, **keywords)
            if self.training
            else self.batch_detections(batch, **keywords)
        )

    def detect(self, images, record=None):
        """The objects in each image: a list of Detections, in pixels of the images as they came in.

        images  list of [H, W, 3] RGB, uint8 or floats in 0..255; may be empty
        """
        if len(images) == 0:
            return []
        with torch.no_grad(), self._mode(training=False):
            batch = self.batch(images)
            return list(self.unpad(self.batch_detections(batch, record=record), batch))

    def losses(self, images, targets, priorities=None, record=None, generator=None):
        """The five losses of a few images, in training mode (statistics of the batch, where a norm has any).

        images, targets  as in `detect`, with a Target for each in pixels of the image; an image may have no object at all
        priorities       {"rpn": [N][T], "roi": [N][P + G]}: who is sampled where there are more candidates than places, the smallest first.
                         A roi row has post_nms_top_n_train numbers for the proposals, then one per ground truth. None: random
        generator        torch.Generator of the model's device for these; None: the default one
        Returns {"rpn_objectness", "rpn_box", "class", "box", "mask"}: scalars; without a mask branch there is no "mask".
        """
        if len(images) == 0 or len(images) != len(targets):
            raise ValueError(
                f"losses: expected images, and a target for each; got {len(images)} images and {len(targets)} targets"
            )
        batch = self.batch(images, targets)
        if priorities is not None:
            width = self.config.rpn.post_nms_top_n_train + batch.boxes.shape[1]
            priorities = {
                "rpn": self._stack(priorities["rpn"]),
                "roi": self._stack(priorities["roi"], width),
            }
        with self._mode(training=True):
            return self.batch_losses(batch, priorities, generator, record)

    def batch(self, images, targets=None):
        """Images (and targets) -> Batch on the model's device, at the size of inference."""
        config, weight = self.config.transform, self.weight
        targets = [None] * len(images) if targets is None else targets
        dtype = torch.promote_types(weight.dtype, torch.float32)
        prepared = [
            transform.prepare(image, target, config, dtype=dtype)
            for image, target in zip(images, targets, strict=True)
        ]
        return transform.collate(prepared, config, [tuple(image.shape[:2]) for image in images]).to(
            weight.device
        )

    def batch_losses(self, batch, priorities=None, generator=None, record=None):
        """The training step's forward: fixed shapes, no synchronisation. The model should be in training mode.

        batch       Batch on the model's device
        priorities  {"rpn": [N, T], "roi": [N, P + G]} or None: drawn from `generator`
        Returns as `losses`. With or without an object, each loss depends on every parameter on its way.
        """
        pyramid = self.features(batch.images, record)
        logits, deltas, level_anchors = self.objectness(pyramid, batch.images.shape[-2:], record)
        gt_boxes = batch.boxes.to(logits.dtype)
        if priorities is None:
            priorities = self.draw_priorities(logits, gt_boxes, generator)
        objectness, rpn_box = self.rpn_losses(
            logits,
            deltas,
            torch.cat(level_anchors),
            gt_boxes,
            batch.valid,
            priorities["rpn"],
            record,
        )

        proposals, scores, valid = rpn.proposals(
            logits,
            deltas,
            level_anchors,
            batch.sizes,
            self.config,
            training=True,
            backend=self.backend,
        )
        samples = box_head.targets(
            proposals,
            valid,
            gt_boxes,
            batch.labels,
            batch.valid,
            priorities["roi"],
            self.config.box_head,
        )
        note(record, proposals=proposals, proposal_scores=scores, proposal_valid=valid)
        note(record, sampled_rois=samples.rois, roi_labels=samples.labels, samples=samples)
        classification, box, features = self.box_losses(pyramid, samples, record)
        computed = {
            "rpn_objectness": objectness,
            "rpn_box": rpn_box,
            "class": classification,
            "box": box,
        }
        if self.mask_head is None:
            return computed
        return computed | {"mask": self.mask_loss(pyramid, samples, batch, features, record)}

    @torch.no_grad()
    def batch_detections(self, batch, record=None):
        """Batch -> PaddedDetections, in fixed shapes. The model should be in evaluation mode; `unpad` brings them home.

        The mask branch runs on the detections only; without one `mask_probabilities` is None.
        """
        config = self.config
        pyramid = self.features(batch.images, record)
        logits, deltas, level_anchors = self.objectness(pyramid, batch.images.shape[-2:], record)
        proposals, scores, valid = rpn.proposals(
            logits, deltas, level_anchors, batch.sizes, config, training=False, backend=self.backend
        )
        note(record, proposals=proposals, proposal_scores=scores, proposal_valid=valid)

        rois, image_index = flat(proposals, valid)
        features = self.roi_features(pyramid, rois, image_index, config.box_head.pooler)
        class_logits, box_deltas = map(high, self.box_head(features))
        note(record, box_features=features, class_logits=class_logits, box_deltas=box_deltas)
        class_logits, box_deltas = (
            class_logits.unflatten(0, valid.shape),
            box_deltas.unflatten(0, valid.shape),
        )
        found = postprocess.detections(
            class_logits, box_deltas, proposals, valid, batch.sizes, config, backend=self.backend
        )
        note(record, detections=found)
        if self.mask_head is None:
            return PaddedDetections(*found, None)
        boxes, scores, labels, valid = found
        rois, image_index = flat(boxes, valid)
        features = self.roi_features(pyramid, rois, image_index, config.mask_head.pooler)
        logits = high(self.mask_head(features))
        probabilities = losses.mask_probabilities(logits, labels.flatten(), config).unflatten(
            0, labels.shape
        )
        note(record, mask_features=features, mask_logits=logits, mask_probabilities=probabilities)
        return PaddedDetections(boxes, scores, labels, valid, probabilities)

    def unpad(self, detections, batch):
        """PaddedDetections of `batch` -> the Detections of one image after the other, in pixels of the images as they came in.

        A generator: the pasted masks of one image exist at a time.
        """
        head = self.config.mask_head
        for i, (size, original) in enumerate(
            zip(batch.sizes.tolist(), batch.original_sizes, strict=True)
        ):
            boxes, scores, labels = (x[i, detections.valid[i]] for x in detections[:3])
            boxes, keep = postprocess.rescale(boxes, size, original, self.config)
            boxes = boxes[keep]
            if self.mask_head is None:
                yield Detections(boxes, scores[keep], labels[keep], None)
                continue
            probabilities = detections.mask_probabilities[i, detections.valid[i]]
            pasted = masks.paste(
                probabilities[keep],
                boxes,
                *original,
                convention=head.paste,
                threshold=head.threshold,
                backend=self.backend,
            )
            yield Detections(boxes, scores[keep], labels[keep], pasted)

    def features(self, images, record):
        """[N, 3, H, W] -> the maps that RPN and heads read, {2: P2, .., 6: P6}, or a single one."""
        memory_format = (
            torch.channels_last if self.weight.is_cuda else torch.preserve_format
        )  # what tensor cores and RoIAlign like
        images = images.to(self.weight.dtype, memory_format=memory_format)
        stages = self.backbone(images)
        pyramid = self.fpn(stages)
        note(
            record,
            images=images,
            **{f"C{level}": x for level, x in stages.items()},
            **{f"P{level}": x for level, x in pyramid.items()},
        )
        return pyramid

    def objectness(self, pyramid, image_shape, record):
        """Logits [N, T] and deltas [N, T, 4] of all anchors; the anchors, a list over the levels of [T_l, 4]."""
        maps = self.rpn(pyramid)
        logits, deltas = rpn.flatten(*maps)
        shapes = [x.shape[-2:] for x in pyramid.values()]
        strides = [2**level for level in pyramid]
        grid = anchors.grid(
            shapes,
            image_shape,
            self.config.anchors,
            strides=strides,
            dtype=logits.dtype,
            device=logits.device,
        )
        note(record, rpn_logits=maps[0], rpn_deltas=maps[1], anchors=grid)
        return logits, deltas, grid

    def draw_priorities(self, logits, gt_boxes, generator=None):
        """Random priorities for the anchors, and for the proposal and ground-truth slots, of each image."""
        widths = {
            "rpn": logits.shape[1],
            "roi": self.config.rpn.post_nms_top_n_train + gt_boxes.shape[1],
        }
        return {
            name: torch.rand(len(logits), width, device=logits.device, generator=generator)
            for name, width in widths.items()
        }

    def rpn_losses(self, logits, deltas, all_anchors, gt_boxes, gt_valid, priorities, record):
        """Objectness and box loss of a sample of each image's anchors."""
        config = self.config.rpn
        labels, target_deltas = rpn.targets(all_anchors, gt_boxes, gt_valid, config)
        positive, negative = sampler.sampled_mask(
            labels, priorities, config.batch_size, config.positive_fraction
        )
        sampled = torch.where(positive, 1, torch.where(negative, 0, -1))
        note(record, rpn_labels=labels, rpn_sampled=sampled)
        return losses.rpn_losses(logits, deltas, sampled, target_deltas, config)

    def roi_features(self, pyramid, rois, image_index, pooler):
        """What the heads read of rois [R, 4] in the images image_index [R]: [R, C, P, P]."""
        pooled = pooling.pool(pyramid, rois, image_index, pooler, backend=self.backend)
        return shared_head.forward(self.backbone, pooled, image_index >= 0, self.config)

    def box_losses(self, pyramid, samples, record):
        """Classification and box loss of all sampled RoIs, and their features."""
        labels, target_deltas = samples.labels.flatten(), samples.deltas.flatten(0, 1)
        rois, image_index = flat(samples.rois, samples.labels >= 0)
        features = self.roi_features(pyramid, rois, image_index, self.config.box_head.pooler)
        class_logits, box_deltas = map(high, self.box_head(features, image_index >= 0))
        note(record, box_features=features, class_logits=class_logits, box_deltas=box_deltas)
        return *losses.box_losses(
            class_logits, box_deltas, labels, target_deltas, self.config
        ), features

    def mask_loss(self, pyramid, samples, batch, box_features, record):
        """Mask loss of the foreground among the sampled RoIs, all of which stands in the first slots."""
        config = self.config
        slots = int(config.box_head.batch_size * config.box_head.positive_fraction)
        labels, matched = samples.labels[:, :slots], samples.matched[:, :slots].flatten()
        rois, image_index = flat(samples.rois[:, :slots], labels > 0)
        labels, valid = labels.flatten(), image_index >= 0
        if config.shared_head == "none":
            features = self.roi_features(pyramid, rois, image_index, config.mask_head.pooler)
        else:  # the box branch has been there already (SPEC §14)
            features = box_features.unflatten(0, samples.labels.shape)[:, :slots].flatten(0, 1)
        logits = high(self.mask_head(features, valid))
        size = logits.shape[-1]
        wanted = masks.targets(
            batch.masks,
            image_index,
            matched,
            rois,
            valid,
            config.mask_head,
            size,
            sizes=batch.sizes,
            backend=self.backend,
        )
        note(record, mask_features=features, mask_logits=logits, mask_targets=wanted)
        return losses.mask_loss(logits, labels, wanted, config)

    @property
    def weight(self):
        """Any of the weights: all have its dtype and device."""
        return self.rpn.logits.weight

    def _stack(self, rows, width=None):
        """Rows of numbers -> [N, width] on the model's device; places beyond a row's end belong to no candidate."""
        rows = [torch.as_tensor(row, device=self.weight.device) for row in rows]
        return torch.stack(
            [
                nn.functional.pad(row, (0, (width or len(row)) - len(row)), value=torch.inf)
                for row in rows
            ]
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


def flat(rois, valid):
    """rois [N, R, 4], valid [N, R] -> rois [N R, 4], image_index [N R]: -1 where not valid."""
    image = torch.arange(len(rois), device=rois.device)[:, None]
    return rois.flatten(0, 1), torch.where(valid, image, -1).flatten()


def note(record, **values):
    """Put intermediate results into `record`, if there is one; without, nothing is kept alive."""
    if record is not None:
        record.update(values)


def high(x):
    """At least float32, whatever autocast made of it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
