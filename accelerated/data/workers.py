"""Batches from worker processes: whatever happens to one is an error that says what to do.

A worker may be killed, crash or hang; then the error names the image that it prepared. However the
batches end, no worker is left.
"""

import atexit
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from multiprocessing import RawArray, active_children, connection, parent_process
from pathlib import Path
from shutil import disk_usage
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

# Seconds that a batch is waited for while no worker begins or finishes an image.
PATIENCE = 300.0
# Seconds that workers have to leave by themselves.
GRACE = 5.0
# Seconds until a process whose connections broke is seen to be dead.
DYING = 1.0
# Workers that a message lists.
LISTED = 2
# What processes in these states of /proc/PID/stat do.
STATES = {"T": "was stopped (state T)", "D": "waits for a disk or a network (state D)"}
FEWER = "try fewer --workers, or 0"
MORE_SHARED = f"give the container more (docker run --shm-size 8g), or {FEWER}"


# Follows the last batch.
END = object()


class Board:
    """Tells what each worker is doing, in memory that all processes share."""

    def __init__(self, workers: int):
        # Of each worker: its process, the image in its hands or -1, and how often it wrote here.
        self.rows = RawArray("q", 3 * workers)

    def write(self, index: int) -> None:
        """Note, in a worker, the image that it begins; -1: that its batch is finished."""
        worker = get_worker_info()
        if worker is not None:
            first = 3 * worker.id
            self.rows[first : first + 3] = [os.getpid(), index, self.rows[first + 2] + 1]

    def read(self) -> dict[int | None, int]:
        """Return {process: the image in its hands, or -1}."""
        return dict(zip(self.rows[::3], self.rows[1::3], strict=True))


def watched(
    batches: DataLoader, board: Board, name: Callable[[int], str], patience: float
) -> Generator[Any, None, None]:
    """Yield the batches, and leave no worker behind.

    board     on which the workers note the images that they prepare
    name      describes an image by its index
    patience  seconds after which workers without any progress are given up; those in which this
              process was stopped itself do not count

    Raises RuntimeError, with the image and the remedy, if a worker died or was given up, or if none
    can be started.
    """
    if not batches.num_workers:
        yield from batches
        return
    watch = _Watch(batches, board, name, patience)
    try:
        while (batch := watch.next()) is not END:
            yield batch
    finally:
        watch.end()


def share(tensors: Iterable[torch.Tensor]) -> None:
    """Move tensors to shared memory, as PyTorch would do later, where it only prints failures.

    Raises ValueError if there is not enough.
    """
    try:
        for tensor in tensors:
            tensor.share_memory_()
    except RuntimeError as error:
        text = f"no room for the batch in shared memory ({_left()}): {MORE_SHARED}"
        raise ValueError(f"{text} [{error}]") from None


def follow_parent(worker: int) -> None:
    """Leave signals, which reach every process of a terminal or a job, to the parent of a worker.

    SIGTERM from the parent, and its end, end the worker.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # A blocked signal waits for the thread, which learns who sent it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    parent = parent_process()
    while parent is not None and os.getppid() == parent.pid:
        received = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)


class _Watch:
    """Watches, from a thread, the workers of one iteration over the batches."""

    def __init__(self, batches, board, name, patience):
        self.board, self.name, self.patience = board, name, patience
        self.waiting, self.taken, self.verdict = False, 0, None
        self.ending, self.ended = threading.Event(), threading.Event()
        others, handler = active_children(), signal.getsignal(signal.SIGCHLD)
        try:
            self.source: Any = iter(batches)
        except OSError as error:
            text = f"the processes that prepare images cannot be started: {error} ({_left()})"
            raise RuntimeError(f"{text}: {FEWER}") from None
        # PyTorch's handler would raise wherever the main process is, such as within a step.
        _handle_deaths(handler)
        self.workers = [process for process in active_children() if process not in others]
        # At exit Python waits for its processes, for stopped ones without end.
        atexit.register(self.end)
        threading.Thread(target=self.watch, daemon=True).start()

    def next(self):
        """Return the next batch, or END after the last."""
        handler = _handle_deaths(lambda *_: self.require(0, -signal.SIGTERM))
        self.waiting = True
        try:
            self.require()
            return next(self.source, END)
        except Exception:
            # A dying process closes its connections before it can be seen to be dead.
            connection.wait([worker.sentinel for worker in self.workers], DYING)
            for worker in self.workers:
                if connection.wait([worker.sentinel], 0):
                    worker.join(DYING)
            self.require()
            raise
        finally:
            _handle_deaths(handler)
            self.waiting, self.taken = False, self.taken + 1

    def require(self, *expected):
        """Raise RuntimeError if the workers were given up, or one ended in an unexpected way.

        expected  exit codes, such as those of workers that PyTorch ends after the last batch
        """
        if self.verdict is not None:
            raise RuntimeError(self.verdict) from None
        for worker in self.workers:
            if worker.exitcode not in (None, *expected):
                raise RuntimeError(f"{self.describe(worker)} {_end(worker.exitcode)}") from None

    def watch(self):
        """Give the workers up when they hang, and kill those that do not leave."""
        silent, before, period = 0.0, None, self.patience / 10
        while self.verdict is None and not self.ending.wait(period):
            now = self.taken, self.board.rows[:]
            # Not by a clock: it goes on while all processes are stopped, as by Ctrl-Z.
            silent = silent + period if self.waiting and now == before else 0.0
            before = now
            if silent >= self.patience:
                self.verdict = self.diagnose()
                self.kill()
        if not self.ended.wait(GRACE):
            self.kill()

    def diagnose(self):
        """Say what the workers are doing, or only which were stopped."""
        states = {worker: _state(worker.pid) for worker in self.workers}
        doing = self.board.read()
        stopped = [worker for worker in self.workers if states[worker] == "T"]
        busy = [worker for worker in self.workers if doing.get(worker.pid, -1) >= 0]
        found = [
            f"{self.describe(worker)} {STATES.get(states[worker], 'has not finished')}"
            for worker in (stopped or busy)[:LISTED]
        ] or ["a batch was lost on its way from the processes that prepare images"]
        return (
            f"no image was finished for {self.patience:g} s: {'; '.join(found)}"
            f" ({_left()}). See whether the disk answers; --workers 0 waits without end"
        )

    def describe(self, worker):
        """Name a process and its image."""
        index = self.board.read().get(worker.pid, -1)
        image = "images" if index < 0 else self.name(index)
        return f"process {worker.pid}, which prepares {image},"

    def kill(self):
        """Kill the workers; SIGTERM would not end a stopped one."""
        for worker in self.workers:
            worker.kill()

    def end(self):
        """End the workers and wait for them."""
        atexit.unregister(self.end)
        self.ending.set()
        try:
            # What happens when the last reference is dropped; an exception may hold another.
            self.source._shutdown_workers()
        finally:
            self.ended.set()
            self.kill()
            for worker in self.workers:
                worker.join(GRACE)


def _handle_deaths(handler):
    """Set the handler of SIGCHLD, which only the main thread can, and return the one before."""
    if threading.current_thread() is threading.main_thread():
        return signal.signal(signal.SIGCHLD, handler)


def _end(code):
    """Say how a process ended, and what to do."""
    if code >= 0:
        return f"ended with exit code {code}: see what it printed, or find out with --workers 0"
    name = {s.value: s.name for s in signal.Signals}.get(-code, f"signal {-code}")
    if name == "SIGKILL":
        return f"was killed by {name}, as when memory runs out: {FEWER}"
    if name == "SIGBUS":
        return f"was killed by {name}, as when shared memory runs out ({_left()}): {MORE_SHARED}"
    return f"was killed by {name}: leave the file out if this happens again, or {FEWER}"


def _left():
    """Say how much shared memory is left."""
    try:
        return f"/dev/shm has {disk_usage('/dev/shm').free / 1e6:.0f} MB left"
    except OSError:
        return "there is no /dev/shm"


def _state(process):
    """Return the letter of the state of a process, such as T for stopped; "" if there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return ""
