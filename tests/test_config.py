"""Presets say what the implementations they are named after do, and the JSON form loses nothing."""

import inspect
import json
import re
from dataclasses import fields, is_dataclass

import pytest

from accelerated import mask_rcnn as accelerated
from reference import backbone, config, mask_rcnn
from reference.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name):
    preset = config.preset(name)
    assert config.from_dict(json.loads(json.dumps(config.to_dict(preset)))) == preset


def test_the_peers_differ_where_they_are_known_to():
    torchvision, detectron2 = (
        config.preset("torchvision_r50_fpn"),
        config.preset("detectron2_r50_fpn"),
    )
    assert (torchvision.background, detectron2.background) == ("first", "last")
    assert (torchvision.rpn.smooth_l1_beta, detectron2.rpn.smooth_l1_beta) == (1 / 9, 0.0)
    assert (torchvision.rpn.post_nms_top_n_train, detectron2.rpn.post_nms_top_n_train) == (
        2000,
        1000,
    )
    assert (torchvision.box_head.pooler.aligned, detectron2.box_head.pooler.aligned) == (
        False,
        True,
    )
    assert (
        torchvision.box_head.pooler.sampling_ratio,
        detectron2.mask_head.pooler.sampling_ratio,
    ) == (2, 0)
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


@pytest.mark.parametrize(
    ("field", "meant"),
    [
        ("optimizer.lr", "optimizer.learning_rate"),
        ("lr", "optimizer.learning_rate"),
        ("optimizer.wd", "optimizer.weight_decay"),
        ("learning_rate", "optimizer.learning_rate"),
        ("rpn.nms", "rpn.nms_iou"),
        ("optimiser.gamma", "optimizer.gamma"),
        ("num_class", "num_classes"),
        ("box_head.poler.output_size", "box_head.pooler.output_size"),
        ("iou", None),
    ],
)
def test_a_mistyped_field_is_recognised(field, meant):
    with pytest.raises(ValueError, match=f"^no such field: {re.escape(field)}") as raised:
        config.override(config.preset("tiny"), f"{field}=1")
    hint = str(raised.value).partition("; did you mean ")[2]
    assert hint == (f"{meant}?" if meant else "")


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("rpn.batch_size=1.5", "config.rpn.batch_size: expected int, got 1.5; at present it is 64"),
        ("rpn.nms_iou=high", "config.rpn.nms_iou: expected float, got 'high'; at present it is 0."),
        ("background=mid", "expected one of first, last, got 'mid'; at present it is 'first'"),
    ],
)
def test_a_wrong_value_is_told_the_type_and_the_present_value(assignment, said):
    changed = config.override(config.preset("tiny"), "rpn.batch_size=64")
    with pytest.raises(ValueError, match=re.escape(said)):
        config.override(changed, assignment)


def test_an_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match="tiny"):
        config.preset("resnet9000")
    with pytest.raises(ValueError, match=r"did you mean detectron2_r50_fpn\?.*one of.*tiny"):
        config.preset("detectron_r50_fpn")


def test_a_missing_field_is_named():
    values = config.to_dict(config.preset("tiny"))
    del values["rpn"]["nms_iou"]
    with pytest.raises(ValueError, match=r"config\.rpn\.nms_iou: missing"):
        config.from_dict(values)


CONTRADICTIONS = [
    ("torchvision_r50_fpn", "backbone.kind=vgg", ["neck = fpn", "backbone.kind = resnet"]),
    ("torchvision_r50_fpn", "backbone.out_stage=4", ["neck = fpn", "out_stage = 5"]),
    ("torchvision_r50_fpn", "backbone.dilation=2", ["neck = fpn", "dilation = 1"]),
    ("torchvision_r50_fpn", "backbone.depth=42", ["backbone.depth = 42", "18, 34, 50 or 101"]),
    (
        "torchvision_r50_fpn",
        "neck=single",
        [
            "box_head.pooler.min_level = 2",
            "mask_head.pooler.min_level = 2",
            "(256.0,), (512.0,)): neck = single needs 1",
        ],
    ),
    (
        "torchvision_r50_fpn",
        "anchors.sizes=[[32], [64]]",
        ["anchors.sizes = ((32.0,), (64.0,))", "neck = fpn needs 5"],
    ),
    (
        "torchvision_r50_fpn",
        "anchors.sizes=[[32], [64], [8], [4], [1, 2]]",
        ["anchors.sizes", "of the same length"],
    ),
    (
        "torchvision_r50_fpn",
        "box_head.pooler.max_level=6",
        ["box_head.pooler.max_level = 6", "levels 2 to 5"],
    ),
    ("torchvision_r50_fpn", "mask_head.pooler.min_level=1", ["mask_head.pooler.min_level = 1"]),
    (
        "torchvision_r50_fpn",
        "shared_head=res5",
        ["shared_head = res5", "out_stage = 4", "box_head.pooler and mask_head.pooler"],
    ),
    ("tiny", "backbone.groups=2", ["backbone.groups = 2", "backbone.depth = 50"]),
    (
        "tiny",
        "norm_groups=5",
        [
            f"norm_groups = 5: must divide {n}"
            for n in ("backbone.w", "fpn.ch", "box_head.conv", "mask_head.ch")
        ],
    ),
    (
        "detectron2_r50_c4",
        "backbone.out_stage=5",
        ["shared_head = res5", "out_stage = 4", "levels 5 to 5"],
    ),
    ("detectron2_r50_c4", "backbone.out_stage=6", ["backbone.out_stage = 6", "2 to 5"]),
    (
        "detectron2_r50_c4",
        "backbone.dilation=2",
        ["backbone.dilation = 2", "backbone.out_stage = 5"],
    ),
    (
        "detectron2_r50_c4",
        "mask_head.pooler.output_size=7",
        ["box_head.pooler and mask_head.pooler must be the same"],
    ),
    ("detectron2_r50_c4", "neck=fpn", ["neck = fpn", "shared_head = res5", "neck = single"]),
    ("detectron2_r50_dc5", "backbone.dilation=1", ["levels 5 to 5"]),
    ("detectron2_r50_dc5", "backbone.dilation=3", ["backbone.dilation = 3"]),
    ("paper_vgg16", "backbone.out_stage=4", ["levels 3 to 3"]),
    ("paper_vgg16", "backbone.out_stage=0", ["backbone.out_stage = 0", "vgg has stages 1 to 5"]),
    ("paper_vgg16", "backbone.dilation=2", ["backbone.dilation = 2", "ResNet"]),
    ("paper_vgg16", "shared_head=res5", ["shared_head = res5", "backbone.kind = resnet"]),
]


@pytest.mark.parametrize(("preset", "assignment", "named"), CONTRADICTIONS)
def test_contradictions_are_one_error_that_names_the_fields(preset, assignment, named):
    changed = config.override(config.preset(preset), assignment)
    for model in (lambda: accelerated.MaskRCNN(changed), lambda: mask_rcnn.MaskRCNN(changed, {})):
        with pytest.raises(ValueError, match="contradicts itself") as raised:
            model()
        for name in named:
            assert name in str(raised.value)


@pytest.mark.parametrize(
    ("preset", "assignment"),
    [
        ("detectron2_r50_c4", "mask_head.kind=none"),
        # There is no group norm.
        ("paper_vgg16", "norm_groups=5"),
        ("tiny", "mask_head.kind=mlp"),
        ("torchvision_r50_fpn", "backbone.groups=32"),
        *((name, "num_classes=1") for name in PRESETS),
    ],
)
def test_what_does_not_contradict_itself_passes(preset, assignment):
    config.check(config.override(config.preset(preset), assignment))


def test_without_a_mask_branch_its_pooler_does_not_matter():
    alone = config.override(config.preset("detectron2_r50_c4"), "mask_head.pooler.output_size=7")
    config.check(config.override(alone, "mask_head.kind=none"))


PARTS = [config.Config, *(f.type for f in fields(config.Config) if is_dataclass(f.type))]


@pytest.mark.parametrize("cls", [*PARTS, config.Pooler])
def test_every_field_is_documented(cls):
    """The docstring is a sentence, then lines of "field, field  meaning" with every field once."""
    # Python 3.13 removes the indentation of docstrings; getdoc does so on every version.
    lines = inspect.getdoc(cls).splitlines()
    rows = [re.match(r"(\w+(?:, \w+)*)(?:  +|$)", line) for line in lines]
    documented = [name for row in rows if row for name in row[1].split(", ")]
    assert sorted(documented) == sorted(f.name for f in fields(cls))


def test_a_field_below_a_value_is_no_field():
    with pytest.raises(ValueError, match=r"config\.rpn\.nms_iou: expected float"):
        config.override(config.preset("tiny"), "rpn.nms_iou.low=0.5")


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("detectron2_r50_c4", 4),
        ("detectron2_r50_dc5", 4),
        ("paper_r50_c5", 5),
        ("paper_vgg16", 4),
    ],
)
def test_the_only_map_of_a_model_without_pyramid(name, level):
    preset = config.preset(name)
    stride = backbone.of(preset).strides(preset)[preset.backbone.out_stage]
    assert config.single_map_level(preset) == level and stride == 2**level
