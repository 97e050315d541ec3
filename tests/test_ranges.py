"""Absurd numbers of a configuration: one line that names the field, before anything else."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import narrow, small
from test_checkpoint import make_old

from accelerated import interop
from accelerated.data.values import is_number
from accelerated.engine import checkpoint
from accelerated.interop import ranges
from reference import presets
from reference.config import Config, flat, preset, to_dict

ABSURD = [
    -1,
    10**12,
    10**400,
    float("nan"),
    float("inf"),
    float("-inf"),
    -1e300,
    True,
    "8",
    None,
    [],
]


def numbers(config):
    """Return the paths of all fields with numbers, alone or in lists."""
    return [
        path for path, value in flat(config).items() if is_number(value) or isinstance(value, tuple)
    ]


def test_every_number_has_a_range():
    assert set(numbers(Config())) == ranges.RANGES.keys()


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_are_within(name):
    assert ranges.check(preset(name)) == preset(name)
    ranges.check(narrow.config(name))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of a narrow model."""
    run = tmp_path_factory.mktemp("run")
    model = narrow.model(config := narrow.config("tiny", num_classes=3), dtype=torch.float32)
    categories = [{"id": k, "name": str(k)} for k in range(1, config.num_classes + 1)]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for group in optimizer.param_groups:
        group["param_names"] = [name for name, _ in model.named_parameters()]
    path = checkpoint.save(run, model, config, categories, optimizer, 1)
    # An edited file would be refused by its digest.
    make_old(path)
    return path


@given(data=st.data())
def test_absurd_numbers_in_a_checkpoint(folder, data):
    """One line that names the file and, where the number itself is refused, the field."""
    path = folder / "config.json"
    whole = path.read_text()
    field = data.draw(st.sampled_from(numbers(Config())))
    value = data.draw(st.sampled_from(ABSURD))
    values = json.loads(whole)
    *parts, last = field.split(".")
    part = values
    for name in parts:
        part = part[name]
    listed = isinstance(part[last], list) and part[last]
    part[last] = [value] * len(part[last]) if listed and value != [] else value
    path.write_text(json.dumps(values))
    allowed = (field == "box_head.min_size" and value is None) or (
        field in ("transform.min_size", "optimizer.steps") and value == []
    )
    inside = value == -1 and field in ("transform.mean", "anchors.offset")
    try:
        for read in (checkpoint.read, interop.load):
            try:
                read(folder)
                assert allowed or inside, (field, value)
            except ValueError as error:
                text = str(error)
                assert text.startswith(str(folder)) and field in text, (field, value, text)
                assert "\n" not in text and len(text) < 600 + len(str(folder))
    finally:
        path.write_text(whole)


def test_a_configuration_of_a_model_larger_than_its_file(folder, command, tmp_path):
    """Each number is within its range; the file of the weights shows that the model is not real."""
    path = folder / "config.json"
    whole = path.read_text()
    wide = replace(preset("tiny"), num_classes=3)
    wide = replace(wide, fpn=replace(wide.fpn, channels=65_536))
    data, images = small.shapes(4).write_coco(tmp_path / "data")
    path.write_text(json.dumps(to_dict(wide)))
    try:
        with pytest.raises(ValueError, match=r"wrong shape: backbone\.conv1\.weight"):
            interop.load(folder)
        where = ("--data", data, "--images", images, "--output", folder.parents[1])
        code, _, error = command("train", *where, "--resume", "--device", "cpu", "--iterations", 2)
        assert code == 2 and "but the model of its config.json has" in error, error
    finally:
        path.write_text(whole)


@pytest.mark.parametrize(
    "change",
    [
        "transform.min_size=[0]",
        "box_head.score_threshold=2",
        "fpn.channels=1000000000000",
        "rpn.conv_depth=-1",
        "optimizer.learning_rate=NaN",
        f"rpn.nms_iou={10**400}",
    ],
)
def test_absurd_numbers_of_the_command_line(command, tmp_path, change):
    data, images = small.shapes(4).write_coco(tmp_path / "data")
    where = ("--data", data, "--images", images, "--output", tmp_path / "run", "--device", "cpu")
    code, _, error = command("train", *where, "--preset", "tiny", "--set", change)
    assert code == 2 and change.partition("=")[0] in error and error.count("\n") == 1, error
    assert not (tmp_path / "run").exists()
