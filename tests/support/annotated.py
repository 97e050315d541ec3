"""Small data sets in every format that is read: made here, with what should be read from them."""

import base64
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 60, 80
# {class: polygon} of the objects of every image.
LEAF = [[5.5, 6.25], [30.0, 8.0], [28.0, 30.0], [7.0, 27.0]]
STEM = [[40.0, 20.0], [70.0, 22.0], [66.0, 52.0], [44.0, 50.0]]
# Images, in folders or not; a name with a blank, and a suffix in capitals.
NAMES = ("a.png", "b c.JPG")


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    """Write a picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def mask(path: Path, values: np.ndarray, palette: bool = False) -> Path:
    """Write a mask, as indices of a palette if asked to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image = image.convert("P") if image.mode != "P" else image
        image.putdata(values.ravel().tolist())
        image.putpalette([(37 * index) % 256 for index in range(768)])
    image.save(path)
    return path


def boxes_of_ids(ids: np.ndarray) -> dict[int, list[int]]:
    """Return {id: [x, y, width, height]}."""
    found = {}
    for value in np.unique(ids[ids > 0]).tolist():
        y, x = np.nonzero(ids == value)
        found[value] = [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
    return found


def ids() -> np.ndarray:
    """Draw two objects, the second in two parts with a hole."""
    values = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    values[5:25, 10:30] = 1
    values[30:50, 40:60] = 2
    values[35:40, 45:50] = 0
    values[2:8, 70:80] = 2
    return values


def labelme_shape(label, points, kind="polygon", group=None, **more):
    return {
        "label": label,
        "points": points,
        "group_id": group,
        "description": "",
        "shape_type": kind,
        "flags": {},
        **more,
    }


def labelme_file(name: str, shapes: list) -> dict:
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": name,
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }


def png_text(pixels: np.ndarray) -> str:
    """Encode a mask as LabelMe does."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def labelme(folder: Path) -> Path:
    for k, name in enumerate(NAMES):
        path = picture(folder / "photos" / name, k)
        shapes = [labelme_shape("stem", STEM), labelme_shape("leaf", LEAF)]
        path.with_suffix(".json").write_text(json.dumps(labelme_file(name, shapes)))
    return folder


def yolo_row(label: int, polygon: list) -> str:
    return " ".join([str(label), *(f"{x / WIDTH:.10f} {y / HEIGHT:.10f}" for x, y in polygon)])


def yolo(folder: Path) -> Path:
    for part in ("train", "val"):
        for k, name in enumerate(NAMES):
            picture(folder / "images" / part / name, k)
            rows = [yolo_row(1, STEM), yolo_row(0, LEAF)]
            path = (folder / "labels" / part / name).with_suffix(".txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(rows) + "\n")
    layout = "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: leaf\n  1: stem\n"
    (folder / "data.yaml").write_text(layout)
    return folder / "data.yaml"


def via_polygon(polygon: list) -> dict:
    xs, ys = map(list, zip(*polygon, strict=True))
    return {"name": "polygon", "all_points_x": xs, "all_points_y": ys}


def via_entries(folder: Path) -> dict:
    entries = {}
    for k, name in enumerate(NAMES):
        size = picture(folder / name, k).stat().st_size
        entries[f"{name}{size}"] = {
            "filename": name,
            "size": size,
            "regions": [
                {"shape_attributes": via_polygon(points), "region_attributes": {"class": label}}
                for label, points in (("stem", STEM), ("leaf", LEAF))
            ],
            "file_attributes": {},
        }
    return entries


def via_export(folder: Path) -> Path:
    path = folder / "via_region_data.json"
    path.write_text(json.dumps(via_entries(folder)))
    return path


def via_project(folder: Path) -> Path:
    project = {"_via_settings": {}, "_via_attributes": {"region": {"class": {"type": "text"}}}}
    path = folder / "via_project.json"
    path.write_text(json.dumps(project | {"_via_img_metadata": via_entries(folder)}))
    return path


def via_table(folder: Path) -> Path:
    columns = ["filename", "file_size", "file_attributes", "region_count", "region_id"]
    columns += ["region_shape_attributes", "region_attributes"]
    path = folder / "via.csv"
    entries = via_entries(folder)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for entry in entries.values():
            for k, region in enumerate(entry["regions"]):
                texts = [json.dumps(region[key]) for key in ("shape_attributes",)]
                texts += [json.dumps(region["region_attributes"])]
                writer.writerow([entry["filename"], entry["size"], "{}", 2, k, *texts])
    return path


def via_3(folder: Path) -> Path:
    metadata, files = {}, {}
    for k, name in enumerate(NAMES, start=1):
        picture(folder / name, k)
        files[str(k)] = {"fid": str(k), "fname": name, "type": 2, "loc": 1, "src": ""}
        for option, points in (("1", STEM), ("0", LEAF)):
            numbers = [7, *(side for point in points for side in point)]
            key = f"{k}_{option}"
            entry = {"vid": str(k), "flg": 0, "z": [], "xy": numbers, "av": {"1": option}}
            metadata[key] = entry
    attribute = {
        "aname": "kind of plant",
        "anchor_id": "FILE1_Z0_XY1",
        "type": 4,
        "options": {"0": "leaf", "1": "stem"},
    }
    project = {
        "project": {"pid": "__VIA_PROJECT_ID__", "vid_list": list(files)},
        "config": {},
        "attribute": {"1": attribute},
        "file": files,
        "metadata": metadata,
        "view": {key: {"fid_list": [key]} for key in files},
    }
    path = folder / "project.json"
    path.write_text(json.dumps(project))
    return path


def label_studio(folder: Path) -> Path:
    tasks = []
    for k, name in enumerate(NAMES, start=1):
        picture(folder / "photos" / name, k)
        results = [
            {
                "id": f"r{label}",
                "type": "polygonlabels",
                "original_width": WIDTH,
                "original_height": HEIGHT,
                "image_rotation": 0,
                "value": {
                    "points": [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in points],
                    "closed": True,
                    "polygonlabels": [label],
                },
            }
            for label, points in (("stem", STEM), ("leaf", LEAF))
        ]
        address = f"/data/upload/1/9af3e1c2-{name.replace(' ', '%20')}"
        done = [{"id": k, "was_cancelled": False, "result": results}]
        tasks.append({"id": k, "data": {"image": address}, "annotations": done})
    path = folder / "export.json"
    path.write_text(json.dumps(tasks))
    return path


def cvat(folder: Path) -> Path:
    images = []
    for k, name in enumerate(NAMES):
        picture(folder / "images" / name, k)
        shapes = [
            f'<polygon label="{label}" source="manual" occluded="0" z_order="0" points="'
            + ";".join(f"{x},{y}" for x, y in points)
            + '"></polygon>'
            for label, points in (("stem", STEM), ("leaf", LEAF))
        ]
        head = f'<image id="{k}" name="{name}" width="{WIDTH}" height="{HEIGHT}">'
        images.append(head + "".join(shapes) + "</image>")
    labels = "".join(f"<label><name>{name}</name></label>" for name in ("leaf", "stem"))
    meta = f"<version>1.1</version><meta><task><labels>{labels}</labels></task></meta>"
    text = f'<?xml version="1.0" encoding="utf-8"?><annotations>{meta}{"".join(images)}'
    path = folder / "annotations.xml"
    path.write_text(f"{text}</annotations>")
    return path


def penn_fudan(folder: Path) -> Path:
    for k in range(2):
        picture(folder / "PNGImages" / f"Fudan{k}.png", k)
        mask(folder / "PedMasks" / f"Fudan{k}_mask.png", ids())
    return folder


def science_bowl(folder: Path) -> Path:
    for k in range(2):
        picture(folder / f"id{k}" / "images" / f"id{k}.png", k)
        for value in (1, 2):
            one = np.where(ids() == value, 255, 0).astype(np.uint8)
            mask(folder / f"id{k}" / "masks" / f"{value:03d}.png", one)
    return folder


def image_and_mask_folders(folder: Path) -> Path:
    for k in range(2):
        picture(folder / "images" / f"{k}.jpg", k)
        mask(folder / "masks" / f"{k}.png", ids().astype(np.uint16) * 300)
    return folder


def pascal(folder: Path) -> Path:
    root = folder / "VOC2012"
    for k in range(2):
        picture(root / "JPEGImages" / f"2007_{k}.jpg", k)
        objects, classes = ids(), np.choose(ids(), [0, 15, 12]).astype(np.uint8)
        for values in (objects, classes):
            # The rim of the first object is void.
            values[5, 10:30] = 255
        mask(root / "SegmentationObject" / f"2007_{k}.png", objects, palette=True)
        mask(root / "SegmentationClass" / f"2007_{k}.png", classes, palette=True)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_0\n2007_1\n")
    (lists / "val.txt").write_text("2007_1\n")
    return folder


def cityscapes(folder: Path) -> Path:
    base = "aachen_000000_000019"
    picture(folder / "leftImg8bit/train/aachen" / f"{base}_leftImg8bit.png")
    truth = folder / "gtFine/train/aachen"
    truth.mkdir(parents=True)
    objects = [
        {"label": "road", "polygon": [[0, 0], [79, 0], [79, 59], [0, 59]]},
        {"label": "car", "polygon": [[10, 10], [39, 10], [39, 39], [10, 39]]},
        {"label": "person", "polygon": [[30, 20], [49, 20], [49, 49], [30, 49]]},
        {"label": "pole", "polygon": [[10, 10], [14, 10], [14, 39], [10, 39]]},
        {"label": "bicyclegroup", "polygon": [[60, 40], [75, 40], [75, 55], [60, 55]]},
    ]
    content = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}
    (truth / f"{base}_gtFine_polygons.json").write_text(json.dumps(content))
    return folder


# Formats whose images hold LEAF and STEM, and those that hold ids().
OUTLINES: dict[str, Callable[[Path], Path]] = {
    "labelme": labelme,
    "yolo": yolo,
    "via_export": via_export,
    "via_project": via_project,
    "via_table": via_table,
    "via_3": via_3,
    "label_studio": label_studio,
    "cvat": cvat,
}
MASKS: dict[str, Callable[[Path], Path]] = {
    "penn_fudan": penn_fudan,
    "science_bowl": science_bowl,
    "image_and_mask_folders": image_and_mask_folders,
    "pascal": pascal,
}
ALL = OUTLINES | MASKS | {"cityscapes": cityscapes}
