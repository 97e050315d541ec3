"""The reference against whole models of torchvision and detectron2: every recorded number from pixels to pasted masks and losses."""

from dataclasses import replace

import numpy as np
import pytest
from tolerances import GOLDEN_MODEL, assert_close, assert_equal

from reference import config as configuration
from reference.mask_rcnn import MaskRCNN
from reference.transform import Target

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
    "backbone.bottom_up.stem.conv1.norm.": "backbone.bn1.",
    "backbone.bottom_up.stem.": "backbone.",
    **{f"backbone.bottom_up.res{stage + 1}.": f"backbone.layer{stage}." for stage in (1, 2, 3, 4)},
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


def model(z, preset, prefixes):
    """The reference model with the golden weights, in float64."""
    config = configuration.preset(preset)
    config = replace(
        config,
        num_classes=5,
        transform=replace(config.transform, min_size=()),
        backbone=replace(config.backbone, width=8),
        fpn=replace(config.fpn, channels=16),
        box_head=replace(config.box_head, channels=32),
        mask_head=replace(config.mask_head, channels=16),
    )
    return MaskRCNN(config, {rename(k[2:], prefixes): z[k].astype(float) for k in z if k.startswith("w.")})


def order(n):
    """The golden files' stand-in for a random permutation of n."""
    return (7919 * np.arange(n) + 13) % n


def priorities(labels):
    """Of candidates with labels [T] (> 0 positive, 0 negative): such that sampling takes each kind in golden `order`."""
    out = np.zeros(len(labels))
    for rows in (np.flatnonzero(labels > 0), np.flatnonzero(labels == 0)):
        out[rows[order(len(rows))]] = np.arange(len(rows))
    return out


def roi_priorities(labels, slots, objects):
    """The same for proposals and ground truths, with the ground truths behind `slots` proposals."""
    own = priorities(labels)
    return np.concatenate([own[: len(own) - objects], np.zeros(slots + objects - len(own)), own[len(own) - objects :]])


def unpacked(z, key):
    """A bit-packed boolean array."""
    shape = z[f"{key}#shape"]
    return np.unpackbits(z[key])[: np.prod(shape)].reshape(shape).astype(bool)


def check(actual, z, key, first=None):
    """Compare (the first rows) with z[key], unless the archive is a subset that says it left this out."""
    if key not in z.get("left_out", ()):
        assert_close(actual[:first], z[key], GOLDEN_MODEL, key)


def check_maps(record, z, backbone, pyramid):
    """Features, objectness and deltas of every level."""
    for level in (2, 3, 4, 5):
        check(record[f"C{level}"], z, backbone.format(level))
    for level in (2, 3, 4, 5, 6):
        check(record[f"P{level}"], z, pyramid.format(level))
        check(record["rpn_logits"][level - 2], z, f"eval.rpn.objectness.{level - 2}")
        check(record["rpn_deltas"][level - 2], z, f"eval.rpn.deltas.{level - 2}")


@pytest.fixture(scope="module", params=["subset", "complete"])
def torchvision(request, golden, shared_golden):
    archive = golden("tv_fpn") if request.param == "subset" else shared_golden("tv_fpn_f64")
    z = {key: archive[key] for key in archive.files}
    images = [z[f"in.image.{i}"].transpose(1, 2, 0) * 255 for i in IMAGES]
    targets = [Target(z[f"in.gt_boxes.{i}"], z[f"in.gt_labels.{i}"], z[f"in.gt_masks.{i}"] > 0) for i in IMAGES]
    return z, model(z, "torchvision_r50_fpn", TORCHVISION), images, targets


def test_torchvision_detect(torchvision):
    z, reference, images, _ = torchvision
    record = {}
    detections = reference.detect(images, record)
    check_maps(record, z, "eval.C{}", "eval.P{}")
    check(np.concatenate(record["anchors"]), z, "eval.rpn.anchors")
    for i in IMAGES:
        check(record["proposals"][i], z, f"eval.rpn.proposals.{i}")
        check(record["proposal_scores"][i], z, f"eval.rpn.proposal_scores.{i}")
    check(record["box_features"], z, "eval.roi.box_roi_pool", 6)
    check(record["class_logits"], z, "eval.roi.class_logits")
    check(record["box_deltas"], z, "eval.roi.box_regression")
    check(record["mask_features"], z, "eval.roi.mask_roi_pool", 6)
    check(record["mask_logits"], z, "eval.roi.mask_predictor", 6)
    first = 0
    for i, found in enumerate(detections):
        boxes, scores, labels = record["detections"][i]
        check(boxes, z, f"eval.det.boxes.{i}")
        check(scores, z, f"eval.det.scores.{i}")
        assert_equal(labels, z[f"eval.det.labels.{i}"])
        check(record["mask_probabilities"][first:, None], z, f"eval.det.mask_probs.{i}", 20)
        first += len(boxes)
        check(found.boxes, z, f"eval.out.boxes.{i}")
        check(found.scores, z, f"eval.out.scores.{i}")
        assert_equal(found.labels, z[f"eval.out.labels.{i}"])
        assert_equal(found.masks, unpacked(z, f"eval.out.masks_bool.{i}")[:, 0], f"masks of image {i}")


def test_torchvision_losses(torchvision):
    z, reference, images, targets = torchvision
    rpn = [priorities(z[f"train.rpn.labels.{i}"]) for i in IMAGES]
    slots = reference.config.rpn.post_nms_top_n_train
    roi = [roi_priorities(z[f"train.roi.all_labels.{i}"], slots, len(targets[i].labels)) for i in IMAGES]
    record = {}
    losses = reference.losses(images, targets, {"rpn": rpn, "roi": roi}, record)
    by_index = []  # torchvision lists a sample by rising index, we by priority
    for i, sample in enumerate(record["samples"]):
        check(record["proposals"][i], z, f"train.rpn.proposals.{i}")
        assert_equal(record["rpn_labels"][i], z[f"train.rpn.labels.{i}"], "labels of anchors")
        assert_equal(record["rpn_sampled"][i] == 1, z[f"train.rpn.sampled_pos.{i}"], "positive anchors")
        assert_equal(record["rpn_sampled"][i] == 0, z[f"train.rpn.sampled_neg.{i}"], "negative anchors")
        assert_equal(sample.candidate_labels == 1, z[f"train.roi.all_labels.{i}"] > 0, "foreground before sampling")
        rows = np.argsort(sample.indices)
        by_index.append(rows + sum(map(len, by_index)))
        assert_equal(sample.labels[rows], z[f"train.roi.labels.{i}"], "labels of RoIs")
        objects = sample.labels[rows] > 0
        assert_equal(sample.matched[rows][objects], z[f"train.roi.matched_idxs.{i}"][objects], "matches of RoIs")
        check(sample.rois[rows], z, f"train.roi.proposals.{i}")
        if "left_out" not in z:
            assert_close(sample.deltas[rows][objects], z[f"train.roi.regression_targets.{i}"][objects], GOLDEN_MODEL)
    rows = np.concatenate(by_index)
    labels = np.concatenate([sample.labels for sample in record["samples"]])
    objects = np.argsort(np.argsort(rows)[labels > 0])  # the masks in torchvision's order
    check(record["box_features"][rows], z, "train.roi.box_roi_pool", 6)
    check(record["class_logits"][rows], z, "train.roi.class_logits")
    check(record["box_deltas"][rows], z, "train.roi.box_regression")
    check(record["mask_features"][objects], z, "train.roi.mask_roi_pool", 6)
    check(record["mask_logits"][objects], z, "train.roi.mask_predictor", 6)
    wanted = np.concatenate([z[f"train.roi.mask_targets.{i}"] for i in IMAGES])
    assert_close(record["mask_targets"][objects], wanted, GOLDEN_MODEL, "mask targets")
    names = {"class": "classifier", "box": "box_reg", "mask": "mask", "rpn_box": "rpn_box_reg", "rpn_objectness": "objectness"}
    for ours, theirs in names.items():
        tolerance = 1e-6 if ours == "rpn_objectness" else GOLDEN_MODEL  # torchvision's labels are float32, so is this loss
        assert_close(losses[ours], z[f"train.loss.loss_{theirs}"], tolerance, ours)


@pytest.fixture(scope="module")
def detectron2(shared_golden):
    archive = shared_golden("d2_fpn_f64")
    z = {key: archive[key] for key in archive.files}
    images = [z[f"in.image255.{i}"].transpose(1, 2, 0)[:, :, ::-1] for i in IMAGES]  # BGR there
    targets = [Target(z[f"in.gt_boxes.{i}"], z[f"in.gt_classes0.{i}"] + 1, z[f"in.gt_masks.{i}"] > 0) for i in IMAGES]
    return z, model(z, "detectron2_r50_fpn", DETECTRON2), images, targets


def test_detectron2_detect(detectron2):
    z, reference, images, _ = detectron2
    record = {}
    reference.detect(images, record)
    check_maps(record, z, "eval.res{}", "eval.p{}")
    for level in range(5):
        check(record["anchors"][level], z, f"eval.rpn.anchors_lvl.{level}")
    for i in IMAGES:
        check(record["proposals"][i], z, f"eval.rpn.proposals.{i}")
        check(record["proposal_scores"][i], z, f"eval.rpn.proposal_logits.{i}")
    check(record["box_features"], z, "eval.roi.box_pooler", 6)
    check(record["class_logits"], z, "eval.roi.class_logits")
    check(record["box_deltas"], z, "eval.roi.box_deltas")
    check(record["mask_features"], z, "eval.roi.mask_pooler", 6)
    check(record["mask_logits"], z, "eval.roi.mask_logits", 6)
    first = 0
    for i, (boxes, scores, labels) in enumerate(record["detections"]):
        check(boxes, z, f"eval.det.boxes.{i}")
        check(scores, z, f"eval.det.scores.{i}")
        assert_equal(labels - 1, z[f"eval.det.classes.{i}"])
        probabilities = record["mask_probabilities"][first : first + len(boxes)]
        check(probabilities[:, None], z, f"eval.det.mask_probs.{i}", 20)
        first += len(boxes)
        wanted = z[f"in.out_hw.{i}"]  # the second image's detections are wanted in an image of another size
        found = reference.finish(boxes, scores, labels, probabilities, images[i].shape[:2], wanted)
        check(found.boxes, z, f"eval.out.boxes.{i}")
        check(found.scores, z, f"eval.out.scores.{i}")
        assert_equal(found.labels - 1, z[f"eval.out.classes.{i}"])
        assert_equal(found.masks, unpacked(z, f"eval.out.masks.{i}"), f"masks of image {i}")


def test_detectron2_losses(detectron2):
    z, reference, images, targets = detectron2
    record = {}
    reference.losses(images, targets, None, record, np.random.default_rng(0))  # to learn the labels that sampling starts from
    slots = reference.config.rpn.post_nms_top_n_train
    rpn = [priorities(labels) for labels in record["rpn_labels"]]
    roi = [roi_priorities(s.candidate_labels, slots, len(t.labels)) for s, t in zip(record["samples"], targets, strict=True)]
    losses = reference.losses(images, targets, {"rpn": rpn, "roi": roi}, record)
    for i, sample in enumerate(record["samples"]):
        check(record["proposals"][i], z, f"train.rpn.proposals.{i}")
        assert_equal(record["rpn_sampled"][i], z[f"train.rpn.sampled_labels.{i}"], "sampled anchors")
        check(sample.rois, z, f"train.roi.proposals.{i}")
        assert_equal((sample.labels - 1) % 6, z[f"train.roi.gt_classes.{i}"], "labels of RoIs")
        check(targets[i].boxes[sample.matched], z, f"train.roi.gt_boxes.{i}")
    check(record["box_features"], z, "train.roi.box_pooler", 6)
    check(record["class_logits"], z, "train.roi.class_logits")
    check(record["box_deltas"], z, "train.roi.box_deltas")
    check(record["mask_features"], z, "train.roi.mask_pooler", 6)
    check(record["mask_logits"], z, "train.roi.mask_logits", 6)
    assert_equal(record["mask_targets"], np.concatenate([z[f"train.roi.mask_targets.{i}"] for i in IMAGES]), "mask targets")
    names = {"class": "cls", "box": "box_reg", "mask": "mask", "rpn_box": "rpn_loc", "rpn_objectness": "rpn_cls"}
    for ours, theirs in names.items():
        assert_close(losses[ours], z[f"train.loss.loss_{theirs}"], GOLDEN_MODEL, ours)
