"""Mask R-CNN [He et al. 2017, arXiv 1703.06870]: the wiring of backbone, pyramid, proposals and heads into detections and losses.

Legend: N images, T anchors of all levels, P proposals, R rois, G ground truths, D detections, K classes, E entries of deltas,
S side of a mask. Lists have one item per image.
"""

import copy
import math

import numpy as np

from reference import (
    anchors,
    backbone,
    box_head,
    losses,
    mask_head,
    masks,
    neck,
    optimizer,
    postprocess,
    rpn,
    sampler,
    shared_head,
    transform,
)
from reference import config as configuration
from reference import pooler as pooling
from reference.autodiff import Tape, detached
from reference.structures import Detections


class MaskRCNN:
    """The model of `config` with `parameters` {name: array}, named as in the accelerated model's state_dict. Computes in their dtype.

    Raises one ValueError for all parameters that are missing, unexpected or of the wrong shape.
    """

    def __init__(self, config, parameters):
        configuration.check(config)
        self.config = config
        self.parameters = check_parameters(parameters, config)
        self.dtype = next(iter(self.parameters.values())).dtype

    def detect(self, images, record=None):
        """The objects in each image: a list of Detections, in pixels of the images as they came in.

        images  list of [H, W, 3] RGB, uint8 or floats in 0..255; may be empty
        record  a dict that receives intermediate results by name
        """
        if len(images) == 0:
            return []
        prepared = [transform.prepare(image, None, self.config.transform)[0] for image in images]
        sizes, originals = (
            [image.shape[1:] for image in prepared],
            [np.shape(image)[:2] for image in images],
        )
        found = self.batch_detections(self.batch(prepared), sizes, record)
        return [
            self.finish(*one, size, original)
            for one, size, original in zip(found, sizes, originals, strict=True)
        ]

    def losses(self, images, targets, priorities=None, record=None, generator=None):
        """The five losses of one training step; training makes their sum small.

        images, targets  as in `detect`, with a Target for each in pixels of the image; an image may have no object at all
        priorities       {"rpn": [N][T], "roi": [N][P + G]}: who is sampled where there are more candidates than places, the smallest first.
                         A roi row has post_nms_top_n_train numbers for the proposals, then one per ground truth. None: random
        generator        numpy.random.Generator for these; None: a fresh one
        Returns {"rpn_objectness", "rpn_box", "class", "box", "mask"}: scalars; without a mask branch there is no "mask".
        """
        if len(images) == 0 or len(images) != len(targets):
            raise ValueError(
                f"losses: expected images, and a target for each; got {len(images)} images and {len(targets)} targets"
            )
        record = {} if record is None else record
        pairs = [
            transform.prepare(image, target, self.config.transform)
            for image, target in zip(images, targets, strict=True)
        ]
        prepared, targets = zip(*pairs, strict=True)
        batch, sizes = self.batch(prepared), [image.shape[1:] for image in prepared]
        gt_boxes = [target.boxes.astype(self.dtype) for target in targets]

        statistics = {}
        pyramid = self.features(batch, record, statistics)
        logits, deltas, level_anchors = self.objectness(pyramid, batch.shape[2:], record)
        if priorities is None:
            priorities = self.draw_priorities(
                logits.shape[1], gt_boxes, generator or np.random.default_rng()
            )
        record["priorities"] = priorities
        objectness, rpn_box = self.rpn_losses(
            logits, deltas, np.concatenate(level_anchors), gt_boxes, priorities["rpn"], record
        )

        proposals = rpn.proposals(
            detached(logits), detached(deltas), level_anchors, sizes, self.config, training=True
        )
        samples = [
            self.sample(*one)
            for one in zip(proposals, gt_boxes, targets, priorities["roi"], strict=True)
        ]
        record |= {
            "proposals": [boxes for boxes, _ in proposals],
            "proposal_scores": [scores for _, scores in proposals],
        }
        record |= {
            "sampled_rois": [s.rois for s in samples],
            "roi_labels": [s.labels for s in samples],
            "samples": samples,
        }
        classification, box = self.box_losses(pyramid, samples, record, statistics)
        computed = {
            "rpn_objectness": objectness,
            "rpn_box": rpn_box,
            "class": classification,
            "box": box,
        }
        if self.config.mask_head.kind != "none":
            computed["mask"] = self.mask_loss(pyramid, samples, targets, record, statistics)
        self.parameters.update(statistics)
        return computed

    def gradients(self, images, targets, priorities=None, record=None, generator=None):
        """The losses, and the gradient of their sum with respect to every parameter that is trained: ({name: scalar}, {name: array}).

        Arguments as in `losses`; what `record` receives are Variables of the tape where a gradient runs through, with `value` and `grad`.
        """
        tape, taped = Tape(), copy.copy(self)
        variables = {name: tape.variable(self.parameters[name]) for name in trained(self.config)}
        taped.parameters = self.parameters | variables
        losses = taped.losses(images, targets, priorities, record, generator)
        tape.backward(sum(losses.values()))
        self.parameters = taped.parameters | {name: self.parameters[name] for name in variables}
        return detached(losses), {name: variable.grad for name, variable in variables.items()}

    def batch(self, prepared):
        """List of [3, h, w] -> [N, 3, H, W], padded, in the dtype of the parameters."""
        return transform.pad(prepared, self.config.transform.size_divisor).astype(self.dtype)

    def features(self, images, record, statistics=None):
        """[N, 3, H, W] -> the maps that RPN and heads read, {2: P2, ..., 6: P6}, or a single one."""
        stages = backbone.of(self.config).forward(self.parameters, images, self.config, statistics)
        pyramid = neck.of(self.config).forward(self.parameters, stages, self.config, statistics)
        record |= {
            "images": images,
            **{f"C{level}": x for level, x in stages.items()},
            **{f"P{level}": x for level, x in pyramid.items()},
        }
        return pyramid

    def objectness(self, pyramid, image_shape, record):
        """Logits [N, T] and deltas [N, T, 4] of all anchors; the anchors, a list over the levels of [T_l, 4]."""
        logits, deltas = rpn.head(self.parameters, pyramid, self.config)
        shapes, strides = [x.shape[2:] for x in pyramid.values()], [2**level for level in pyramid]
        grid = anchors.grid(shapes, image_shape, self.config.anchors, strides=strides)
        grid = [level.astype(self.dtype) for level in grid]
        record |= {"rpn_logits": logits, "rpn_deltas": deltas, "anchors": grid}
        return *rpn.flatten(logits, deltas), grid

    def batch_detections(self, images, sizes, record=None):
        """Detections of a padded batch [N, 3, H, W] whose images have the sides `sizes` [(h, w)].

        Returns a list of (boxes [D, 4], scores [D], labels [D], mask probabilities [D, S, S]), in pixels of the batch.
        The mask branch runs on the detections only; without one the probabilities are None.
        """
        config, record = self.config, {} if record is None else record
        pyramid = self.features(images, record)
        logits, deltas, level_anchors = self.objectness(pyramid, images.shape[2:], record)
        proposals = rpn.proposals(logits, deltas, level_anchors, sizes, config, training=False)
        record |= {
            "proposals": [boxes for boxes, _ in proposals],
            "proposal_scores": [scores for _, scores in proposals],
        }

        rois, image_index = join([boxes for boxes, _ in proposals])
        features = self.roi_features(pyramid, rois, image_index, config.box_head.pooler)
        class_logits, box_deltas = box_head.forward(self.parameters, features, config)
        record |= {"box_features": features, "class_logits": class_logits, "box_deltas": box_deltas}
        found = []
        for n, size in enumerate(sizes):
            rows = image_index == n
            found.append(
                postprocess.detections(
                    class_logits[rows], box_deltas[rows], rois[rows], size, config
                )
            )

        record["detections"] = found
        if config.mask_head.kind == "none":
            return [(*one, None) for one in found]
        rois, image_index = join([boxes for boxes, _, _ in found])
        features = self.roi_features(pyramid, rois, image_index, config.mask_head.pooler)
        logits = mask_head.forward(self.parameters, features, config)
        probabilities = losses.mask_probabilities(
            logits, np.concatenate([labels for _, _, labels in found]), config
        )
        record |= {
            "mask_features": features,
            "mask_logits": logits,
            "mask_probabilities": probabilities,
        }
        return [(*one, probabilities[image_index == n]) for n, one in enumerate(found)]

    def finish(self, boxes, scores, labels, probabilities, network, original):
        """Detections in an image of sides `original` (h, w), from those in the network's input of sides `network`."""
        boxes, keep = postprocess.rescale(boxes, network, original, self.config)
        boxes, head = boxes[keep], self.config.mask_head
        if probabilities is None:
            return Detections(boxes, scores[keep], labels[keep], None)
        pasted = masks.paste(
            probabilities[keep], boxes, *original, convention=head.paste, threshold=head.threshold
        )
        return Detections(boxes, scores[keep], labels[keep], pasted)

    def draw_priorities(self, count, gt_boxes, generator):
        """Random priorities for `count` anchors and for the proposals and ground truths of each image."""
        slots = self.config.rpn.post_nms_top_n_train
        return {
            "rpn": generator.random((len(gt_boxes), count)),
            "roi": [generator.random(slots + len(boxes)) for boxes in gt_boxes],
        }

    def rpn_losses(self, logits, deltas, all_anchors, gt_boxes, priorities, record):
        """Objectness and box loss of a sample of each image's anchors."""
        config = self.config.rpn
        labels, target_deltas = zip(
            *(rpn.targets(all_anchors, boxes, config) for boxes in gt_boxes), strict=True
        )
        sampled = np.full(logits.shape, -1)
        for row, own, priority in zip(sampled, labels, priorities, strict=True):
            for value, chosen in zip(
                (1, 0),
                sampler.sample(own, priority, config.batch_size, config.positive_fraction),
                strict=True,
            ):
                row[chosen] = value
        record |= {"rpn_labels": np.stack(labels), "rpn_sampled": sampled}
        return losses.rpn_losses(logits, deltas, sampled, np.stack(target_deltas), config)

    def sample(self, proposals, gt_boxes, target, priorities):
        """The RoIs of one image that the heads learn from."""
        boxes, slots = proposals[0], self.config.rpn.post_nms_top_n_train
        priorities = np.concatenate(
            [priorities[: len(boxes)], priorities[slots : slots + len(gt_boxes)]]
        )
        return box_head.targets(boxes, gt_boxes, target.labels, priorities, self.config.box_head)

    def roi_features(self, pyramid, rois, image_index, pooler, statistics=None):
        """What the heads read of rois [R, 4] in the images image_index [R]: [R, C, P, P]."""
        pooled = pooling.pool(pyramid, rois, image_index, pooler)
        return shared_head.forward(self.parameters, pooled, self.config, statistics)

    def box_losses(self, pyramid, samples, record, statistics):
        """Classification and box loss of all sampled RoIs."""
        rois, image_index = join([s.rois for s in samples])
        labels, target_deltas = (
            np.concatenate([s.labels for s in samples]),
            np.concatenate([s.deltas for s in samples]),
        )
        features = self.roi_features(
            pyramid, rois, image_index, self.config.box_head.pooler, statistics
        )
        class_logits, box_deltas = box_head.forward(
            self.parameters, features, self.config, statistics
        )
        record |= {"box_features": features, "class_logits": class_logits, "box_deltas": box_deltas}
        return losses.box_losses(class_logits, box_deltas, labels, target_deltas, self.config)

    def mask_loss(self, pyramid, samples, targets, record, statistics):
        """Mask loss of the foreground among the sampled RoIs."""
        config = self.config
        foreground = [s.labels > 0 for s in samples]
        rois, image_index = join([s.rois[f] for s, f in zip(samples, foreground, strict=True)])
        labels = np.concatenate([s.labels[f] for s, f in zip(samples, foreground, strict=True)])
        if config.shared_head == "none":
            features = self.roi_features(
                pyramid, rois, image_index, config.mask_head.pooler, statistics
            )
        else:  # the box branch has been there already (SPEC §14)
            features = record["box_features"][np.concatenate(foreground)]
        logits = mask_head.forward(self.parameters, features, config, statistics)
        wanted = [
            masks.targets(target.masks, s.matched[f], s.rois[f], config.mask_head, logits.shape[-1])
            for target, s, f in zip(targets, samples, foreground, strict=True)
        ]
        wanted = np.concatenate(wanted).astype(self.dtype)
        record |= {"mask_features": features, "mask_logits": logits, "mask_targets": wanted}
        return losses.mask_loss(logits, labels, wanted, config)


def join(rois):
    """A list of [R_n, 4], one per image -> all rois [R, 4], image_index [R]."""
    return np.concatenate(rois), np.repeat(np.arange(len(rois)), [len(r) for r in rois])


def parameter_shapes(config):
    """{name: shape} of every parameter of the model, running statistics included."""
    parts = (backbone.of(config), neck.of(config), rpn, box_head, mask_head)
    return {name: shape for part in parts for name, shape in part.parameter_shapes(config).items()}


def trained(config):
    """Names of the parameters that training changes: all but stored statistics, frozen norms and the frozen stages of the backbone."""
    frozen = backbone.of(config).frozen(config)
    names = [
        name
        for name in parameter_shapes(config)
        if not name.startswith(frozen) and ".running_" not in name
    ]
    return [
        name
        for name in names
        if not (
            config.backbone.norm == "frozen"
            and name.startswith("backbone.")
            and optimizer.is_norm(name)
        )
    ]


def check_parameters(parameters, config):
    """The parameters as arrays; ValueError naming those that are missing, unexpected or of the wrong shape (batch counters are ignored)."""
    parameters = {
        name: np.asarray(value)
        for name, value in parameters.items()
        if not name.endswith(".num_batches_tracked")
    }
    shapes = parameter_shapes(config)
    problems = [f"{name} is missing" for name in shapes if name not in parameters]
    problems += [f"{name} is unexpected" for name in parameters if name not in shapes]
    for name, value in parameters.items():
        if name in shapes and value.shape != shapes[name]:
            problems.append(f"{name} has shape {list(value.shape)}, expected {list(shapes[name])}")
    if problems:
        shown = "; ".join(problems[:8]) + (
            f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        )
        raise ValueError(f"the parameters do not fit the configuration: {shown}")
    return parameters


def initial_parameters(config, generator, dtype=np.float64):
    """Random parameters to start training from, {name: array}.

    Convolutions of the backbone and of the heads: He et al. 2015, by fan out. Pyramid and fully connected layers: uniform, variance
    1 / fan in. RPN and class logits: N(0, 0.01²); box deltas and mask logits: N(0, 0.001²). Biases 0, normalisations the identity.
    """
    small = {
        "rpn.": 0.01,
        "box_head.class_logits": 0.01,
        "box_head.box_deltas": 0.001,
        "mask_head.logits": 0.001,
    }
    parameters = {}
    for name, shape in parameter_shapes(config).items():
        std = next(
            (value for prefix, value in small.items() if name.startswith(prefix)),
            math.sqrt(2 / (shape[0] * math.prod(shape[2:]))),
        )
        if len(shape) == 1:
            value = np.full(shape, float(name.endswith((".running_var", ".weight"))))
        elif name.startswith(("fpn.", "box_head.fc", "mask_head.fc")):
            value = generator.uniform(-1, 1, shape) * math.sqrt(3 / math.prod(shape[1:]))
        else:
            value = generator.standard_normal(shape) * std
        parameters[name] = value.astype(dtype)
    return parameters
