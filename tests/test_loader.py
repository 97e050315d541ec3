"""The loader: batches depend on (seed, iteration) alone, failures name image and file."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accelerated.data.loader import epoch, loader
from accelerated.data.padding import Shapes
from accelerated.data.synthetic import ShapesDataset
from reference import config

CONFIG = config.preset("tiny")
CONFIG = replace(CONFIG, transform=replace(CONFIG.transform, min_size=(32, 48), max_size=64))


def assert_same(batches, others):
    for a, b in zip(batches, others, strict=True):
        for x, y in zip(vars(a).values(), vars(b).values(), strict=True):
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


def training(dataset, **changes):
    return list(
        loader(
            dataset,
            CONFIG,
            **{"batch_size": 2, "seed": 1, "training": True, "iterations": 7, **changes},
        )
    )


def test_resumes_bit_for_bit_and_whatever_the_workers():
    dataset = ShapesDataset(5, size=(32, 40))
    batches = training(dataset)
    assert len(batches) == 7
    assert_same(training(dataset, start_iteration=4), batches[4:])
    assert_same(training(dataset, workers=2), batches)
    other = training(dataset, seed=2)
    assert [b.image_ids for b in other] != [b.image_ids for b in batches]


class Same(ShapesDataset):
    """Every image is the first."""

    def __getitem__(self, index):
        return super().__getitem__(0)


def test_every_place_of_a_batch_is_augmented_by_itself():
    [batch] = training(Same(8, size=32), batch_size=8, iterations=1)
    images = list(batch.images())
    mirrored = [torch.equal(image, images[0].flip(2)) for image in images]
    alike = [torch.equal(image, images[0]) for image in images]
    assert any(mirrored) and any(alike[1:]) and not any(map(all, zip(mirrored, alike, strict=True)))
    assert len(set(batch.new_shapes)) == 2


def test_without_end():
    stream = iter(loader(ShapesDataset(3, size=32), CONFIG, batch_size=2, seed=0, training=True))
    seen = Counter(image_id for _ in range(10) for image_id in next(stream).image_ids)
    assert set(seen) == {1, 2, 3}


@given(
    st.lists(st.sampled_from([(3, 4), (4, 3), (3, 3)]), min_size=1, max_size=23),
    st.integers(1, 6),
    st.integers(0, 5),
)
def test_epoch(sizes, batch_size, number):
    batches = epoch(sizes, batch_size, 0, number)
    assert len(batches) == len(epoch(sizes, batch_size, 0, 0))
    assert {len(batch) for batch in batches} == {batch_size}
    seen = Counter(index for batch in batches for index in batch)
    assert set(seen) == set(range(len(sizes)))
    assert sum(seen.values()) < len(sizes) + batch_size
    mixed = [batch for batch in batches if len({sizes[i][0] > sizes[i][1] for i in batch}) == 2]
    assert len(mixed) <= 2


def test_epochs_differ():
    sizes = [(3, 4)] * 20
    assert epoch(sizes, 4, 0, 0) != epoch(sizes, 4, 0, 1)


def test_evaluation_goes_in_order_unaugmented():
    dataset = ShapesDataset(5, size=(32, 40))
    batches = loader(dataset, CONFIG, batch_size=2, training=False)
    assert len(batches) == 3
    drawn = list(batches)
    assert [b.image_ids for b in drawn] == [[1, 2], [3, 4], [5]]
    # The last of min_size.
    assert drawn[0].sizes.tolist() == [[48, 60]] * 2
    assert drawn[0].original_sizes == [(32, 40)] * 2
    np.testing.assert_allclose(
        drawn[0].boxes[0, drawn[0].valid[0]].numpy(),
        dataset[0].target.boxes.numpy() * 1.5,
        rtol=1e-6,
    )
    assert_same(loader(dataset, CONFIG, batch_size=2, training=False, workers=2), drawn)


def test_fixed_shapes():
    batches = training(ShapesDataset(5, size=(32, 40)), shapes=Shapes(((64, 96),), (9,)))
    assert {b.shape for b in batches} == {(64, 96)} and {b.boxes.shape for b in batches} == {
        (2, 9, 4)
    }


class Broken(ShapesDataset):
    def __getitem__(self, index):
        if index == 2:
            raise OSError("image file is truncated")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failure_names_image_and_file(workers):
    with pytest.raises(
        RuntimeError, match=r"^image 3, file '000003.png': image file is truncated$"
    ):
        training(Broken(4, size=32), workers=workers)
    with pytest.raises(RuntimeError, match=r"^images 1, 2: .*max_objects"):
        list(
            loader(
                ShapesDataset(2, size=32),
                CONFIG,
                batch_size=2,
                training=False,
                workers=workers,
                shapes=Shapes(((64, 64),), (0,)),
            )
        )


def test_a_label_above_the_classes_names_image_and_file():
    config = replace(CONFIG, num_classes=1)
    with pytest.raises(RuntimeError, match=r"^image \d, file .*: target: label \d above num_class"):
        list(loader(ShapesDataset(4, size=32), config, batch_size=4, training=True, iterations=1))


def test_nothing_to_train_on():
    dataset = ShapesDataset(2, size=32, max_objects=0)
    with pytest.raises(ValueError, match="no image has a labelled object"):
        training(dataset)
    with pytest.raises(ValueError, match="no images"):
        loader(ShapesDataset(0), CONFIG, batch_size=1, training=False)
