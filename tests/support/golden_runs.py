"""Recorded runs of whole torchvision and detectron2 models, under this project's names."""

from dataclasses import replace

import numpy as np

from accelerated.verify.equality import GOLDEN_MODEL, assert_close
from reference import config as configuration
from reference.mask_rcnn import MaskRCNN
from reference.structures import Stages, Target

IMAGES = (0, 1)
TORCHVISION = {
    "backbone.body.": "backbone.",
    "rpn.head.conv.0.0.": "rpn.conv1.",
    "rpn.head.cls_logits.": "rpn.logits.",
    "rpn.head.bbox_pred.": "rpn.deltas.",
    "roi_heads.box_head.": "box_head.",
    "roi_heads.box_predictor.cls_score.": "box_head.class_logits.",
    "roi_heads.box_predictor.bbox_pred.": "box_head.box_deltas.",
    "roi_heads.mask_predictor.conv5_mask.": "mask_head.deconv.",
    "roi_heads.mask_predictor.mask_fcn_logits.": "mask_head.logits.",
    **{f"backbone.fpn.inner_blocks.{i}.0.": f"fpn.lateral{i + 2}." for i in range(4)},
    **{f"backbone.fpn.layer_blocks.{i}.0.": f"fpn.output{i + 2}." for i in range(4)},
    **{f"roi_heads.mask_head.{i}.0.": f"mask_head.conv{i + 1}." for i in range(4)},
}
DETECTRON2 = {
    **{  # with a pyramid the ResNet is below it; without, it is all there is
        f"{resnet}{theirs}": ours
        for resnet in ("backbone.bottom_up.", "backbone.")
        for theirs, ours in {
            "stem.conv1.norm.": "backbone.bn1.",
            "stem.": "backbone.",
            **{f"res{stage + 1}.": f"backbone.layer{stage}." for stage in (1, 2, 3, 4)},
        }.items()
    },
    "roi_heads.res5.": "backbone.layer4.",
    "backbone.fpn_": "fpn.",
    "proposal_generator.rpn_head.conv.": "rpn.conv1.",
    "proposal_generator.rpn_head.objectness_logits.": "rpn.logits.",
    "proposal_generator.rpn_head.anchor_deltas.": "rpn.deltas.",
    "roi_heads.box_head.fc1.": "box_head.fc6.",
    "roi_heads.box_head.fc2.": "box_head.fc7.",
    "roi_heads.box_predictor.cls_score.": "box_head.class_logits.",
    "roi_heads.box_predictor.bbox_pred.": "box_head.box_deltas.",
    "roi_heads.mask_head.mask_fcn": "mask_head.conv",
    "roi_heads.mask_head.predictor.": "mask_head.logits.",
    "roi_heads.mask_head.": "mask_head.",
}


def rename(name, prefixes):
    """Our name of a peer's parameter."""
    prefix = next((p for p in prefixes if name.startswith(p)), "")
    name = prefixes.get(prefix, "") + name.removeprefix(prefix)
    for inner in (1, 2, 3):  # detectron2 hangs the normalisation under its convolution
        name = name.replace(f".conv{inner}.norm.", f".bn{inner}.")
    return name.replace(".shortcut.norm.", ".downsample.1.").replace(".shortcut.", ".downsample.0.")


def order(n):
    """The golden files' stand-in for a random permutation of n."""
    return (7919 * np.arange(n) + 13) % n


def priorities(labels):
    """Make priorities for labels [T] by which sampling follows the golden `order`."""
    out = np.zeros(len(labels))
    for rows in (np.flatnonzero(labels > 0), np.flatnonzero(labels == 0)):
        out[rows[order(len(rows))]] = np.arange(len(rows))
    return out


def roi_priorities(labels, slots, objects):
    """The same for proposals and ground truths, with the ground truths behind `slots` proposals."""
    own = priorities(labels)
    return np.concatenate(
        [own[: len(own) - objects], np.zeros(slots + objects - len(own)), own[len(own) - objects :]]
    )


def unpacked(z, key):
    """A bit-packed boolean array."""
    shape = z[f"{key}#shape"]
    return np.unpackbits(z[key])[: np.prod(shape)].reshape(shape).astype(bool)


def check(actual, z, key, first=None):
    """Compare with (the first rows of) z[key], unless a subset of the archive omits it."""
    if key not in z.get("left_out", ()):
        assert_close(actual[:first], z[key], GOLDEN_MODEL, key)


class Golden:
    """A recorded run `z`: its configuration, parameters, images and targets; none is resized."""

    def __init__(self, archives, config, prefixes, losses, frozen_stages):
        self.z = z = {key: archive[key] for archive in archives for key in archive.files}
        self.config = replace(
            config,
            num_classes=5,
            transform=replace(config.transform, min_size=()),
            backbone=replace(config.backbone, width=8, frozen_stages=frozen_stages),
            fpn=replace(config.fpn, channels=16),
            box_head=replace(config.box_head, channels=32),
            mask_head=replace(config.mask_head, channels=16),
        )
        self.name, self.losses = lambda theirs: rename(theirs, prefixes), losses
        self.parameters = {
            self.name(key[2:]): z[key].astype(float) for key in z if key.startswith("w.")
        }
        bgr = config.transform.channel_order == "bgr"
        self.images = [
            np.moveaxis(
                z[f"in.image255.{i}"][::-1] if bgr else z[f"in.image.{i}"] * 255, 0, -1
            ).astype(float)
            for i in IMAGES
        ]
        labels = [z[f"in.gt_classes0.{i}"] + 1 if bgr else z[f"in.gt_labels.{i}"] for i in IMAGES]
        self.targets = [
            Target(z[f"in.gt_boxes.{i}"], labels[i], z[f"in.gt_masks.{i}"] > 0) for i in IMAGES
        ]

    def priorities(self):
        """Make priorities by which sampling repeats the recorded run."""
        record, slots = Stages(), self.config.rpn.post_nms_top_n_train
        MaskRCNN(self.config, self.parameters).losses(
            self.images, self.targets, None, record, np.random.default_rng(0)
        )
        roi = zip(record.samples, self.targets, strict=True)
        return {
            "rpn": [priorities(labels) for labels in record.rpn_labels],
            "roi": [
                roi_priorities(sample.candidate_labels, slots, len(target.labels))
                for sample, target in roi
            ],
        }

    def check_losses(self, losses):
        for ours, theirs in self.losses.items():
            rounded = (
                theirs == "objectness"
            )  # torchvision's labels are float32, so is this loss (SPEC §7)
            assert_close(
                losses[ours],
                self.z[f"train.loss.loss_{theirs}"],
                1e-6 if rounded else GOLDEN_MODEL,
                ours,
            )

    def check_gradients(self, gradients):
        """Return the recorded gradients: the norm of each, and every entry of the small ones."""
        norms = {
            self.name(key[15:]): x for key, x in self.z.items() if key.startswith("train.gradnorm.")
        }
        assert norms.keys() == gradients.keys()
        for name, norm in norms.items():
            assert_close((gradients[name] ** 2).sum() ** 0.5, norm, GOLDEN_MODEL, f"norm of {name}")
        recorded = {
            self.name(key[11:]): x for key, x in self.z.items() if key.startswith("train.grad.")
        }
        assert recorded
        for name, gradient in recorded.items():
            assert_close(gradients[name], gradient, GOLDEN_MODEL, f"gradient of {name}")


def torchvision(request, extent):
    """extent: "subset", which a clone has, or "complete"."""
    load = request.getfixturevalue("golden" if extent == "subset" else "shared_golden")
    archives = (
        [load("tv_fpn"), load("tv_fpn_gradients")] if extent == "subset" else [load("tv_fpn_f64")]
    )
    losses = {
        "class": "classifier",
        "box": "box_reg",
        "mask": "mask",
        "rpn_box": "rpn_box_reg",
        "rpn_objectness": "objectness",
    }
    return Golden(
        archives, configuration.preset("torchvision_r50_fpn"), TORCHVISION, losses, frozen_stages=0
    )


def detectron2(request, neck, extent):
    """neck: "fpn", or "c4", whose "subset" a clone has."""
    archive = (
        request.getfixturevalue("golden")("d2_c4")
        if extent == "subset"
        else request.getfixturevalue("shared_golden")(f"d2_{neck}_f64")
    )
    # The recorded targets are those of bitmaps, not of outlines.
    config = configuration.override(
        configuration.preset(f"detectron2_r50_{neck}"), "mask_head.target=binary"
    )
    if neck == "c4":
        tops = {
            "pre_nms_top_n_train": 1500,
            "pre_nms_top_n_test": 1000,
            "post_nms_top_n_train": 400,
            "post_nms_top_n_test": 200,
        }
        config = replace(
            config,
            rpn=replace(config.rpn, **tops),
            box_head=replace(config.box_head, batch_size=128),
        )
    losses = {
        "class": "cls",
        "box": "box_reg",
        "mask": "mask",
        "rpn_box": "rpn_loc",
        "rpn_objectness": "rpn_cls",
    }
    return Golden([archive], config, DETECTRON2, losses, frozen_stages=2)


DETECTRON2_RUNS = (("fpn", "complete"), ("c4", "complete"), ("c4", "subset"))
