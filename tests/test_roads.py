"""Roads from a folder of own pictures to a model, typed as a user types them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter
from support import narrow
from support.spots import spot, write_video

from accelerated import interop
from accelerated.data.coco import CocoDataset
from accelerated.engine import checkpoint, log

ROOT = Path(__file__).parents[1]
# A model that takes a moment.
NARROW = (
    "transform.min_size=[128]",
    "transform.max_size=160",
    "norm_groups=4",
    "backbone.width=8",
    "fpn.channels=16",
    "rpn.post_nms_top_n_train=64",
    "rpn.post_nms_top_n_test=32",
    "box_head.channels=32",
    "box_head.conv_channels=16",
    "mask_head.convs=1",
    "mask_head.channels=16",
)
NAMES = ("cell", "fibre")


def photograph(rng, size=(240, 180)):
    """A picture of soft blobs on a grainy, unevenly lit ground, and [(name, outline)]."""
    width, height = size
    light = np.linspace(90, 140, width)[None, :, None] + rng.normal(0, 12, (height, width, 3))
    image = Image.fromarray(light.clip(0, 255).astype(np.uint8))
    drawing, objects = ImageDraw.Draw(image), []
    for _ in range(rng.integers(2, 5)):
        kind = int(rng.integers(2))
        long, short = rng.uniform(22, 34), rng.uniform(0.75, 1.0)
        radii = (long, long * short) if kind == 0 else (long * 1.4, 7.0)
        angle = rng.uniform(0, math.pi)
        centre = rng.uniform(50, (width - 50, height - 50))
        turn = np.linspace(0, 2 * math.pi, 24, endpoint=False)
        ring = np.stack([radii[0] * np.cos(turn), radii[1] * np.sin(turn)], axis=1)
        rotation = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
        outline = (ring @ np.array(rotation) + centre).clip(1, (width - 1, height - 1)).round(1)
        colour = [(200, 90, 120), (60, 110, 170)][kind]
        drawing.polygon([tuple(point) for point in outline], fill=colour)
        objects.append((NAMES[kind], outline.tolist()))
    return image.filter(ImageFilter.GaussianBlur(1)), objects


def pictures(folder, rng, count):
    """Write JPEG photographs; return [(file name, size, objects)]."""
    folder.mkdir(parents=True)
    out = []
    for index in range(count):
        image, objects = photograph(rng)
        image.save(folder / f"IMG_{index:04d}.jpg", quality=95)
        out.append((f"IMG_{index:04d}.jpg", image.size, objects))
    return out


def coco(folder, rng, count):
    """Write a COCO file and its pictures; return the options that name them."""
    images, annotations = [], []
    for number, (name, (width, height), objects) in enumerate(
        pictures(folder / "images", rng, count), start=1
    ):
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for label, outline in objects:
            x, y = np.array(outline).T
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": NAMES.index(label) + 1,
                    "bbox": [x.min(), y.min(), np.ptp(x), np.ptp(y)],
                    "area": float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2),
                    "iscrowd": 0,
                    "segmentation": [np.array(outline).ravel().tolist()],
                }
            )
    categories = [{"id": k, "name": name} for k, name in enumerate(NAMES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "labels.json").write_text(json.dumps(content))
    return folder / "labels.json", folder / "images"


def labelme(folder, rng, count):
    """Write pictures with a LabelMe file beside each; the folder names its own images."""
    for name, (width, height), objects in pictures(folder, rng, count):
        shapes = [
            {"label": label, "points": outline, "shape_type": "polygon", "group_id": None}
            for label, outline in objects
        ]
        size = {"imageWidth": width, "imageHeight": height}
        content = {"version": "5.5.0", "shapes": shapes, "imagePath": name, "imageData": None}
        path = folder / name
        path.with_suffix(".json").write_text(json.dumps(content | size))
    return folder, None


@pytest.mark.parametrize("write", [labelme, coco])
def test_a_folder_of_pictures_becomes_a_model(command, write, tmp_path, rng):
    """inspect, train, resume, evaluate the best checkpoint, predict on a new picture."""
    data, images = write(tmp_path / "train", rng, 8)
    val, val_images = write(tmp_path / "val", rng, 3)
    where = ("--data", data, *(("--images", images) if images else ()))
    val_where = ("--val", val, *(("--val-images", val_images) if val_images else ()))

    code, out, error = command("inspect", *where)
    assert code == 0 and "The data is ready for training." in out, out + error
    assert "with the preset small: long side 512 pixels; objects have a median side of" in out

    run, changes = tmp_path / "run", [word for change in NARROW for word in ("--set", change)]
    training = ("train", *where, *val_where, "--output", run, *changes, "--device", "cpu")
    code, out, error = command(*training, "--epochs", 5, "--evaluate-every", 10, "--batch-size", 2)
    assert code == 0 and "20 steps of 2 images, 5.0 epochs of 8 images" in out, error
    assert "2 classes (cell, fibre)" in out and "preset small" in out
    assert out.count("  evaluation: mask AP 0.") == 2
    losses = [line["loss"] for line in log.read(run / "log.jsonl") if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]

    code, out, error = command("train", "--output", run, "--resume", "--epochs", 5.5)
    assert code == 0 and "Trained for 22 steps." in out, error
    assert checkpoint.read(run / "best").iteration in (10, 20, 22)

    scores = tmp_path / "scores"
    folder = ("--images", val_images) if val_images else ()
    code, out, error = command("evaluate", run / "best", "--data", val, *folder, "--output", scores)
    assert code == 0 and "segm" in out, error
    metrics = json.loads((scores / "metrics.json").read_text())
    assert set(metrics["segm"]["classes"]) == set(NAMES)
    best = f"{checkpoint.read(run / 'best').iteration:08d}"
    logged = json.loads((run / "evaluations" / best / "metrics.json").read_text())
    assert metrics["segm"]["AP"] == logged["segm"]["AP"]

    image, _ = photograph(rng)
    image.save(tmp_path / "new.jpg")
    drawn = ("--output", tmp_path / "drawn", "--threshold", 0.05)
    code, out, error = command("predict", run / "best", tmp_path / "new.jpg", *drawn)
    assert code == 0, error
    written = json.loads((tmp_path / "drawn" / "predictions.json").read_text())
    assert [category["name"] for category in written["categories"]] == list(NAMES)
    assert len(list((tmp_path / "drawn").glob("new.*"))) == 1
    # Categories of the data are those of the checkpoint.
    assert len(CocoDataset(data, images).class_names) == 2


def readme_commands():
    """Return the commands that README gives for one's own photographs, as lists of words."""
    text = (ROOT / "README.md").read_text()
    section = text.split("## Train on your own photographs\n")[1].split("\n## ")[0]
    lines = [line.split() for line in section.splitlines() if line.startswith("    maskrcnn ")]
    return [words[1:] for words in lines]


def test_the_commands_of_the_readme(command, publish, tmp_path, rng, monkeypatch):
    """All three roads as they stand in README, in its order, with fewer steps and narrow models."""
    monkeypatch.chdir(tmp_path)
    labelme(tmp_path / "photos", rng, 10)
    pictures(tmp_path / "more_photos", rng, 2)
    data, images = coco(tmp_path / "coco", rng, 4)
    images.rename("val2017")
    content = json.loads(data.read_text())
    # The first and the last of COCO's sparse ids.
    content["categories"] = [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
    for annotation in content["annotations"]:
        annotation["category_id"] = [1, 90][annotation["category_id"] - 1]
    (tmp_path / "instances_val2017.json").write_text(json.dumps(content))
    model = narrow.model(narrow.config("torchvision_r50_fpn", num_classes=90), dtype=torch.float32)
    torch.save(interop.torchvision.state_dict(model), tmp_path / "theirs.pth")
    publish((tmp_path / "theirs.pth").read_bytes())

    commands = readme_commands()
    assert [words[0] for words in commands] == [
        *("inspect", "train", "evaluate", "predict"),
        *("train", "predict"),
        *("evaluate", "evaluate"),
        *("report", "train", "predict", "predict"),
    ]
    pictures(tmp_path / "scans", rng, 1)
    write_video(tmp_path / "film.mp4", [spot(2 * i, 8) for i in range(3)])
    for words in commands:
        extra = []
        if words[0] == "train":
            extra = ["--iterations", 2, "--batch-size", 2, "--device", "cpu"]
            # Weights bring their own architecture.
            changes = () if "--weights" in words else NARROW
            extra += [word for change in changes for word in ("--set", change)]
        code, out, error = command(*words, *extra)
        assert code == 0, (words, out, error)
        if words[0] == "report":
            assert (tmp_path / "report.html").stat().st_size > 10_000
        if words[:2] == ["evaluate", "coco"]:
            assert "person" in out and "toothbrush" in out
            (tmp_path / "evaluation" / "results.json").rename("results.json")
    assert (tmp_path / "predictions" / "labelme" / "IMG_0000.json").exists()
