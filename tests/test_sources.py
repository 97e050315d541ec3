"""Data sets are recognised by what they hold, and what is not read is named."""

import json
import shutil

import pytest
from support import annotated

from accelerated.data import lint, sources


def test_the_images_of_a_coco_file_are_found(tmp_path):
    content = sources.find(annotated.labelme(tmp_path / "photos")).content
    for image in content["images"]:
        image["file_name"] = image["file_name"].removeprefix("photos/")
    path = tmp_path / "photos/annotations/train.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    (tmp_path / "photos/photos").rename(tmp_path / "far")
    with pytest.raises(ValueError, match=r"name the folder of its images with --images; a.png is"):
        sources.find(path)
    (tmp_path / "far").rename(tmp_path / "photos/images")
    source = sources.find(path)
    assert (source.format, source.content) == ("COCO", None)
    assert source.image_root == tmp_path / "photos/images"
    assert "are read from" in source.problems[0].message and "2 of 2" in source.problems[0].message
    assert not lint.check(path).blocking
    # Folders of parts, one of which the file's name tells.
    for part in ("train2", "val2"):
        shutil.copytree(source.image_root, tmp_path / "photos" / part)
    shutil.rmtree(source.image_root)
    with pytest.raises(ValueError, match=r"may be in .*train2 or .*val2"):
        sources.find(path)
    named = path.rename(path.with_name("instances_val2.json"))
    assert sources.find(named).image_root == tmp_path / "photos/val2"
    named.rename(path)
    shutil.move(tmp_path / "photos/val2", source.image_root)
    # A folder that holds one such file is that file.
    assert sources.find(path.parent).path == path
    path.with_name("val.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"several COCO files, train.json, val.json; name one"):
        sources.find(path.parent)


UNKNOWN = {
    "a.tfrecord": (b"", "a TFRecord; export the data as COCO"),
    "a.zip": (b"PK", "an archive; unpack it"),
    "voc.xml": (b"<annotation><object><bndbox><xmin>", "boxes without masks"),
    "video.xml": (b"<annotations><track>", "CVAT's xml for video; export it"),
    "a.jpg": (b"", "a picture; name the annotations"),
    "super.json": (b'{"objects": [], "size": {"width": 1, "height": 1}}', "Supervisely"),
    "min.json": (b'[{"image": "a", "annotation_id": 1}]', "JSON-MIN"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_formats_that_are_not_read_are_named(name, tmp_path):
    content, said = UNKNOWN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: this is .*{said}"):
        sources.find(tmp_path / name)
    if not name.endswith(".jpg"):
        with pytest.raises(ValueError, match=said):
            sources.find(tmp_path)


def test_a_folder_of_two_formats_says_which_is_read(tmp_path):
    annotated.labelme(tmp_path)
    content = sources.find(tmp_path).content
    (tmp_path / "photos/coco.json").write_text(json.dumps(content))
    source = sources.find(tmp_path)
    assert source.content == content and [
        p.code for p in source.problems if p.severity == "warn"
    ] == ["format_chosen", "file_ignored"]
    assert "read as LabelMe, but also has files of COCO" in source.problems[0].message


def test_an_unknown_folder_says_what_it_holds(tmp_path):
    with pytest.raises(
        ValueError, match=r"which holds no files\. The formats are: LabelMe \(.*COCO \("
    ):
        sources.find(tmp_path)
    for k in range(3):
        (tmp_path / f"{k}.json").write_text('{"a": 1}')
    annotated.picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"which holds 3 \.json, 1 \.png files"):
        sources.find(tmp_path)


@pytest.mark.parametrize("name", ["labelme", "via_export", "label_studio", "cvat", "penn_fudan"])
def test_a_format_without_parts_has_none(tmp_path, name):
    data = annotated.ALL[name](tmp_path)
    with pytest.raises(ValueError, match="has no parts; name the file or folder of each"):
        sources.find(f"{data}:val")


def test_folders_that_do_not_exist_are_one_error(tmp_path):
    data = annotated.labelme(tmp_path / "photos")
    with pytest.raises(ValueError, match=r"fotos: no such file or folder; did you mean .*photos'"):
        sources.find(tmp_path / "fotos")
    with pytest.raises(ValueError, match=r"folder .*imgs does not exist"):
        sources.find(data, tmp_path / "imgs")
