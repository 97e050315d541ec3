"""Presets as plain data: layers, existing fields, and the switches that each name stands for."""

import pytest

from reference import config
from reference.presets import PRESETS, merged, poolers

NAMES = [
    "torchvision_r50_fpn",
    "torchvision_r50_fpn_v2",
    *(f"detectron2_r{depth}_{neck}" for neck in ("fpn", "c4", "dc5") for depth in (50, 101)),
    "detectron2_x101_fpn",
    *(f"paper_r{depth}_{neck}" for neck in ("c4", "fpn") for depth in (50, 101)),
    "paper_r50_c5",
    "paper_vgg16",
    "tiny",
    "small",
]


def test_the_names():
    assert set(PRESETS) == set(NAMES) and len(set(NAMES)) == 17


def test_the_last_layer_has_its_say_and_no_layer_is_changed():
    low, high = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}, {"a": {"c": {"d": 4}}, "f": (5,)}
    assert merged(low, high) == {"a": {"b": 1, "c": {"d": 4}}, "e": 3, "f": (5,)}
    assert low == {"a": {"b": 1, "c": {"d": 2}}, "e": 3} and high == {
        "a": {"c": {"d": 4}},
        "f": (5,),
    }
    assert merged() == {}
    assert poolers(aligned=True)["mask_head"] == {"pooler": {"aligned": True}}


@pytest.mark.parametrize("name", NAMES)
def test_depth_and_neck_are_those_of_the_name(name):
    preset = config.preset(name)
    config.check(preset)
    backbone = preset.backbone
    assert (
        backbone.depth == 101
        if "101" in name
        else backbone.depth == (18 if name in ("tiny", "small") else 50)
    )
    wiring = (preset.neck, preset.shared_head != "none", backbone.out_stage, backbone.dilation)
    kind = {
        "fpn": ("fpn", False, 5, 1),
        "c4": ("single", True, 4, 1),
        "dc5": ("single", False, 5, 2),
        "c5": ("single", False, 5, 1),
    }
    assert wiring == kind.get(
        name.split("_")[-1],
        ("single", False, 5, 1) if name == "paper_vgg16" else ("fpn", False, 5, 1),
    )
    assert (preset.background == "last") == name.startswith(("detectron2", "paper"))


def test_c4_and_dc5_of_detectron2():
    """SPEC §14."""
    c4, dc5 = config.preset("detectron2_r50_c4"), config.preset("detectron2_r50_dc5")
    for preset in (c4, dc5):
        rpn = preset.rpn
        assert (
            preset.anchors.sizes == ((32, 64, 128, 256, 512),)
            and preset.transform.size_divisor == 0
        )
        tops = (
            rpn.pre_nms_top_n_train,
            rpn.pre_nms_top_n_test,
            rpn.post_nms_top_n_train,
            rpn.post_nms_top_n_test,
        )
        assert tops == (12000, 6000, 2000, 1000)
        assert (
            preset.box_head.pooler.sampling_ratio,
            preset.box_head.pooler.aligned,
            preset.box_head.pooler.min_level,
        ) == (0, True, 4)
    assert (c4.shared_head, c4.box_head.kind, c4.mask_head.convs) == ("res5", "mean", 0)
    assert c4.box_head.pooler == c4.mask_head.pooler and c4.box_head.pooler.output_size == 14
    assert (dc5.box_head.pooler.output_size, dc5.mask_head.pooler.output_size) == (7, 14)


def test_what_the_paper_says():
    """Mask R-CNN §3.1 and figure 4.

    64 RoIs per image without a pyramid and 512 with it; 300 and 1000 proposals in inference.
    """
    for name in ("paper_r50_c4", "paper_r101_c4", "paper_r50_c5", "paper_vgg16"):
        preset = config.preset(name)
        assert (
            preset.box_head.batch_size,
            preset.rpn.post_nms_top_n_test,
            preset.box_head.max_detections,
        ) == (64, 300, 100)
    pyramid, c4, vgg = (
        config.preset(name) for name in ("paper_r50_fpn", "paper_r50_c4", "paper_vgg16")
    )
    assert (pyramid.box_head.batch_size, pyramid.rpn.post_nms_top_n_test) == (512, 1000)
    assert (c4.shared_head, c4.box_head.pooler.output_size) == ("res5_unstrided", 7)
    assert (vgg.backbone.kind, vgg.backbone.width, vgg.box_head.channels, vgg.box_head.kind) == (
        "vgg",
        64,
        4096,
        "two_fc",
    )
    assert (
        pyramid.optimizer.learning_rate,
        pyramid.optimizer.weight_decay,
        pyramid.optimizer.steps,
    ) == (0.02, 1e-4, (0.75,))


def test_resnext():
    resnext = config.preset("detectron2_x101_fpn")
    # Of the channels in the order of the network's input.
    assert resnext.transform.channel_order == "bgr"
    assert resnext.transform.std == (57.375, 57.12, 58.395)
    backbone = resnext.backbone
    assert (backbone.depth, backbone.groups, backbone.group_width, backbone.stride_in_1x1) == (
        101,
        32,
        8,
        False,
    )
