"""engine.digests, run_folder: a checkpoint that was changed is noticed, named, and gone around."""

import contextlib
import json
import random
import re
import shutil

import pytest
from support import small
from test_checkpoint import make_old
from test_train import assert_same_run, run

from accelerated import interop
from accelerated.engine import best, checkpoint, fingerprint, log, run_folder, settings


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory):
    """A run with the checkpoints 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("runs") / "three"
    run(folder, 3, checkpoint_every=1)
    return folder


@pytest.fixture
def stored(three_steps, tmp_path):
    """A copy of it."""
    shutil.copytree(three_steps, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def flip(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("name", checkpoint.FILES)
def test_a_flipped_bit_is_noticed(name, stored):
    path, rng = (stored / "last" / name).resolve(), random.Random(0)
    size = path.stat().st_size
    for _ in range(20):
        position, bit = rng.randrange(size), rng.randrange(8)
        flip(path, position, bit)
        with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
            checkpoint.verify(stored)
        assert "\n" not in str(caught.value)
        # For evaluation and prediction.
        if name == "model.safetensors":
            with pytest.raises(ValueError, match="damaged, its SHA-256 is another"):
                interop.read_model(stored)
        flip(path, position, bit)
    checkpoint.verify(stored)


def test_no_flipped_bit_of_the_state_changes_what_is_read(stored):
    path = (stored / "last" / "state.json").resolve()
    before, rng = checkpoint.read(stored), random.Random(0)
    for position in range(path.stat().st_size):
        bit = rng.randrange(8)
        flip(path, position, bit)
        # A letter of an escape may become a capital.
        with contextlib.suppress(ValueError):
            assert checkpoint.read(stored) == before, position
        flip(path, position, bit)


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=1))


def test_an_edited_step_is_noticed(stored):
    edit(stored / "last" / "state.json", iteration=2)
    for read in (checkpoint.read, interop.read_model):
        with pytest.raises(ValueError, match="damaged or edited"):
            read(stored)
    edit(stored / "last" / "state.json", iteration=3)
    assert checkpoint.read(stored).iteration == 3


def test_a_checkpoint_without_digests_is_read_as_before(stored):
    make_old(stored / "last")
    flip(stored / "last" / "model.safetensors", -1)
    assert run_folder.origin(stored, True).name == "00000003"
    assert interop.read_model(stored).model.categories == checkpoint.read(stored).categories
    assert run(stored, 4, resume=True).iteration == 4


def test_a_damaged_checkpoint_is_gone_around_when_that_is_said(stored, tmp_path):
    run(tmp_path / "whole", 5, checkpoint_every=1)
    last = stored / "checkpoints" / "00000003"
    flip(last / "optimizer.safetensors", -1)
    with pytest.raises(ValueError) as caught:
        run(stored, 5, resume=True)
    assert str(caught.value) == (
        f"{last / 'optimizer.safetensors'}: damaged, its SHA-256 is another;"
        " the newest whole one is that of step 2: --resume --resume-from 2 goes on"
    )
    flip(stored / "checkpoints" / "00000002" / "config.json", 1)
    with pytest.raises(ValueError, match="that of step 1: --resume --resume-from 1 goes on"):
        run(stored, 5, resume=True)
    with pytest.raises(ValueError, match=r"config.json: damaged, .* --resume-from 1"):
        run(stored, 5, resume=True, resume_from=2)
    assert len(log.read(stored / "log.jsonl")) == 3
    run(stored, 5, resume=True, resume_from=1, checkpoint_every=1)
    assert_same_run(tmp_path / "whole", stored)


def test_a_run_that_went_back_is_there(stored, monkeypatch):
    """Killed at once, it goes on from there; what it had not reached is not its best."""
    checkpoint.mark_best(stored, 3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("accelerated.engine.train.Run.step", lambda *_: _raise(KeyboardInterrupt))
        run(stored, 5, resume=True, resume_from=2)
    assert checkpoint.read(stored).iteration == 2 and best.read(stored) is None
    assert [line["iteration"] for line in log.read(stored / "log.jsonl")] == [1, 2]
    checkpoint.mark_best(stored, 1)
    run_folder.settle(stored, stored / "checkpoints" / "00000002")
    assert checkpoint.best(stored) == "00000001"


def _raise(error):
    raise error


def test_a_step_without_a_checkpoint_is_refused(stored, tmp_path):
    for step, problem in ((7, "00000007: no such checkpoint"), (0, "00000000: no such")):
        with pytest.raises(ValueError, match=f"{problem}.* --resume-from 3 goes on"):
            run(stored, 5, resume=True, resume_from=step)
    with pytest.raises(ValueError, match="--resume-from does nothing without --resume"):
        run(stored, 5, resume_from=2)
    with pytest.raises(ValueError, match="has no whole checkpoint"):
        run(tmp_path / "none", 5, resume=True, resume_from=2)


def test_a_run_copied_with_its_links_followed_goes_on(stored, tmp_path):
    checkpoint.mark_best(stored, 2)
    shutil.copytree(stored, tmp_path / "copy", symlinks=False)
    copy = tmp_path / "copy"
    assert [line.partition(" ")[0] for line in run_folder.remarks(copy)] == [
        str(copy / "last"),
        str(copy / "best"),
    ]
    run(copy, 4, resume=True, keep=9)
    run(stored, 4, resume=True, keep=9)
    assert_same_run(stored, copy)
    for name in ("last", "best"):
        assert (copy / name).is_symlink()
        assert (copy / name).readlink() == (stored / name).readlink()
    assert run_folder.remarks(copy) == []
    names = [path.name for path in checkpoint.stored(copy)]
    assert names == ["00000001", "00000002", "00000003", "00000004"]


def test_a_copy_alone_goes_on(stored, tmp_path):
    shutil.copytree(stored / "last", tmp_path / "copy" / "last")
    run(tmp_path / "copy", 4, resume=True)
    assert checkpoint.read(tmp_path / "copy").iteration == 4
    assert [path.name for path in checkpoint.stored(tmp_path / "copy")] == ["00000003", "00000004"]


def test_a_folder_in_the_place_of_a_link_that_is_no_copy_is_refused(stored):
    (stored / "last").unlink()
    shutil.copytree(stored / "checkpoints" / "00000002", stored / "last")
    edit_old(stored / "last")
    with pytest.raises(ValueError, match=r"last is a folder, not the .* differs from .*0002: "):
        run(stored, 4, resume=True)
    (stored / "last" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"and no whole checkpoint .*: move it away"):
        run(stored, 4, resume=True)


def edit_old(path):
    make_old(path)
    state = json.loads((path / "state.json").read_text())
    edit(path / "state.json", settings=state["settings"] | {"seed": 7})


def test_checkpoints_without_a_link_are_not_overwritten(stored):
    (stored / "last").unlink()
    with pytest.raises(ValueError, match="already holds a run"):
        run(stored, 4)
    for path in checkpoint.stored(stored):
        flip(path / "model.safetensors", -1)
    with pytest.raises(ValueError, match="has no whole checkpoint"):
        run(stored, 4, resume=True)
    assert len(checkpoint.stored(stored)) == 3


def test_what_stands_in_the_way_is_named(tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "log.jsonl").write_text("precious\n")
    with pytest.raises(ValueError, match="holds the log of a run that ended before its first"):
        run(tmp_path / "log", 1)
    assert (tmp_path / "log" / "log.jsonl").read_text() == "precious\n"
    for name, kind in (("checkpoints", "folder"), ("evaluations", "folder"), ("log.jsonl", "file")):
        path = tmp_path / name / name
        path.mkdir(parents=True) if kind == "file" else path.parent.mkdir()
        path.touch()
        with pytest.raises(ValueError, match=f"{name} is no {kind}: choose another folder"):
            run(tmp_path / name, 1)


def test_a_damaged_line_of_the_log_is_not_dropped(stored):
    lines = (stored / "log.jsonl").read_text().splitlines(keepends=True)
    for line in ("{\n", "[1]\n", "{}\n", "\n"):
        (stored / "log.jsonl").write_text("".join([lines[0], line, *lines[2:]]))
        with pytest.raises(ValueError, match=r"log.jsonl, line 2: expected an object"):
            run(stored, 4, resume=True)
        assert line in (stored / "log.jsonl").read_text().splitlines(keepends=True)


def test_other_data_is_told(stored):
    data = small.shapes(6)
    assert fingerprint.changes(stored, data, None) == []
    assert fingerprint.changes(stored, small.shapes(5), small.shapes(2)) == [
        "the training data is not what it was: 6 images before, 5 images now; its end is missing",
        "the validation data is not what it was: none before, 2 images now",
    ]
    data.file_names = [*data.file_names[:3], "other.png", *data.file_names[4:]]
    [line] = fingerprint.changes(stored, data, None)
    assert line.endswith(f"6 images now; the first image that differs is 'other.png' (id {3 + 1})")
    # From now on it is what the run is trained on.
    run(stored, 4, resume=True, dataset=data)
    assert fingerprint.changes(stored, data, None) == []
    (stored / "data.json").write_text("{")
    with pytest.raises(ValueError, match=r"data.json: damaged .*; delete it to do without"):
        fingerprint.changes(stored, data, None)
    (stored / "data.json").unlink()
    assert fingerprint.changes(stored, data, None) == []


def test_another_machine_is_told(stored):
    before = checkpoint.read(stored).machine
    assert settings.machine_change(before, before) is None
    now = before | {"threads": 77, "PyTorch": "0.1"}
    assert settings.machine_change(before, now) == (
        f"goes on, but not bit for bit: threads: {before['threads']} before, 77 now;"
        f" PyTorch: {before['PyTorch']} before, 0.1 now"
    )
    # Older checkpoints do not say.
    assert settings.machine_change({}, now) is None


def test_a_run_without_links_goes_on_from_its_newest_whole_checkpoint(stored, tmp_path):
    """As one killed between its first checkpoint and the link, or copied without links."""
    run(tmp_path / "whole", 4)
    (stored / "last").unlink()
    flip(stored / "checkpoints" / "00000003" / "model.safetensors", -1)
    newest = stored / "checkpoints" / "00000002"
    assert run_folder.remarks(stored) == [
        f"{stored / 'last'} is missing; training goes on from {newest}"
    ]
    assert run(stored, 4, resume=True).iteration == 4
    assert_same_run(tmp_path / "whole", stored)
    assert run_folder.remarks(stored) == []


def test_what_a_killed_process_left_goes_at_the_next_start(stored):
    (stored / "checkpoints" / ".00000002.old").mkdir()
    (stored / ".best").symlink_to("checkpoints/00000002")
    run(stored, 3, resume=True)
    left = [*stored.glob(".*"), *(stored / "checkpoints").glob(".*")]
    assert left == [] and len(checkpoint.stored(stored)) == 3
