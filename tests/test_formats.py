"""Other formats of annotations: recognised, and read as what they mean."""

import json
import re

import numpy as np
import pytest
from support import annotated
from support.annotated import HEIGHT, LEAF, NAMES, STEM, WIDTH, labelme_file, labelme_shape

from accelerated.data import rle, sources
from accelerated.data.coco import CocoDataset


def decode(annotation):
    segmentation = annotation["segmentation"]
    mask = np.zeros(segmentation["size"], dtype=bool)
    rle.decode_into(rle.decompress(segmentation["counts"]), mask)
    return mask


def codes(source, *severities):
    return [p.code for p in source.problems if not severities or p.severity in severities]


@pytest.mark.parametrize("make", annotated.OUTLINES.values(), ids=annotated.OUTLINES)
def test_outlines_are_read_as_drawn(make, tmp_path):
    source = sources.find(make(tmp_path))
    content = source.content
    assert [c["name"] for c in content["categories"]] == ["leaf", "stem"]
    assert [image["file_name"].split("/")[-1] for image in content["images"]] == list(NAMES)
    assert all((i["width"], i["height"]) == (WIDTH, HEIGHT) for i in content["images"])
    assert [a["category_id"] for a in content["annotations"]] == [2, 1] * len(NAMES)
    for annotation, polygon in zip(content["annotations"], [STEM, LEAF] * 2, strict=True):
        (read,) = annotation["segmentation"]
        np.testing.assert_allclose(np.reshape(read, (-1, 2)), polygon, atol=1e-6)
    x, y, width, height = content["annotations"][1]["bbox"]
    np.testing.assert_allclose([x, y, x + width, y + height], [5.5, 6.25, 30, 30], atol=1e-6)
    assert not codes(source, "reject", "skip", "warn")
    # As the commands open it, images included.
    dataset = CocoDataset(make(tmp_path / "again"))
    assert len(dataset) == 2 and len(dataset[0].target.boxes) == 2
    assert not dataset.report.blocking


@pytest.mark.parametrize("make", annotated.MASKS.values(), ids=annotated.MASKS)
def test_masks_are_read_as_painted(make, tmp_path):
    source = sources.find(make(tmp_path))
    content, ids = source.content, annotated.ids()
    if make is annotated.pascal:
        ids[5, 10:30] = 0
        names = [
            content["categories"][a["category_id"] - 1]["name"] for a in content["annotations"]
        ]
        assert names == ["person", "dog"] * 2
    assert len(content["images"]) == 2 and len(content["annotations"]) == 4
    for annotation, value in zip(content["annotations"], [1, 2, 1, 2], strict=True):
        np.testing.assert_array_equal(decode(annotation), ids == value)
        assert annotation["bbox"] == annotated.boxes_of_ids(ids)[value]
        assert annotation["area"] == (ids == value).sum()
    assert not codes(source, "reject", "skip", "warn")
    assert len(CocoDataset(make(tmp_path / "again"))) == 2


def test_later_polygons_of_cityscapes_are_in_front(tmp_path):
    folder = annotated.cityscapes(tmp_path)
    content = sources.find(folder).content
    (image,), names = content["images"], [c["name"] for c in content["categories"]]
    assert image["file_name"].startswith("leftImg8bit/train/aachen/") and names[2] == "car"
    car, person, group = content["annotations"]
    ids = np.zeros((HEIGHT, WIDTH), dtype=int)
    ids[10:40, 10:40], ids[20:50, 30:50], ids[10:40, 10:15], ids[40:56, 60:76] = 1, 2, 0, 3
    for value, annotation in enumerate((car, person, group), start=1):
        np.testing.assert_array_equal(decode(annotation), ids == value)
    assert [a["iscrowd"] for a in (car, person, group)] == [0, 0, 1]
    # Ids, where they exist, replace the polygons; groups have the number of their class alone.
    truth = next((tmp_path / "gtFine/train/aachen").iterdir())
    values = np.choose(ids, [7, 26000, 24001, 33]).astype(np.uint16)
    annotated.mask(truth.with_name(truth.name.replace("polygons.json", "instanceIds.png")), values)
    again = sources.find(folder).content
    key = lambda a: (a["category_id"], a["iscrowd"], a["segmentation"]["counts"])  # noqa: E731
    assert sorted(map(key, again["annotations"])) == sorted(map(key, content["annotations"]))
    # The folder gtFine alone finds its images beside it.
    assert len(sources.find(folder / "gtFine").content["images"]) == 1
    with pytest.raises(ValueError, match="no part val; its parts are train"):
        sources.find(f"{folder}:val")


def test_shapes_of_labelme(tmp_path):
    annotated.picture(tmp_path / "a.png")
    crop = np.zeros((6, 5), dtype=bool)
    crop[2:, 1:] = True
    shapes = [
        labelme_shape("leaf", LEAF, group=1),
        labelme_shape("leaf", STEM, group=1),
        labelme_shape("stem", LEAF, group=1),
        labelme_shape("ring", [[40, 30], [40, 40]], "circle"),
        labelme_shape("box", [[30, 40], [10, 20]], "rectangle"),
        # Partly outside the image.
        labelme_shape("blot", [[76, -2], [80, 3]], "mask", mask=annotated.png_text(crop)),
        labelme_shape("dot", [[1, 1]], "point"),
        labelme_shape("edge", LEAF, "linestrip"),
        labelme_shape(None, LEAF),
        labelme_shape("leaf", [["1", 2]]),
    ]
    content = labelme_file("C:\\photos\\a.png", shapes)
    (tmp_path / "a.json").write_text(json.dumps(content))
    source = sources.find(tmp_path)
    names = {c["id"]: c["name"] for c in source.content["categories"]}
    assert list(names.values()) == ["blot", "box", "leaf", "ring", "stem"]
    leaf, stem, ring, box, blot = source.content["annotations"]
    assert names[leaf["category_id"]] == "leaf" and len(leaf["segmentation"]) == 2
    assert names[stem["category_id"]] == "stem" and len(stem["segmentation"]) == 1
    distances = np.hypot(*(np.reshape(ring["segmentation"][0], (-1, 2)) - [40, 30]).T)
    np.testing.assert_allclose(distances, 10)
    assert (box["bbox"], box["segmentation"]) == ([10, 20, 20, 20], [])
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[0:4, 77:80] = True
    np.testing.assert_array_equal(decode(blot), expected)
    assert codes(source) == ["shape_invalid", "class_missing", "shape_skipped", "shape_skipped"]
    # What labels.txt lists is a class, whether it is used or not.
    (tmp_path / "labels.txt").write_text("__ignore__\nstem\nroot\nleaf\n")
    names = [c["name"] for c in sources.find(tmp_path).content["categories"]]
    assert names == ["stem", "root", "leaf", "blot", "box", "ring"]


def test_pictures_of_labelme_elsewhere(tmp_path):
    annotated.labelme(tmp_path / "all")
    labels = tmp_path / "labels"
    labels.mkdir()
    for path in (tmp_path / "all/photos").glob("*.json"):
        path.rename(labels / path.name)
    missing = sources.find(labels)
    assert codes(missing) == ["file_missing"] * 2 and not missing.content["images"]
    source = sources.find(labels, tmp_path / "all")
    assert len(source.content["images"]) == 2 and source.image_root == tmp_path / "all"
    with pytest.raises(ValueError, match="this is a LabelMe file; give its folder"):
        sources.find(labels / "a.json")


def test_parts_of_yolo(tmp_path):
    path = annotated.yolo(tmp_path)
    (tmp_path / "labels/val/a.txt").unlink()
    source = sources.find(f"{path}:val")
    assert all(i["file_name"].startswith("images/val/") for i in source.content["images"])
    assert len(source.content["images"]) == 2 and len(source.content["annotations"]) == 2
    assert codes(source) == ["part_chosen", "picture_unlabelled"]
    assert "the part val is read" in source.problems[0].message
    train = sources.find(path).content
    assert sources.find(tmp_path).content == sources.find(f"{path}:train").content == train
    with pytest.raises(ValueError, match="has no part test, but train, val"):
        sources.find(f"{path}:test")
    # Many pictures without labels may be forgotten ones.
    (tmp_path / "labels/train/a.txt").rename(tmp_path / "a.txt")
    annotated.picture(tmp_path / "images/train/c.png")
    assert codes(sources.find(path), "warn") == ["picture_unlabelled"]
    (tmp_path / "images/train/c.png").unlink()
    (tmp_path / "a.txt").rename(tmp_path / "labels/train/a.txt")
    # Without data.yaml; names of classes in a text.
    path.unlink()
    (tmp_path / "labels/classes.txt").write_text("leaf\nstem\n")
    assert sources.find(tmp_path).content == train
    assert len(sources.find(f"{tmp_path}:valid").content["annotations"]) == 2
    assert len(sources.find(tmp_path / "labels").content["images"]) == 2
    flat = sources.find(tmp_path / "labels/train", tmp_path / "images/train")
    assert len(flat.content["annotations"]) == 4 and codes(flat) == ["class_names_missing"]
    deeper = sources.find(tmp_path / "labels/train", tmp_path)
    assert len(deeper.content["annotations"]) >= 4


@pytest.mark.parametrize(
    "layout",
    [
        "path: ../datasets/mine\ntrain: images/train\nnames: [leaf, stem]",
        "train: ../images/train\nnames: [leaf, stem]",
        "path: /home/somebody/mine\ntrain: [images/train]\nnames: {'0': leaf, '1': stem}",
        "train: list.txt\nnames: [leaf, stem]",
        "train: ../../../../etc\nnames: [leaf, stem]",
    ],
)
def test_paths_of_data_yaml(layout, tmp_path):
    path = annotated.yolo(tmp_path)
    path.write_text(layout)
    (tmp_path / "list.txt").write_text("".join(f"./images/train/{name}\n" for name in NAMES))
    source = sources.find(path)
    assert [i["file_name"] for i in source.content["images"]] == [
        f"images/train/{n}" for n in NAMES
    ]
    assert len(source.content["annotations"]) == 4
    assert ("folder_missing" in codes(source)) == ("etc" in layout)


def test_rows_of_yolo(tmp_path):
    path = annotated.yolo(tmp_path)
    rows = ["0 0.5 0.5 0.25 0.5", "0 0.5 0.5 0.25 0.5 0.9", "1 0.1 0.1 0.2 0.2 0.1 0.2", ""]
    bad = ["7 0.1 0.1 0.2 0.2 0.1 0.2", "0 0.1", "cat 1 2 3 4", "-1 0 0 1 1", "0 300 200 40 50"]
    bad += ["0 0.1 0.1 nan 0.2 0.1 0.2", "0 0.1 0.1 0.2 0.2 0.1 0.2 0.3"]
    (tmp_path / "labels/train/a.txt").write_text("\n".join(rows + bad))
    source = sources.find(path)
    box, scored, outline, *_ = source.content["annotations"]
    assert box["bbox"] == scored["bbox"] == [30, 15, 20, 30] and box["segmentation"] == []
    assert outline["category_id"] == 2 and len(source.content["annotations"]) == 5
    assert codes(source, "skip") == ["row_invalid"] * len(bad)
    assert "row 5 is skipped: its class is 7, but the classes are 0 to 1" in str(source.problems)


def test_regions_of_via(tmp_path):
    annotated.picture(tmp_path / "a.png")

    def region(shape, **attributes):
        return {"shape_attributes": shape, "region_attributes": attributes}

    def write(*regions):
        entry = {"filename": "a.png", "size": 1, "regions": list(regions)}
        (tmp_path / "via.json").write_text(json.dumps({"a.png1": entry}))
        return sources.find(tmp_path / "via.json")

    ellipse = {"name": "ellipse", "cx": 40, "cy": 30, "rx": 20, "ry": 10, "theta": np.pi / 2}
    source = write(
        region({"name": "rect", "x": 5, "y": 6, "width": 10, "height": 20}, plant="leaf"),
        region(
            {"name": "circle", "cx": 40, "cy": 30, "r": 10}, plant={"stem": True, "leaf": False}
        ),
        region(ellipse, plant="leaf"),
        region({"name": "point", "cx": 1, "cy": 1}, plant="leaf"),
        region({"name": "rect", "x": "5"}, plant="leaf"),
        region(annotated.via_polygon(LEAF)),
    )
    rect, circle, oval = source.content["annotations"]
    assert (rect["bbox"], rect["segmentation"]) == ([5, 6, 10, 20], [])
    np.testing.assert_allclose(circle["bbox"], [30, 20, 20, 20])
    np.testing.assert_allclose(oval["bbox"], [30, 10, 20, 40])
    assert [a["category_id"] for a in (rect, circle, oval)] == [1, 2, 1]
    assert codes(source) == ["region_invalid", "class_missing", "shape_skipped"]
    nameless = write(region(annotated.via_polygon(LEAF)))
    assert nameless.content["categories"] == [{"id": 1, "name": "object"}]
    assert codes(nameless) == ["class_assumed"]
    with pytest.raises(ValueError, match=r"have the attributes colour \(1\), size \(1\); call the"):
        write(region(annotated.via_polygon(LEAF), colour="red", size="big"))
    chosen = write(region(annotated.via_polygon(LEAF), colour="red", Label="leaf"))
    assert chosen.content["categories"][0]["name"] == "leaf"


def test_shapes_of_via_3(tmp_path):
    path = annotated.via_3(tmp_path)
    project = json.loads(path.read_text())
    shapes = [[2, 5, 6, 10, 20], [3, 40, 30, 10], [4, 40, 30, 20, 10], [1, 3, 3], [8, 1, 2, 3, 4]]
    shapes += [[5, 1, 2, 3, 4], [6, 1, 2, 3, 4], [9, 1, 2, 3, 4], [2, 5, "6", 10, 20], [[]]]
    first = next(iter(project["metadata"].values()))
    project["metadata"] = {str(k): first | {"xy": xy} for k, xy in enumerate(shapes)}
    path.write_text(json.dumps(project))
    source = sources.find(path)
    rect, circle, ellipse = source.content["annotations"]
    assert (rect["bbox"], rect["segmentation"]) == ([5, 6, 10, 20], [])
    np.testing.assert_allclose(circle["bbox"], [30, 20, 20, 20])
    np.testing.assert_allclose(ellipse["bbox"], [20, 20, 40, 20])
    assert codes(source) == ["region_invalid", *["shape_skipped"] * 6]
    kinds = ("point", "line", "polyline", "extreme_rect", "extreme_circle", "unknown")
    told = " ".join(problem.message for problem in source.problems)
    assert all(re.search(rf"\b{kind}\b", told) for kind in kinds), told


def bits(*pairs):
    """Write numbers of given widths as bytes."""
    text = "".join(f"{value:0{width}b}" for value, width in pairs)
    text += "0" * (-len(text) % 8)
    return [int(text[k : k + 8], 2) for k in range(0, len(text), 8)]


def test_results_of_label_studio(tmp_path):
    path = annotated.label_studio(tmp_path)
    tasks = json.loads(path.read_text())
    # Two repeated runs and one of single values: pixels 3 to 9 are painted.
    size = 4 * HEIGHT * WIDTH
    head = [(size, 32), (7, 5), (2, 4), (7, 4), (11, 4), (15, 4)]
    single = [(value, 8) for value in (0, 0, 0, 255)]
    runs = [(1, 1), (0, 2), (7, 3), (0, 8), (0, 1), (0, 2), (3, 3), *single]
    runs += [(1, 1), (1, 2), (27, 8), (255, 8), (1, 1), (3, 2), (size - 41, 16), (0, 8)]
    result = {"original_width": WIDTH, "original_height": HEIGHT}
    brush = {"format": "rle", "rle": bits(*head, *runs), "brushlabels": ["leaf"]}
    box = {"x": 50, "y": 50, "width": 25, "height": 10, "rotation": 0, "rectanglelabels": ["leaf"]}
    turned = box | {"rotation": 90}
    oval = {"x": 50, "y": 50, "radiusX": 10, "radiusY": 20, "ellipselabels": ["stem"]}
    values = {"brushlabels": brush, "rectanglelabels": box, "ellipselabels": oval}
    results = [result | {"type": kind, "value": value} for kind, value in values.items()]
    results += [result | {"type": "rectanglelabels", "value": turned}]
    results += [result | {"type": "choices", "value": {}}]
    results += [result | {"type": "brushlabels", "value": brush | {"rle": [0, 0, 1]}}]
    tasks[0]["annotations"] += [{"result": results}, {"was_cancelled": True, "result": []}]
    path.write_text(json.dumps(tasks))
    source = sources.find(path)
    painted, rectangle, ellipse, rotated, *_ = source.content["annotations"]
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[0, 2:10] = True
    np.testing.assert_array_equal(decode(painted), expected)
    assert (rectangle["bbox"], rectangle["segmentation"]) == ([40, 30, 20, 6], [])
    np.testing.assert_allclose(ellipse["bbox"], [32, 18, 16, 24])
    np.testing.assert_allclose(rotated["bbox"], [34, 30, 6, 20])
    assert codes(source) == ["shape_invalid", "shape_skipped", "shape_skipped"]


def test_shapes_of_cvat(tmp_path):
    path = annotated.cvat(tmp_path)
    shapes = """
<polygon label="leaf" points="1,1;9,1;9,9" group_id="2"/>
<polygon label="leaf" points="20,1;29,1;29,9" group_id="2"/>
<mask label="stem" rle="1,2,3,2" left="76" top="-1" width="4" height="2"/>
<box label="leaf" xtl="10" ytl="20" xbr="30" ybr="40"/>
<box label="leaf" xtl="10" ytl="20" xbr="30" ybr="30" rotation="90"/>
<ellipse label="leaf" cx="40" cy="30" rx="20" ry="10" rotation="90"/>
<polyline label="leaf" points="1,1;9,1"/>
<mask label="stem" rle="1,2" left="76" top="1" width="4" height="2"/>
<box label="leaf" xtl="10"/>
"""
    image = f'<image name="a.png" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'
    path.write_text(f"<annotations>{image}</annotations>")
    source = sources.find(tmp_path)
    leaf, stem, box, turned, oval = source.content["annotations"]
    assert len(leaf["segmentation"]) == 2 and box["segmentation"] == []
    assert box["bbox"] == [10, 20, 20, 20]
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[0, 78:80] = True
    np.testing.assert_array_equal(decode(stem), expected)
    np.testing.assert_allclose(turned["bbox"], [15, 15, 10, 20])
    np.testing.assert_allclose(oval["bbox"], [30, 10, 20, 40])
    assert codes(source) == ["shape_invalid", "shape_invalid", "shape_skipped"]
    entity = '<!DOCTYPE a [<!ENTITY b "c">]>'
    path.write_text(f"{entity}<annotations>{image}</annotations>")
    with pytest.raises(ValueError, match="it has a DOCTYPE"):
        sources.find(path)
    # It may stand in a file of its own.
    path.write_text(f'<!DOCTYPE a SYSTEM "a.dtd"><annotations>{image}</annotations>')
    with pytest.raises(ValueError, match="it has a DOCTYPE"):
        sources.find(path)


def test_masks_of_colours_and_folders(tmp_path):
    annotated.picture(tmp_path / "images/a.png")
    colours = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    ids = annotated.ids()
    colours[ids == 1], colours[ids == 2] = (255, 0, 0), (0, 9, 255)
    annotated.mask(tmp_path / "masks/a.png", colours)
    annotated.picture(tmp_path / "images/b.png")
    for value in (1, 2):
        annotated.mask(tmp_path / f"masks/b/{value}.png", (ids == value).astype(np.uint8) * 255)
    annotated.picture(tmp_path / "images/c.png")
    annotated.mask(tmp_path / "masks/c.png", (ids > 0).astype(np.uint8) * 255)
    annotated.picture(tmp_path / "images/d.png")
    annotated.mask(tmp_path / "masks/e.png", ids)
    source = sources.find(tmp_path)
    areas = [annotation["area"] for annotation in source.content["annotations"]]
    one, two = (ids == 1).sum(), (ids == 2).sum()
    assert sorted(areas) == sorted([one, two, one, two, one + two])
    assert codes(source, "warn") == ["mask_binary", "file_unused", "picture_unlabelled"]


def test_masks_of_pascal_in_colours(tmp_path):
    """As CVAT writes them: with a list of colours, and pictures of these."""
    annotated.pascal(tmp_path)
    root, ids = tmp_path / "VOC2012", annotated.ids()
    (root / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nstem:10,20,30::\nleaf:128,0,0::\n"
    )
    for kind, table in (
        ("Class", [(0, 0, 0), (128, 0, 0), (10, 20, 30)]),
        ("Object", [(0, 0, 0), (128, 0, 0), (0, 128, 0)]),
    ):
        colours = np.array(table, dtype=np.uint8)[ids]
        annotated.mask(root / f"Segmentation{kind}" / "2007_1.png", colours)
    content = sources.find(f"{tmp_path}:val").content
    names = [content["categories"][a["category_id"] - 1]["name"] for a in content["annotations"]]
    assert sorted(names) == ["leaf", "stem"]
    assert sorted(a["area"] for a in content["annotations"]) == sorted(np.bincount(ids.ravel())[1:])
    with pytest.raises(ValueError, match="has no part test; its parts are train, val"):
        sources.find(f"{tmp_path}:test")
