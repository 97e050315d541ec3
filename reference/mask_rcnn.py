"""Mask R-CNN [Mask R-CNN, He et al. 2017]: the wiring of the stages into detections and losses.

Legend: N images, T anchors of all levels, P proposals, R RoIs, G ground truths, D detections.
A list has one item per image.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from reference import (
    anchors,
    backbone,
    box_head,
    mask_head,
    masks,
    neck,
    postprocess,
    rpn,
    shared_head,
    transform,
)
from reference.autodiff import Tape, Variable, detached
from reference.config import Config, Pooler, check
from reference.parameters import check_parameters, trained_parameters
from reference.pooler import pool
from reference.structures import Array, Detections, NetworkDetections, Stages, Target, keep


class Taped(NamedTuple):
    """One forward pass in training, on a tape that `tape.backward(loss)` uses up.

    variables   {name: Variable} of every parameter that is trained
    losses      {name: Variable}, scalars
    priorities  of the sampling, as in `MaskRCNN.losses`
    """

    tape: Tape
    variables: dict[str, Variable]
    losses: dict[str, Variable]
    priorities: dict


class Gradients(NamedTuple):
    """One backward pass: losses {name: scalar}, gradients {name: array} of their sum for every
    parameter that is trained, and the priorities of the sampling, as in `MaskRCNN.losses`.
    """

    losses: dict
    gradients: dict
    priorities: dict


class MaskRCNN:
    """The model of `config` with `parameters` {name: array}, in whose dtype it computes.

    The names are those of the accelerated model's state_dict. Raises one ValueError for all
    parameters that are missing, unexpected or of the wrong shape.
    """

    def __init__(self, config: Config, parameters: dict[str, Array]):
        check(config)
        self.config = config
        self.parameters = check_parameters(parameters, config)
        self.dtype = next(iter(self.parameters.values())).dtype

    def __repr__(self) -> str:
        backbone_name = f"{self.config.backbone.kind}-{self.config.backbone.depth}"
        count = sum(value.size for value in self.parameters.values())
        classes = f"{self.config.num_classes} classes"
        return f"MaskRCNN({backbone_name}, {self.config.neck}, {classes}, {count:,} {self.dtype})"

    def detect(self, images: list[Array], record: Stages | None = None) -> list[Detections]:
        """Find the objects in each image, in pixels of the images as they came in.

        images  list of [H, W, 3] RGB, uint8 or floats in 0..255; may be empty
        record  an empty Stages, which receives the intermediate results
        """
        if len(images) == 0:
            return []
        prepared = [transform.prepare(image, None, self.config.transform)[0] for image in images]
        sizes = [image.shape[1:] for image in prepared]
        detections = self.batch_detections(self.batch(prepared), sizes, record)
        return [
            self.unpad(image_detections, size, np.shape(image)[:2])
            for image_detections, size, image in zip(detections, sizes, images)
        ]

    def losses(
        self,
        images: list[Array],
        targets: list[Target],
        priorities: dict | None = None,
        record: Stages | None = None,
        generator: np.random.Generator | None = None,
        proposals: list[rpn.Proposals] | None = None,
    ) -> dict[str, Array]:
        """Return the losses of one training step, whose sum training minimises.

        images, record  as in `detect`
        targets         a Target per image, in its pixels; an image may have no object at all
        priorities      {"rpn": [N][T], "roi": [N][P + G]}; where there are more candidates than
                        needed, those of the smallest priority are sampled. A "roi" row holds
                        post_nms_top_n_train entries for proposals, then one per ground truth.
        generator       draws the priorities if there are none; None: a fresh one
        proposals       of each image, at most post_nms_top_n_train, to use instead of the RPN's.
                        No gradient runs through proposals, as if they did not depend on the
                        parameters; held still like this, they do not
        Returns {"rpn_objectness", "rpn_box", "class", "box", "mask"}: scalars. Without a mask
        branch there is no "mask". Running statistics of batch norms in `parameters` are updated.
        """
        statistics = {}
        losses, _ = self._losses(
            self.parameters, statistics, images, targets, priorities, record, generator, proposals
        )
        self.parameters = self.parameters | statistics
        return losses

    def gradients(
        self,
        images: list[Array],
        targets: list[Target],
        priorities: dict | None = None,
        record: Stages | None = None,
        generator: np.random.Generator | None = None,
        of: Sequence[str] | None = None,
        proposals: list[rpn.Proposals] | None = None,
    ) -> Gradients:
        """Return the losses and the gradients of their sum, or of the sum of those named in `of`.

        of  names of losses; a parameter that none of them depends on gets a gradient of zeros
        The other arguments are those of `losses`. What `record` receives are Variables wherever a
        gradient runs through: see `value`, `grad`.
        Raises ValueError for a name that is no loss, and for no name.
        """
        tape, variables, losses, priorities = self.taped(
            images, targets, priorities, record, generator, proposals
        )
        of = list(losses) if of is None else of
        if not of or set(of) - set(losses):
            raise ValueError(f"of: expected some of {', '.join(losses)}, got {of!r}")
        total: Any = sum(loss for name, loss in losses.items() if name in of)
        tape.backward(total)
        gradients = {
            name: np.zeros_like(variable.value) if variable.grad is None else variable.grad
            for name, variable in variables.items()
        }
        return Gradients(detached(losses), gradients, priorities)

    def taped(
        self,
        images: list[Array],
        targets: list[Target],
        priorities: dict | None = None,
        record: Stages | None = None,
        generator: np.random.Generator | None = None,
        proposals: list[rpn.Proposals] | None = None,
    ) -> Taped:
        """Return the losses on a tape, from which `gradients` runs back. Arguments as in `losses`.

        `tape.names()` lists the calls. After `tape.backward(losses["mask"])`, `grad` of each
        Variable, those in `record` included, is the gradient of that loss, or None if it does not
        depend on the Variable.
        """
        tape, statistics = Tape(), {}
        names = trained_parameters(self.config)
        variables = {name: tape.variable(self.parameters[name]) for name in names}
        parameters = self.parameters | variables
        losses, priorities = self._losses(
            parameters, statistics, images, targets, priorities, record, generator, proposals
        )
        self.parameters = self.parameters | statistics
        return Taped(tape, variables, losses, priorities)

    def batch_detections(
        self, images: Array, sizes: list[tuple[int, int]], record: Stages | None = None
    ) -> list[NetworkDetections]:
        """Detect in a padded batch [N, 3, H, W] of images with sides `sizes` (h, w).

        The mask branch runs on the detections only.
        """
        config, parameters = self.config, self.parameters
        pyramid = features(parameters, images, config, record)
        logits, deltas, grid = objectness(parameters, pyramid, images.shape[2:], config, record)
        proposals = rpn.proposals(logits, deltas, grid, sizes, config.rpn, training=False)
        keep(record, proposals=[image.boxes for image in proposals])
        keep(record, proposal_scores=[image.scores for image in proposals])

        rois, image_index = join([image.boxes for image in proposals])
        x = roi_features(parameters, pyramid, rois, image_index, config.box_head.pooler, config)
        class_logits, box_deltas = box_head.forward(parameters, x, config)
        keep(record, box_features=x, class_logits=class_logits, box_deltas=box_deltas)
        detections = []
        for n, size in enumerate(sizes):
            logits, deltas, boxes = (y[image_index == n] for y in (class_logits, box_deltas, rois))
            detections.append(postprocess.detections(logits, deltas, boxes, size, config))
        keep(record, detections=detections)
        if config.mask_head.kind == "none":
            return detections

        rois, image_index = join([image.boxes for image in detections])
        labels = np.concatenate([image.labels for image in detections])
        x = roi_features(parameters, pyramid, rois, image_index, config.mask_head.pooler, config)
        logits = mask_head.forward(parameters, x, config)
        probabilities = mask_head.probabilities(logits, labels, config)
        keep(record, mask_features=x, mask_logits=logits, mask_probabilities=probabilities)
        return [
            image._replace(mask_probabilities=probabilities[image_index == n])
            for n, image in enumerate(detections)
        ]

    def _losses(
        self, parameters, statistics, images, targets, priorities, record, generator, proposals
    ) -> tuple[dict, dict]:
        """Return the losses, and the priorities of the sampling; arguments as in `losses`.

        parameters are arrays, or Variables of those that are trained; statistics receives the new
        running statistics of batch norms.
        """
        if len(images) == 0 or len(images) != len(targets):
            counts = f"{len(images)} images and {len(targets)} targets"
            raise ValueError(f"losses: expected images and a target for each, got {counts}")
        if proposals is not None and len(proposals) != len(images):
            raise ValueError(f"proposals: those of {len(proposals)} images for {len(images)}")
        config = self.config
        for target in targets:
            transform.check_labels(target, config.num_classes)
        pairs = [transform.prepare(*pair, config.transform) for pair in zip(images, targets)]
        prepared, targets = [image for image, _ in pairs], [target for _, target in pairs if target]
        gt_boxes = [target.boxes.astype(self.dtype) for target in targets]
        sizes, batch = [image.shape[1:] for image in prepared], self.batch(prepared)

        pyramid = features(parameters, batch, config, record, statistics)
        logits, deltas, grid = objectness(parameters, pyramid, batch.shape[2:], config, record)
        if priorities is None:
            generator = np.random.default_rng() if generator is None else generator
            priorities = self.draw_priorities(logits.shape[1], gt_boxes, generator)
        answers = rpn.targets(np.concatenate(grid), gt_boxes, priorities["rpn"], config.rpn)
        keep(record, priorities=priorities, rpn_labels=answers.labels, rpn_sampled=answers.sampled)
        keep(record, rpn_matched=answers.matched, rpn_target_deltas=answers.deltas)
        rpn_losses = rpn.losses(logits, deltas, answers.sampled, answers.deltas, config.rpn)

        if proposals is None:
            proposals = rpn.proposals(
                detached(logits), detached(deltas), grid, sizes, config.rpn, training=True
            )
        keep(record, proposals=[image.boxes for image in proposals])
        keep(record, proposal_scores=[image.scores for image in proposals])
        samples = [
            self.sample(image.boxes, target, boxes, row)
            for image, target, boxes, row in zip(proposals, targets, gt_boxes, priorities["roi"])
        ]
        keep(record, samples=samples, roi_labels=[s.labels for s in samples])
        keep(record, sampled_rois=[s.rois for s in samples])
        losses = {"rpn_objectness": rpn_losses[0], "rpn_box": rpn_losses[1]}
        losses |= _head_losses(parameters, pyramid, samples, targets, config, record, statistics)
        return losses, priorities

    def batch(self, prepared: list[Array]) -> Array:
        """Pad a list of [3, h, w] to one array [N, 3, H, W] in the dtype of the parameters."""
        return transform.pad(prepared, self.config.transform.size_divisor).astype(self.dtype)

    def unpad(
        self, detections: NetworkDetections, network: tuple[int, int], original: tuple[int, int]
    ) -> Detections:
        """Map the detections of one image from the network's input (h, w) to the image (H, W)."""
        boxes, keep_row = postprocess.rescale(detections.boxes, network, original, self.config)
        boxes, scores = boxes[keep_row], detections.scores[keep_row]
        labels, head = detections.labels[keep_row], self.config.mask_head
        if detections.mask_probabilities is None:
            return Detections(boxes, scores, labels, None)
        probabilities = detections.mask_probabilities[keep_row]
        pasted = masks.paste(
            probabilities, boxes, *original, convention=head.paste, threshold=head.threshold
        )
        return Detections(boxes, scores, labels, pasted)

    def draw_priorities(
        self, anchor_count: int, gt_boxes: list[Array], generator: np.random.Generator
    ) -> dict:
        """Draw random priorities for the anchors, proposals and ground truths of each image."""
        slots = self.config.rpn.post_nms_top_n_train
        return {
            "rpn": generator.random((len(gt_boxes), anchor_count)),
            "roi": [generator.random(slots + len(boxes)) for boxes in gt_boxes],
        }

    def sample(
        self, proposals: Array, target: Target, gt_boxes: Array, priorities: Array
    ) -> box_head.Samples:
        """Sample the RoIs of one image that the heads learn from."""
        slots = self.config.rpn.post_nms_top_n_train
        ground_truth = priorities[slots : slots + len(gt_boxes)]
        priorities = np.concatenate([priorities[: len(proposals)], ground_truth])
        head = self.config.box_head
        return box_head.targets(proposals, gt_boxes, target.labels, priorities, head)


def features(
    parameters: dict,
    images: Array,
    config: Config,
    record: Stages | None = None,
    statistics: dict | None = None,
) -> dict[int, Array]:
    """Compute the maps that RPN and heads read: [N, 3, H, W] -> {2: P2, .., 6: P6}, or one map."""
    stages = backbone.of(config).forward(parameters, images, config, statistics)
    pyramid = neck.of(config).forward(parameters, stages, config, statistics)
    keep(record, images=images, **{f"C{level}": x for level, x in stages.items()})
    keep(record, **{f"P{level}": x for level, x in pyramid.items()})
    return pyramid


def objectness(
    parameters: dict,
    pyramid: dict[int, Array],
    image_shape: tuple[int, ...],
    config: Config,
    record: Stages | None = None,
) -> tuple[Array, Array, list[Array]]:
    """Compute logits [N, T] and deltas [N, T, 4] of all anchors, and each level's anchors."""
    logits, deltas = rpn.head(parameters, pyramid, config.rpn)
    shapes, strides = [x.shape[2:] for x in pyramid.values()], [2**level for level in pyramid]
    grid = anchors.grid(shapes, image_shape, config.anchors, strides=strides)
    grid = [level.astype(logits[0].dtype) for level in grid]
    keep(record, rpn_logits=logits, rpn_deltas=deltas, anchors=grid)
    return *rpn.flatten(logits, deltas), grid


def roi_features(
    parameters: dict,
    pyramid: dict[int, Array],
    rois: Array,
    image_index: Array,
    pooler: Pooler,
    config: Config,
    statistics: dict | None = None,
) -> Array:
    """Compute what the heads read of rois [R, 4] in images image_index [R]: [R, C, P, P]."""
    pooled = pool(pyramid, rois, image_index, pooler)
    return shared_head.forward(parameters, pooled, config, statistics)


def _head_losses(parameters, pyramid, samples, targets, config, record, statistics):
    """Return the losses of the box branch and, where there is one, of the mask branch."""
    rois, image_index = join([s.rois for s in samples])
    labels = np.concatenate([s.labels for s in samples])
    deltas = np.concatenate([s.deltas for s in samples])
    x = roi_features(
        parameters, pyramid, rois, image_index, config.box_head.pooler, config, statistics
    )
    class_logits, box_deltas = box_head.forward(parameters, x, config, statistics)
    keep(record, box_features=x, class_logits=class_logits, box_deltas=box_deltas)
    classification, box = box_head.losses(class_logits, box_deltas, labels, deltas, config)
    if config.mask_head.kind == "none":
        return {"class": classification, "box": box}

    objects, pooler = labels > 0, config.mask_head.pooler
    if config.shared_head == "none":
        x = roi_features(parameters, pyramid, rois[objects], image_index[objects], pooler, config)
    else:
        # The shared stage has already run on these RoIs, in the box branch (SPEC §14).
        x = x[objects]
    logits = mask_head.forward(parameters, x, config, statistics)
    mask_targets = mask_head.targets(targets, samples, config.mask_head, logits.shape[-1])
    mask_targets = mask_targets.astype(logits.dtype)
    keep(record, mask_features=x, mask_logits=logits, mask_targets=mask_targets)
    mask = mask_head.loss(logits, labels[objects], mask_targets, config)
    return {"class": classification, "box": box, "mask": mask}


def join(rois: list[Array]) -> tuple[Array, Array]:
    """Join a list of [R_n, 4] into rois [R, 4] and their image_index [R]."""
    return np.concatenate(rois), np.repeat(np.arange(len(rois)), [len(r) for r in rois])
