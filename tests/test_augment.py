"""Augmentation: by default mirroring alone, and chance comes from the generator alone."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.scenes import assert_consistent, assert_same, scene

from accelerated.data.augment import augment, growth
from accelerated.data.dataset import Dataset, Item
from accelerated.data.loader import loader, versions
from accelerated.data.moves import flip
from accelerated.data.padding import fixed_shapes
from accelerated.transform import resized_shape
from reference import config

CONFIG = config.override(
    config.preset("tiny"), "transform.min_size=[24, 32]", "transform.max_size=64"
)
EVERYTHING = (
    "augment.flip_vertical=0.5",
    "augment.quarter_turns=0.5",
    "augment.scale=[0.3, 3]",
    "augment.brightness=0.4",
    "augment.contrast=0.4",
    "augment.saturation=0.4",
    "augment.hue=0.1",
    "augment.mosaic=0.5",
    "augment.copy_paste=0.5",
)
ALL = config.override(CONFIG, *EVERYTHING)


class Scenes(Dataset):
    """Images of several sizes with outlined objects."""

    category_ids, class_names, max_objects = [1, 2, 3], ["a", "b", "c"], 4
    max_points, outlined = 24, True

    def __init__(self, sizes=((23, 31), (31, 23), (23, 31), (20, 20), (45, 70))):
        self.sizes = list(sizes)
        self.image_ids = list(range(1, len(self.sizes) + 1))
        self.file_names = [f"{image_id}.png" for image_id in self.image_ids]

    def __getitem__(self, index):
        return Item(*scene(index, *self.sizes[index], index), self.image_ids[index])


def drawn(changed, seed, base=2, dataset=None):
    """Augment an image of `Scenes`."""
    dataset, rng = dataset or Scenes(), np.random.default_rng(seed)
    return augment(*dataset[base][:2], changed, rng, lambda rng: dataset[rng.integers(5)][:2])


def test_by_default_the_draws_are_two():
    """Those of earlier versions, on which runs that are resumed rely."""
    image, target = scene(1)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        mirrored, min_size = rng.random() < 0.5, int(rng.choice((24, 32)))
        expected = flip(image, target) if mirrored else (image, target)
        used = np.random.default_rng(seed)
        *sample, size = augment(image, target, CONFIG, used)
        assert_same(sample, expected)
        assert size == min_size and used.bit_generator.state == rng.bit_generator.state


def test_mirroring_and_sizes():
    image, target = scene(1)
    rng = np.random.default_rng(0)
    never = config.override(CONFIG, "augment.flip=0", "transform.min_size=[]")
    *sample, min_size = augment(image, target, never, rng)
    assert_same(sample, (image, target))
    assert min_size is None
    always = config.override(CONFIG, "augment.flip=1")
    assert_same(augment(image, target, always, rng)[:2], flip(image, target))


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 3))
def test_everything_at_once_fits_together(seed, base):
    """Of images with other sides less is exact: resizing rounds boxes and masks apart."""
    dataset = Scenes([(23, 31)] * 5)
    image, target, min_size = drawn(ALL, seed, base, dataset)
    assert_consistent(image, target)
    *again, size = drawn(ALL, seed, base, dataset)
    assert_same((image, target), again)
    assert size == min_size
    image, target, _ = drawn(ALL, seed, base)
    height, width = image.shape[:2]
    assert (target.boxes[:, 2:] > target.boxes[:, :2]).all() and (target.boxes >= 0).all()
    assert (target.boxes <= torch.tensor([width, height] * 2)).all()
    assert target.masks.flatten(1).any(1).all()
    factor, points = growth(ALL.augment)
    assert len(target.labels) <= factor * 4
    outlines = [x for part in target.polygons if part is not None for x in part]
    assert sum(map(len, outlines)) <= points * 24


# Where the short side decides on the size, and where the long one does.
@example((31, 47), (64,), "truncate", 7.0, 0.0, 0)
@example((31, 47), (90,), "truncate", 7.0, 0.0, 0)
# With these seeds the image is turned by 90 degrees or not.
@example((20, 60), (64,), "truncate", 0.99, 1.0, 0)
@example((20, 60), (64,), "truncate", 0.99, 1.0, 1)
@example((20, 60), (64,), "truncate", 0.99, 1.0, 2)
@given(
    st.tuples(st.integers(2, 700), st.integers(2, 700)),
    st.sampled_from([(), (90,), (64,)]),
    st.sampled_from(["truncate", "nearest"]),
    st.floats(0.05, 20),
    st.sampled_from([0.0, 1.0]),
    st.integers(0, 99),
)
def test_no_input_is_larger_than_without_scaling(size, min_sizes, rounding, factor, turns, seed):
    changed = config.override(
        CONFIG,
        f"transform.min_size={[*min_sizes]}",
        "transform.max_size=128",
        "transform.size_divisor=0",
        f"transform.size_rounding={rounding}",
        f"augment.scale=[{factor}, {factor}]",
        f"augment.quarter_turns={turns}",
    )
    image, target = scene(0, *size, 0)
    cut, _, min_size = augment(image, target, changed, np.random.default_rng(seed))
    found = resized_shape(*cut.shape[:2], min_size, changed.transform)
    shapes = fixed_shapes(Scenes([size]), changed.transform, changed.augment)
    assert any(found[0] <= h and found[1] <= w for h, w in shapes.sides)
    if factor < 1 and min_sizes:
        whole = resized_shape(*cut.shape[:2], *min_sizes, changed.transform)
        assert abs(min(found) - factor * min(whole)) <= 1
    if factor > 1:
        shrunk = sorted(cut.shape[:2])
        assert shrunk[0] <= max(1, round(min(size) / factor)) or shrunk[1] <= max(size) / factor + 1


def test_colours_change_alone_and_within_their_bounds():
    image, target = scene(2)
    bright = config.override(CONFIG, "augment.flip=0", "augment.brightness=0.5")
    for seed in range(20):
        changed, same, _ = augment(image, target, bright, np.random.default_rng(seed))
        assert_same((image, same), (image, target))
        low, high = np.floor(image * 0.5), np.minimum(np.ceil(image * 1.5), 255)
        assert (changed >= low).all() and (changed <= high).all()
    means = [
        augment(image, target, bright, np.random.default_rng(seed))[0].mean() for seed in range(99)
    ]
    assert min(means) < 0.7 * image.mean() and max(means) > 1.2 * image.mean()
    grey = np.repeat(image[..., :1], 3, axis=2)
    for field in ("saturation=0.5", "hue=0.5"):
        changed = config.override(CONFIG, "augment.flip=0", f"augment.{field}")
        np.testing.assert_array_equal(
            augment(grey, target, changed, np.random.default_rng(0))[0], grey
        )
        assert (augment(image, target, changed, np.random.default_rng(0))[0] != image).any()


def batches(changed=ALL, **options):
    options = {"batch_size": 2, "seed": 1, "training": True, "iterations": 6} | options
    return list(loader(Scenes(), changed, **options))


def test_batches_depend_on_seed_and_iteration_alone():
    own = batches()
    for others in (batches(workers=2), batches()[:3] + batches(start_iteration=3)):
        for batch, other in zip(own, others, strict=True):
            assert all(torch.equal(x, other.tensors()[name]) for name, x in batch.tensors().items())
    parts = [batches(part=(k, 2), batch_size=2) for k in range(2)]
    for batch, *halves in zip(own, *parts, strict=True):
        assert torch.equal(batch.pixels, torch.cat([half.pixels for half in halves]))
    assert any(
        not torch.equal(a.pixels, b.pixels) for a, b in zip(own, batches(seed=2), strict=True)
    )


def test_outlines_reach_the_batch_and_masks_where_outlines_are_given_up():
    polygon = config.override(ALL, "mask_head.target=polygon", "augment.copy_paste=0")
    assert {batch.masks.shape[2] for batch in batches(polygon)} == {0}
    hiding = config.override(polygon, "augment.copy_paste=1")
    found = batches(hiding, iterations=12)
    assert min(batch.masks.shape[2] for batch in found) > 0
    without = [batch.parts.diff().eq(0) & batch.valid for batch in found]
    assert any(mask.any() for mask in without) and not all(mask.all() for mask in without)
    for batch, empty in zip(found, without, strict=True):
        assert batch.masks[empty].flatten(1).any(1).all()


@pytest.mark.parametrize("target", ["polygon", "soft"])
def test_fixed_shapes_hold_every_batch(target):
    changed = config.override(ALL, f"mask_head.target={target}")
    shapes = fixed_shapes(Scenes(), changed.transform, changed.augment)
    padded = batches(changed, shapes=shapes, iterations=20)
    assert {batch.shape for batch in padded} <= {*shapes.sides}
    assert {batch.boxes.shape[1] for batch in padded} <= {*shapes.slots}
    own = batches(changed, iterations=20)
    assert [int(b.valid.sum()) for b in padded] == [int(b.valid.sum()) for b in own]
    if target == "polygon":
        assert len({batch.points.shape for batch in padded}) == 1
    function = config.override(changed, "augment.function=support.scenes:nothing")
    with pytest.raises(ValueError, match=r"augment\.function = support.* leave out --fixed-shapes"):
        batches(function, shapes=shapes)


@pytest.mark.parametrize(
    ("changes", "objects", "points"),
    [
        ((), 1, 1),
        (("mosaic=0.1",), 4, 4 * 1.5**4),
        (("copy_paste=0.1",), 2, 2 * 1.5**4),
        (("scale=[0.5, 1]",), 1, 1),
        (("scale=[0.5, 2]", "mosaic=1", "copy_paste=1"), 5, 5 * 1.5**8),
    ],
)
def test_growth(changes, objects, points):
    changed = config.override(CONFIG, *(f"augment.{change}" for change in changes))
    assert growth(changed.augment) == (objects, points)


def test_versions_are_what_training_sees():
    [seen] = [batch for batch in batches(iterations=1, batch_size=1)]
    index = seen.image_ids[0] - 1
    again = list(versions(Scenes(), ALL, index, 3, seed=1))
    assert [batch.image_ids for batch in again] == [[index + 1]] * 3
    assert len({batch.pixels.numpy().tobytes() for batch in again}) == 3


class Broken(Scenes):
    def __getitem__(self, index):
        if index == 1:
            raise OSError("image file is truncated")
        item = super().__getitem__(index)
        if index == 2:
            item.target.boxes[0, 2] = -1
        return item


def test_a_failure_names_the_image_that_was_mixed_in():
    """Before a move might hide what is wrong with it."""
    changed, said = config.override(CONFIG, "augment.copy_paste=1"), set()
    for seed in range(12):
        try:
            list(versions(Broken(), changed, 3, 1, seed))
        except RuntimeError as error:
            said.add(str(error))
    cut = "image 4, file '4.png': mixed with image 2, file '2.png': image file is truncated"
    wrong = "image 4, file '4.png': mixed with image 3, file '3.png': target: box 0 is ["
    assert len(said) == 2 and cut in said and any(text.startswith(wrong) for text in said)
