"""Checkpoints of torchvision and of this project: names, shapes, round trips, and clear errors."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from support import narrow
from support.checkpoint_cases import filled, same

from accelerated import interop
from accelerated.command_line import cli
from accelerated.mask_rcnn import MaskRCNN
from accelerated.verify.equality import MODEL, assert_close, assert_equal
from reference import config as configuration
from reference import parameters as reference_parameters

TORCHVISION = ("torchvision_r50_fpn", "torchvision_r50_fpn_v2")
WITHOUT_MASKS = configuration.MaskHead(kind="none")


@pytest.fixture
def small():
    return filled(narrow.config("torchvision_r50_fpn"))


@pytest.fixture
def theirs(small):
    return interop.torchvision.state_dict(small)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", TORCHVISION)
def test_round_trip(tmp_path, name, suffix):
    """Exported by torchvision's names and read again: equal tensors, widths from shapes."""
    config = narrow.config(name)
    model = filled(config)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(interop.torchvision.state_dict(model), path)
    else:
        interop.save(model, path)
    loaded = interop.load(path)
    same(loaded.state_dict(), model.state_dict())
    same(interop.torchvision.state_dict(loaded), interop.torchvision.state_dict(model))
    full = configuration.preset(name)
    assert not loaded.training and loaded.config.num_classes == 4
    assert loaded.config.backbone == replace(full.backbone, width=8)
    assert loaded.config.fpn == replace(full.fpn, channels=16)
    assert loaded.config.box_head == replace(
        full.box_head, channels=32, conv_channels=16 if "v2" in name else 256
    )
    assert loaded.config.mask_head == replace(full.mask_head, channels=16)


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_depth_and_counts_from_the_names(depth):
    config = narrow.config("torchvision_r50_fpn")
    config = replace(
        config,
        backbone=replace(config.backbone, depth=depth),
        rpn=replace(config.rpn, conv_depth=3),
        mask_head=replace(config.mask_head, convs=2),
        box_head=replace(config.box_head, pooler=replace(config.box_head.pooler, output_size=5)),
    )
    loaded = interop.load(interop.torchvision.state_dict(MaskRCNN(config)))
    assert loaded.config.backbone.depth == depth
    assert (
        loaded.config.rpn.conv_depth,
        loaded.config.mask_head.convs,
        loaded.config.box_head.pooler.output_size,
    ) == (3, 2, 5)


def test_names_of_the_published_file(theirs):
    """COCO_V1 has the names of 2019; also wrapped and prefixed, as training scripts write it."""
    old = {}
    for name, tensor in theirs.items():
        name = name.replace("rpn.head.conv.0.0", "rpn.head.conv")
        for i in range(4):
            name = name.replace(f"_blocks.{i}.0.", f"_blocks.{i}.").replace(
                f"roi_heads.mask_head.{i}.0.", f"roi_heads.mask_head.mask_fcn{i + 1}."
            )
        old[name] = tensor
    assert (
        "roi_heads.mask_head.mask_fcn4.bias" in old
        and "backbone.fpn.layer_blocks.3.bias" in old
        and "rpn.head.conv.weight" in old
    )
    for content in (
        old,
        {"model": old, "epoch": 3},
        {f"module.{name}": t for name, t in old.items()},
    ):
        same(interop.torchvision.state_dict(interop.load(content)), theirs)


def test_names_of_torchvision():
    """A few names of torchvision 0.27 spelled out; the golden file has all of version one."""
    v1, v2 = (interop.torchvision.state_dict(MaskRCNN(narrow.config(name))) for name in TORCHVISION)
    for name in (
        "backbone.body.layer4.2.bn3.running_var",
        "backbone.fpn.inner_blocks.0.0.bias",
        "rpn.head.conv.0.0.weight",
        "roi_heads.box_head.fc7.weight",
        "roi_heads.box_predictor.bbox_pred.weight",
        "roi_heads.mask_head.3.0.weight",
        "roi_heads.mask_predictor.mask_fcn_logits.bias",
    ):
        assert name in v1
    for name in (
        "backbone.body.bn1.num_batches_tracked",
        "backbone.fpn.layer_blocks.3.1.running_mean",
        "rpn.head.conv.1.0.bias",
        "roi_heads.box_head.0.0.weight",
        "roi_heads.box_head.3.1.bias",
        "roi_heads.box_head.5.weight",
        "roi_heads.mask_head.0.1.num_batches_tracked",
    ):
        assert name in v2
    assert (
        "backbone.fpn.layer_blocks.3.0.bias" not in v2 and "roi_heads.box_head.fc7.weight" not in v2
    )


def test_all_golden_names(shared_golden):
    z = shared_golden("tv_fpn_f64")
    tensors = {k[2:]: torch.from_numpy(z[k]) for k in z.files if k.startswith("w.")}
    same(interop.torchvision.state_dict(interop.load(tensors)), tensors)


def test_precision(theirs):
    assert (
        interop.load({n: t.double() for n, t in theirs.items()}).backbone.conv1.weight.dtype
        == torch.float64
    )
    assert (
        interop.load({n: t.half() for n, t in theirs.items()}).backbone.conv1.weight.dtype
        == torch.float32
    )


def test_loading_copies(theirs):
    model = interop.load(theirs)
    before = theirs["backbone.body.conv1.weight"].clone()
    with torch.no_grad():
        model.backbone.conv1.weight.zero_()
    assert_equal(theirs["backbone.body.conv1.weight"], before)


def test_norm_of_the_backbone(theirs):
    """Counted batches mean a batch norm; a frozen one has eps 1e-5, whatever the class count."""
    assert interop.load(theirs).config.backbone.norm == "frozen"
    counted = theirs | {
        n.replace("running_var", "num_batches_tracked"): torch.tensor(7)
        for n in theirs
        if n.endswith("running_var")
    }
    backbone = interop.load(counted).config.backbone
    assert (backbone.norm, backbone.frozen_stages, backbone.norm_eps) == ("batch", 0, 1e-5)
    assert interop.load(counted, "torchvision_r50_fpn").config.backbone.norm == "frozen"
    coco = interop.torchvision.state_dict(
        MaskRCNN(narrow.config("torchvision_r50_fpn", num_classes=90))
    )
    assert interop.load(coco).backbone.bn1.eps == 1e-5
    assert interop.load(coco, changes=["backbone.norm_eps=0"]).backbone.bn1.eps == 0.0
    assert interop.load(coco, "torchvision_r50_fpn").backbone.bn1.eps == 1e-5
    assert interop.load(theirs).backbone.bn1.eps == 1e-5


def test_preset_gives_the_switches_shapes_do_not_show(theirs):
    config = configuration.preset("torchvision_r50_fpn")
    config = replace(config, rpn=replace(config.rpn, nms_iou=0.6), num_classes=17)
    loaded = interop.load(theirs, config).config
    assert loaded.rpn.nms_iou == 0.6 and loaded.num_classes == 4


@pytest.mark.parametrize("name", TORCHVISION)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_faster_rcnn(name, dtype, tmp_path):
    """torchvision's `fasterrcnn_resnet50_fpn` and `_v2`: the same names without a mask branch."""
    model = filled(replace(narrow.config(name), mask_head=WITHOUT_MASKS), dtype)
    interop.save(model, tmp_path / "theirs.pth")
    loaded = interop.load(tmp_path / "theirs.pth")
    assert loaded.mask_head is None and loaded.config.mask_head.kind == "none"
    same(loaded.state_dict(), model.state_dict())
    same(interop.torchvision.state_dict(loaded), torch.load(tmp_path / "theirs.pth"))


@pytest.mark.parametrize(
    "peer, name", [("torchvision", "torchvision_r50_fpn_v2"), ("detectron2", "detectron2_r50_c4")]
)
def test_convert_there_and_back(peer, name, tmp_path, monkeypatch, capsys):
    """By the command line: their file, our folder, their file again, the other's file."""
    config = narrow.config(name)
    theirs = getattr(interop, peer).state_dict(filled(config))
    torch.save({"model": theirs}, tmp_path / "theirs.pth")

    def convert(*arguments):
        monkeypatch.setattr("sys.argv", ["maskrcnn", "convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, capsys.readouterr().err

    code, error = convert(tmp_path / "theirs.pth", tmp_path / "ours")
    assert code == 0 and f"tensors do not show are assumed as in {name}" in error
    assert convert(tmp_path / "theirs.pth", tmp_path / "told", "--preset", name) == (0, "")
    assert convert(tmp_path / "ours", tmp_path / "again.safetensors") == (0, "")
    assert convert(tmp_path / "ours", tmp_path / "again.pth", "--format", peer) == (0, "")
    same(safetensors.torch.load_file(tmp_path / "again.safetensors"), theirs)
    again = torch.load(tmp_path / "again.pth")
    same(again["model"] if peer == "detectron2" else again, theirs)
    other = {"torchvision": "detectron2", "detectron2": "torchvision"}[peer]
    code, error = convert(tmp_path / "ours", tmp_path / "other.pth", "--format", other)
    assert (
        code == 2
        and f"cannot export this model to {other}'s format" in error
        and not (tmp_path / "other.pth").exists()
    )


@pytest.mark.parametrize(
    "changes",
    [
        "kind=mlp",
        "class_agnostic=true",
        "loss=softmax",
        "class_agnostic=true loss=softmax",
        "kind=none",
    ],
)
@pytest.mark.parametrize("name", narrow.LAYOUTS)
def test_variants_of_our_own(name, changes):
    """Widths of any layout and mask branch from the tensors alone; the given preset has others."""
    config, full = narrow.config(name), replace(configuration.preset(name), norm_groups=4)
    for change in changes.split():
        config, full = (configuration.override(c, f"mask_head.{change}") for c in (config, full))
    config = replace(config, mask_head=replace(config.mask_head, mlp_channels=24))
    model = filled(config)
    loaded = interop.load(
        model.state_dict(), replace(full, mask_head=replace(full.mask_head, class_agnostic=False))
    )
    same(loaded.state_dict(), model.state_dict())
    assert loaded.config.mask_head.class_agnostic == ("agnostic" in changes)


@pytest.mark.parametrize("name", narrow.LAYOUTS)
def test_our_own(tmp_path, name):
    """A folder (or a run of folders) with its configuration; a bare state dict with a preset."""
    config = narrow.config(name)
    model = filled(config)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(configuration.to_dict(config)))
    run = tmp_path / "run"
    run.mkdir()
    (run / "last").symlink_to(tmp_path)
    for source in (tmp_path, str(tmp_path), tmp_path / "model.safetensors", run):
        loaded = interop.load(source)
        same(loaded.state_dict(), model.state_dict())
        assert loaded.config == config
    bare = interop.load(model.state_dict(), config)
    assert bare.config == config
    with pytest.raises(ValueError, match=r"lack their config.json; .* preset="):
        interop.load(model.state_dict())
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: the file is not JSON"):
        interop.load(tmp_path)


def test_parameters_are_the_references(small):
    parameters = interop.parameters(small)
    assert {n: p.shape for n, p in parameters.items()} == reference_parameters.parameter_shapes(
        small.config
    )
    assert all(p.dtype == np.float64 for p in parameters.values())


def test_errors_name_the_tensors(theirs):
    name = "backbone.body.layer2.1.bn2.running_var"
    with pytest.raises(
        ValueError, match=r"torchvision_r50_fpn, .*missing: backbone.body.layer2.1.bn2.running_var"
    ):
        interop.load({n: t for n, t in theirs.items() if n != name})
    with pytest.raises(ValueError, match=r"unexpected: roi_heads.third_head.0.weight"):
        interop.load(theirs | {"roi_heads.third_head.0.weight": torch.zeros(3)})
    with pytest.raises(
        ValueError,
        match=r"conv.0.0.bias and rpn.head.conv.bias are the same tensor \(rpn.conv1.bias\)",
    ):
        interop.load(theirs | {"rpn.head.conv.bias": torch.zeros(16)})
    with pytest.raises(
        ValueError,
        match=r"wrong shape: backbone.body.layer2.1.bn2.running_var \[3\] instead of \[16\]",
    ):
        interop.load(theirs | {name: torch.zeros(3)})
    with pytest.raises(ValueError, match=r"wrong shape: rpn.head.cls_logits.weight"):
        interop.load(theirs | {"rpn.head.cls_logits.weight": torch.zeros(5, 16, 1, 1)})
    with pytest.raises(ValueError, match=r"no tensor roi_heads.mask_predictor.conv5_mask.weight"):
        interop.load({n: t for n, t in theirs.items() if "conv5_mask" not in n})
    with pytest.raises(
        ValueError,
        match="background: the tensors have 'first', the preset 'last'; choose another preset",
    ):
        interop.load(theirs, "detectron2_r50_fpn")
    with pytest.raises(ValueError, match="expected a ResNet of depth 18, 34, 50, 101"):
        interop.load(
            {n: t for n, t in theirs.items() if not n.startswith("backbone.body.layer3.5")}
        )


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        interop.load(tmp_path / "nothing.pth")
    for suffix in ("pth", "safetensors"):
        path = tmp_path / f"text.{suffix}"
        path.write_text("not weights")
        with pytest.raises(ValueError, match="not a"):
            interop.load(path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="expected named tensors, got list"):
        interop.load(tmp_path / "list.pth")
    torch.save({"model": {"a": 1}}, tmp_path / "numbers.pth")
    with pytest.raises(ValueError, match="'a' is a int"):
        interop.load(tmp_path / "numbers.pth")
    with pytest.raises(
        ValueError, match="not a Mask R-CNN checkpoint: its tensors begin with encoder"
    ):
        interop.load({"encoder": torch.zeros(1)})
    with pytest.raises(interop.BareBackboneError, match="load_backbone"):
        interop.load({"conv1.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"no tensor roi_heads.box_predictor.cls_score.weight"):
        interop.load({"backbone.bottom_up.stem.conv1.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    "name, what",
    [
        ("roi_heads.box_predictor.0.cls_score.weight", "Cascade R-CNN"),
        ("roi_heads.keypoint_head.conv_fcn1.weight", "Keypoint R-CNN"),
        ("head.cls_subnet.0.weight", "RetinaNet"),
        ("head.classification_head.conv.0.0.weight", "RetinaNet"),
        ("rpn.head.cls_tower.0.weight", "RetinaNet"),
        ("sem_seg_head.p2.0.weight", "panoptic"),
        ("roi_heads.mask_head.point_head.fc1.weight", "PointRend"),
        ("backbone.bottom_up.res3.0.conv2_offset.weight", "deformable"),
        (
            "roi_heads.box.feature_extractor.head.layer4.0.conv1.weight",
            "C4 model of maskrcnn-benchmark",
        ),
        ("backbone.body.0.0.weight", "MobileNet"),
        ("conv_rpn_fpn2_w", "Detectron"),
    ],
)
def test_models_that_are_not_here(theirs, tmp_path, name, what):
    """Refused by name, together with the file."""
    safetensors.torch.save_file(theirs | {name: torch.zeros(1)}, tmp_path / "stranger.safetensors")
    with pytest.raises(
        ValueError, match=f"stranger.safetensors: {name}: .* of .*{what}.*not supported"
    ):
        interop.load(tmp_path / "stranger.safetensors")


@pytest.mark.parametrize(
    "name, change, what",
    [
        ("torchvision_r50_fpn", "backbone.norm=group", "no group normalisation"),
        (
            "detectron2_r50_fpn",
            "transform.channel_order=rgb",
            "the background first, strides in 3x3 convolutions",
        ),
        ("torchvision_r50_fpn", "transform.channel_order=bgr", "RGB images"),
        ("torchvision_r50_fpn", "mask_head.class_agnostic=true", "sigmoid per class"),
        ("torchvision_r50_fpn", "mask_head.loss=softmax", "sigmoid per class"),
        ("paper_vgg16", "background=first", "a feature pyramid"),
    ],
)
def test_only_models_of_torchvisions_can_be_exported_to_torchvision(name, change, what, tmp_path):
    model = MaskRCNN(configuration.override(narrow.config(name), change))
    with pytest.raises(
        ValueError,
        match=f"cannot export this model to torchvision's format, which requires .*{what}",
    ):
        interop.save(model, tmp_path / "no.safetensors", "torchvision")
    assert not list(tmp_path.iterdir())


def test_saving(small, tmp_path):
    with pytest.raises(ValueError, match=r"weights.pkl: expected NAME.safetensors or NAME.pth"):
        interop.save(small, tmp_path / "weights.pkl")
    with pytest.raises(ValueError, match="'keras': expected torchvision or detectron2"):
        interop.save(small, tmp_path / "weights.pth", "keras")


@pytest.mark.parametrize(
    "name",
    [
        "maskrcnn_resnet50_fpn",
        "maskrcnn_resnet50_fpn_v2",
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_v2",
    ],
)
def test_torchvision_itself(name, rng, tmp_path):
    """Where torchvision runs: its model, saved and loaded here, gives its own numbers back."""
    try:
        from torchvision.models import detection
    # Its operators do not load with every build of torch.
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision does not import: {error}")
    torch.manual_seed(0)
    theirs = getattr(detection, name)(
        weights=None, weights_backbone=None, num_classes=7, min_size=96, max_size=160
    ).eval()
    with torch.no_grad():
        for buffer_name, buffer in theirs.named_buffers():
            if buffer_name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        for parameter_name, parameter in theirs.named_parameters():
            gain = {
                "bn3.weight": 0.3,
                "head.cls_logits.weight": 30,
                "cls_score.weight": 6,
                "mask_fcn_logits.weight": 5,
            }
            parameter.mul_(next((gain[end] for end in gain if parameter_name.endswith(end)), 1))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    image = rng.uniform(0, 255, (75, 110, 3))
    with torch.no_grad():
        expected = theirs.double()([torch.tensor(image).permute(2, 0, 1) / 255])[0]
    ours = interop.load(tmp_path / "theirs.pth").double()
    ours.config = replace(
        ours.config, transform=replace(ours.config.transform, min_size=(96,), max_size=160)
    )
    [detections] = ours.detect([image])
    assert len(expected["labels"]) > 10
    assert_equal(detections.labels, expected["labels"], "labels")
    assert_close(detections.boxes, expected["boxes"], MODEL["float64"], "boxes")
    assert_close(detections.scores, expected["scores"], MODEL["float64"], "scores")
    if "masks" in expected:
        assert_equal(detections.masks, expected["masks"][:, 0] >= 0.5, "masks")
    same(
        interop.torchvision.state_dict(interop.load(tmp_path / "theirs.pth")),
        torch.load(tmp_path / "theirs.pth"),
    )
