"""Kill trainings and let them go on: `PYTHONPATH=.:tests python -m support.kills 100`.

A training of one or two processes is killed (SIGKILL) at a random call of one kind, started again
with resume, killed again, and at last left to end. Its weights and losses must be, bit for bit,
those of a training in peace.
"""

import collections
import os
import random
import signal
import socket
import sys
import tempfile
import traceback
from pathlib import Path

import torch
from safetensors.torch import load_file

from accelerated.data import text_files
from accelerated.engine import checkpoint, group, log
from accelerated.engine import run as running
from accelerated.engine.train import train
from accelerated.mask_rcnn import MaskRCNN
from support import small

STEPS = 6
KILLS = 3
# kind: (number of processes, calls at which one of them is killed)
KINDS = {
    "while a checkpoint is written": (
        1,
        [(os, "fsync rename replace symlink unlink"), (checkpoint, "save_file")],
    ),
    "one of two processes": (
        2,
        [
            (running.Run, "load step check_and_log save_checkpoint evaluate"),
            (group, "maximum share collect"),
            (MaskRCNN, "head_losses"),
        ],
    ),
    "in an evaluation": (1, [(MaskRCNN, "batch_detections"), (text_files, "written_whole")]),
    "in any step": (1, [(running.Run, "load step check_and_log save_checkpoint evaluate")]),
}


class Watch:
    """Counts the calls of a kind, and kills this process at one of them."""

    def __init__(self, kind, victim):
        self.calls, self.victim = 0, victim
        for owner, names in KINDS[kind][1]:
            for name in names.split():
                setattr(owner, name, self.watched(getattr(owner, name)))

    def watched(self, function):
        def call(*arguments, **keywords):
            self.calls += 1
            if self.calls == self.victim:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call


def work(folder):
    """Train, or go on."""
    with group.joined(torch.device("cpu"), 60.0):
        train(
            small.config(),
            small.shapes(4),
            folder,
            iterations=STEPS,
            batch_size=2,
            resume=True,
            evaluation=small.shapes(2, seed=1),
            evaluate_every=2,
            checkpoint_every=1,
            keep=2,
            log_every=1,
            bar=False,
        )


def attempt(folder, kind, rank=None, call=None):
    """Train in new processes, of which `rank` is killed at a call; tell whether all came to an end.

    Writes the number of calls of the last process that came to an end.
    """
    count = KINDS[kind][0]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    children = []
    for index in range(count):
        child = os.fork()
        if child == 0:
            _child(folder, kind, index, count, port, call if index == rank else None)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if call is None or codes[rank] == 0:
        assert codes == [0] * count, f"{kind}: ended with {codes}, see {folder}.*.txt"
        return True
    # The others end by themselves, with an error, once they miss it.
    others = [code for index, code in enumerate(codes) if index != rank]
    said = Path(f"{folder}.{rank}.txt").read_text()[-2000:]
    assert codes[rank] == -signal.SIGKILL and all(code >= 0 for code in others), (codes, said)
    return False


def _child(folder, kind, rank, count, port, call):
    code = 1
    try:
        output = os.open(f"{folder}.{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if count > 1:
            names = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            os.environ.update(names | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
        watch = Watch(kind, call)
        work(folder)
        Path(f"{folder}.calls").write_text(str(watch.calls))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def state(folder):
    """Return what must not depend on kills: weights, and losses by step."""
    lines = [
        {key: value for key, value in line.items() if "second" not in key and "memory" not in key}
        for line in log.read(folder / "log.jsonl")
    ]
    weights = load_file(checkpoint.find(folder) / "model.safetensors")
    return {name: x.numpy().tobytes() for name, x in weights.items()}, lines


def survive(root, kind, kills, rng):
    """Kill trainings `kills` times in all; raise AssertionError for a result that differs."""
    peace = root / "peace"
    attempt(peace, kind)
    calls = int(Path(f"{peace}.calls").read_text())
    done = 0
    while done < kills:
        folder = root / f"killed {done}"
        for _ in range(min(KILLS, kills - done)):
            rank = rng.randrange(KINDS[kind][0])
            ended = attempt(folder, kind, rank, rng.randint(1, calls))
            if ended:
                break
            done += 1
        attempt(folder, kind)
        assert state(folder) == state(peace), f"{folder} differs from a training in peace"
        left = {path.name for path in folder.iterdir()} | {
            path.name for path in (folder / "checkpoints").iterdir()
        }
        assert not [name for name in left if name.startswith(".")], left


def main(kills, seed=0):
    """Kill trainings `kills` times, alike for each kind, and print what survived."""
    torch.set_num_threads(1)
    rng, counts = random.Random(seed), collections.Counter()
    for index in range(kills):
        counts[list(KINDS)[index % len(KINDS)]] += 1
    for kind, count in counts.items():
        with tempfile.TemporaryDirectory() as root:
            survive(Path(root), kind, count, rng)
        print(f"killed {kind}: {count} times, went on bit for bit {count} times", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
