"""The switches of augmentation in a configuration, and configurations from before they existed."""

import json
import shutil
from pathlib import Path

import pytest

from accelerated import interop
from accelerated.interop import ranges
from reference import checkpoint
from reference.augmentation import Augment
from reference.config import Config, check, from_dict, override, preset, to_dict

TINY = Path(__file__).parents[1] / "notebooks" / "data" / "tiny"


def test_a_configuration_from_before_has_the_augmentation_of_then():
    values = to_dict(preset("tiny"))
    del values["augment"]
    assert from_dict(values) == preset("tiny") and "augment" not in values
    assert from_dict(values).augment == Augment() and Augment().flip == 0.5


def test_a_checkpoint_from_before_is_read():
    assert "augment" not in json.loads((TINY / "config.json").read_text())
    for read in (checkpoint.load, interop.load):
        assert read(TINY).config.augment == Augment()


def test_a_checkpoint_keeps_its_augmentation(tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "new")
    (folder / "state.json").unlink()
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"augment": {"flip": 0.25}}))
    with pytest.raises(ValueError, match=r"augment\.\w+: missing"):
        checkpoint.load(folder)
    changed = override(from_dict(values), "augment.mosaic=0.5", "augment.function=mine:turned")
    (folder / "config.json").write_text(json.dumps(to_dict(changed)))
    for read in (checkpoint.load, interop.load):
        assert read(folder).config.augment == Augment(mosaic=0.5, function="mine:turned")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("augment.mosaic=2", "augment.mosaic: expected 0 to 1, got 2.0"),
        ("augment.hue=0.6", "augment.hue: expected 0 to 0.5, got 0.6"),
        ("augment.scale=[0, 1]", "augment.scale: expected 0.01 to 100, got 0.0"),
    ],
)
def test_values_out_of_range(change, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        ranges.check(override(Config(), change))


def test_values_that_contradict_each_other_or_have_another_type():
    with pytest.raises(ValueError, match=r"augment\.scale = \(2\.0, 1\.0\): the first number must"):
        check(override(Config(), "augment.scale=[2, 1]"))
    with pytest.raises(ValueError, match=r"augment\.scale: expected a list of 2, got \[1\]"):
        override(Config(), "augment.scale=[1]")
    with pytest.raises(ValueError, match=r"augment\.function: expected str, got 3"):
        override(Config(), "augment.function=3")
