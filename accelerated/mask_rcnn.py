"""Mask R-CNN [He et al. 2017, arXiv 1703.06870]: the wiring of backbone, pyramid, proposals and heads; losses and detections.

Shapes are fixed: every image has the same number of proposal, sample and detection slots, with a mask of validity beside them, and
nothing on the way to the losses asks the device for a count.

N images, T anchors, G ground-truth slots, P proposal slots, B sampled RoIs and M mask slots of an image, D detection slots,
K classes, E entries of deltas and masks, S side of a mask.
"""

from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from accelerated import anchors, box_head, fpn, levels, losses, mask_head, masks, postprocess, resnet, rpn, sampler, transform


class PaddedDetections(NamedTuple):
    """The detections of a batch in a fixed number of slots per image, boxes in pixels of the network's input."""

    boxes: torch.Tensor  # [N, D, 4]
    scores: torch.Tensor  # [N, D], falling; 0 where not valid
    labels: torch.Tensor  # [N, D], 1..K; 0 where not valid
    valid: torch.Tensor  # [N, D]
    mask_probabilities: torch.Tensor  # [N, D, S, S]


class MaskRCNN(nn.Module):
    """The model of a `reference.config.Config`, initialised for training from scratch.

    backend   "auto", "torch" or "triton": how the operators run
    `record`, wherever it is accepted, is a dictionary that the intermediates are put into, under the reference's names.
    """

    def __init__(self, config, backend="auto"):
        super().__init__()
        self.config = config
        self.backend = backend
        self.backbone = resnet.ResNet(config)
        self.fpn = fpn.FPN(config)
        self.rpn = rpn.RPN(config)
        self.box_head = box_head.BoxHead(config)
        self.mask_head = mask_head.MaskHead(config)

    def forward(self, batch, **keywords):
        """`batch_losses` in training mode, else `batch_detections`: what DistributedDataParallel or torch.compile wrap."""
        return self.batch_losses(batch, **keywords) if self.training else self.batch_detections(batch, **keywords)

    def losses(self, images, targets, priorities=None, record=None):
        """The five losses of a few images, with batch statistics where there are any.

        images list of [H, W, 3] RGB, uint8 or float in 0..255; targets list of Target
        priorities {"rpn": [N][T], "roi": [N][P + G]}, the smallest are sampled; P = post_nms_top_n_train; drawn at random without
        Returns {"rpn_objectness", "rpn_box", "class", "box", "mask"}, scalars.
        """
        batch = self._prepare(images, targets)
        if priorities is not None:
            width = self.config.rpn.post_nms_top_n_train + batch.boxes.shape[1]
            priorities = {
                name: torch.stack([self._row(row, width if name == "roi" else len(row)) for row in rows])
                for name, rows in priorities.items()
            }
        with self._mode(training=True):
            return self.batch_losses(batch, priorities, record=record)

    def detect(self, images, record=None):
        """The objects in each of a few images [H, W, 3] RGB, uint8 or float in 0..255 -> list of Detections, in the images' pixels."""
        with torch.no_grad(), self._mode(training=False):
            batch = self._prepare(images)
            return self.unpad(self.batch_detections(batch, record=record), batch)

    def batch_losses(self, batch, priorities=None, generator=None, record=None):
        """The training step's forward: fixed shapes, no synchronisation. The model should be in training mode.

        batch      transform.Batch on the model's device
        priorities {"rpn": [N, T], "roi": [N, P + G]} or None: drawn from `generator`, a generator of that device
        Returns    as `losses`. Every loss depends on every parameter on its way, whether or not there is an object.
        """
        config, record = self.config, {} if record is None else record
        features, all_anchors, logits, deltas = self._propose(batch.images, record)
        gt_boxes = batch.boxes.to(logits.dtype)
        flat_anchors = torch.cat(all_anchors)
        if priorities is None:
            widths = {"rpn": len(flat_anchors), "roi": config.rpn.post_nms_top_n_train + gt_boxes.shape[1]}
            priorities = {name: torch.rand(len(logits), width, device=logits.device, generator=generator) for name, width in widths.items()}

        rpn_labels, rpn_deltas = rpn.targets(flat_anchors, gt_boxes, batch.valid, config.rpn)
        positive, negative = sampler.sampled_mask(rpn_labels, priorities["rpn"], config.rpn.batch_size, config.rpn.positive_fraction)
        sampled = torch.where(positive, 1, torch.where(negative, 0, -1))
        rpn_objectness, rpn_box = losses.rpn_losses(logits, deltas, sampled, rpn_deltas, config.rpn)

        proposals, scores, valid = rpn.proposals(logits, deltas, all_anchors, batch.sizes, config, training=True, backend=self.backend)
        samples = box_head.targets(proposals, valid, gt_boxes, batch.labels, batch.valid, priorities["roi"], config.box_head)
        rois, image_index = _flat(samples.rois, samples.labels >= 0)
        box_features = levels.pool(features, rois, image_index, config.box_head.pooler, backend=self.backend)
        class_logits, box_deltas = self.box_head(box_features, image_index >= 0)
        labels = samples.labels.flatten()
        class_loss, box_loss = losses.box_losses(_high(class_logits), _high(box_deltas), labels, samples.deltas.flatten(0, 1), config)

        objects = int(config.box_head.batch_size * config.box_head.positive_fraction)  # all objects stand in the first so many slots
        mask_labels = samples.labels[:, :objects]
        mask_rois, mask_index = _flat(samples.rois[:, :objects], mask_labels > 0)
        mask_features = levels.pool(features, mask_rois, mask_index, config.mask_head.pooler, backend=self.backend)
        mask_logits = _high(self.mask_head(mask_features, mask_index >= 0))
        mask_targets = masks.targets(
            batch.masks,
            mask_index,
            samples.matched[:, :objects].flatten(),
            mask_rois,
            mask_index >= 0,
            config.mask_head,
            mask_logits.shape[-1],
        )
        mask = losses.mask_loss(mask_logits, mask_labels.flatten(), mask_targets, config)

        record |= {
            "rpn_labels": rpn_labels,
            "rpn_sampled": sampled,
            "proposals": proposals,
            "proposal_scores": scores,
            "proposal_valid": valid,
            "sampled_rois": samples.rois,
            "roi_labels": samples.labels,
            "box_features": box_features,
            "class_logits": class_logits,
            "box_deltas": box_deltas,
            "mask_features": mask_features,
            "mask_logits": mask_logits,
            "mask_targets": mask_targets,
        }
        return {"rpn_objectness": rpn_objectness, "rpn_box": rpn_box, "class": class_loss, "box": box_loss, "mask": mask}

    @torch.no_grad()
    def batch_detections(self, batch, record=None):
        """transform.Batch -> PaddedDetections, in fixed shapes. The model should be in evaluation mode; `unpad` brings the results home."""
        config, record = self.config, {} if record is None else record
        features, all_anchors, logits, deltas = self._propose(batch.images, record)
        proposals, proposal_scores, valid = rpn.proposals(
            logits, deltas, all_anchors, batch.sizes, config, training=False, backend=self.backend
        )
        rois, image_index = _flat(proposals, valid)
        box_features = levels.pool(features, rois, image_index, config.box_head.pooler, backend=self.backend)
        class_logits, box_deltas = self.box_head(box_features)
        boxes, scores, labels, found = postprocess.detections(
            _high(class_logits).unflatten(0, valid.shape),
            _high(box_deltas).unflatten(0, valid.shape),
            proposals,
            valid,
            batch.sizes,
            config,
            backend=self.backend,
        )
        mask_rois, mask_index = _flat(boxes, found)
        mask_features = levels.pool(features, mask_rois, mask_index, config.mask_head.pooler, backend=self.backend)
        mask_logits = _high(self.mask_head(mask_features))
        probabilities = mask_head.select(mask_logits, labels.flatten(), config).sigmoid().unflatten(0, found.shape)
        detections = PaddedDetections(boxes, scores, labels, found, probabilities)
        record |= {
            "proposals": proposals,
            "proposal_scores": proposal_scores,
            "proposal_valid": valid,
            "box_features": box_features,
            "class_logits": class_logits,
            "box_deltas": box_deltas,
            "detections": detections,
            "mask_features": mask_features,
            "mask_logits": mask_logits,
        }
        return detections

    def unpad(self, detections, batch):
        """PaddedDetections of `batch` -> list of Detections, boxes and masks in pixels of the images as they came in."""
        sizes, out = batch.sizes.tolist(), []
        for i, original in enumerate(batch.original_sizes):
            boxes, scores, labels, probabilities = (x[i][detections.valid[i]] for x in (*detections[:3], detections.mask_probabilities))
            boxes, keep = postprocess.rescale(boxes, sizes[i], original, self.config)
            boxes, scores, labels, probabilities = (x[keep] for x in (boxes, scores, labels, probabilities))
            head = self.config.mask_head
            pasted = masks.paste(probabilities, boxes, *original, convention=head.paste, threshold=head.threshold, backend=self.backend)
            out.append(postprocess.Detections(boxes, scores, labels, pasted))
        return out

    def _propose(self, images, record):
        """Images to pyramid {level: feature}, anchors per level, and the RPN's flattened opinion of them."""
        weight = self.backbone.conv1.weight
        memory_format = torch.channels_last if weight.is_cuda else torch.preserve_format  # what tensor cores and RoIAlign like
        images = images.to(weight.dtype, memory_format=memory_format)
        stages = self.backbone(images)
        features = self.fpn(stages)
        logits, deltas = self.rpn(features)
        shapes = [tuple(x.shape[-2:]) for x in features.values()]
        precision = torch.promote_types(logits[0].dtype, torch.float32)
        all_anchors = anchors.grid(shapes, images.shape[-2:], self.config.anchors, dtype=precision, device=images.device)
        record |= {"images": images, "rpn_logits": logits, "rpn_deltas": deltas, "anchors": all_anchors}
        record |= {f"C{level}": x for level, x in stages.items()} | {f"P{level}": x for level, x in features.items()}
        return features, all_anchors, *rpn.flatten(logits, deltas)

    def _prepare(self, images, targets=None):
        targets = [None] * len(images) if targets is None else targets
        if len(images) != len(targets):
            raise ValueError(f"{len(images)} images need as many targets, got {len(targets)}")
        config = self.config.transform
        prepared = [transform.prepare(image, target, config) for image, target in zip(images, targets, strict=True)]
        return transform.collate(prepared, config, [tuple(image.shape[:2]) for image in images]).to(self.backbone.conv1.weight.device)

    def _row(self, values, width):
        """One image's priorities on the device, filled up to `width` (of candidates that do not exist)."""
        row = torch.as_tensor(values, device=self.backbone.conv1.weight.device)
        return nn.functional.pad(row, (0, width - len(row)), value=torch.inf)

    @contextmanager
    def _mode(self, training):
        modes = {module: module.training for module in self.modules()}
        self.train(training)
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def _flat(rois, valid):
    """rois [N, R, 4], valid [N, R] -> rois [N R, 4] and the image of each, -1 for those not valid."""
    image = torch.arange(len(rois), device=rois.device)[:, None]
    return rois.flatten(0, 1), torch.where(valid, image, -1).flatten()


def _high(x):
    """At least float32, whatever autocast made of it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
