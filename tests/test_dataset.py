"""data.dataset: the documented data set of one's own trains, and what is derived is right."""

import inspect
import pydoc
import re

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from support import small

import accelerated
from accelerated.data import dataset
from accelerated.data.coco import CocoDataset


def example():
    """Return the program in the docstring of the module."""
    text = inspect.getdoc(dataset)
    start = text.index("    import numpy")
    return inspect.cleandoc(text[start:])


def test_the_example_trains(tmp_path, monkeypatch, capsys):
    """It runs as it stands, and whoever asks for help finds it."""
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(example(), "example", "exec"), names)
    assert (tmp_path / "squares" / "last" / "model.safetensors").exists()
    assert names["result"].metrics["segm"]["AP"] is not None
    assert "['square']" in capsys.readouterr().out
    body = example().split("class Squares")[1].split("\n\nconfig")[0]
    assert len(body.splitlines()) <= 20
    assert 'help("accelerated.data.dataset")' in accelerated.__doc__


def test_what_is_derived(tmp_path):
    """The ground truth and the list of objects are those that the reader of COCO files finds."""
    shapes = small.shapes(4)
    written = CocoDataset(*shapes.write_coco(tmp_path))
    assert shapes.coco == written.coco and shapes.instances() == written.instances()
    assert len(shapes) == 4 and (shapes.max_points, shapes.outlined) == (0, False)
    for annotation in shapes.coco["annotations"][:3]:
        target = shapes[annotation["image_id"] - 1].target
        masks = [
            np.array_equal(coco_mask.decode(annotation["segmentation"]), m) for m in target.masks
        ]
        assert sum(masks) == 1
        x, y, width, height = annotation["bbox"]
        assert target.boxes[masks.index(True)].tolist() == [x, y, x + width, y + height]
        assert int(target.labels[masks.index(True)]) == annotation["category_id"]


@pytest.mark.parametrize("line", ["model.detect", "class_names", "predict", "train("])
def test_the_help_of_the_package_shows_the_way(line):
    assert line in accelerated.__doc__


def test_the_examples_of_the_package_name_what_exists():
    names = re.findall(r"accelerated\.[\w.]+", accelerated.__doc__)
    assert len(names) > 4 and all(pydoc.locate(name) is not None for name in names)
