"""detectron2's checkpoints: recorded models, exact round trips, every layout and file type."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import narrow
from support.checkpoint_cases import filled, same
from support.golden_runs import IMAGES, unpacked

from accelerated import interop
from accelerated.anchors import cell_anchors
from accelerated.mask_rcnn import MaskRCNN
from accelerated.structures import Stages
from accelerated.verify.equality import GOLDEN_MODEL, assert_close, assert_equal
from reference import config as configuration

PRESETS = [
    "detectron2_r50_fpn",
    "detectron2_r101_fpn",
    "detectron2_r50_c4",
    "detectron2_r50_dc5",
    "detectron2_x101_fpn",
]


@pytest.fixture(params=["fpn", "c4"])
def recorded(request, shared_golden):
    """(the recorded run of detectron2, its {name: tensor}, which layout)."""
    z = shared_golden(f"d2_{request.param}_f64")
    return (
        z,
        {key[2:]: torch.from_numpy(z[key]) for key in z.files if key.startswith("w.")},
        request.param,
    )


def test_golden_names(recorded):
    """detectron2 -> ours -> detectron2: names, dtypes and bits; and all that the shapes tell."""
    _, theirs, layout = recorded
    loaded = interop.load(theirs)
    same(interop.detectron2.state_dict(loaded), theirs)
    config, full = loaded.config, configuration.preset(f"detectron2_r50_{layout}")
    assert (
        config.num_classes,
        config.background,
        config.backbone.width,
        config.mask_head.channels,
    ) == (5, "last", 8, 16)
    assert config.backbone == replace(full.backbone, width=8)
    assert config.box_head == (
        replace(full.box_head, channels=32) if layout == "fpn" else full.box_head
    )


def test_golden_numbers(recorded):
    """What detectron2 computed with these weights, from features to pasted masks."""
    z, theirs, layout = recorded
    model = interop.load(theirs).double()
    # The C4 run was recorded with fewer proposals.
    tops = {} if layout == "fpn" else {"pre_nms_top_n_test": 1000, "post_nms_top_n_test": 200}
    config = model.config
    model.config = replace(
        config, transform=replace(config.transform, min_size=()), rpn=replace(config.rpn, **tops)
    )
    record, images = (
        Stages(),
        [np.moveaxis(z[f"in.image255.{i}"][::-1], 0, -1).copy() for i in IMAGES],
    )
    detected = model.detect(images, record)
    features = (
        [("C5", "res5"), *((f"P{level}", f"p{level}") for level in (2, 3, 4, 5, 6))]
        if layout == "fpn"
        else [("C4", "res4")]
    )
    for ours, name in features:
        assert_close(getattr(record, ours), z[f"eval.{name}"], GOLDEN_MODEL, ours)
    for level, (logits, deltas) in enumerate(
        zip(record.rpn_logits, record.rpn_deltas, strict=True)
    ):
        assert_close(logits, z[f"eval.rpn.objectness.{level}"], GOLDEN_MODEL, "logits")
        assert_close(deltas, z[f"eval.rpn.deltas.{level}"], GOLDEN_MODEL, "deltas")
    boxes, scores, labels, valid, _ = record.detections
    for i in IMAGES:
        assert_equal(labels[i][valid[i]] - 1, z[f"eval.det.classes.{i}"], "labels")
        assert_close(boxes[i][valid[i]], z[f"eval.det.boxes.{i}"], GOLDEN_MODEL, "boxes")
        assert_close(scores[i][valid[i]], z[f"eval.det.scores.{i}"], GOLDEN_MODEL, "scores")
    assert_equal(detected[0].masks, unpacked(z, "eval.out.masks.0"), "masks")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layouts(name, dtype, tmp_path):
    """Every layout inferred from names and shapes, exported and read again."""
    config = narrow.config(name)
    model = filled(config, dtype)
    interop.save(model, tmp_path / "model.pth")
    written = torch.load(tmp_path / "model.pth", weights_only=True)
    assert written.keys() == {"model"}
    loaded = interop.load(tmp_path / "model.pth")
    same(interop.detectron2.state_dict(loaded), written["model"])
    same(loaded.state_dict(), model.state_dict())
    full = configuration.preset(name)
    assert loaded.config.backbone == (
        config.backbone if "x101" in name else replace(full.backbone, width=8)
    )
    assert (loaded.config.neck, loaded.config.shared_head, loaded.config.transform) == (
        full.neck,
        full.shared_head,
        full.transform,
    )
    assert (
        loaded.config.box_head.pooler == full.box_head.pooler
        and loaded.config.mask_head.convs == full.mask_head.convs
    )


def test_names():
    """A few names that the recorded models lack: DC5, norms everywhere, deeper RPN and box head."""
    dc5 = interop.detectron2.state_dict(MaskRCNN(narrow.config("detectron2_r50_dc5")))
    assert {"backbone.res5.2.conv3.norm.running_var", "roi_heads.box_head.fc1.weight"} <= dc5.keys()
    config = grouped()
    names = interop.detectron2.state_dict(MaskRCNN(config)).keys()
    for name in (
        "backbone.bottom_up.stem.conv1.norm.bias",
        "backbone.bottom_up.res2.0.shortcut.norm.weight",
        "backbone.fpn_lateral5.norm.weight",
        "backbone.fpn_output2.norm.bias",
        "proposal_generator.rpn_head.conv.conv1.weight",
        "roi_heads.box_head.conv4.weight",
        "roi_heads.box_head.conv4.norm.bias",
        "roi_heads.box_head.fc1.bias",
        "roi_heads.mask_head.mask_fcn4.norm.weight",
    ):
        assert name in names
    assert (
        not {
            "backbone.fpn_lateral5.bias",
            "roi_heads.box_head.fc2.bias",
            "backbone.bottom_up.stem.conv1.norm.running_var",
        }
        & names
    )


def grouped():
    config = narrow.config("detectron2_r50_fpn", norm_groups=32)
    return replace(
        config,
        backbone=replace(
            config.backbone, width=32, norm="group", frozen_stages=0, stride_in_1x1=False
        ),
        fpn=replace(config.fpn, channels=32, norm="group"),
        rpn=replace(config.rpn, conv_depth=2),
        box_head=replace(config.box_head, kind="four_conv_fc", conv_channels=32, norm="group"),
        mask_head=replace(config.mask_head, channels=32, norm="group"),
    )


def test_norms_from_the_names():
    """Group norm without running statistics (and its strides in 3x3); counted batches."""
    config = grouped()
    model = filled(config)
    loaded = interop.load(interop.detectron2.state_dict(model))
    same(loaded.state_dict(), model.state_dict())
    assert (
        loaded.config.backbone == replace(config.backbone, group_width=64)
        and loaded.config.fpn == config.fpn
    )
    assert (
        loaded.config.box_head.norm,
        loaded.config.mask_head.norm,
        loaded.config.rpn.conv_depth,
    ) == ("group", "group", 2)
    config = narrow.config("detectron2_r50_c4")
    config = replace(config, backbone=replace(config.backbone, norm="batch"))
    loaded = interop.load(interop.detectron2.state_dict(filled(config)))
    assert (loaded.config.backbone.norm, loaded.config.backbone.frozen_stages) == ("batch", 0)


@pytest.mark.parametrize(
    "change, field, value",
    [("kind=none", "kind", "none"), ("class_agnostic=true", "class_agnostic", True)],
)
def test_mask_branch_from_the_names(change, field, value):
    model = filled(
        configuration.override(narrow.config("detectron2_r50_fpn"), f"mask_head.{change}")
    )
    theirs = interop.detectron2.state_dict(model)
    loaded = interop.load(theirs)
    assert getattr(loaded.config.mask_head, field) == value
    same(interop.detectron2.state_dict(loaded), theirs)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", ["detectron2_r101_fpn", "detectron2_r50_c4"])
def test_model_zoo(name, protocol, tmp_path):
    """A .pkl of arrays, as in the model zoo, and a .pth of a training run."""
    model = filled(narrow.config(name))
    theirs = interop.detectron2.state_dict(model)
    arrays = {n: t.numpy() for n, t in theirs.items()} | {
        "pixel_mean": np.float32([[[103.53]], [[116.28]], [[123.675]]])
    }
    content = {"model": arrays, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps(content, protocol))
    run = {
        "model": theirs,
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}},
        "scheduler": {"last_epoch": 9},
        "iteration": 9,
    }
    torch.save(run, tmp_path / "model_final.pth")
    for suffix in ("pkl", "pth"):
        loaded = interop.load(tmp_path / f"model_final.{suffix}")
        same(interop.detectron2.state_dict(loaded), theirs)
        assert loaded.config.transform == configuration.preset(name).transform


def test_constants_of_older_files():
    """pixel_mean and pixel_std in the files of 2020 are used, cell anchors are checked."""
    theirs = interop.detectron2.state_dict(MaskRCNN(narrow.config("detectron2_r50_c4")))
    anchors = configuration.preset("detectron2_r50_c4").anchors
    cells = cell_anchors(anchors.sizes[0], anchors.ratios, anchors).float()
    rgb = {
        "pixel_mean": torch.tensor([123.675, 116.28, 103.53])[:, None, None],
        "pixel_std": torch.tensor([58.0, 57.0, 57.0]),
    }
    key = "proposal_generator.anchor_generator.cell_anchors.0"
    loaded = interop.load(theirs | rgb | {key: cells}).config
    assert loaded.transform.channel_order == "rgb" and loaded.transform.std == (58.0, 57.0, 57.0)
    assert_close(loaded.transform.mean, [123.675, 116.28, 103.53], 1e-6)
    assert interop.load(theirs).config.transform.channel_order == "bgr"
    with pytest.raises(
        ValueError,
        match=r"cell_anchors.*not the anchors of detectron2_r50_c4; pass a Config",
    ):
        interop.load(theirs | {key: cells * 2})
    assert interop.load(theirs | {key: cells * 2}, "detectron2_r50_c4").config.anchors == anchors


def test_errors_name_the_tensors():
    theirs = interop.detectron2.state_dict(MaskRCNN(narrow.config("detectron2_r50_c4")))
    name = "roi_heads.res5.0.conv1.norm.running_var"
    with pytest.raises(ValueError, match=f"detectron2_r50_c4, .*missing: {name}"):
        interop.load({n: t for n, t in theirs.items() if n != name})
    with pytest.raises(
        ValueError, match=r"shape: proposal_generator.rpn_head.objectness_logits.weight"
    ):
        interop.load(
            theirs
            | {"proposal_generator.rpn_head.objectness_logits.weight": torch.zeros(3, 128, 1, 1)}
        )
    with pytest.raises(ValueError, match=r"no tensor roi_heads.box_predictor.bbox_pred.weight"):
        interop.load({n: t for n, t in theirs.items() if "bbox_pred" not in n})
    with pytest.raises(ValueError, match="class-agnostic box regression"):
        interop.load(theirs | {"roi_heads.box_predictor.bbox_pred.weight": torch.zeros(4, 256)})
    with pytest.raises(ValueError, match="neck: the tensors have 'single', the preset 'fpn'"):
        interop.load(theirs, "detectron2_r50_fpn")
    with pytest.raises(
        ValueError, match="box head: the tensors have 'mean', the preset 'fully connected layers'"
    ):
        interop.load(theirs, "detectron2_r50_dc5")


@pytest.mark.parametrize(
    "name, change, what",
    [
        ("torchvision_r50_fpn", "transform.channel_order=bgr", "the background last"),
        (
            "paper_vgg16",
            "mask_head.kind=mlp",
            "a ResNet, a convolutional mask branch with sigmoids",
        ),
        (
            "paper_r50_c4",
            "mask_head.loss=softmax",
            "stride 2 in a stage 5 that the heads share, a convolutional mask branch",
        ),
    ],
)
def test_only_models_of_detectron2s_can_be_exported_to_detectron2(name, change, what):
    with pytest.raises(
        ValueError, match=f"cannot export this model to detectron2's format, which requires {what}"
    ):
        interop.detectron2.state_dict(MaskRCNN(configuration.override(narrow.config(name), change)))
