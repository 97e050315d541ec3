"""data.summary: the preset that suits the images, and what objects shrink to in its input."""

from types import SimpleNamespace

import numpy as np
import pytest

from accelerated.data.summary import default_preset, input_objects
from reference.config import override, preset


def data(sizes, objects):
    """A data set of images (height, width) with objects (image, area, crowd)."""
    instances = [(index, 1, area, crowd) for index, area, crowd in objects]
    return SimpleNamespace(sizes=sizes, instances=lambda: instances)


@pytest.mark.parametrize(
    ("sizes", "name"),
    [
        ([(128, 128)] * 3, "tiny"),
        ([(100, 160)] * 3, "tiny"),
        ([(161, 100)] * 3, "small"),
        # The median decides.
        ([(3000, 4000), (64, 64), (64, 64)], "tiny"),
        ([(3000, 4000), (3000, 4000), (64, 64)], "small"),
        ([], "tiny"),
    ],
)
def test_the_preset_fits_the_images(sizes, name):
    assert default_preset(sizes) == name


def test_objects_are_measured_in_the_input():
    """4000x3000 becomes 512x384: a factor of 0.128 per side."""
    areas = [50**2, 100**2, 200**2, 400**2]
    objects = [(0, area, False) for area in areas] + [(0, 3000.0**2, True)]
    seen = input_objects(data([(3000, 4000)], objects), preset("small").transform)
    sides = 0.128 * np.sqrt(areas)
    assert seen.count == 4 and seen.median == pytest.approx(np.median(sides))
    assert (seen.below_16, seen.below_8) == (0.5, 0.25) and seen.input_size == (384, 512)
    assert str(seen) == "objects have a median side of 19 pixels, 50% are below 16, 25% below 8"
    assert seen.advice is None


def test_advice_makes_small_objects_large_enough():
    dataset = data([(3000, 4000)], [(0, 80.0**2, False)])
    config = preset("small")
    seen = input_objects(dataset, config.transform)
    assert seen.median == pytest.approx(80 * 0.128) and "less than 16 pixels" in seen.advice
    changes = [word for word in seen.advice.split() if word.startswith("transform.")]
    config = override(config, *changes)
    after = input_objects(dataset, config.transform)
    assert len(changes) == 2 and 24 <= after.median < 26 and after.advice is None
    # No input is large enough: the advice stops at 2048 pixels.
    seen = input_objects(data([(3000, 4000)], [(0, 9.0, False)]), preset("small").transform)
    assert "max_size=2048" in seen.advice and "tiles" in seen.advice


@pytest.mark.parametrize("objects", [[], [(0, 100.0, True)]])
def test_without_objects(objects):
    seen = input_objects(data([(30, 40)], objects), preset("small").transform)
    assert str(seen) == "no objects" and seen.advice is None
    assert input_objects(data([], []), preset("small").transform).input_size == (0, 0)


def test_a_transform_that_keeps_the_size():
    transform = override(preset("tiny"), "transform.min_size=[]").transform
    assert input_objects(data([(30, 40)], [(0, 400.0, False)]), transform).median == 20
