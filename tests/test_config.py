"""Presets say what the implementations they are named after do, and the JSON form loses nothing."""

import json

import pytest

from reference import config
from reference.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name):
    preset = config.preset(name)
    assert config.from_dict(json.loads(json.dumps(config.to_dict(preset)))) == preset


def test_the_peers_differ_where_they_are_known_to():
    torchvision, detectron2 = config.preset("torchvision_r50_fpn"), config.preset("detectron2_r50_fpn")
    assert (torchvision.background, detectron2.background) == ("first", "last")
    assert (torchvision.rpn.smooth_l1_beta, detectron2.rpn.smooth_l1_beta) == (1 / 9, 0.0)
    assert (torchvision.rpn.post_nms_top_n_train, detectron2.rpn.post_nms_top_n_train) == (2000, 1000)
    assert (torchvision.box_head.pooler.aligned, detectron2.box_head.pooler.aligned) == (False, True)
    assert (torchvision.box_head.pooler.sampling_ratio, detectron2.mask_head.pooler.sampling_ratio) == (2, 0)
    assert detectron2.mask_head.pooler.output_size == 14


def test_override_changes_one_field():
    tiny = config.preset("tiny")
    changed = config.override(tiny, "rpn.nms_iou=0.6")
    assert changed.rpn.nms_iou == 0.6
    assert config.override(changed, f"rpn.nms_iou={tiny.rpn.nms_iou}") == tiny
    assert config.override(tiny, "transform.min_size=[256, 320]").transform.min_size == (256, 320)
    assert config.override(tiny, "backbone.norm=batch").backbone.norm == "batch"
    assert config.override(tiny, "box_head.min_size=null").box_head.min_size is None


@pytest.mark.parametrize(
    ("assignment", "names"),
    [
        ("rpn.nothing=3", "rpn.nothing"),
        ('rpn.nms_iou="high"', "config.rpn.nms_iou"),
        ("rpn.batch_size=1.5", "config.rpn.batch_size"),
        ("rpn.batch_size=true", "config.rpn.batch_size"),
        ("background=middle", "config.background"),
        ("rpn.box_weights=[1, 2]", "config.rpn.box_weights"),
        ("rpn.nms_iou", "FIELD=VALUE"),
        ("rpn=3", "config.rpn"),
    ],
)
def test_a_bad_override_names_the_field(assignment, names):
    with pytest.raises(ValueError, match=names):
        config.override(config.preset("tiny"), assignment)


def test_an_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match="tiny"):
        config.preset("resnet9000")


def test_a_missing_field_is_named():
    values = config.to_dict(config.preset("tiny"))
    del values["rpn"]["nms_iou"]
    with pytest.raises(ValueError, match=r"config\.rpn\.nms_iou: missing"):
        config.from_dict(values)
