"""engine.checkpoint: whatever a power cut leaves on the disk, RUN/last is a whole checkpoint.

What the disk holds is known only after fsync: the bytes of a file, and the names in a folder. Until
then a folder may still be in any state that it had since, whatever the state of another folder.
"""

import os
import shutil
from pathlib import Path

import pytest
from test_checkpoint import save, trained

from accelerated.engine import checkpoint, run_folder


class Disk:
    """The states in which a power cut may leave the folders below `run`, call by call."""

    def __init__(self, run, lost=()):
        # Calls of fsync that do nothing: those for paths of these names.
        self.run, self.lost = run, lost
        # The bytes of a file, and the states of a folder, by inode.
        self.files, self.folders = {}, {}
        # Open, so that no inode gets another's number.
        self.handles = {}
        for path in [run, *run.rglob("*")]:
            if not path.is_symlink():
                self.sync(path)

    def number(self, path):
        number = path.stat().st_ino
        if number not in self.handles:
            self.handles[number] = os.open(path, os.O_RDONLY)
        return number

    def listing(self, path):
        return {
            entry.name: os.readlink(entry) if entry.is_symlink() else self.number(Path(entry))
            for entry in os.scandir(path)
        }

    def sync(self, path):
        if path.is_dir():
            self.folders[self.number(path)] = [self.listing(path)]
        else:
            self.files[self.number(path)] = path.read_bytes()

    def look(self):
        """Note the states that folders are in now."""
        for path in (self.run, *(p for p in self.run.rglob("*") if p.is_dir())):
            if not path.is_symlink():
                states, now = self.folders.setdefault(self.number(path), [{}]), self.listing(path)
                if states[-1] != now:
                    states.append(now)

    def problem(self, link, optional=False):
        """Tell how the link may not lead to a whole checkpoint; None if it always does."""
        for names in self.folders[self.number(self.run)]:
            if link not in names:
                if not optional:
                    return f"no {link}"
                continue
            name = Path(names[link]).name
            for inside in self.folders[names["checkpoints"]]:
                if name not in inside:
                    return f"{link} points at {name}, which is not there"
                for files in self.folders[inside[name]]:
                    for file in checkpoint.FILES:
                        if file not in files or files[file] not in self.files:
                            return f"{link} points at {name} without {file}"
        return None


@pytest.fixture
def watched(monkeypatch, request):
    """watched(run, links, lost): a Disk and the problems found before and after each call."""

    def watch(run, links, lost=()):
        disk, problems = Disk(run, lost), []
        request.addfinalizer(lambda: [os.close(handle) for handle in disk.handles.values()])

        def examine():
            disk.look()
            problems.extend(filter(None, (disk.problem(*link) for link in links)))
            # A killed process leaves what is there now: each checkpoint complete or absent.
            for path in checkpoint.stored(run):
                if not all((path / name).exists() for name in checkpoint.FILES):
                    problems.append(f"a part of {path.name}")

        def patched(name):
            original = getattr(os, name)

            def call(*arguments, **options):
                result = original(*arguments, **options)
                examine()
                return result

            monkeypatch.setattr(os, name, call)

        for name in ("mkdir", "rename", "replace", "symlink", "unlink", "rmdir"):
            patched(name)

        def fsync(handle):
            path = Path(os.readlink(f"/proc/self/fd/{handle}"))
            if path.name not in disk.lost:
                disk.sync(path)
            examine()

        def rmtree(path, ignore_errors=False):
            if ignore_errors and not path.exists():
                return
            for entry in sorted(path.iterdir()):
                os.unlink(entry)
            os.rmdir(path)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(shutil, "rmtree", rmtree)
        return problems

    return watch


LINKS = [("last",), ("best", True)]


def life(run):
    """Save, mark as the best, go back to a step before it, and write that again."""
    model, optimizer = trained()
    checkpoint.mark_best(run, 1)
    for iteration in (2, 3):
        save(run, iteration, model, optimizer, keep=1)
    checkpoint.mark_best(run, 3)
    for iteration in (4, 5):
        save(run, iteration, model, optimizer, keep=2)
    checkpoint.mark_best(run, 5)
    resumed = run_folder.origin(run, True, 4)
    run_folder.settle(run, resumed)
    for iteration in (5, 6):
        save(run, iteration, model, optimizer, keep=1)


def test_a_power_cut_at_any_moment_leaves_a_whole_checkpoint(tmp_path, watched):
    save(tmp_path, 1)
    problems = watched(tmp_path, LINKS)
    life(tmp_path)
    assert problems == []
    assert checkpoint.read(tmp_path).iteration == 6


def test_a_power_cut_in_the_first_checkpoint_leaves_none_or_all_of_it(tmp_path, watched):
    problems = watched(tmp_path, [("last", True)])
    save(tmp_path, 1)
    assert problems == []


@pytest.mark.parametrize(
    "lost",
    [
        *([name] for name in checkpoint.FILES),
        [f".{step:08d}" for step in range(7)],
        ["checkpoints"],
        ["run"],
    ],
)
def test_every_sync_is_needed(lost, tmp_path, watched):
    (tmp_path / "run").mkdir()
    save(tmp_path / "run", 1)
    problems = watched(tmp_path / "run", LINKS, lost)
    life(tmp_path / "run")
    assert problems
