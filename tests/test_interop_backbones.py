"""Backbones of torchvision, detectron2 and Caffe2; detectors of maskrcnn-benchmark."""

import pickle
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import narrow
from support.checkpoint_cases import filled, same

from accelerated import interop
from accelerated.engine import checkpoint
from accelerated.engine.start import initialize
from accelerated.mask_rcnn import MaskRCNN
from accelerated.verify.equality import assert_close, assert_equal
from reference import config as configuration


def backbone(model):
    return {
        name.removeprefix("backbone."): t
        for name, t in model.state_dict().items()
        if name.startswith("backbone.")
    }


def without(tensors, name):
    return {n: t for n, t in tensors.items() if n != name}


@pytest.mark.parametrize(
    "name",
    ["torchvision_r50_fpn", "detectron2_r101_c4", "detectron2_r50_dc5", "detectron2_x101_fpn"],
)
def test_torchvisions_resnets(name):
    """Into any layout, grouped or not; what is no backbone stays."""
    resnet = backbone(filled(narrow.config(name)))
    model = MaskRCNN(narrow.config(name))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    classifier = {
        "fc.weight": torch.zeros(10, 256),
        "fc.bias": torch.zeros(10),
        "bn1.num_batches_tracked": torch.tensor(5),
    }
    copied = interop.load_backbone(resnet | classifier, model)
    same(backbone(model), resnet)
    assert set(copied) == {f"backbone.{n}" for n in resnet}
    same(
        {n: t for n, t in model.state_dict().items() if n not in copied},
        {n: t for n, t in before.items() if n not in copied},
    )


def test_a_resnet_that_does_not_fit():
    model = MaskRCNN(narrow.config("torchvision_r50_fpn"))
    resnet = backbone(filled(model.config))
    with pytest.raises(
        ValueError, match=r"a resnet of depth 50 with frozen norm.*missing: layer4.2.conv3.weight"
    ):
        interop.load_backbone(without(resnet, "layer4.2.conv3.weight"), model)
    with pytest.raises(ValueError, match=r"conv1.weight \[16, 3, 7, 7\] instead of \[8, 3, 7, 7\]"):
        interop.load_backbone(resnet | {"conv1.weight": torch.zeros(16, 3, 7, 7)}, model)
    with pytest.raises(ValueError, match=r"unexpected: layer3.6.conv1.weight"):
        interop.load_backbone(backbone(filled(narrow.config("detectron2_r101_fpn"))), model)
    with pytest.raises(
        ValueError, match="not a ResNet, ResNeXt or VGG-16: its tensors begin with encoder"
    ):
        interop.load_backbone({"encoder": torch.zeros(1)}, model)


def test_detectron2s_resnet(tmp_path):
    """As its converter leaves torchvision's weights: stem, res2 .. res5, in a pickle of arrays."""
    config = narrow.config("detectron2_r50_dc5")
    source, model = filled(config), MaskRCNN(config)
    theirs = {
        n.removeprefix("backbone."): t.numpy()
        for n, t in interop.detectron2.state_dict(source).items()
        if n.startswith("backbone.")
    }
    assert "stem.conv1.norm.weight" in theirs and "res5.0.shortcut.norm.running_var" in theirs
    content = {
        "model": theirs | {"fc.weight": np.zeros((10, 256))},
        "__author__": "torchvision",
        "matching_heuristics": True,
    }
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(content, 2))
    with pytest.raises(interop.BareBackboneError, match=r"R-50.pkl"):
        interop.load(path)
    interop.load_backbone(path, model)
    same(backbone(model), backbone(source))


def caffe2(model, norm="bn"):
    """Export a model's ResNet as Caffe2 does: affine norms, and other entries of such files."""
    blobs = {}
    for name, tensor in backbone(model).items():
        *block, layer, part = name.split(".")
        if part.startswith("running"):
            continue
        stage = f"res{int(block[0][5]) + 1}_{block[1]}_branch" if block else ""
        branch = {"1": "2a", "2": "2b", "3": "2c"}
        if not block:
            blob = (
                "conv1_w" if layer == "conv1" else f"{'res_' if norm == 'bn' else ''}conv1_{norm}"
            )
        elif block[-1] == "downsample":
            blob = f"{stage}1_w" if layer == "0" else f"{stage}1_{norm}"
        else:
            blob = (
                f"{stage}{branch[layer[-1]]}_w"
                if layer.startswith("conv")
                else f"{stage}{branch[layer[-1]]}_{norm}"
            )
        blobs[blob if blob.endswith("_w") else f"{blob}_{'s' if part == 'weight' else 'b'}"] = (
            tensor.numpy()
        )
    rest = {
        "fc1000_w": np.zeros((10, 4)),
        "pred_b": np.zeros(10),
        "conv1_b": np.zeros(8),
        "conv1_w_momentum": np.zeros(8),
        "weight_order": "x",
    }
    return OrderedDict(blobs | rest)


@pytest.mark.parametrize("name", ["detectron2_r50_fpn", "detectron2_x101_fpn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_caffe2(name, dtype, tmp_path):
    """R-50.pkl, X-101-32x8d.pkl: the norm multiplies by scale, adds the bias, and nothing else."""
    config = narrow.config(name)
    source, model = filled(config), MaskRCNN(config).to(dtype)
    blobs = caffe2(source)
    assert {"res2_0_branch1_bn_s", "res5_2_branch2c_w", "res_conv1_bn_b"} <= blobs.keys()
    (tmp_path / "R.pkl").write_bytes(pickle.dumps(blobs, 2))
    left = initialize(model, tmp_path / "R.pkl").fresh
    assert left and not any(n.startswith("backbone.") for n in left)
    scale, shift = model.backbone.layer3[1].bn2.affine()
    tolerance = 0 if dtype == torch.float32 else 1e-15
    assert_close(scale, blobs["res4_1_branch2b_bn_s"], tolerance)
    assert_equal(shift, blobs["res4_1_branch2b_bn_b"])
    assert_equal(
        model.backbone.layer1[0].downsample[0].weight,
        source.backbone.layer1[0].downsample[0].weight,
    )
    # Scale and bias do not fit a group norm.
    with pytest.raises(ValueError, match=r"R.pkl: .*unexpected: res_conv1_bn_s"):
        interop.load_backbone(
            tmp_path / "R.pkl",
            MaskRCNN(replace(config, backbone=replace(config.backbone, norm="group"))),
        )


def test_caffe2s_other_norms():
    """With running statistics these are taken; group norm goes into a group norm only."""
    config = narrow.config("detectron2_r50_fpn")
    source, model = filled(config), MaskRCNN(config)
    blobs = caffe2(source)
    for name in [n for n in blobs if n.endswith("_bn_s")]:
        blobs |= {f"{name[:-1]}rm": blobs[name] + 1, f"{name[:-1]}riv": blobs[name] + 2}
    interop.load_backbone(blobs_only(blobs), model)
    assert_equal(model.backbone.bn1.running_var, source.backbone.bn1.weight + 2)
    assert_equal(
        model.backbone.layer4[2].bn3.running_mean, source.backbone.layer4[2].bn3.weight + 1
    )
    grouped = replace(config, backbone=replace(config.backbone, norm="group"))
    source, target = filled(grouped), MaskRCNN(grouped)
    interop.load_backbone(blobs_only(caffe2(source, "gn")), target)
    same(backbone(target), backbone(source))
    with pytest.raises(ValueError, match=r"missing: bn1.running_mean"):
        interop.load_backbone(blobs_only(caffe2(source, "gn")), model)


def blobs_only(blobs):
    return {"blobs": without(blobs, "weight_order"), "cfg": "MODEL: ..."}


def test_vgg(tmp_path):
    """torchvision's vgg16 by index; its fully connected layers go to the box head if they fit."""
    config = narrow.config("paper_vgg16")
    source, model = filled(config), MaskRCNN(config)
    # Of the convolutions in vgg16().features.
    indices = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    convolutions = [n.rpartition(".")[0] for n in backbone(source) if n.endswith("weight")]
    assert len(convolutions) == len(indices)
    theirs = {}
    for index, layer in zip(indices, convolutions, strict=True):
        theirs |= {
            f"features.{index}.{part}": backbone(source)[f"{layer}.{part}"]
            for part in ("weight", "bias")
        }
    for index, layer in (
        (0, source.box_head.fc6),
        (3, source.box_head.fc7),
        (6, torch.nn.Linear(32, 10)),
    ):
        theirs |= {
            f"classifier.{index}.{part}": tensor for part, tensor in layer.state_dict().items()
        }
    torch.save(theirs, tmp_path / "vgg16.pth")
    left = initialize(model, tmp_path / "vgg16.pth").fresh
    same(backbone(model), backbone(source))
    same(model.box_head.fc7.state_dict(), source.box_head.fc7.state_dict())
    same(model.box_head.fc6.state_dict(), source.box_head.fc6.state_dict())
    assert (
        not any(n.startswith(("backbone.", "box_head.fc")) for n in left)
        and "box_head.class_logits.weight" in left
    )
    wider = MaskRCNN(replace(config, box_head=replace(config.box_head, channels=48)))
    left = initialize(wider, tmp_path / "vgg16.pth").fresh
    same(backbone(wider), backbone(source))
    assert {"box_head.fc6.weight", "box_head.fc7.bias"} <= set(left)
    with pytest.raises(ValueError, match="VGG with batch normalisation"):
        interop.load(theirs | {"features.1.running_mean": torch.zeros(8)})


# {our name: theirs}
BENCHMARK = {
    "backbone.conv1.weight": "backbone.body.stem.conv1.weight",
    "backbone.bn1.running_var": "backbone.body.stem.bn1.running_var",
    "backbone.layer2.0.downsample.1.bias": "backbone.body.layer2.0.downsample.1.bias",
    "fpn.lateral2.weight": "backbone.fpn.fpn_inner1.weight",
    "fpn.output5.bias": "backbone.fpn.fpn_layer4.bias",
    "rpn.conv1.weight": "rpn.head.conv.weight",
    "rpn.logits.weight": "rpn.head.cls_logits.weight",
    "rpn.deltas.bias": "rpn.head.bbox_pred.bias",
    "box_head.fc6.weight": "roi_heads.box.feature_extractor.fc6.weight",
    "box_head.class_logits.weight": "roi_heads.box.predictor.cls_score.weight",
    "box_head.box_deltas.bias": "roi_heads.box.predictor.bbox_pred.bias",
    "mask_head.conv1.weight": "roi_heads.mask.feature_extractor.mask_fcn1.weight",
    "mask_head.deconv.weight": "roi_heads.mask.predictor.conv5_mask.weight",
    "mask_head.logits.bias": "roi_heads.mask.predictor.mask_fcn_logits.bias",
}


@pytest.mark.parametrize("depth, groups, masks", [(50, 1, True), (101, 2, True), (50, 1, False)])
def test_maskrcnn_benchmark(depth, groups, masks, tmp_path):
    """A file of its training script: every tensor, the background first, no eps, near settings."""
    config = narrow.config("paper_r50_fpn", background="first")
    config = replace(
        config,
        backbone=replace(config.backbone, depth=depth, groups=groups),
        mask_head=replace(config.mask_head, kind="fcn" if masks else "none"),
    )
    source = filled(config)
    theirs = {
        interop.maskrcnn_benchmark.their_name(name, config): t
        for name, t in source.state_dict().items()
    }
    for ours, name in BENCHMARK.items():
        assert (name in theirs and theirs[name] is not None) == (
            masks or not ours.startswith("mask_head.")
        )
        assert name not in theirs or torch.equal(theirs[name], source.state_dict()[ours])
    content = {f"module.{name}": t for name, t in theirs.items()} | {
        "module.rpn.anchor_generator.cell_anchors.0": torch.zeros(3, 4)
    }
    torch.save(
        {"model": content, "optimizer": {}, "scheduler": {"milestones": [60000]}, "iteration": 7},
        tmp_path / "model_0000007.pth",
    )
    loaded = interop.load(tmp_path / "model_0000007.pth")
    same(loaded.state_dict(), source.state_dict())
    inferred = loaded.config
    assert (inferred.background, inferred.backbone.norm_eps, inferred.backbone.stride_in_1x1) == (
        "first",
        0.0,
        groups == 1,
    )
    assert (
        inferred.backbone.depth,
        inferred.backbone.groups,
        inferred.num_classes,
        inferred.mask_head.kind,
    ) == (
        depth,
        groups,
        4,
        config.mask_head.kind,
    )
    assert (
        inferred.transform.channel_order == "bgr"
        and inferred.transform.mean == configuration.preset("paper_r50_fpn").transform.mean
    )
    assert inferred.box_head.smooth_l1_beta == 1.0
    name = "roi_heads.box.feature_extractor.fc7.bias"
    with pytest.raises(ValueError, match=f"paper_r50_fpn, .*missing: {name}"):
        interop.load(without(theirs, name))


def test_start_from_another_layout_is_refused(tmp_path):
    """Training does not begin from a detector of other parts, and says which."""
    interop.save(filled(narrow.config("detectron2_r50_c4")), tmp_path / "c4.pth")
    config = narrow.config("detectron2_r50_c4")
    # Nobody told it the sizes of the anchors.
    source = interop.read_model(tmp_path / "c4.pth", config)
    left = initialize(MaskRCNN(config), source).fresh
    assert {name.rpartition(".")[0] for name in left} == set(checkpoint.PREDICTORS)
    with pytest.raises(ValueError, match=r"c4.pth is assumed to be trained with .*: add --set"):
        initialize(MaskRCNN(narrow.config("detectron2_r50_dc5")), source)
