"""engine.tiles: objects across seams become one, and objects that only touch stay two."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accelerated.engine import tiles
from accelerated.structures import Crop, CroppedDetections, Detections

CLASSES = 3


def class_of(number):
    return number % CLASSES + 1


def oracle(images, masks=True, seen=lambda mask: True):
    """Detect what stands in the pixels: an object's number in the first channel, its class by it.

    seen  of a mask in a tile: whether the detector notices it
    """
    return [_objects(np.asarray(image)[..., 0], masks, seen) for image in images]


def _objects(numbers, masks, seen):
    found = []
    for number in np.unique(numbers[numbers > 0]).tolist():
        mask = numbers == number
        y, x = np.nonzero(mask)
        if seen(mask):
            box = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            crop = mask[y.min() : y.max() + 1, x.min() : x.max() + 1]
            found.append((number, box, Crop(torch.from_numpy(crop), y.min(), x.min(), mask.shape)))
    found.sort(reverse=True, key=lambda one: one[0])
    boxes = torch.tensor(np.array([box for _, box, _ in found]).reshape(-1, 4)).double()
    scores = torch.tensor([number / 256 for number, _, _ in found]).double()
    labels = torch.tensor([class_of(number) for number, _, _ in found], dtype=torch.int64)
    if not masks:
        return Detections(boxes, scores, labels, None)
    return CroppedDetections(boxes, scores, labels, None, [crop for *_, crop in found])


def full(crop):
    mask = np.zeros(crop.size, bool)
    rows, columns = crop.pixels.shape
    mask[crop.top : crop.top + rows, crop.left : crop.left + columns] = crop.pixels
    return mask


def assert_equal(found, expected):
    """Compare detections to the last bit, masks pixel by pixel."""
    for name in ("scores", "labels", "boxes"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert type(found) is type(expected)
    for ours, theirs in zip(
        getattr(found, "crops", ()), getattr(expected, "crops", ()), strict=True
    ):
        assert np.array_equal(full(ours), full(theirs))


def rectangle(shape, x, y, width, height):
    mask = np.zeros(shape, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def bar(shape, x, y, width, height):
    """A diagonal of its rectangle, three pixels thick."""
    mask = np.zeros(shape, bool)
    for step in range(max(width, height)):
        row = y + step * (height - 1) // max(width, height)
        column = x + step * (width - 1) // max(width, height)
        mask[row : row + 3, column : column + 3] = True
    return mask & rectangle(shape, x, y, width, height)


def ellipse(shape, x, y, width, height):
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside = ((columns - x) / width - 0.5) ** 2 + ((rows - y) / height - 0.5) ** 2 <= 0.25
    return inside


@st.composite
def pictures(draw, forms, height=100, width=130, longest=None):
    """Draw a picture of up to nine objects that do not overlap; many touch."""
    image = np.zeros((height, width, 3), np.uint8)
    number = 0
    for _ in range(draw(st.integers(0, 9))):
        sides = [
            draw(st.one_of(st.integers(2, 24), st.integers(2, side))) for side in (width, height)
        ]
        w, h = (side if longest is None else min(side, longest) for side in sides)
        x, y = draw(st.integers(0, width - w)), draw(st.integers(0, height - h))
        mask = draw(st.sampled_from(forms))((height, width), x, y, w, h)
        if not (image[mask] > 0).any() and mask.any():
            number += draw(st.integers(1, 3))
            image[mask] = number
    return image


grids = st.sampled_from([tiles.Tiles(48, 12), tiles.Tiles(40, 20), tiles.Tiles(64, 3)])


@given(pictures([rectangle, ellipse, bar]), grids, st.integers(1, 5))
def test_masks_in_tiles_are_those_of_the_picture(image, grid, batch_size):
    """Whole objects, pieces across corners of four tiles, objects larger than a tile."""
    assert_equal(tiles.detect(oracle, image, grid, batch_size), oracle([image])[0])


@given(pictures([rectangle]), grids)
def test_boxes_in_tiles_are_those_of_the_picture(image, grid):
    def boxes(images):
        return oracle(images, masks=False)

    assert_equal(tiles.detect(boxes, image, grid), boxes([image])[0])


@given(pictures([rectangle, ellipse], longest=20), st.integers(0, 2**31))
def test_an_object_no_longer_than_the_overlap_needs_no_pieces(image, seed):
    """Some tile has it whole; whether the pieces in others are noticed does not matter."""
    rng = np.random.default_rng(seed)

    def noticed(mask):
        edges = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
        return not edges or rng.random() < 0.5

    def find(images):
        return oracle(images, seen=noticed)

    # At the border of the picture everything is noticed.
    image = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    assert_equal(tiles.detect(find, image, tiles.Tiles(48, 22)), oracle([image])[0])


@given(st.integers(1, 400), st.integers(1, 400), st.integers(16, 90), st.data())
def test_tiles_cover_the_picture_and_share_the_overlap(height, width, side, data):
    overlap = data.draw(st.integers(1, side // 2))
    parts = tiles.windows(height, width, tiles.Tiles(side, overlap))
    covered = np.zeros((height, width), int)
    for top, left, bottom, right in parts:
        assert (bottom - top, right - left) == (min(side, height), min(side, width))
        covered[top:bottom, left:right] += 1
    assert covered.min() == 1
    for axis, length in ((0, height), (1, width)):
        firsts = sorted({part[axis] for part in parts})
        assert all(b - a <= side - overlap for a, b in pairwise(firsts))
        assert length > side or len(firsts) == 1
        # One tile fewer would not do.
        assert len(firsts) == 1 or (len(firsts) - 1) * (side - overlap) + overlap < length


def test_two_that_touch_stay_two_and_one_seen_twice_is_one():
    image = np.zeros((60, 160, 3), np.uint8)
    # Both of class 2, side by side across the seam; then one of class 2 whole in two tiles.
    image[10:40, 30:58], image[10:40, 58:90], image[45:55, 75:80] = 1, 4, 7
    parts = tiles.windows(60, 160, tiles.Tiles(64, 16))
    assert [part.left for part in parts] == [0, 48, 96]
    found = tiles.detect(oracle, image, tiles.Tiles(64, 16))
    assert found.boxes.tolist() == [[75, 45, 80, 55], [58, 10, 90, 40], [30, 10, 58, 40]]


def of_tile(*rows):
    """Make the detections of a tile of 64 x 64 pixels: (score, box), or (score, box, label)."""
    crops = []
    for _, (x1, y1, x2, y2), *_ in rows:
        pixels = torch.ones(int(y2) - int(y1), int(x2) - int(x1), dtype=torch.bool)
        crops.append(Crop(pixels, int(y1), int(x1), (64, 64)))
    boxes, scores = torch.tensor([[*row[1]] for row in rows]), torch.tensor([r[0] for r in rows])
    labels = torch.tensor([row[2] if len(row) > 2 else 1 for row in rows])
    return CroppedDetections(boxes, scores, labels, None, crops)


def test_the_seams_of_noisy_detections():
    """Boxes end near a seam, masks differ by a pixel, scores differ; a weak twin is absorbed."""
    left, right = tiles.windows(64, 112, tiles.Tiles(64, 16))
    # Two pieces that stop short of the seams; a whole object and its piece, of higher score; a
    # piece that no other tile confirms.
    first = of_tile(
        (0.6, [20.0, 2.0, 62.5, 12.0]), (0.5, [50.0, 30.0, 58.0, 40.0]), (0.3, [40.0, 50, 63, 60])
    )
    second = of_tile((0.8, [1.0, 1.0, 30.0, 12.0]), (0.7, [0.0, 30.0, 10.0, 40.0]))
    merged = tiles.merge([first, second], [left, right], (64, 112))
    assert isinstance(merged, CroppedDetections)
    assert merged.scores.tolist() == pytest.approx([0.8, 0.7, 0.3])
    assert merged.boxes.tolist() == [[20, 1, 78, 12], [50, 30, 58, 40], [40, 50, 63, 60]]
    expected = rectangle((64, 112), 20, 2, 42, 10) | rectangle((64, 112), 49, 1, 29, 11)
    assert np.array_equal(full(merged.crops[0]), expected)


def test_what_one_tile_tells_apart_stays_apart():
    """The model has settled what overlaps in a tile; other classes never compete."""
    first = of_tile((0.9, [48.0, 10.0, 60.0, 30.0]), (0.8, [48.0, 11.0, 60.0, 30.0]))
    second = of_tile((0.7, [0.0, 10.0, 12.0, 30.0], 2))
    merged = tiles.merge([first, second], tiles.windows(64, 112, tiles.Tiles(64, 16)), (64, 112))
    assert merged.labels.tolist() == [1, 1, 2]


def test_nothing_found_is_no_detections():
    image = np.zeros((60, 160, 3), np.uint8)
    for masks in (True, False):
        found = tiles.detect(lambda x, masks=masks: oracle(x, masks), image, tiles.Tiles(64, 16))
        assert_equal(found, oracle([image], masks)[0])


def test_a_picture_that_fits_goes_as_it_is():
    image = np.zeros((64, 40, 3), np.uint8)
    image[:9, :9], image[20:30, 20:30] = 1, 200
    calls = []

    def find(images):
        calls.append([x.shape for x in images])
        return oracle(images)

    [once, again] = tiles.tiled(find, tiles.Tiles(64, 16), threshold=0)([image, image])
    assert_equal(once, oracle([image])[0])
    assert_equal(again, once)
    assert calls == [[(64, 40, 3)]] * 2


@pytest.mark.parametrize("width", [40, 130])
def test_a_score_counts_after_merging(width):
    image = np.zeros((64, width, 3), np.uint8)
    image[:9, :9], image[20:30, 20:35] = 64, 128
    found = tiles.detect(oracle, image, tiles.Tiles(64, 16), threshold=0.5)
    assert isinstance(found, CroppedDetections)
    assert found.scores.tolist() == [0.5] and len(found.crops) == 1
    found = tiles.detect(lambda x: oracle(x, masks=False), image, tiles.Tiles(64, 16), 1, 0.6)
    assert found.boxes.tolist() == [] and not isinstance(found, CroppedDetections)


def test_twelve_megapixels_of_three_hundred_objects():
    """Masks exist in their windows alone: dense ones would take 3.6 GB."""
    size, grid = (3000, 4000), tiles.Tiles(1024, 256)
    corners = np.array([(x, y) for y in range(20, 2900, 193) for x in range(20, 3900, 194)])
    boxes = np.concatenate([corners, corners + 150], 1)
    parts, found = tiles.windows(*size, grid), []
    for top, left, bottom, right in parts:
        clipped = np.clip(boxes - [left, top, left, top], 0, [right - left, bottom - top] * 2)
        rows = np.flatnonzero((clipped[:, 2:] > clipped[:, :2]).all(1))
        crops = [
            Crop(torch.ones(y2 - y1, x2 - x1, dtype=torch.bool), y1, x1, (1024, 1024))
            for x1, y1, x2, y2 in clipped[rows].tolist()
        ]
        scores, labels = torch.from_numpy(1 - rows / 1000), torch.ones(len(rows)).long()
        found.append(
            CroppedDetections(torch.from_numpy(clipped[rows]), scores, labels, None, crops)
        )
    merged = tiles.merge(found, parts, size)
    assert len(parts) == 20 and len(boxes) == 300 < sum(len(one.labels) for one in found)
    assert merged.boxes.tolist() == boxes.tolist()
    assert isinstance(merged, CroppedDetections)
    assert sum(crop.pixels.numel() for crop in merged.crops) == 300 * 150 * 150


@pytest.mark.parametrize(
    ("text", "expected"), [("1024", (1024, 256)), ("1024:200", (1024, 200)), ("16:8", (16, 8))]
)
def test_tiles_of_text(text, expected):
    assert tiles.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "a", "-5", "1024:", "1024:a", "15", "64:33", "64:0", "64:1:1"]
)
def test_other_texts_are_refused_in_a_line(text):
    with pytest.raises(ValueError, match=f"--tiles {text}: [^\n]*$"):
        tiles.parse(text)
