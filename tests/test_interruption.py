"""engine.interruption: signals save and end a run, or save it; loaders leave them to it."""

import multiprocessing
import os
import select
import signal
import subprocess

import pytest
from support import small
from test_train import run

from accelerated.data import workers
from accelerated.engine import checkpoint
from accelerated.engine.interruption import STOPPING, interruptible
from accelerated.mask_rcnn import MaskRCNN


@pytest.fixture(autouse=True)
def usual_handlers():
    """Start from Python's handlers: under nohup or in the background, signals are ignored."""
    usual = {number: signal.SIG_DFL for number in (*STOPPING, signal.SIGUSR1)}
    usual |= {signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield usual
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def send_in_step(monkeypatch):
    """send_in_step(3, SIGTERM): the process gets the signal within its third step."""

    def prepare(step, number):
        original, calls = MaskRCNN.batch_losses, []

        def sending(self, *arguments, **options):
            calls.append(step)
            if len(calls) == step:
                os.kill(os.getpid(), number)
            return original(self, *arguments, **options)

        monkeypatch.setattr(MaskRCNN, "batch_losses", sending)

    return prepare


def steps(folder):
    return [int(path.name) for path in checkpoint.stored(folder)]


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_saves_and_ends_the_run(number, tmp_path, send_in_step, usual_handlers):
    send_in_step(2, number)
    result = run(tmp_path, 5, checkpoint_every=0)
    assert (result.interrupted, result.iteration) == (number, 2)
    assert steps(tmp_path) == [2]
    assert {n: signal.getsignal(n) for n in usual_handlers} == usual_handlers


def test_sigusr1_saves_and_goes_on(tmp_path, send_in_step):
    send_in_step(2, signal.SIGUSR1)
    result = run(tmp_path, 4, checkpoint_every=0)
    assert (result.interrupted, result.iteration) == (None, 4)
    assert steps(tmp_path) == [2, 4]


def test_a_signal_in_the_last_step_ends_a_finished_run(tmp_path, send_in_step):
    send_in_step(2, signal.SIGTERM)
    assert run(tmp_path, 2).interrupted is None


def test_the_command_ends_with_128_and_the_signal(command, tmp_path, send_in_step):
    data, images = small.shapes(2).write_coco(tmp_path)
    send_in_step(2, signal.SIGTERM)
    where = ("--data", data, "--images", images, "--output", tmp_path / "run")
    size = ("--batch-size", 2, "--device", "cpu", *small.CHANGES)
    code, out, error = command("train", *where, *size, "--iterations", 5)
    assert code == 128 + signal.SIGTERM, error
    assert out.splitlines()[-1] == "Interrupted after 2 steps: continue with --resume."


def test_minutes_save_by_the_clock(tmp_path):
    run(tmp_path / "clock", 3, checkpoint_every=0, checkpoint_minutes=1e-9)
    assert steps(tmp_path / "clock") == [1, 2, 3]
    run(tmp_path / "slow", 3, checkpoint_every=0, checkpoint_minutes=1e9)
    assert steps(tmp_path / "slow") == [3]


def test_what_is_ignored_stays_ignored_but_sigint():
    """As under nohup, and in the background of a shell."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible() as asked:
        os.kill(os.getpid(), signal.SIGHUP)
        assert asked.stop == 0 and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.stop == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_second_sigint_interrupts_and_a_second_sigterm_waits():
    with pytest.raises(KeyboardInterrupt), interruptible() as asked:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert asked.stop == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_each_sigusr1_is_taken_once():
    with interruptible() as asked:
        assert asked.take() == (0, False)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert asked.take() == (0, True)
        assert asked.take() == (0, False)


def _work(pipe):
    workers.follow_parent(0)
    while pipe.recv() != "end":
        pipe.send(os.getpid())


def _parent(pipe):
    """Start a worker, tell its number, and wait to be killed."""
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    worker = multiprocessing.get_context("fork").Process(target=_work, args=(theirs,))
    worker.start()
    ours.send("number")
    pipe.send(ours.recv())
    pipe.recv()


@pytest.fixture
def started():
    """started(target): a process, which does not outlive the test, and a pipe to it."""
    processes, context = [], multiprocessing.get_context("fork")

    def start(target):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=target, args=(theirs,)))
        processes[-1].start()
        theirs.close()
        return processes[-1], ours

    yield start
    for process in processes:
        process.kill()


def test_a_worker_leaves_signals_to_its_parent_and_obeys_it(started):
    process, pipe = started(_work)
    pipe.send("ready?")
    assert pipe.recv() == process.pid
    for name in ("INT", "HUP", "USR1", "TERM"):
        # Not from this process.
        subprocess.run(["kill", f"-{name}", str(process.pid)], check=True)
        pipe.send("alive?")
        assert pipe.recv() == process.pid
    process.terminate()
    process.join(20)
    assert process.exitcode == 0


def test_a_worker_ends_with_its_parent(started):
    process, pipe = started(_parent)
    worker = pipe.recv()
    # Readable once the worker has ended.
    handle = os.pidfd_open(worker)
    process.kill()
    process.join(20)
    ended = select.select([handle], [], [], 20)[0]
    os.close(handle)
    if not ended:
        os.kill(worker, signal.SIGKILL)
    assert ended
