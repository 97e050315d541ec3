"""engine.held_out: the parts of a run are kept, led to their images, and refused for other data."""

import json
import shutil

import pytest
from support import shapes_file

from accelerated.data.coco import CocoDataset
from accelerated.engine.held_out import hold_out


@pytest.fixture
def opened(tmp_path):
    """opened("folder", content): four images in a folder of their own, as a data set."""

    def call(name, content=None):
        root = shapes_file.pictures(tmp_path / name)
        content = content or shapes_file.data()
        for image in content["images"]:
            source = root / f"img{image['id'] - 1}.png"
            source.rename(root / image["file_name"])
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return CocoDataset(tmp_path / f"{name}.json", root)

    return call


def test_other_images_of_the_same_ids_are_refused(opened, tmp_path):
    run = tmp_path / "run"
    _, val, _ = hold_out(opened("one"), run, 0.3, 0)
    content = shapes_file.data()
    content["images"][2]["file_name"] = "other.png"
    with pytest.raises(ValueError, match=r"lists other .*: 3 was img2.png, now other.png; choose"):
        hold_out(opened("two", content), run, 0.3, 0)
    # A run that was split before names were kept.
    path = run / "split/split.json"
    parts = json.loads(path.read_text())
    del parts["files"]
    path.write_text(json.dumps(parts))
    assert hold_out(opened("three"), run, 0.3, 0)[1].image_ids == val.image_ids


def test_images_that_have_moved_are_found_again(opened, tmp_path):
    run = tmp_path / "run"
    _, _, path = hold_out(opened("one"), run, 0.3, 0)
    before = path.read_text()
    shutil.rmtree(tmp_path / "one")
    path.unlink()
    hold_out(opened("two"), run, 0.3, 0)
    assert (run / "split/images").resolve() == tmp_path / "two"
    assert path.read_text() == before and len(CocoDataset(path)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"train": 5},
        {"train": [[1], 2, 3]},
        {"files": 5},
        {"files": [1]},
        {"seed": None},
        {"train": ["1", "2", "3"]},
        None,
        [],
    ],
)
def test_a_damaged_list_is_one_error(opened, tmp_path, change):
    dataset, path = opened("one"), tmp_path / "run/split/split.json"
    hold_out(dataset, tmp_path / "run", 0.3, 0)
    parts = json.loads(path.read_text())
    path.write_text(json.dumps(parts | change if isinstance(change, dict) else change))
    with pytest.raises(ValueError, match=r"split\.json|was split with seed None") as error:
        hold_out(dataset, tmp_path / "run", 0.3, 0)
    assert "\n" not in str(error.value)
