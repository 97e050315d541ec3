"""A training that starts from weights: its architecture, its classes, and what it refuses."""

import json
from dataclasses import replace

import pytest
import torch
from support import narrow
from support.checkpoint_cases import filled

from accelerated import interop
from accelerated.command_line.configuration import configuration
from accelerated.data import synthetic
from accelerated.engine import checkpoint, classes, log
from accelerated.engine.start import initialize
from accelerated.mask_rcnn import MaskRCNN
from reference.config import override, preset, to_dict

SOURCE = ("cat", "dog", "N/A 3", "eel")
TARGET = ("eel", "owl", "Cat", "N/A 3")
# (their label, our label) of eel and cat.
KEPT = ((4, 1), (1, 3))


def categories(names):
    return [{"id": k, "name": name} for k, name in enumerate(names, start=1)]


def source_and_target(name, target_name=None, *changes):
    """Make two models whose tensors all differ; the source as if read from a file."""
    config = narrow.config(name)
    source = filled(config)
    target = MaskRCNN(override(narrow.config(target_name or name), *changes))
    source.categories, target.categories = categories(SOURCE), categories(TARGET)
    loaded = interop.Loaded("weights", source, None, frozenset(), [])
    return loaded, source.state_dict(), target


# Rows of label k, in the logits, the deltas and the masks, by the place of the background.
ROWS = {
    "torchvision_r50_fpn": (lambda k: [k], lambda k: range(4 * k, 4 * k + 4), lambda k: [k]),
    "detectron2_r50_fpn": (
        lambda k: [k - 1],
        lambda k: range(4 * k - 4, 4 * k),
        lambda k: [k - 1],
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_class_keeps_its_rows(name):
    """By name, whatever its place and case; others and unused labels keep their new rows."""
    loaded, theirs, model = source_and_target(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    taken = initialize(model, loaded)
    after = model.state_dict()
    layers = ("box_head.class_logits", "box_head.box_deltas", "mask_head.logits")
    for layer, rows in zip(layers, ROWS[name], strict=True):
        for part in ("weight", "bias"):
            key = f"{layer}.{part}"
            for their_label, label in KEPT:
                assert torch.equal(after[key][[*rows(label)]], theirs[key][[*rows(their_label)]])
            for label in (2, 4):
                assert torch.equal(after[key][[*rows(label)]], before[key][[*rows(label)]])
    background = 0 if name.startswith("torchvision") else 4
    key = "box_head.class_logits.weight"
    assert torch.equal(after[key][background], theirs[key][background])
    for key in set(after) - {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}:
        assert torch.equal(after[key], theirs[key]), key
    assert {key.rpartition(".")[0] for key in taken.fresh} == set(layers)
    assert taken.lines == [
        "weights has 2 of 4 classes: eel, Cat",
        f"newly initialised for the other classes: {', '.join(layers)}",
    ]


def test_all_classes_in_another_order():
    loaded, theirs, model = source_and_target("torchvision_r50_fpn")
    loaded.model.categories = categories("abcd")
    model.categories = categories("dcba")
    assert initialize(model, loaded).fresh == []
    for key in ("box_head.class_logits.weight", "mask_head.logits.bias"):
        assert torch.equal(model.state_dict()[key], theirs[key][[0, 4, 3, 2, 1]])


def test_the_background_changes_its_place():
    """Rows go from a layout with the background first to one with the background last."""
    loaded, theirs, model = source_and_target("torchvision_r50_fpn", None, "background=last")
    initialize(model, loaded)
    ours = model.state_dict()
    weight, bias = "box_head.class_logits.weight", "box_head.box_deltas.bias"
    assert torch.equal(ours[weight][[0, 2, 4]], theirs[weight][[4, 1, 0]])
    assert torch.equal(ours[bias][0:4], theirs[bias][16:20])
    assert torch.equal(
        ours["mask_head.logits.bias"][[0, 2]], theirs["mask_head.logits.bias"][[4, 1]]
    )


def test_one_mask_for_all_classes_and_mlp_masks():
    agnostic = "mask_head.class_agnostic=true"
    config = override(narrow.config("tiny"), agnostic)
    source, model = filled(config), MaskRCNN(config)
    source.categories, model.categories = categories("abcd"), categories("wxyz")
    taken = initialize(model, interop.Loaded("w", source, None, frozenset(), []))
    assert torch.equal(model.mask_head.logits.weight, source.mask_head.logits.weight)
    assert "mask_head.logits.weight" not in taken.fresh
    config = override(
        override(narrow.config("tiny"), "mask_head.kind=mlp"), "mask_head.mlp_channels=8"
    )
    source, model = filled(config), MaskRCNN(config)
    source.categories, model.categories = categories("abcd"), categories("dcba")
    initialize(model, interop.Loaded("w", source, None, frozenset(), []))
    ours, theirs = model.state_dict(), source.state_dict()
    columns = classes.layouts(config)["mask_head.logits"].columns
    rows = len(ours["mask_head.logits.bias"]) // columns
    for label in range(1, 5):
        ours_at, theirs_at = (slice(at * rows, (at + 1) * rows) for at in (label, 5 - label))
        for part in ("weight", "bias"):
            key = f"mask_head.logits.{part}"
            assert torch.equal(ours[key][ours_at], theirs[key][theirs_at])


def test_without_names_no_class_is_kept():
    loaded, _, model = source_and_target("tiny")
    loaded.model.categories = None
    taken = initialize(model, loaded)
    assert "weights has no class names: no class is kept (name them with --names)" in taken.lines
    assert {key.rpartition(".")[0] for key in taken.fresh} == set(checkpoint.PREDICTORS)


CHANGES = (
    "backbone.norm_eps=0",
    "backbone.stride_in_1x1=true",
    "norm_groups=2",
    "anchors.sizes=[[9],[16],[32],[64],[128]]",
    "anchors.ratios=[0.4,1.0,2.0]",
    "rpn.box_weights=[1,1,1,2]",
    "box_head.box_weights=[1,1,1,2]",
    "box_head.pooler.sampling_ratio=1",
    "mask_head.pooler.output_size=28",
    "mask_head.pooler.aligned=true",
    "mask_head.paste=detectron2",
    "transform.mean=[0.0,0.0,0.0]",
    "transform.interpolation=pillow",
    "fpn.norm=batch",
)


@pytest.mark.parametrize("change", CHANGES)
def test_another_meaning_of_the_weights_is_refused(change):
    """A field that shapes do not show differs between the weights and the model."""
    name = "torchvision_r50_fpn"
    extra = ["fpn.norm=group"] if change.startswith("norm_groups") else []
    source = narrow.config(name)
    for each in extra:
        source = override(source, each)
    path = change.partition("=")[0]
    loaded = interop.Loaded("weights", MaskRCNN(source), None, frozenset(), [])
    with pytest.raises(
        ValueError, match=f"^weights was trained with {path} = .*, not .*: add --set {path}"
    ):
        initialize(MaskRCNN(override(source, change)), loaded)
    unknown = replace(loaded, unknown=frozenset([path]))
    with pytest.raises(ValueError, match=f"^weights is assumed to be trained with {path} = "):
        initialize(MaskRCNN(override(source, change)), unknown)


@pytest.mark.parametrize(
    "change",
    ["backbone.norm=batch", "transform.min_size=[64]", "rpn.nms_iou=0.5", "mask_head.kind=none"],
)
def test_what_is_free_is_not_refused(change):
    source = narrow.config("torchvision_r50_fpn")
    loaded = interop.Loaded("weights", filled(source), None, frozenset(), [])
    taken = initialize(MaskRCNN(override(source, change)), loaded)
    unused = "not used from weights: mask_head" in taken.lines
    assert unused == change.startswith("mask_head") and not any("norm" in n for n in taken.fresh)


@pytest.fixture
def shapes(tmp_path):
    return synthetic.ShapesDataset(2, size=64).write_coco(tmp_path / "shapes")


def plan(weights, shapes, preset=None, changes=(), names=None):
    from accelerated.data.coco import CocoDataset

    return configuration(preset, weights, changes, names, lambda masks: CocoDataset(*shapes))


def test_architecture_from_a_foreign_file(shapes, tmp_path):
    """Widths from the file, classes from the data, the optimizer from the nearest preset."""
    config = narrow.config("torchvision_r50_fpn")
    interop.save(filled(config), tmp_path / "theirs.pth")
    start = plan(tmp_path / "theirs.pth", shapes, None, ["backbone.norm_eps=0"])
    assert start.config.num_classes == 3 and start.config.backbone.norm_eps == 0
    assert start.config.backbone.width == 8 and start.config.fpn.channels == 16
    assert start.config.optimizer == preset("torchvision_r50_fpn").optimizer
    assert start.text.startswith("architecture of ") and "torchvision_r50_fpn" in start.text
    # What the user says of the file counts for its weights, too.
    model = MaskRCNN(start.config)
    model.categories = categories("abc")
    initialize(model, start.weights)
    assert torch.equal(
        model.state_dict()["fpn.lateral2.weight"],
        filled(config).state_dict()["fpn.lateral2.weight"],
    )


def test_architecture_from_a_folder_of_ours(shapes, tmp_path, command):
    data, images = shapes
    where = ("--data", data, "--images", images, "--device", "cpu", "--iterations", 1)
    narrowed = [
        w for c in ("backbone.width=8", "norm_groups=4", "fpn.channels=8") for w in ("--set", c)
    ]
    pixels = ("--set", "transform.min_size=[64]", "--batch-size", 1)
    code, out, error = command("train", *where, *narrowed, *pixels, "--output", tmp_path / "a")
    assert code == 0 and "preset tiny, which suits these images" in out, error
    content = json.loads(data.read_text())
    content["categories"][0]["name"] = "circle"
    data.write_text(json.dumps(content))
    start = plan(str(tmp_path / "a"), shapes)
    assert to_dict(start.config) == to_dict(checkpoint.read(tmp_path / "a").config)
    code, out, error = command(
        "train", *where, "--weights", tmp_path / "a", "--output", tmp_path / "b"
    )
    assert code == 0 and "has 2 of 3 classes: rectangle, triangle" in out, error
    assert "newly initialised for the other classes: box_head.class_logits" in out
    [line] = [line for line in log.read(tmp_path / "b" / "log.jsonl") if "not_in_weights" in line]
    assert line["weights"] == str(tmp_path / "a")
    # A preset changes nothing that the weights depend on; a change is refused.
    with pytest.raises(ValueError, match=r"backbone.width = 8, the preset tiny 16: leave out"):
        plan(str(tmp_path / "a"), shapes, "tiny")
    wide = ["backbone.width=8", "fpn.channels=8", "rpn.nms_iou=0.6"]
    start = plan(str(tmp_path / "a"), shapes, "tiny", wide)
    assert start.config.rpn.nms_iou == 0.6 and start.config.norm_groups == 4
    assert any(line.startswith("norm_groups=4, with which ") for line in start.lines)
    code, _, error = command(
        "train",
        *where,
        "--weights",
        tmp_path / "a",
        "--output",
        tmp_path / "c",
        "--set",
        "anchors.offset=0.5",
    )
    assert code == 2 and "was trained with anchors.offset = 0.0, not 0.5" in error


def test_architecture_of_a_backbone(shapes, tmp_path):
    """The nearest preset, with the depth of the file; another preset is compared with it."""
    full = filled(narrow.config("torchvision_r50_fpn")).backbone.state_dict()
    torch.save(full | {"fc.bias": torch.zeros(3)}, tmp_path / "r50.pth")
    start = plan(str(tmp_path / "r50.pth"), shapes)
    assert start.config.backbone.width == 8 and start.config.transform.channel_order == "rgb"
    assert "preset torchvision_r50_fpn with the ResNet-50 of" in start.text
    start = plan(str(tmp_path / "r50.pth"), shapes, "detectron2_r50_fpn")
    told = "\n".join(start.lines)
    assert "was trained with transform.channel_order=rgb, as in torchvision_r50_fpn, not" in told
    assert "was trained with backbone.stride_in_1x1=false, as in" in told


def test_from_scratch(shapes):
    start = plan(None, shapes)
    assert start.config == replace(preset("tiny"), num_classes=3)
    assert plan(None, shapes, "torchvision_r50_fpn").lines == []


def test_from_the_published_file_to_pictures(shapes, tmp_path, command, publish):
    """`train --weights coco` on other classes and `predict`, with weights of the true shapes."""
    config = override(preset("torchvision_r50_fpn"), "num_classes=90")
    with torch.device("meta"):
        model = MaskRCNN(config)
    model = model.to_empty(device="cpu")
    for name, tensor in model.state_dict().items():
        tensor.fill_(1.0 if name.endswith("running_var") else 1e-3)
    torch.save(interop.torchvision.state_dict(model), tmp_path / "theirs.pth")
    publish((tmp_path / "theirs.pth").read_bytes())
    data, images = shapes
    content = json.loads(data.read_text())
    content["categories"][0]["name"] = "dog"
    data.write_text(json.dumps(content))
    where = ("--data", data, "--images", images, "--device", "cpu", "--output", tmp_path / "run")
    small_run = ("--iterations", 1, "--batch-size", 1, "--set", "transform.min_size=[64]")
    limit = ("--set", "rpn.post_nms_top_n_train=20", "--set", "box_head.score_threshold=0")
    code, out, error = command("train", "--weights", "coco", *where, *small_run, *limit)
    assert code == 0 and "coco has 1 of 3 classes: dog" in out, error
    assert checkpoint.read(tmp_path / "run").config.backbone.norm_eps == 0.0
    picture = sorted(images.iterdir())[0]
    output = ("--output", tmp_path / "out", "--device", "cpu", "--threshold", 0)
    code, _, error = command("predict", tmp_path / "run", picture, *output)
    assert code == 0 and error == ""
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [c["name"] for c in written["categories"]] == ["dog", "rectangle", "triangle"]
