"""The folder of a run: what a training finds there, and what it says when it cannot write."""

import filecmp
import functools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from accelerated.data.text_files import sync
from accelerated.engine import checkpoint, lock

Function = TypeVar("Function", bound=Callable[..., Any])
LINKS = ("last", "best")


def origin(run: Path, resume: bool, step: int | None = None) -> Path | None:
    """Return the checkpoint that a training in folder `run` goes on from; None: it begins.

    step  that of the checkpoint; None: the last, without RUN/last the newest whole one

    Raises ValueError if the folder is not free for a new run, if the checkpoint is missing or
    damaged, which names the newest whole one, or if something else stands in a file's place.
    """
    if step is not None and not resume:
        raise ValueError("--resume-from does nothing without --resume")
    for name, is_folder in (("checkpoints", True), ("evaluations", True), ("log.jsonl", False)):
        path = run / name
        if path.exists() and path.is_dir() != is_folder:
            kind = "folder" if is_folder else "file"
            raise ValueError(f"{path} is no {kind}: choose another folder for the run")
    if not checkpoint.exists(run) and step is None:
        if (run / "log.jsonl").exists() and not resume:
            raise ValueError(
                f"{run} holds the log of a run that ended before its first checkpoint: begin it"
                " again with --resume, or choose another folder"
            )
        return None
    if not resume:
        raise ValueError(f"{run} already holds a run: resume it, or choose another folder")
    for name in LINKS:
        _check_copy(run / name)
    path = run / "last" if step is None else run / "checkpoints" / f"{step:08d}"
    if step is None and not os.path.lexists(path):
        # A run may be killed between its first checkpoint and the link, or copied without links.
        whole = _newest_whole(run)
        path = path if whole is None else whole.path
    try:
        return checkpoint.verify(path).path
    except ValueError as error:
        raise ValueError(f"{error}; {_instead(run, path)}") from None


def _instead(run, path):
    """Name the newest whole checkpoint but `path`, and how a run goes on from it."""
    whole = _newest_whole(run, path.resolve())
    if whole is None:
        return f"{run} has no whole checkpoint to go on from: choose another folder"
    step = whole.iteration
    return f"the newest whole one is that of step {step}: --resume --resume-from {step} goes on"


def _newest_whole(run, damaged=None):
    for path in reversed(checkpoint.stored(run)):
        try:
            if path.resolve() != damaged:
                return checkpoint.verify(path)
        except ValueError:
            pass
    return None


def _check_copy(link):
    """Raise ValueError if a folder stands in the place of a link and is no copy of a checkpoint."""
    if link.is_symlink() or not link.is_dir():
        return
    problem = f"{link} is a folder, not the link that it was, and"
    try:
        copy = checkpoint.verify(link)
    except ValueError as error:
        raise ValueError(f"{problem} no whole checkpoint ({error}): move it away") from None
    original = _original(link, copy)
    files = ((link / name, original / name) for name in checkpoint.FILES)
    if original.exists() and not all(filecmp.cmp(*both, shallow=False) for both in files):
        raise ValueError(f"{problem} differs from {original}: move one of them away")


def remarks(run: Path) -> list[str]:
    """Tell which links of a run are missing, or are copies of checkpoints made by a tool."""
    whole = None if os.path.lexists(run / "last") else _newest_whole(run)
    missing = [f"{run / 'last'} is missing; training goes on from {whole.path}"] if whole else []
    return missing + [
        f"{run / name} is a folder, not a link (copied by a tool that follows links); training"
        " makes it a link again"
        for name in LINKS
        if (run / name).is_dir() and not (run / name).is_symlink()
    ]


def settle(run: Path, path: Path) -> Path:
    """Make RUN/last, and RUN/best where it is a copy, links again, and `path` the last checkpoint.

    What a killed process has left is deleted.
    A best checkpoint that the run has not reached there is not marked any more.
    Returns the path of the checkpoint, which may have been RUN/last itself.
    """
    for link in (run / name for name in LINKS):
        if link.is_dir() and not link.is_symlink():
            original = _original(link, checkpoint.read(link))
            if path == link.resolve():
                path = original
            original.parent.mkdir(exist_ok=True)
            double = original.with_name(f".{link.name}")
            link.rename(double if original.exists() else original)
            sync(original.parent)
            checkpoint.point(run, link.name, original)
            shutil.rmtree(double, ignore_errors=True)
    checkpoint.clear(run)
    checkpoint.point(run, "last", path)
    best = checkpoint.best(run)
    if best is not None and best > path.name:
        (run / "best").unlink()
        sync(run)
    return path


def _original(link, copy):
    return link.parent / "checkpoints" / f"{copy.iteration:08d}"


def alone(train: Function) -> Function:
    """Decorate train(config, dataset, output, ...): hold the folder, and explain its errors."""

    @functools.wraps(train)
    def in_folder(config, dataset, output, *arguments, **options):
        with lock.held(output), naming_checkpoint(Path(output)):
            return train(config, dataset, output, *arguments, **options)

    return cast(Function, in_folder)


@contextmanager
def naming_checkpoint(run: Path) -> Iterator[None]:
    """Add to errors of the system, if they name a file of a run, where the run can go on from."""
    try:
        yield
    except OSError as error:
        if error.filename is None or run not in Path(error.filename).parents:
            raise
        whole = _newest_whole(run)
        kept = "there is no checkpoint yet; once that is mended, --resume begins the run again"
        if whole is not None:
            path = run / "checkpoints" / whole.path.name
            kept = f"{path} is whole; once that is mended, --resume goes on from there"
        raise OSError(error.errno, f"{error.strerror}; {kept}", error.filename) from error
