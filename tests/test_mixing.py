"""Mosaic and copy-paste: nothing twice, nothing where something else lies, labels and outlines."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.scenes import assert_consistent, assert_same, scene, scenes

from accelerated.data import mixing

GREY = np.array([90, 90, 90], np.uint8)


def labelled(sample, label):
    """Give all objects and pixels of an image the same number."""
    image, target = sample
    target.labels[:] = label
    image[:] = label
    return image, target


@given(st.lists(scenes, min_size=4, max_size=4), st.integers(0, 999))
def test_a_mosaic_shows_each_image_in_its_quarter(samples, seed):
    samples = [labelled(sample, number) for number, sample in enumerate(samples, start=1)]
    image, target = mixing.mosaic(samples, GREY, np.random.default_rng(seed))
    assert image.shape == samples[0][0].shape
    assert_consistent(image, target)
    assert set(np.unique(image)) <= {1, 2, 3, 4, 90}
    for number, (_, objects) in enumerate(samples, start=1):
        found = target.labels == number
        # No object twice, none on the pixels of another image, none larger than it was.
        assert found.sum() <= len(objects.labels)
        shown = target.masks[found].any(0).numpy()
        assert (image[shown] == number).all()
        sizes = target.masks[found].sum((1, 2)).tolist()
        assert all(size <= int(objects.masks.sum((1, 2)).max()) for size in sizes)


def test_images_of_a_mosaic_that_are_too_small_lie_where_all_meet():
    samples = [labelled(scene(0, 20, 20, 0), 1)]
    samples += [labelled(scene(0, 1, 1, 0), number) for number in (2, 3, 4)]
    for seed in range(10):
        image, _ = mixing.mosaic(samples, GREY, np.random.default_rng(seed))
        rows, columns = np.nonzero(np.isin(image[..., 0], (2, 3, 4)))
        assert len(rows) == 3 and np.ptp(rows) == np.ptp(columns) == 1


def test_a_mosaic_of_one_image_has_its_objects_where_its_pixels_are():
    """Pixels tell where they came from, and so does the object that covers the left half."""
    image, target = scene(0, 40, 60, 1)
    image[:] = np.arange(60)[None, :, None]
    target.masks[0] = torch.from_numpy(image[..., 0] < 30)
    target.boxes[0] = torch.tensor([0.0, 0, 30, 40])
    target.polygons = [[np.array([[0.0, 0], [30, 0], [30, 40], [0, 40]])]]
    for seed in range(20):
        mixed, objects = mixing.mosaic([(image, target)] * 4, GREY, np.random.default_rng(seed))
        assert_consistent(mixed, objects)
        assert torch.equal(objects.masks.any(0), torch.from_numpy(mixed[..., 0] < 30))
        assert 1 <= len(objects.labels) <= 4


@given(scenes, scenes, st.integers(0, 999))
def test_what_is_pasted_hides_what_is_below(sample, other, seed):
    (image, target), (source, objects) = labelled(sample, 1), labelled(other, 2)
    mixed, found = mixing.copy_paste(
        (image, target), (source, objects), np.random.default_rng(seed)
    )
    assert mixed.shape == image.shape and (image == 1).all(), "the image itself stays"
    assert_consistent(mixed, found)
    below, above = (found.labels == label for label in (1, 2))
    covered = found.masks[above].any(0)
    assert (mixed[covered.numpy()] == 2).all() and (mixed[~covered.numpy()] == 1).all()
    # Of the objects below, what is not covered is left, in their order.
    left = target.masks & ~covered
    seen = left.flatten(1).any(1)
    assert torch.equal(found.masks[below], left[seen])
    touched = (target.masks & covered).flatten(1).any(1)[seen].tolist()
    outlines = [p for p, flag in zip(found.polygons, below.tolist(), strict=True) if flag]
    assert [p is None for p in outlines] == touched
    assert bool(above.any()) == bool(len(objects.labels)) or source.shape != image.shape


def test_an_image_without_objects_pastes_none():
    sample = scene(3)
    rng = np.random.default_rng(0)
    assert_same(mixing.copy_paste(sample, scene(4, objects=0), rng), sample)


def test_objects_of_an_image_with_the_same_sides_are_pasted_where_they_are():
    sample, (source, objects) = scene(3), scene(4)
    _, found = mixing.copy_paste(sample, (source, objects), np.random.default_rng(1))
    masks = {mask.numpy().tobytes() for mask in objects.masks}
    assert sum(mask.numpy().tobytes() in masks for mask in found.masks) >= 1


@given(scenes, scenes)
def test_without_outlines_there_are_none(sample, other):
    sample[1].polygons = other[1].polygons = None
    assert mixing.copy_paste(sample, other, np.random.default_rng(0))[1].polygons is None
    assert mixing.mosaic([sample, other] * 2, GREY, np.random.default_rng(0))[1].polygons is None
