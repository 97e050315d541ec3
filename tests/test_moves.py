"""Moves of images: exact, undone by their inverses, and the same for boxes, masks and outlines."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.scenes import assert_consistent, assert_same, drawn, scene, scenes

from accelerated.data import moves


@given(scenes)
def test_what_is_mirrored_twice_or_turned_four_times_is_as_it_was(sample):
    assert_consistent(*sample)
    for move in (moves.flip, moves.flip_vertical):
        assert_same(move(*move(*sample)), sample)
    turned = sample
    for _ in range(4):
        turned = moves.turn(*turned, 1)
    assert_same(turned, sample)


@given(scenes, st.integers(1, 3))
def test_mirrors_and_turns_keep_what_is_in_the_image(sample, quarters):
    for image, target in (
        moves.flip(*sample),
        moves.flip_vertical(*sample),
        moves.turn(*sample, quarters),
    ):
        assert_consistent(image, target)
        assert torch.equal(target.masks.sum((1, 2)), sample[1].masks.sum((1, 2)))
        assert torch.equal(target.labels, sample[1].labels)
        for moved, before in zip(target.masks.numpy(), sample[1].masks.numpy(), strict=True):
            pixels, others = (
                sorted(i[m].tolist()) for i, m in ((image, moved), (sample[0], before))
            )
            assert pixels == others


def test_a_turn_is_counterclockwise():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    turned, target = moves.turn(*scene(0, 2, 3, 1), 1)
    assert turned.shape == (3, 2, 3) and target.masks.shape == (1, 3, 2)
    # The right edge becomes the upper one.
    turned, _ = moves.turn(image, scene(0, 2, 3, 0)[1], 1)
    np.testing.assert_array_equal(turned[0], image[:, 2])
    assert_same(moves.turn(*scene(0), 2), moves.flip(*moves.flip_vertical(*scene(0))))
    assert_same(moves.turn(*scene(0), 3), moves.turn(*moves.turn(*scene(0), 2), 1))


@given(scenes, st.data())
def test_a_window_shows_what_is_in_it(sample, data):
    image, target = sample
    height, width = image.shape[:2]
    x1, x2 = sorted(data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
    y1, y2 = sorted(
        data.draw(st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True))
    )
    cut, objects = moves.crop(image, target, (x1, y1, x2, y2))
    assert_consistent(cut, objects)
    np.testing.assert_array_equal(cut, image[y1:y2, x1:x2])
    for points in (points for outlines in objects.polygons for points in outlines):
        assert (points >= 0).all() and (points <= (x2 - x1, y2 - y1)).all()
    visible = target.masks[:, y1:y2, x1:x2].flatten(1).any(1)
    assert torch.equal(objects.labels, target.labels[visible])
    assert torch.equal(objects.masks, target.masks[visible][:, y1:y2, x1:x2])
    assert_same(moves.crop(image, target, (0, 0, width, height)), sample)


def test_a_loose_box_stays_as_it_is_until_it_is_cut():
    image, target = scene(1, 20, 20, 1)
    target.boxes[0] = torch.tensor([0.0, 0.0, 20.0, 20.0])
    assert torch.equal(moves.crop(image, target, (0, 0, 20, 20))[1].boxes, target.boxes)
    assert_consistent(*moves.crop(image, target, (0, 0, 20, 19)))


@given(st.integers(0, 999), st.integers(3, 12))
def test_clipping_is_intersection(seed, count):
    """Also of outlines that cross themselves and leave the image: but for pixels on their edges."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-20, 60, (count, 2))
    clipped = moves.clip(points, (8, 5, 40, 31))
    assert len(clipped) == 0 or len(clipped) >= 3
    assert len(clipped) <= count * 1.5**4
    whole, part = drawn([points], 64, 64), np.zeros((64, 64), dtype=bool)
    if len(clipped):
        assert (clipped >= (8, 5)).all() and (clipped <= (40, 31)).all()
        part = drawn([clipped], 64, 64)
    window = np.zeros((64, 64), dtype=bool)
    window[5:31, 8:40] = True
    assert not (part & ~window).any()
    # The new corners are rounded to a fifth of a pixel, so that edges may pass other centres.
    assert not (((whole & window) ^ part) & ~_near(points)).any()


def _near(points):
    """Pixels whose centres are within half a pixel of an edge."""
    y, x = np.mgrid[:64, :64] + 0.5
    centres = np.stack([x, y], -1)[:, :, None]
    edges = np.roll(points, -1, 0) - points
    along = ((centres - points) * edges).sum(-1) / (edges**2).sum(-1)
    nearest = points + along.clip(0, 1)[..., None] * edges
    return (np.linalg.norm(centres - nearest, axis=-1) <= 0.5).any(-1)


def test_resizing():
    image, target = scene(4, 20, 30, 3)
    doubled, twice = moves.zoom(image, target, (40, 60))
    assert_consistent(doubled, twice)
    assert torch.equal(twice.masks[:, ::2, ::2], target.masks)
    assert torch.equal(twice.boxes, 2 * target.boxes)
    tiny, rest = moves.zoom(*scene(5, 20, 30, 4), (1, 1))
    assert tiny.shape == (1, 1, 3) and rest.masks.flatten(1).any(1).all()
    assert moves.zoom(*scene(5, 20, 30, 0), (5, 7))[1].masks.shape == (0, 5, 7)
