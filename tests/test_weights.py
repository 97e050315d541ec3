"""Published weights: the table, the download, the files that are known by their digest."""

import json
import os
import re
import threading
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from support import narrow
from support.checkpoint_cases import filled, same

import accelerated
from accelerated import interop
from accelerated.command_line import loading
from accelerated.data import synthetic
from accelerated.data.coco import CocoDataset
from accelerated.engine import checkpoint, evaluate
from accelerated.interop import coco_classes, download, unseen, zoo
from accelerated.interop import names as class_names
from accelerated.mask_rcnn import MaskRCNN
from reference import config as configuration

CONTENT = bytes(range(256)) * 5000


def saved(model, path):
    torch.save(interop.torchvision.state_dict(model), path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A narrow torchvision model with COCO's 90 labels."""
    model = narrow.model(narrow.config("torchvision_r50_fpn", num_classes=90), dtype=torch.float32)
    return model, saved(model, tmp_path_factory.mktemp("coco") / "narrow.pth")


def test_table():
    """Digests are those of the file names; every preset exists; file names differ in the cache."""
    for name, entry in zoo.ENTRIES.items():
        assert entry.preset in configuration.PRESETS and entry.licence and entry.what, name
        assert re.fullmatch(
            r"https://(download\.pytorch\.org|dl\.fbaipublicfiles\.com)/.+", entry.address
        )
        stated = re.search(r"[-_]([0-9a-f]{8}|[0-9a-f]{6})\.(pth|pkl)$", entry.file_name)
        assert (entry.digest.partition(":")[2] == stated[1]) if stated else not entry.digest
    assert len({entry.file_name for entry in zoo.ENTRIES.values()}) == len(zoo.ENTRIES) == 35
    coco = zoo.ENTRIES["coco"]
    assert coco.address == (
        "https://download.pytorch.org/models/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
    )
    assert zoo.ENTRIES["detectron2/mask_rcnn_r50_fpn_3x"].address == (
        "https://dl.fbaipublicfiles.com/detectron2/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/"
        "137849600/model_final_f10217.pkl"
    )
    without_eps = {name for name, entry in zoo.ENTRIES.items() if entry.changes}
    assert without_eps == {"coco", "torchvision/faster_rcnn_r50_fpn"}


def test_download_once(publish):
    server, path = publish(CONTENT)
    assert download.fetch(zoo.ENTRIES["coco"]) == path and path.read_bytes() == CONTENT
    assert download.fetch(zoo.ENTRIES["coco"]) == path
    assert server.requests == [(path.name, None)] and [*path.parent.iterdir()] == [path]


def test_a_download_is_on_the_disk_before_it_has_its_name(publish, monkeypatch):
    _, path = publish(CONTENT)
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda file: synced.append((os.fstat(file).st_size, path.exists()))
    )
    download.fetch(zoo.ENTRIES["coco"])
    assert synced == [(len(CONTENT), False)] and path.exists()


def test_an_interrupted_download_goes_on(publish):
    server, path = publish(CONTENT)
    server.limit = 1000
    with pytest.raises(OSError, match=r"1,000 of 1,280,000 bytes.*put the file at .* by hand"):
        download.fetch(zoo.ENTRIES["coco"])
    partial = path.with_name(f"{path.name}.partial")
    assert partial.read_bytes() == CONTENT[:1000] and not path.exists()
    server.limit = None
    download.fetch(zoo.ENTRIES["coco"])
    assert path.read_bytes() == CONTENT and not partial.exists()
    assert [wanted for _, wanted in server.requests] == [None, "bytes=1000-"]


def test_a_server_without_parts_starts_over(publish):
    server, path = publish(CONTENT)
    server.ranges = False
    path.parent.mkdir()
    path.with_name(f"{path.name}.partial").write_bytes(CONTENT[:1000])
    download.fetch(zoo.ENTRIES["coco"])
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("content, requests", [(CONTENT, 1), (CONTENT + b"more", 2)])
def test_a_complete_partial_file_and_one_that_is_too_long(publish, content, requests):
    server, path = publish(CONTENT)
    path.parent.mkdir()
    path.with_name(f"{path.name}.partial").write_bytes(content)
    download.fetch(zoo.ENTRIES["coco"])
    assert path.read_bytes() == CONTENT and len(server.requests) == requests


def test_a_wrong_digest_is_deleted_and_said(publish):
    server, path = publish(CONTENT)
    server.files[path.name] = CONTENT[:-1] + b"x"
    with pytest.raises(ValueError, match=r"as published, whose sha256 starts .*deleted"):
        download.fetch(zoo.ENTRIES["coco"])
    assert not [*path.parent.iterdir()]
    # Also a file that somebody brought, which is left where it is.
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=f"{path.name} is not .* as published"):
        download.fetch(zoo.ENTRIES["coco"])
    assert path.exists()


def test_two_at_once(publish):
    """One downloads, the other waits for it."""
    server, path = publish(CONTENT)
    threads = [threading.Thread(target=download.fetch, args=[zoo.ENTRIES["coco"]]) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1 and path.read_bytes() == CONTENT


def test_without_a_network(cache, command):
    """One line with the address and the path of a file that is put there by hand."""
    code, _, error = command("predict", "coco", ".")
    assert code == 2 and len(error.splitlines()) == 1
    name = "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
    assert re.search(
        rf"cannot download http://127.0.0.1:9/{name} \(.*\): .* at {cache / name} by hand", error
    )
    code, _, error = command("weights", "cocoa")
    assert code == 2 and "did you mean coco?" in error
    code, _, error = command("predict", "coco_v3", ".")
    assert code == 2 and "no such file; did you mean coco_v2?" in error


def test_list_and_download_by_the_command(publish, command):
    server, path = publish(CONTENT)
    code, out, _ = command("weights")
    assert code == 0 and all(name in out for name in zoo.ENTRIES) and str(path.parent) in out
    assert re.search(r"coco .*BSD-3-Clause +178 MB +\n", out) and not server.requests
    assert command("weights", "coco")[:2] == (0, f"{path}\n")
    assert re.search(r"coco .*178 MB +yes", command("weights")[1])


def test_names_load_and_a_file_on_the_disk_goes_before(publish, coco, tmp_path, monkeypatch):
    model, content = coco
    server, _ = publish(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = accelerated.load("coco")
    same(loaded.state_dict(), model.state_dict())
    assert loaded.backbone.bn1.eps == 0.0 and loaded.categories[17] == {"id": 18, "name": "dog"}
    monkeypatch.chdir(tmp_path)
    # A folder of data of this name is no weights.
    (tmp_path / "coco").mkdir()
    same(accelerated.load("coco").state_dict(), model.state_dict())
    (tmp_path / "coco").rmdir()
    other = filled(narrow.config("torchvision_r50_fpn"))
    saved(other, tmp_path / "coco")
    same(interop.load("coco", "torchvision_r50_fpn").state_dict(), other.state_dict())
    assert len(server.requests) == 1


def test_a_renamed_file_is_known_by_its_digest(publish, coco, tmp_path):
    """What a changed file does not show (eps, pixels, classes) is assumed, and said."""
    _, content = coco
    publish(content)
    (tmp_path / "renamed.pth").write_bytes(content)
    known = interop.read_model(tmp_path / "renamed.pth")
    assert known.model.config.backbone.norm_eps == 0.0 and not known.notes and not known.unknown
    tensors = torch.load(tmp_path / "renamed.pth")
    tensors["roi_heads.box_predictor.cls_score.bias"] += 1
    torch.save(tensors, tmp_path / "mine.pth")
    mine = interop.read_model(tmp_path / "mine.pth")
    assert mine.model.config.backbone.norm_eps == 1e-5 and "backbone.norm_eps" in mine.unknown
    assert mine.notes[0].startswith(
        f"{tmp_path / 'mine.pth'}: settings that its tensors do not show are assumed"
    )
    text = "\n".join(mine.notes)
    for told in (
        "backbone.norm_eps=1e-05",
        "mask_head.pooler.output_size=14",
        "box_head.pooler.sampling_ratio=2",
        "anchors.sizes=[[32.0],[64.0],[128.0],[256.0],[512.0]]",
        "--set backbone.norm_eps=0",
        "its 90 classes are assumed to be COCO's; --names FILE names others",
    ):
        assert told in text, text
    changes = ["backbone.norm_eps=0", "mask_head.pooler.output_size=28"]
    told = interop.read_model(tmp_path / "mine.pth", changes=changes)
    assert told.model.config.mask_head.pooler.output_size == 28
    assert told.model.backbone.bn1.eps == 0.0 and "norm_eps" not in "\n".join(told.notes)
    with pytest.warns(UserWarning, match=r"backbone\.norm_eps=1e-05"):
        interop.load(tmp_path / "mine.pth")
    with pytest.raises(ValueError, match=r"backbone\.depth: the tensors have 50, not 101"):
        interop.load(tmp_path / "mine.pth", changes=["backbone.depth=101"])


def test_what_was_said_is_stored(command, coco, tmp_path):
    """convert prints what was assumed, keeps what was said, and the folder says it from then on."""
    (tmp_path / "mine.pth").write_bytes(coco[1])
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"part {k}" for k in range(1, 91)))
    where = ("convert", tmp_path / "mine.pth", tmp_path / "ours", "--set", "backbone.norm_eps=0")
    code, _, error = command(*where, "--set", "mask_head.pooler.output_size=28", "--names", names)
    assert code == 0 and "sampling_ratio=2" in error and "norm_eps" not in error
    stored = checkpoint.read(tmp_path / "ours")
    assert stored.config.backbone.norm_eps == 0 and stored.categories[89]["name"] == "part 90"
    assert stored.config.mask_head.pooler.output_size == 28
    ours = interop.read_model(tmp_path / "ours")
    assert not ours.notes and ours.model.categories == stored.categories
    assert not ours.unknown and ours.model.config == stored.config


def test_a_missing_tensor_is_called_missing(coco, tmp_path):
    (tmp_path / "whole.pth").write_bytes(coco[1])
    tensors = torch.load(tmp_path / "whole.pth")
    for name in (
        "roi_heads.mask_head.1.0.weight",
        "backbone.body.layer3.5.conv1.weight",
        "backbone.body.layer1.0.conv3.weight",
        "rpn.head.conv.0.0.weight",
        "roi_heads.box_predictor.cls_score.weight",
        "backbone.fpn.layer_blocks.2.0.bias",
    ):
        lacking = {key: tensor for key, tensor in tensors.items() if key != name}
        with pytest.raises(ValueError, match=rf"(no tensor|missing:) {re.escape(name)}"):
            interop.load(lacking)
    ours = interop.load(tensors, "torchvision_r50_fpn").state_dict()
    for name in ("rpn.logits.weight", "backbone.conv1.weight", "box_head.fc6.bias"):
        lacking = {key: tensor for key, tensor in ours.items() if key != name}
        with pytest.raises(ValueError, match=rf"(no tensor|missing:) {re.escape(name)}"):
            interop.load(lacking, "torchvision_r50_fpn")


def test_categories_of_coco():
    """torchvision's labels are ids; detectron2's 80 stand in the order of the ids."""
    ninety, eighty = coco_classes.of_labels(90), coco_classes.of_labels(80)
    assert [c["id"] for c in ninety] == [*range(1, 91)] and ninety[11]["name"] == "N/A 12"
    assert [c for c in ninety if not c["name"].startswith("N/A")] == eighty
    assert sum(c["name"].startswith("N/A") for c in ninety) == 10
    assert [eighty[k] for k in (0, 16, 79)] == [
        {"id": 1, "name": "person"},
        {"id": 18, "name": "dog"},
        {"id": 90, "name": "toothbrush"},
    ]
    assert coco_classes.of_labels(81) is None
    theirs = interop.detectron2.state_dict(
        filled(narrow.config("detectron2_r50_c4", num_classes=80))
    )
    assert interop.load(theirs, "detectron2_r50_c4").categories == eighty


def test_a_checkpoint_of_coco_evaluates_on_coco(command, coco, tmp_path):
    """Labels are mapped by id; pictures and json say "person"; other names refuse or are given."""
    (tmp_path / "mine.pth").write_bytes(coco[1])
    data, images = synthetic.ShapesDataset(2, size=64).write_coco(tmp_path / "shapes")
    content = json.loads(data.read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] = 18
    content["categories"] = [{"id": c["id"], "name": c["name"]} for c in coco_classes.CATEGORIES]
    data.write_text(json.dumps(content))
    low = ("--set", "box_head.score_threshold=0", "--set", "transform.min_size=[64]")
    output = ("--output", tmp_path / "out", "--device", "cpu")
    how = ("evaluate", tmp_path / "mine.pth", "--data", data, "--images", images, *output, *low)
    code, out, error = command(*how)
    assert code == 0 and "dog" in out, error
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    model = interop.load(tmp_path / "mine.pth", changes=low[1::2])
    labels = [
        label
        for image in sorted(images.iterdir())
        for label in model.detect([_pixels(image)])[0].labels.tolist()
    ]
    assert [r["category_id"] for r in found] == [k for k in labels if k in coco_classes.IDS]
    assert set(labels) - set(coco_classes.IDS), "no unused label was detected: the test is empty"
    picture = sorted(images.iterdir())[0]
    code, _, error = command(
        "predict", tmp_path / "mine.pth", picture, *output, *low, "--threshold", 0
    )
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert code == 0 and written["categories"][0] == {"id": 1, "name": "person"}, error
    # Unused labels are not offered.
    assert len(written["categories"]) == 80
    [first] = model.detect([_pixels(picture)])
    wanted = [k for k in first.labels.tolist() if k in coco_classes.IDS]
    assert [a["category_id"] for a in written["annotations"]] == wanted
    assert len(wanted) < len(first.labels)
    # A part of the classes.
    content["categories"] = [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}]
    data.write_text(json.dumps(content))
    code, _, error = command(*how)
    assert code == 0 and "left out: detections of 78 classes" in error, error
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {r["category_id"] for r in found} <= {17, 18}
    # Another name for an id.
    content["categories"][1]["name"] = "lion"
    data.write_text(json.dumps(content))
    code, _, error = command(*how)
    assert code == 2 and "its category 17 is 'lion', the model's is 'cat'" in error
    code, _, error = command(*how, "--names", data)
    assert code == 0 and "assumed to be COCO's" not in error, error


def _pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize(
    "file, content, names",
    [
        ("a.txt", "cat\n\n dog \n", ["cat", "dog"]),
        ("a.json", '["__background__", "cat", "dog"]', ["cat", "dog"]),
        ("a.json", '{"1": "dog", "0": "cat"}', ["cat", "dog"]),
        ("data.yaml", "train: x\nnames:\n  0: cat  # small\n  1: 'dog'\nnc: 2\n", ["cat", "dog"]),
        ("data.yaml", "names: [cat, 'dog']\n", ["cat", "dog"]),
        ("a.yml", "- cat\n- dog\n", ["cat", "dog"]),
    ],
)
def test_files_of_names(tmp_path, file, content, names):
    (tmp_path / file).write_text(content)
    assert class_names.read(tmp_path / file, 2) == [
        {"id": k, "name": name} for k, name in enumerate(names, start=1)
    ]
    with pytest.raises(ValueError, match=r"names, but the model has 5 classes"):
        class_names.read(tmp_path / file, 5)


def test_names_of_a_coco_json(tmp_path):
    categories = [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}]
    (tmp_path / "a.json").write_text(json.dumps({"categories": categories}))
    assert class_names.read(tmp_path / "a.json", 2) == categories[::-1]
    sparse = class_names.read(tmp_path / "a.json", 8)
    assert [c["name"] for c in sparse[:3]] == ["N/A 1", "cat", "N/A 3"] and len(sparse) == 8
    (tmp_path / "b.json").write_text('{"categories": 3}')
    with pytest.raises(ValueError, match=r"b\.json: no list of class names"):
        class_names.read(tmp_path / "b.json", 2)


def test_every_field_is_seen_unseen_or_free():
    """A field of the configuration that is new must be put in one of the tables."""
    tables = (unseen.SEEN, unseen.UNSEEN, unseen.FREE)
    named = [field for table in tables for field in table]
    assert sorted(named) == sorted(configuration.flat(configuration.Config()))
    noted = {path for row in unseen.NOTED for path in row}
    assert not noted & set(unseen.SEEN)


def test_names_that_nobody_knows(tmp_path, capsys):
    """Classes without names are those of the data by rising id, and that is said."""
    data, images = synthetic.ShapesDataset(1, size=64).write_coco(tmp_path)
    model = MaskRCNN(narrow.config("tiny", num_classes=3))
    dataset = CocoDataset(data, images)
    loading.check_classes("mine.pth", model, data, dataset)
    assert "mine.pth has no class names: those of" in capsys.readouterr().err
    assert model.categories == evaluate.categories(dataset)
    model = MaskRCNN(narrow.config("tiny", num_classes=4))
    with pytest.raises(ValueError, match=r"mine.pth has 4 classes, but .* has 3 categories"):
        loading.check_classes("mine.pth", model, data, dataset)


def test_labels_of_a_target_are_the_models(tmp_path):
    """`verify --train` compares with the labels that the model gives the categories."""
    data, images = synthetic.ShapesDataset(1, size=64).write_coco(tmp_path)
    dataset = CocoDataset(data, images)
    picture = [images / dataset.file_names[0]]
    categories = evaluate.categories(dataset)
    [target] = loading.targets_of(dataset, picture, categories)
    [turned] = loading.targets_of(dataset, picture, categories[::-1])
    assert torch.equal(turned.labels, 4 - target.labels) and torch.equal(turned.boxes, target.boxes)
