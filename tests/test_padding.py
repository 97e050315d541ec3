"""data.padding: a few shapes, known from the index, that hold every batch whole."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accelerated.data.loader import loader
from accelerated.data.padding import Shapes, fixed_shapes
from accelerated.data.synthetic import ShapesDataset
from accelerated.structures import Target
from accelerated.transform import resized_shape
from reference.config import preset

SIDES = st.tuples(st.integers(1, 700), st.integers(1, 700))


def index(sizes, max_objects):
    return SimpleNamespace(sizes=sizes, max_objects=max_objects)


@given(
    st.lists(SIDES, min_size=1, max_size=12),
    st.integers(0, 100),
    st.sampled_from([0, 32]),
    st.sampled_from([(), (90,), (64, 96)]),
)
def test_every_batch_fits_into_one_of_six_shapes(sizes, most, divisor, min_sizes):
    transform = preset("tiny").transform
    transform = replace(transform, min_size=min_sizes, max_size=128, size_divisor=divisor)
    shapes = fixed_shapes(index(sizes, most), transform)
    assert len(shapes.sides) <= 3 and len(shapes.slots) <= 2 and not shapes.slots[-1] % 8
    resized = [
        resized_shape(*size, min_size, transform) if min_size else size
        for size in sizes
        for min_size in min_sizes or (None,)
    ]
    for chosen in ([size] for size in resized):
        sides, slots = shapes.of_batch(chosen, [most])
        assert slots == shapes.slots[-1] >= max(most, 1)
        assert all(side <= limit for side, limit in zip(chosen[0], sides, strict=True))
    sides, slots = shapes.of_batch(resized, [0] * len(resized))
    assert all(h <= sides[0] and w <= sides[1] for h, w in resized)
    assert slots == shapes.slots[0] and all(side % (divisor or 1) == 0 for side in sides)


def test_coco():
    transform = preset("torchvision_r50_fpn").transform
    sizes = [(480, 640), (640, 480), (427, 640), (360, 640), (640, 640)]
    shapes = fixed_shapes(index(sizes, 93), replace(transform, min_size=(800,)))
    assert shapes == Shapes(((1088, 800), (800, 1344), (1088, 1344)), (48, 96))
    assert shapes.of_batch([(800, 1066), (799, 1199)], [7, 48]) == ((800, 1344), 48)
    assert shapes.of_batch([(800, 1066), (1066, 800)], [7, 49]) == ((1088, 1344), 96)


class Crowded(ShapesDataset):
    """Image 2 is portrait and has thirteen objects."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.max_objects = 13
        self.sizes = [(40, 32) if i == 1 else size for i, size in enumerate(self.sizes)]

    def __getitem__(self, index):
        item = super().__getitem__(index)
        if index != 1:
            one = [getattr(item.target, name)[:1] for name in ("boxes", "labels", "masks")]
            return item._replace(target=Target(*one))
        boxes = torch.tensor([[1.0, 1, 9, 9]]).repeat(13, 1)
        target = Target(boxes, torch.ones(13).long(), torch.ones(13, 40, 32).bool())
        return item._replace(image=np.zeros((40, 32, 3), dtype=np.uint8), target=target)


@pytest.mark.parametrize("workers", [0, 1])
def test_no_object_is_dropped(workers):
    dataset, config = Crowded(5, size=(32, 40)), preset("tiny")
    config = replace(config, transform=replace(config.transform, min_size=(48, 64), max_size=96))
    shapes = fixed_shapes(dataset, config.transform)
    options = {"seed": 0, "training": True, "iterations": 12, "batch_size": 2}
    padded = list(loader(dataset, config, shapes=shapes, workers=workers, **options))
    assert {batch.shape for batch in padded} == {(64, 96), (96, 64), (96, 96)}
    assert {batch.boxes.shape[1] for batch in padded} == {8, 16}
    for batch, own in zip(padded, loader(dataset, config, **options), strict=True):
        assert batch.valid.sum() == own.valid.sum() >= 2
        assert (batch.boxes[batch.valid] == own.boxes[own.valid]).all()
        assert batch.sizes.equal(own.sizes) and batch.pixels.equal(own.pixels)
