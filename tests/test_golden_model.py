"""The reference against every recorded number of whole torchvision and detectron2 models."""

import numpy as np
import pytest
from support import golden_runs
from support.golden_runs import IMAGES, check, unpacked

from accelerated.verify.equality import GOLDEN_MODEL, assert_close, assert_equal
from reference import pooler
from reference.mask_rcnn import MaskRCNN, join
from reference.structures import NetworkDetections, Stages


def check_maps(record, z, backbone, pyramid):
    """Features, objectness and deltas of every level."""
    for level in (2, 3, 4, 5):
        check(getattr(record, f"C{level}"), z, backbone.format(level))
    for level in (2, 3, 4, 5, 6):
        check(getattr(record, f"P{level}"), z, pyramid.format(level))
        check(record.rpn_logits[level - 2], z, f"eval.rpn.objectness.{level - 2}")
        check(record.rpn_deltas[level - 2], z, f"eval.rpn.deltas.{level - 2}")


@pytest.fixture(scope="module", params=["subset", "complete"])
def torchvision(request):
    run = golden_runs.torchvision(request, request.param)
    return run, MaskRCNN(run.config, run.parameters)


def test_torchvision_detect(torchvision):
    run, reference = torchvision
    z, record = run.z, Stages()
    detections = reference.detect(run.images, record)
    check_maps(record, z, "eval.C{}", "eval.P{}")
    check(np.concatenate(record.anchors), z, "eval.rpn.anchors")
    for i in IMAGES:
        check(record.proposals[i], z, f"eval.rpn.proposals.{i}")
        check(record.proposal_scores[i], z, f"eval.rpn.proposal_scores.{i}")
    check(record.box_features, z, "eval.roi.box_roi_pool", 6)
    check(record.class_logits, z, "eval.roi.class_logits")
    check(record.box_deltas, z, "eval.roi.box_regression")
    check(record.mask_features, z, "eval.roi.mask_roi_pool", 6)
    check(record.mask_logits, z, "eval.roi.mask_predictor", 6)
    first = 0
    for i, found in enumerate(detections):
        boxes, scores, labels, _ = record.detections[i]
        check(boxes, z, f"eval.det.boxes.{i}")
        check(scores, z, f"eval.det.scores.{i}")
        assert_equal(labels, z[f"eval.det.labels.{i}"])
        check(record.mask_probabilities[first:, None], z, f"eval.det.mask_probs.{i}", 20)
        first += len(boxes)
        check(found.boxes, z, f"eval.out.boxes.{i}")
        check(found.scores, z, f"eval.out.scores.{i}")
        assert_equal(found.labels, z[f"eval.out.labels.{i}"])
        assert_equal(
            found.masks, unpacked(z, f"eval.out.masks_bool.{i}")[:, 0], f"masks of image {i}"
        )


def test_torchvision_losses(torchvision):
    run, reference = torchvision
    z, record = run.z, Stages()
    losses = reference.losses(run.images, run.targets, run.priorities(), record)
    by_index = []  # torchvision lists a sample by rising index, we by priority
    for i, sample in enumerate(record.samples):
        check(record.proposals[i], z, f"train.rpn.proposals.{i}")
        assert_equal(record.rpn_labels[i], z[f"train.rpn.labels.{i}"], "labels of anchors")
        assert_equal(
            record.rpn_sampled[i] == 1, z[f"train.rpn.sampled_pos.{i}"], "positive anchors"
        )
        assert_equal(
            record.rpn_sampled[i] == 0, z[f"train.rpn.sampled_neg.{i}"], "negative anchors"
        )
        assert_equal(
            sample.candidate_labels == 1,
            z[f"train.roi.all_labels.{i}"] > 0,
            "foreground before sampling",
        )
        rows = np.argsort(sample.indices)
        by_index.append(rows + sum(map(len, by_index)))
        assert_equal(sample.labels[rows], z[f"train.roi.labels.{i}"], "labels of RoIs")
        objects = sample.labels[rows] > 0
        assert_equal(
            sample.matched[rows][objects],
            z[f"train.roi.matched_idxs.{i}"][objects],
            "matches of RoIs",
        )
        check(sample.rois[rows], z, f"train.roi.proposals.{i}")
        if "left_out" not in z:
            assert_close(
                sample.deltas[rows][objects],
                z[f"train.roi.regression_targets.{i}"][objects],
                GOLDEN_MODEL,
            )
    rows = np.concatenate(by_index)
    labels = np.concatenate([sample.labels for sample in record.samples])
    objects = np.argsort(np.argsort(rows)[labels > 0])  # the masks in torchvision's order
    check(record.box_features[rows], z, "train.roi.box_roi_pool", 6)
    check(record.class_logits[rows], z, "train.roi.class_logits")
    check(record.box_deltas[rows], z, "train.roi.box_regression")
    check(record.mask_features[objects], z, "train.roi.mask_roi_pool", 6)
    check(record.mask_logits[objects], z, "train.roi.mask_predictor", 6)
    wanted = np.concatenate([z[f"train.roi.mask_targets.{i}"] for i in IMAGES])
    assert_close(record.mask_targets[objects], wanted, GOLDEN_MODEL, "mask targets")
    run.check_losses(losses)


@pytest.fixture(scope="module", params=golden_runs.DETECTRON2_RUNS, ids="-".join)
def detectron2(request):
    run = golden_runs.detectron2(request, *request.param)
    return run, MaskRCNN(run.config, run.parameters)


def test_detectron2_detect(detectron2):
    run, reference = detectron2
    z, record = run.z, Stages()
    reference.detect(run.images, record)
    if run.config.neck == "fpn":
        check_maps(record, z, "eval.res{}", "eval.p{}")
        check(record.box_features, z, "eval.roi.box_pooler", 6)
        check(record.mask_features, z, "eval.roi.mask_pooler", 6)
    else:
        check(record.C4, z, "eval.res4")
        check(record.rpn_logits[0], z, "eval.rpn.objectness.0")
        check(record.rpn_deltas[0], z, "eval.rpn.deltas.0")
        check(
            pooler.pool({4: record.P4}, *join(record.proposals), run.config.box_head.pooler),
            z,
            "eval.roi.pooler",
            6,
        )
        check(record.box_features, z, "eval.roi.res5", 6)
        check(record.mask_features, z, "eval.roi.res5_2", 6)
    for level, anchors in enumerate(record.anchors):
        check(anchors, z, f"eval.rpn.anchors_lvl.{level}")
    for i in IMAGES:
        check(record.proposals[i], z, f"eval.rpn.proposals.{i}")
        check(record.proposal_scores[i], z, f"eval.rpn.proposal_logits.{i}")
    check(record.class_logits, z, "eval.roi.class_logits")
    check(record.box_deltas, z, "eval.roi.box_deltas")
    check(record.mask_logits, z, "eval.roi.mask_logits", 6)
    first = 0
    for i, (boxes, scores, labels, _) in enumerate(record.detections):
        check(boxes, z, f"eval.det.boxes.{i}")
        check(scores, z, f"eval.det.scores.{i}")
        assert_equal(labels - 1, z[f"eval.det.classes.{i}"])
        probabilities = record.mask_probabilities[first : first + len(boxes)]
        check(probabilities[:, None], z, f"eval.det.mask_probs.{i}", 20)
        first += len(boxes)
        wanted = z[
            f"in.out_hw.{i}"
        ]  # the second image's detections are wanted in an image of another size
        image = NetworkDetections(boxes, scores, labels, probabilities)
        found = reference.unpad(image, run.images[i].shape[:2], wanted)
        check(found.boxes, z, f"eval.out.boxes.{i}")
        check(found.scores, z, f"eval.out.scores.{i}")
        assert_equal(found.labels - 1, z[f"eval.out.classes.{i}"])
        assert_equal(found.masks, unpacked(z, f"eval.out.masks.{i}"), f"masks of image {i}")


def test_detectron2_losses(detectron2):
    run, reference = detectron2
    z, record = run.z, Stages()
    losses = reference.losses(run.images, run.targets, run.priorities(), record)
    for i, sample in enumerate(record.samples):
        check(record.proposals[i], z, f"train.rpn.proposals.{i}")
        assert_equal(record.rpn_sampled[i], z[f"train.rpn.sampled_labels.{i}"], "sampled anchors")
        check(sample.rois, z, f"train.roi.proposals.{i}")
        assert_equal((sample.labels - 1) % 6, z[f"train.roi.gt_classes.{i}"], "labels of RoIs")
        check(run.targets[i].boxes[sample.matched], z, f"train.roi.gt_boxes.{i}")
    if run.config.neck == "fpn":
        check(record.box_features, z, "train.roi.box_pooler", 6)
        check(record.mask_features, z, "train.roi.mask_pooler", 6)
    else:
        check(record.box_features, z, "train.roi.res5", 6)
    check(record.class_logits, z, "train.roi.class_logits")
    check(record.box_deltas, z, "train.roi.box_deltas")
    check(record.mask_logits, z, "train.roi.mask_logits", 6)
    assert_equal(
        record.mask_targets,
        np.concatenate([z[f"train.roi.mask_targets.{i}"] for i in IMAGES]),
        "mask targets",
    )
    run.check_losses(losses)
