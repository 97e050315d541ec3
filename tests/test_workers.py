"""data.workers: whatever happens to a worker is an error with a remedy, and none is left over."""

import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from accelerated.data import workers
from accelerated.data.loader import loader
from accelerated.data.synthetic import ShapesDataset
from reference import config

CONFIG = config.preset("tiny")
CONFIG = replace(CONFIG, transform=replace(CONFIG.transform, min_size=(32,), max_size=64))
# Far above what they take: without what they test, most of these wait for ever.
pytestmark = pytest.mark.timeout(60)


class Faulty(ShapesDataset):
    """Images, before the third of which something happens in the worker."""

    def __init__(self, fault, count=6):
        super().__init__(count, size=32)
        self.fault = fault

    def __getitem__(self, index):
        if index == 2:
            self.fault()
        return super().__getitem__(index)


def iterate(fault, count=6, patience=60.0):
    """Start to iterate over images one by one, with one worker."""
    dataset = Faulty(fault, count)
    return iter(loader(dataset, CONFIG, batch_size=1, workers=1, training=False, patience=patience))


def hit(number, process=None):
    os.kill(process or os.getpid(), number)


def state(worker):
    return workers._state(worker.pid)


def wait_for(condition):
    while not condition():
        time.sleep(0.01)


def assert_none_is_left():
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (partial(hit, signal.SIGKILL), "was killed by SIGKILL.*memory.*--workers"),
        (partial(hit, signal.SIGBUS), "was killed by SIGBUS.*/dev/shm has .* MB left.*shm-size"),
        (partial(hit, signal.SIGSEGV), "was killed by SIGSEGV.*leave the file out.*--workers"),
        (partial(os._exit, 7), "ended with exit code 7.*--workers 0"),
    ],
)
def test_a_worker_that_dies_is_explained(fault, reason):
    with pytest.raises(
        RuntimeError, match=rf"^process \d+, .*image 3, file '000003.png', {reason}"
    ):
        list(iterate(fault))
    assert_none_is_left()


def test_a_death_during_a_step_is_explained_at_the_next_batch():
    stream = iterate(lambda: None)
    next(stream)
    [worker] = multiprocessing.active_children()
    # PyTorch would raise here, in the middle of a step, without a remedy.
    hit(signal.SIGKILL, worker.pid)
    wait_for(lambda: not worker.is_alive())
    with pytest.raises(RuntimeError, match=rf"process {worker.pid}, .* SIGKILL.*--workers"):
        next(stream)
    assert_none_is_left()


def test_a_stopped_worker_is_given_up():
    with pytest.raises(
        RuntimeError, match=r"0\.5 s: .*image 3, file '000003.png', was stopped .*/dev/shm"
    ):
        list(iterate(partial(hit, signal.SIGSTOP), patience=0.5))
    assert_none_is_left()


def test_a_worker_that_stopped_before_its_batch_was_fetched_is_given_up():
    """The batch has arrived, but its memory has to be asked for, which has no limit in PyTorch."""

    def stop():
        # The batch before is sent by another thread.
        time.sleep(0.2)
        hit(signal.SIGSTOP)

    stream = iterate(stop, patience=0.5)
    next(stream)
    [worker] = multiprocessing.active_children()
    wait_for(lambda: state(worker) == "T")
    with pytest.raises(RuntimeError, match=r"image 3, file '000003.png', was stopped"):
        list(stream)
    assert_none_is_left()


def test_a_busy_worker_is_given_up_and_named():
    with pytest.raises(RuntimeError, match=r"image 3, file '000003.png', has not finished"):
        list(iterate(partial(time.sleep, 600), patience=0.5))
    assert_none_is_left()


def test_a_slow_batch_is_waited_for_while_its_images_make_progress():
    settings = {"batch_size": 30, "workers": 1, "training": False, "patience": 1.0}

    class Slow(ShapesDataset):
        def __getitem__(self, index):
            time.sleep(0.05)
            return super().__getitem__(index)

    assert len(list(loader(Slow(30, size=32), CONFIG, **settings))) == 1


def test_full_shared_memory_is_explained():
    """The limit on files is as good as a full /dev/shm: both refuse memory to a worker."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    with pytest.raises(RuntimeError, match=r"^images 3: no room .* MB left.*shm-size.*--workers"):
        list(iterate(limit))
    assert_none_is_left()


def test_a_worker_that_cannot_be_started_is_explained(monkeypatch):
    def fork():
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(RuntimeError, match=r"cannot be started: .*unavailable .*MB left.*--worker"):
        list(iterate(lambda: None))


def stop_after_a_batch(stream):
    """Take a batch, then stop the worker."""
    next(stream)
    [worker] = multiprocessing.active_children()
    hit(signal.SIGSTOP, worker.pid)
    wait_for(lambda: state(worker) == "T")


def test_closing_kills_a_stopped_worker(monkeypatch):
    # PyTorch would wait for this long, before and after it sends SIGTERM.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 600)
    monkeypatch.setattr(workers, "GRACE", 0.2)
    stream = iterate(lambda: None)
    stop_after_a_batch(stream)
    stream.close()
    assert_none_is_left()


def test_a_worker_that_is_stopped_after_its_last_batch_is_killed(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    stream = iterate(lambda: None, count=1)
    stop_after_a_batch(stream)
    assert next(stream, None) is None
    assert_none_is_left()


def test_the_interpreter_exits_beside_a_stopped_worker(tmp_path):
    """The program ends with the iterator open, which nothing closes."""
    program = """
import multiprocessing, os, signal
from accelerated.data import workers
from accelerated.data.loader import loader
from accelerated.data.synthetic import ShapesDataset
from reference.config import preset

workers.GRACE = 0.2
batches = loader(ShapesDataset(6, size=32), preset("tiny"), batch_size=1, workers=1, training=False)
stream = iter(batches)
next(stream)
[worker] = multiprocessing.active_children()
os.kill(worker.pid, signal.SIGSTOP)
print(worker.pid)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=50, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not Path(f"/proc/{int(done.stdout)}").exists()
