"""Pictures of detections: which pixels change, at any size and number of objects."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from accelerated.data.synthetic import ShapesDataset
from accelerated.drawing import detections
from accelerated.structures import Crop


def objects(boxes, height, width, scores=None):
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 4)
    masks = np.zeros((len(boxes), height, width), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[max(y1, 0) : y2, max(x1, 0) : x2] = True
    return SimpleNamespace(boxes=boxes, labels=np.ones(len(boxes), int), masks=masks, scores=scores)


def test_masks_are_tinted_and_the_rest_is_left_alone():
    image = np.full((60, 80, 3), 100, np.uint8)
    out = detections.draw(image, objects([[20, 30, 50, 55]], 60, 80), ["thing"])
    assert out.shape == image.shape and out.dtype == np.uint8
    inside = slice(35, 50), slice(25, 45)
    assert (out[inside] != image[inside]).any(-1).all()
    assert (out[:, 60:] == 100).all() and (out[57:] == 100).all()
    assert (image == 100).all()


def test_objects_below_the_threshold_are_not_drawn():
    image = np.full((60, 80, 3), 100, np.uint8)
    faint = objects([[20, 30, 50, 55]], 60, 80, scores=np.array([0.49]))
    assert np.array_equal(detections.draw(image, faint, ["thing"], threshold=0.5), image)
    assert not np.array_equal(detections.draw(image, faint, ["thing"], threshold=0.4), image)


@pytest.mark.parametrize(
    "boxes", [[], [[-5, -5, 200, 200]], [[10, 10, 10, 10]], [[30, 20, 10, 5]], [[79, 59, 80, 60]]]
)
def test_no_objects_and_degenerate_boxes(boxes):
    image = np.zeros((60, 80, 3), np.uint8)
    out = detections.draw(image, objects(boxes, 60, 80, np.ones(len(boxes))), ["thing"])
    assert out.shape == (60, 80, 3)
    if not boxes:
        assert np.array_equal(out, image)


def test_without_masks_boxes_and_names_alone_are_drawn():
    image = np.full((60, 80, 3), 100, np.uint8)
    thing = objects([[20, 30, 50, 55]], 60, 80, np.array([0.9]))
    thing.masks = None
    out = detections.draw(image, thing, ["thing"])
    assert (out[32:54, 22:49] == 100).all() and tuple(out[40, 20]) == tuple(
        out[55, 35]
    ) == detections.color(0)


def test_tensors_scale_and_unknown_labels():
    thing = objects([[4, 4, 12, 12]], 20, 30, np.array([0.9]))
    expected = detections.draw(np.zeros((20, 30, 3)), thing, [], scale=3)
    tensors = SimpleNamespace(
        **{key: torch.from_numpy(value) for key, value in vars(thing).items()}
    )
    assert expected.shape == (60, 90, 3)
    assert np.array_equal(detections.draw(torch.zeros(20, 30, 3), tensors, [], scale=3), expected)


def test_a_small_object_stays_visible_on_a_large_one():
    image = np.zeros((60, 80, 3), np.uint8)
    # The small object comes first and has the lower score.
    both = objects([[40, 30, 50, 40], [0, 0, 80, 60]], 60, 80, np.array([0.1, 0.9]))
    out = detections.draw(image, both, ["thing"], threshold=0.0)
    # Its rim.
    assert tuple(out[35, 40]) == detections.color(0)


def test_a_hundred_objects_in_under_a_second_each_in_its_own_color():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 700, (100, 2))
    thing = objects(
        np.concatenate([corners, corners + rng.uniform(5, 90, (100, 2))], 1),
        800,
        800,
        rng.uniform(0.5, 1, 100),
    )
    assert detections.draw(np.zeros((800, 800, 3)), thing, ["thing"]).any()
    assert len({detections.color(i) for i in range(100)}) == 100


def test_sheet_holds_images_of_different_sizes():
    images = [
        np.full((h, w, 3), 40 * (i + 1), np.uint8)
        for i, (h, w) in enumerate([(20, 30), (20, 30), (40, 60), (10, 10), (20, 30)])
    ]
    page = detections.sheet(images, columns=2, gap=6)
    assert page.shape == (3 * 26 + 6, 2 * 36 + 6, 3)
    assert all((page == 40 * (i + 1)).all(-1).any() for i in range(5))
    with pytest.raises(ValueError, match="at least one"):
        detections.sheet([])


def test_sample_of_a_data_set():
    dataset = ShapesDataset(5, size=64)
    page = detections.sample(dataset, 4)
    assert page.shape == (76, 4 * 70 + 6, 3)
    assert np.array_equal(page, detections.sample(dataset, 4)) and not np.array_equal(
        page, detections.sample(dataset, 4, seed=1)
    )
    assert detections.sample(dataset, 99).shape[0] == 2 * 70 + 6


@pytest.mark.parametrize("side", [640, 2000, 4000])
def test_a_picture_reads_at_the_size_of_a_screen(side):
    """Frame, rim and letters of one scene stay as large where it is shrunk to 640 pixels."""
    unit = side // 20
    thing = objects([[4 * unit, 8 * unit, 16 * unit, 18 * unit]], side, side, np.array([0.99]))
    thing.masks[:, :, : 6 * unit] = False
    out = detections.draw(np.zeros((side, side, 3), np.uint8), thing, ["thing", "other"])
    rgb = np.array(detections.color(0))
    painted = (out == rgb).all(-1)
    # Down a column of the box without mask: its caption, its two lines.
    column = painted[:, 5 * unit]
    lines = np.flatnonzero(np.diff(column[9 * unit :].astype(int)))
    line = column[8 * unit : 9 * unit].sum()
    assert len(lines) == 2 and lines[1] - lines[0] == line == max(1, round(side / 500))
    # Along a row: the left line, the mask's rim, tint, and both again.
    row = painted[12 * unit]
    assert row[: 10 * unit].sum() == 2 * line and row[4 * unit : 4 * unit + line].all()
    # Above the box: the caption, as high as two hundredths of the screen.
    caption = painted[: 8 * unit].any(1).sum()
    assert 0.016 < caption / side < 0.03
    width = painted[: 8 * unit].any(0).sum()
    assert 0.05 < width / side < 0.2


def captions(monkeypatch, *arguments, **keywords):
    """Return the texts that `draw` writes."""
    written = []
    text = detections.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        detections.ImageDraw.ImageDraw,
        "text",
        lambda self, xy, t, *a, **k: (written.append(t), text(self, xy, t, *a, **k))[1],
    )
    detections.draw(*arguments, **keywords)
    return written


def test_the_class_is_named(monkeypatch):
    """Also where there is a single one; in a narrow box instead of the score."""
    image, scores = np.zeros((200, 300, 3), np.uint8), np.array([0.9])
    wide = objects([[20, 60, 200, 150]], 200, 300, scores)
    assert captions(monkeypatch, image, wide, ["thing"]) == ["thing 0.90"]
    assert captions(monkeypatch, image, wide, ["thing", "other"]) == ["thing 0.90"]
    places = [[x, y, x + 20, y + 10] for y in range(30, 190, 30) for x in range(10, 270, 40)]
    crowd = objects(places, 200, 300, np.full(len(places), 0.9))
    assert set(captions(monkeypatch, image, crowd, ["thing", "other"])) == {"thing"}
    assert set(captions(monkeypatch, image, crowd, ["thing"])) == {"0.90"}
    truth = objects([[20, 60, 200, 150]], 200, 300)
    assert captions(monkeypatch, image, truth, ["thing"]) == []
    assert captions(monkeypatch, image, truth, ["thing", "other"]) == ["thing"]


def test_crops_are_drawn_as_full_masks(rng):
    """In the window that they fill, also at the border and where it is empty."""
    image = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    thing = objects([[0, 0, 40, 30], [50, 20, 120, 90], [70, 5, 75, 9]], 90, 120, np.ones(3))
    thing.masks &= rng.random(thing.masks.shape) < 0.9
    thing.masks[2] = False
    windows = [(0, 0, 50, 60), (15, 44, 90, 120), (4, 60, 20, 80)]
    crops = [
        Crop(torch.from_numpy(mask[top:bottom, left:right]), top, left, mask.shape)
        for mask, (top, left, bottom, right) in zip(thing.masks, windows, strict=True)
    ]
    cropped = SimpleNamespace(**vars(thing) | {"masks": None, "crops": crops})
    for scale in (1, 3, 12):
        expected = detections.draw(image, thing, ["thing"], scale=scale)
        assert np.array_equal(detections.draw(image, cropped, ["thing"], scale=scale), expected)


@pytest.mark.parametrize(("ending", "worst"), [("jpg", 40), ("png", 0)])
def test_drawings_are_saved_well(rng, tmp_path, ending, worst):
    pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    detections.save(pixels, tmp_path / "new" / f"a.{ending}")
    with Image.open(tmp_path / "new" / f"a.{ending}") as picture:
        assert picture.format == {"jpg": "JPEG", "png": "PNG"}[ending]
        assert np.abs(np.asarray(picture).astype(int) - pixels).mean() <= worst / 10
