"""engine.checkpoint: everything is restored, nothing incomplete is seen, a misfit is named."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from support import narrow
from torch import nn

from accelerated import optimizer as optim
from accelerated.engine import checkpoint
from reference.config import Optimizer, preset

CONFIG = replace(preset("tiny"), num_classes=2)
CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]


class Model(nn.Module):
    """A stand-in for the detector: a norm with buffers, and a layer with the classes' width."""

    def __init__(self, classes=2):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.bn1 = nn.BatchNorm2d(4)
        self.box_head = nn.Module()
        self.box_head.class_logits = nn.Linear(4, classes + 1)

    def forward(self, x):
        return self.box_head.class_logits(self.bn1(self.conv(x)).mean((2, 3)))


def trained(kind="sgd", steps=2, seed=0):
    torch.manual_seed(seed)
    model = Model()
    optimizer = optim.build(model, Optimizer(kind=kind))
    advance(model, optimizer, steps)
    return model, optimizer


def advance(model, optimizer, steps):
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 8, 8, generator=generator)).square().mean().backward()
        optim.step(optimizer, 0.1, 1.0)


def save(run, iteration=2, model=None, optimizer=None, **options):
    if model is None:
        model, optimizer = trained()
    return checkpoint.save(run, model, CONFIG, CATEGORIES, optimizer, iteration, **options)


def test_what_a_killed_process_left_is_removed_and_a_hidden_file_is_none_of_it(tmp_path):
    stale, foreign = (tmp_path / "checkpoints" / name for name in (".00000001", ".DS_Store"))
    stale.mkdir(parents=True)
    foreign.touch()
    assert checkpoint.verify(save(tmp_path)).iteration == 2
    assert foreign.exists() and not stale.exists()


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_restored_run_continues_bit_for_bit(kind, tmp_path):
    model, optimizer = trained(kind)
    path = save(tmp_path, 2, model, optimizer, settings={"seed": 3})
    again, fresh = trained(kind, steps=0, seed=1)
    restored = checkpoint.restore(tmp_path, again, fresh)
    assert restored == checkpoint.Checkpoint(path, CONFIG, CATEGORIES, 2, {"seed": 3})
    advance(model, optimizer, steps=3)
    advance(again, fresh, steps=3)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_nothing_is_pickled(tmp_path):
    path = save(tmp_path)
    assert sorted(p.name for p in path.iterdir()) == sorted(checkpoint.FILES)
    for name in ("config.json", "state.json"):
        json.loads((path / name).read_text())


def test_keeps_the_newest_and_points_at_the_last(tmp_path):
    for iteration in (1, 2, 3, 4, 4):
        save(tmp_path, iteration, keep=2)
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == [
        "00000003",
        "00000004",
    ]
    assert checkpoint.find(tmp_path).name == checkpoint.find(tmp_path / "last").name == "00000004"
    # Resumed from an older one.
    save(tmp_path, 2, keep=1)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["00000002"]


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    model, optimizer = trained()
    save(tmp_path, 1, model, optimizer)
    with torch.no_grad():
        model.bn1.running_var[1] = float("nan")
    with pytest.raises(ValueError, match=r"bn1\.running_var is not finite at iteration 2"):
        save(tmp_path, 2, model, optimizer)
    assert checkpoint.read(tmp_path).iteration == 1


def damage_json(path):
    (path / "state.json").write_text("{")


def damage_format(path):
    (path / "state.json").write_text(json.dumps({"format": 0}))


def damage_tensors(path):
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-3])


def make_old(path):
    """Make it a checkpoint of the first format, without digests."""
    state = json.loads((path / "state.json").read_text()) | {"format": 1}
    for key in ("machine", "files", "sha256"):
        del state[key]
    (path / "state.json").write_text(json.dumps(state))


def damage_config(path):
    make_old(path)
    (path / "config.json").write_text(
        (path / "config.json").read_text().replace('"depth"', '"height"')
    )


def damage_classes(path):
    make_old(path)
    (path / "config.json").write_text(
        (path / "config.json").read_text().replace('"num_classes": 2', '"num_classes": 3')
    )


def remove_file(path):
    (path / "optimizer.safetensors").unlink()


@pytest.mark.parametrize(
    "damage, message",
    [
        (damage_json, "not JSON"),
        (damage_format, "format 1"),
        (damage_tensors, "damaged"),
        (damage_config, r"config\.backbone\.(depth|height)"),
        (damage_classes, "2 categories, but the configuration has 3 classes"),
        (remove_file, r"no optimizer\.safetensors"),
    ],
)
def test_damage_is_reported_in_one_line(damage, message, tmp_path):
    damage(save(tmp_path))
    with pytest.raises(ValueError, match=message) as caught:
        checkpoint.restore(tmp_path, *trained())
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path):
    path = save(tmp_path)
    other = Model(classes=5)
    before = {name: t.clone() for name, t in other.state_dict().items()}
    with pytest.raises(
        ValueError,
        match=r"box_head\.class_logits\.(weight|bias) is \[3.*\], the model's \[6.*\]"
        r" \(another number of classes\?\)",
    ):
        checkpoint.restore(path, other)
    assert all(torch.equal(t, before[name]) for name, t in other.state_dict().items())
    other = Model()
    other.extra = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"lacks extra\.bias and 1 more"):
        checkpoint.restore(path, other)
    other = Model()
    del other.bn1
    with pytest.raises(ValueError, match=r"has unknown bn1\.bias and 4 more"):
        checkpoint.restore(path, other)
    for nowhere in (tmp_path / "none", tmp_path / "checkpoints"):
        with pytest.raises(ValueError, match=r"no such checkpoint|holds no checkpoint"):
            checkpoint.read(nowhere)


def test_a_killed_save_leaves_the_last_checkpoint_good(tmp_path):
    """SIGKILL while files are written: at moments just before calls that touch the disk."""
    # A process that imports once, and forks for each moment.
    code = """
        import os, signal, sys
        sys.path.insert(0, sys.argv[1])
        import test_checkpoint as t
        from pathlib import Path
        model, optimizer = t.trained()
        calls = 0
        def deadly(function, moment):
            def call(*arguments, **options):
                global calls
                calls += 1
                if calls == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)
            return call
        def save(run, moment):
            t.save(run, 1, model, optimizer)
            for name in ("sync", "save_file"):
                setattr(t.checkpoint, name, deadly(getattr(t.checkpoint, name), moment))
            for name in ("rename", "replace", "symlink_to", "mkdir"):
                setattr(Path, name, deadly(getattr(Path, name), moment))
            t.save(run, 2, model, optimizer, keep=1)
            os._exit(0)
        for moment in sys.argv[3:]:
            child = os.fork()
            if child == 0:
                save(f"{sys.argv[2]}/{moment}", int(moment))
            print(moment, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    moments = (3, 6, 9, 10, 11, 12, 99)
    words = [os.path.dirname(__file__), tmp_path, *moments]
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    codes = dict(map(int, line.split()) for line in ended.stdout.splitlines())
    assert codes == {moment: 0 if moment == 99 else -signal.SIGKILL for moment in moments}
    for moment in moments:
        run = tmp_path / str(moment)
        restored = checkpoint.restore(run, *trained(steps=0))
        assert restored.iteration == (2 if moment == 99 else 1), moment
        save(run, 3, keep=1)
        assert [p.name for p in (run / "checkpoints").iterdir()] == ["00000003"]


def test_the_memory_format_of_weights_is_not_stored(tmp_path):
    """Training holds channels-last weights; its files are those of contiguous ones."""
    config = narrow.config("tiny")
    model = narrow.model(config)
    files = []
    for memory_format in (torch.channels_last, torch.contiguous_format):
        model.to(memory_format=memory_format)
        optimizer = optim.build(model, config.optimizer)
        categories = [{"id": k, "name": str(k)} for k in range(config.num_classes)]
        path = checkpoint.save(
            tmp_path / str(memory_format), model, config, categories, optimizer, 0
        )
        files.append((path / "model.safetensors").read_bytes())
    assert files[0] == files[1]
