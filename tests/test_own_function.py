"""Functions of one's own: found by name, called with the slot's generator, checked at each call."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import narrow, small
from support.scenes import assert_consistent, assert_same, scene
from test_augment import CONFIG, Scenes

from accelerated import optimizer
from accelerated.command_line import configuration
from accelerated.data import own_function
from accelerated.data.albumentations import adapt
from accelerated.data.dataset import categories
from accelerated.data.loader import loader
from accelerated.engine import checkpoint, run, start
from accelerated.engine.settings import Settings
from accelerated.engine.train import train
from accelerated.structures import Target
from reference.config import override


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Return a function that writes mine.py into the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(text):
        (tmp_path / "mine.py").write_text(text)

    yield write
    sys.modules.pop("mine", None)
    sys.path[:] = [path for path in sys.path if path != str(tmp_path)]


def batches(function=None, config=CONFIG, **options):
    options = {"batch_size": 2, "training": True, "iterations": 3} | options
    return list(loader(Scenes(), config, function=function, **options))


NOISE = """
import numpy as np

def noise(image, target, rng):
    return rng.integers(0, 256, image.shape, dtype=np.uint8), target
"""


def test_a_function_is_found_by_its_name_and_draws_from_the_generator(mine):
    mine(NOISE)
    named = override(CONFIG, "augment.function=mine:noise")
    found = batches(config=named)
    plain = batches()
    for batch, own in zip(found, plain, strict=True):
        assert not torch.equal(batch.pixels, own.pixels) and torch.equal(batch.boxes, own.boxes)
    for others in (batches(config=named, workers=2), batches(sys.modules["mine"].noise)):
        for batch, other in zip(found, others, strict=True):
            assert torch.equal(batch.pixels, other.pixels)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine", "expected module:name, for example my_file:my_function"),
        ("nowhere:noise", "ModuleNotFoundError: No module named 'nowhere'"),
        ("mine:missing", "AttributeError: module 'mine' has no attribute 'missing'"),
        ("mine:np.pi", "a float, which cannot be called"),
    ],
)
def test_a_name_that_names_no_function(mine, name, message):
    mine(NOISE)
    with pytest.raises(ValueError, match=f"^augment.function = {name}: {message}$"):
        batches(config=override(CONFIG, f"augment.function={name}"))


def changed(**fields):
    return lambda image, target, rng: (image, replace(target, **fields))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda image, target, rng: image, r"expected \(image, Target\)"),
        (lambda image, target, rng: (image / 255, target), r"image: expected .* of uint8"),
        (lambda image, target, rng: (image[..., 0], target), r"image: expected .* of uint8"),
        (lambda image, target, rng: (image[..., :1], target), r"image: .*got \[23, 31, 1\]"),
        (lambda image, target, rng: (image[:-1], target), r"need boxes \[2, 4\] and masks"),
        (changed(labels=torch.tensor([1.0, 2.0])), r"labels \[G\] must be whole numbers"),
        (changed(labels=torch.tensor([1, 9])), "label 9 above num_classes 3"),
        (changed(labels=torch.tensor([0, 1])), "label 0; labels count from 1"),
        (changed(masks=torch.zeros(2, 23, 31)), r"masks \[G, H, W\] must be bool"),
        (changed(boxes=torch.tensor([[5, 5, 4, 9], [1, 1, 2, 2]])), "x1 < x2"),
        (changed(boxes=torch.tensor([[1, 1, 2, 2], [5, 5, 32, 9]])), "box 1 .* outside .* 31x23"),
        (changed(boxes="many"), "target: "),
        (changed(polygons=[]), "2 labels need as many entries"),
        (lambda image, target, rng: 1 / 0, "raised ZeroDivisionError: division by zero"),
    ],
)
def test_what_a_function_returns_is_checked(function, message):
    call = own_function.checked(function, 3)
    with pytest.raises(ValueError, match=message) as raised:
        call(*scene(1, objects=2), np.random.default_rng(0))
    assert "\n" not in str(raised.value) and "lambda" in str(raised.value)


def test_a_failure_names_image_file_and_function():
    def broken(image, target, rng):
        raise KeyError("key")

    with pytest.raises(RuntimeError, match=r"^image \d, file '\d\.png': .*broken raised KeyError"):
        batches(broken)


def test_training_takes_a_callable(tmp_path, monkeypatch):
    def loading(*_, function, **__):
        raise InterruptedError(function.__name__)

    def mine(image, target, rng):
        return image, target

    monkeypatch.setattr(run, "loader", loading)
    with pytest.raises(InterruptedError, match="mine"):
        train(small.config(), small.shapes(4), tmp_path, iterations=1, function=mine, bar=False)


def test_what_a_file_names_is_not_executed(mine, tmp_path):
    """Neither of a run that is resumed nor of weights, unless the command names it as well."""
    mine("raise SystemError('executed')")
    named = "augment.function=mine:noise"
    data = Scenes()
    model = narrow.model(override(small.config(), "num_classes=3", named), dtype=torch.float32)
    model.categories = categories(data)
    state = optimizer.build(model, model.config.optimizer)
    last = checkpoint.save(tmp_path / "run", model, model.config, model.categories, state, 1)
    arguments = tmp_path / "run", last, None, [named], lambda masks: data
    with pytest.raises(ValueError, match=r"/run augments by a function.* named again: add --set a"):
        configuration.continuation(*arguments)
    assert configuration.continuation(*arguments, [named]).config.augment.function == "mine:noise"
    origin = configuration.configuration(None, str(last), [], None, lambda masks: data)
    assert origin.config.augment.function is None
    assert "was trained with augment.function=mine:noise, which is left out" in origin.lines[-1]
    origin = configuration.configuration(None, str(last), [named], None, lambda masks: data)
    assert origin.config.augment.function == "mine:noise"
    assert "mine" not in sys.modules
    settings = Settings(0, 2, False, 1, 1, False, 0.0)
    with pytest.raises(ValueError, match="mine:noise: SystemError: executed"):
        start.check(tmp_path / "new", origin.config, data, None, settings, None)


class Pipeline:
    """Does with images and masks what albumentations.Compose does: shifts, or adds noise."""

    def __init__(self, spatial):
        self.spatial = spatial

    def set_random_seed(self, seed):
        self.rng = np.random.default_rng(seed)

    def __call__(self, *, image, masks):
        assert isinstance(masks, list) and all(mask.dtype == np.uint8 for mask in masks)
        if not self.spatial:
            noise = self.rng.integers(0, 9, image.shape, dtype=np.uint8)
            return {"image": image // 2 + noise, "masks": masks}
        shift = int(self.rng.integers(1, image.shape[1]))
        return {"image": image[:, shift:], "masks": [mask[:, shift:] for mask in masks]}


def test_a_pipeline_of_albumentations():
    image, target = scene(1)
    noisy, same = adapt(Pipeline(spatial=False))(image, target, np.random.default_rng(0))
    assert_same((image, same), (image, target))
    assert (noisy != image).any()
    counts = set()
    for seed in range(20):
        function = own_function.checked(adapt(Pipeline(spatial=True)), 3)
        moved = function(image, target, np.random.default_rng(seed))
        assert_consistent(*moved)
        assert_same(moved, function(image, target, np.random.default_rng(seed)))
        left = image.shape[1] - moved[0].shape[1]
        visible = target.masks[:, :, left:].flatten(1).any(1)
        assert torch.equal(moved[1].masks, target.masks[visible][:, :, left:])
        assert torch.equal(moved[1].labels, target.labels[visible])
        assert moved[1].polygons == [None] * len(moved[1].labels)
        counts.add(len(moved[1].labels))
    assert min(counts) == 0 and max(counts) == 3
    with pytest.raises(ValueError, match=r"^function: expected albumentations\.Compose of version"):
        adapt(adapt)


def test_an_empty_target_passes_the_checks():
    empty = Target(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0, 5, 6).bool())
    image = np.zeros((5, 6, 3), np.uint8)
    call = own_function.checked(lambda image, target, rng: (image, empty), 3)
    assert len(call(image, empty, np.random.default_rng(0))[1].labels) == 0
