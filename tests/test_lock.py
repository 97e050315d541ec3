"""engine.lock: one training per folder, until its process ends, however it ends."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
import textwrap
import threading

import pytest
from test_train import run

from accelerated.engine import lock

HOLDER = """
    import os, sys
    from accelerated.engine import lock
    with lock.held(sys.argv[1]):
        # As a loader's worker: it outlives its parent for a while.
        if os.fork() == 0:
            print(os.getpid(), flush=True)
            sys.stdin.read()
            os._exit(0)
        sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path / "run"."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    yield process
    process.communicate()


def test_a_second_training_names_the_first_and_deletes_nothing(holder, tmp_path):
    partial = tmp_path / "run" / "checkpoints" / ".00000002"
    partial.mkdir(parents=True)
    with pytest.raises(ValueError) as caught:
        run(tmp_path / "run", 1)
    where = f"process {holder.pid} on {socket.gethostname()}"
    assert str(caught.value) == (
        f"{tmp_path / 'run'} is being trained in by {where}: wait for it, or choose another folder"
    )
    assert partial.exists() and not (tmp_path / "run" / "log.jsonl").exists()


def test_the_command_says_so_before_it_reads_data(holder, tmp_path, command):
    code, out, error = command("train", "--data", "missing.json", "--output", tmp_path / "run")
    assert code == 2 and out == "" and f"by process {holder.pid}" in error
    assert len(error.splitlines()) == 1
    code, out, error = command("ablate", "--output", tmp_path / "run")
    assert code == 2 and out == "" and f"by process {holder.pid}" in error


def test_the_lock_goes_with_its_process_though_a_forked_one_lives(holder, tmp_path):
    holder.kill()
    holder.wait(60)
    # Its child still reads from the pipe.
    with lock.held(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / ".lock").read_text()
    assert not (tmp_path / "run" / ".lock").exists()


def test_it_is_held_once_in_a_thread_and_by_no_other(tmp_path):
    refused = []

    def other():
        try:
            with lock.held(tmp_path):
                pass
        except ValueError as error:
            refused.append(str(error))

    with lock.held(tmp_path), lock.held(tmp_path / "."):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1 and f"process {os.getpid()}" in refused[0]
    other()
    assert len(refused) == 1


def test_a_new_folder_that_stays_empty_is_removed(tmp_path):
    with pytest.raises(ValueError, match="nothing"), lock.held(tmp_path / "new"):
        raise ValueError("nothing")
    assert not (tmp_path / "new").exists()
    with lock.held(tmp_path / "used"):
        (tmp_path / "used" / "file").touch()
    assert os.listdir(tmp_path / "used") == ["file"]


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock.held(tmp_path) as notes:
        assert notes == [
            f"warning: the file system of {tmp_path} has no locks (Operation not supported):"
            " nothing keeps a second training out of this folder"
        ]


def test_a_folder_that_is_a_file_or_cannot_be_made_is_refused(tmp_path, monkeypatch, command):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        code, out, error = command("train", "--data", "missing.json", "--output", path)
        assert (
            code == 2
            and out == ""
            and error == (f"maskrcnn: {path} is a file, or below one: choose another folder\n")
        )

    def mkdir(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "mkdir", mkdir)
    code, out, error = command("train", "--data", "missing.json", "--output", tmp_path / "run")
    assert (code, error) == (
        2,
        f"maskrcnn: {tmp_path / 'run'} cannot be written to: Read-only file system\n",
    )


def test_a_lock_that_its_holder_removed_meanwhile_is_none(tmp_path, monkeypatch):
    """The holder ends between the opening of the file and its locking."""
    original, calls = fcntl.flock, []

    def flock(*arguments):
        original(*arguments)
        calls.append(arguments)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock.held(tmp_path):
        assert len(calls) == 2 and (tmp_path / ".lock").exists()


def test_a_lock_that_cannot_be_removed_hides_no_error(tmp_path):
    with pytest.raises(ValueError, match="of the training"), lock.held(tmp_path):
        (tmp_path / ".lock").unlink()
        (tmp_path / ".lock").mkdir()
        raise ValueError("of the training")
    assert not lock._open
    (tmp_path / ".lock").rmdir()
    with lock.held(tmp_path):
        pass
