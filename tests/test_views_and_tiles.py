"""--tta and --tiles of `evaluate` and `predict`, with a small trained model."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import accelerated
from accelerated import interop, processes
from accelerated.data.synthetic import ShapesDataset
from accelerated.engine import evaluate, group, tiles, views
from accelerated.engine.predict import predict
from reference.config import override
from reference.shapes import Style

TINY = Path(__file__).parents[1] / "notebooks" / "data" / "tiny"


@pytest.fixture(scope="module")
def model() -> Any:
    return interop.read_model(TINY).model.eval()


@pytest.fixture(scope="module")
def small_ones():
    """Pictures as the model was trained on, of one size."""
    return ShapesDataset(3, seed=5)


@pytest.fixture(scope="module")
def large_one():
    """A picture of 256 x 352 pixels with objects as large as those that the model knows."""
    return ShapesDataset(1, seed=9, size=(256, 352), max_objects=30, style=Style((0.035, 0.115)))


def test_the_image_itself_is_the_plain_evaluation(model, small_ones):
    plain = evaluate.detect(model, small_ones, batch_size=2)
    assert len(plain) > 5
    assert evaluate.detect(model, small_ones, batch_size=2, tta=views.parse("1")) == plain
    in_tiles = evaluate.detect(model, small_ones, tiles=tiles.parse("128"), workers=1)
    assert in_tiles == evaluate.detect(model, small_ones)


def test_in_tiles_one_picture_is_in_memory_at_a_time(model, small_ones, monkeypatch):
    """A batch consists of tiles of one picture, for which others would only wait."""
    batches, loader = [], evaluate.loader
    monkeypatch.setattr(
        evaluate, "loader", lambda *a, **k: batches.append(loader(*a, **k)) or batches[-1]
    )
    found = evaluate.detect(model, small_ones, tiles=tiles.parse("96:32"), batch_size=2)
    assert found and len(batches[0]) == len(small_ones)


def test_views_of_a_batch_are_those_of_each_image(model, small_ones, monkeypatch):
    looked = partial(evaluate.detect, model, small_ones, tta=views.parse("flip"))
    alone, together = looked(), looked(batch_size=2)
    assert len(alone) == len(together) != len(evaluate.detect(model, small_ones))
    for one, other in zip(alone, together, strict=True):
        assert one["image_id"] == other["image_id"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    # Of two processes, each takes its share.
    monkeypatch.setattr(processes, "number", lambda: 2)
    parts = []
    monkeypatch.setattr(group, "collect", parts.append)
    for rank in (0, 1):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        looked()
    assert [x for found in group.alternate(parts) for x in found] == alone


def test_tiles_find_what_the_whole_picture_shows(model, large_one):
    """At the same scale; made as small as the network's input, the picture shows little."""
    config = override(model.config, "transform.min_size=[256]", "transform.max_size=352")
    large = interop.read_model(TINY, changes=["transform.min_size=[256]", "transform.max_size=352"])
    assert large.model.config == config
    whole = evaluate.evaluate(large.model.eval(), large_one)
    tiled = evaluate.evaluate(model, large_one, tiles=tiles.parse("128:48"), batch_size=4)
    shrunk = evaluate.evaluate(model, large_one)
    for kind in ("bbox", "segm"):
        assert tiled[kind]["AP50"] > max(0.5, 0.9 * whole[kind]["AP50"], shrunk[kind]["AP50"])


def test_views_and_tiles_together(model, large_one, tmp_path):
    image = large_one[0].image
    Image.fromarray(image).save(tmp_path / "picture.png")
    how = {"tta": views.parse("flip"), "tiles": tiles.parse("128:48"), "threshold": 0.5}
    result = predict(model, [tmp_path / "picture.png"], tmp_path / "out", batch_size=4, **how)
    [found] = accelerated.detections(model, [tmp_path / "picture.png"], **how)
    annotations = result.predictions["annotations"]
    assert len(annotations) == len(found.detections.labels) > 5
    assert min(annotation["score"] for annotation in annotations) >= 0.5
    find = partial(views.detect, model, views="flip", crops=True)
    again = tiles.detect(find, image, how["tiles"], threshold=0.5)
    assert np.allclose(again.boxes, found.detections.boxes, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ("--tta", "rotate"),
            "--tta rotate: rotate is neither flip nor flip_vertical nor a factor",
        ),
        (("--tta", ""), "--tta names no view"),
        (("--tiles", "9"), "--tiles 9: SIDE must be at least 16"),
        (("--tta", "flip", "--compile"), "--tta and --compile exclude each other"),
    ],
)
@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_bad_options_are_a_line(command, tmp_path, small_ones, name, options, expected):
    truth, images = small_ones.write_coco(tmp_path / "data")
    inputs = ("--data", truth) if name == "evaluate" else (images,)
    code, _, error = command(name, TINY, *inputs, "--output", tmp_path / "out", *options)
    assert code == 2 and expected in error.splitlines()[-1], error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_views_and_tiles_change_a_model_not_its_results(command, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps([]))
    for option in (("--tta", "flip"), ("--tiles", "512")):
        words = ("evaluate", tmp_path / "results.json", "--data", tmp_path / "data.json", *option)
        code, _, error = command(*words)
        assert code == 2 and f"{option[0]} changes a model" in error
