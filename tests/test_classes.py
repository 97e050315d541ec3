"""engine.classes: classes of a model and of a data set, by id and name."""

import json
from dataclasses import replace

import pytest
import torch
from support import narrow, small

from accelerated.data.coco import CocoDataset
from accelerated.engine import evaluate
from accelerated.engine.classes import first_difference, label_ids, shared
from accelerated.engine.train import train

KNOWN = [{"id": 1, "name": "square"}, {"id": 2, "name": "triangle"}]


@pytest.mark.parametrize(
    "wanted, difference",
    [
        ({1: "square", 2: "triangle"}, None),
        ({2: "triangle", 1: "square"}, None),
        ({2: "triangle"}, None),
        ({1: "Square", 2: "triangle"}, "its category 1 is 'Square', the model's is 'square'"),
        ({1: "square", 2: "disc"}, "its category 2 is 'disc', the model's is 'triangle'"),
        ({1: "triangle", 2: "square"}, "its category 1 is 'triangle', the model's is 'square'"),
        (
            {0: "square", 1: "triangle"},
            "the model has no category 0 ('square', which is 1 for the model)",
        ),
        ({1: "square", 3: "disc"}, "the model has no category 3 ('disc')"),
    ],
)
def test_first_difference(wanted, difference):
    categories = [{"id": number, "name": name} for number, name in wanted.items()]
    assert first_difference(KNOWN, categories) == difference


def test_shared_labels():
    ours = [{"id": 9, "name": " TRIANGLE"}, {"id": 3, "name": "N/A 3"}]
    theirs = [*KNOWN, {"id": 3, "name": "N/A 3"}]
    assert shared(theirs, ours) == [(2, 1)]
    assert shared(None, ours) == shared(theirs, None) == []


@pytest.fixture
def subset(tmp_path):
    """The data set of the shapes, and a file of it with the category 2 alone."""
    data, images = small.shapes(2).write_coco(tmp_path)
    content = json.loads(data.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 2]
    content["categories"] = [c for c in content["categories"] if c["id"] == 2]
    (tmp_path / "subset.json").write_text(json.dumps(content))
    return CocoDataset(data, images), CocoDataset(tmp_path / "subset.json", images)


def test_a_subset_of_the_classes_is_evaluated(subset, tmp_path):
    """Detections keep their ids, and those of other classes are left out; while training, too."""
    whole, part = subset
    model = narrow.model(narrow.config("tiny", num_classes=3), dtype=torch.float32)
    model.categories = evaluate.categories(whole)
    results = evaluate.detect(model, whole)
    assert {2, 3} <= {r["category_id"] for r in results}
    assert evaluate.detect(model, part) == [r for r in results if r["category_id"] == 2]
    assert label_ids(model.categories, part) == [None, 2, None]
    assert label_ids(evaluate.categories(part), part) == [2]
    result = train(
        small.config(), whole, tmp_path / "run", iterations=1, evaluation=part, bar=False
    )
    assert list(result.metrics["bbox"]["classes"]) == ["rectangle"]
    assert result.model.categories == model.categories
    with pytest.raises(ValueError, match="the evaluation data does not fit the training data"):
        one = replace(small.config(), num_classes=1)
        train(one, part, tmp_path / "x", iterations=1, evaluation=whole, bar=False)
