"""Read damaged files in a process of its own, with limits on its memory and its time."""

import faulthandler
import json
import os
import resource
import signal
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from fuzz.mutate import mutate
from fuzz.targets import SPRUNG, TARGETS, Target

# For one input: seconds, and bytes on top of what the process has.
SECONDS, MEMORY = 20, 2 << 30
ACCEPTED, REFUSED = "accepted", "refused"


@dataclass
class Result:
    """How many inputs were accepted and refused, and (input, what happened) of the failures."""

    counts: Counter = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)


def make(target: Target, seeds: list[bytes], seed: int, index: int) -> bytes:
    """Return the input of this number, which is always the same."""
    random = Random(f"{seed} {index}")
    return mutate(random.choice(seeds), seeds, random)


def outcome(target: Target, folder: Path, data: bytes) -> str:
    """Read an input; return "accepted", "refused", or the failure."""
    (folder / target.file).write_bytes(data)
    try:
        target.read(folder)
    except (ValueError, OSError) as error:
        text = str(error)
        # A list of problems is printed as it is; a single one in a line.
        single = "\n" not in text or text.count("\n") > 1
        found = REFUSED if single else f"a message of several lines: {text!r:.300}"
        # Of the standard library's, which name no file, none may arrive.
        if isinstance(error, UnicodeError):
            found = f"{type(error).__name__}: {error}"
    except BaseException as error:
        found = f"{type(error).__name__}: {error!s:.300}"
    else:
        found = ACCEPTED
    if Path(SPRUNG).exists():
        found = "it executed what the file says"
    return found


def run(name: str, count: int, folder: Path, seed: int = 0, inputs: list[bytes] | None = None):
    """Read `count` damaged files, or the `inputs`, in processes that may die."""
    target, result = TARGETS[name], Result()
    folder = folder / name.replace(" ", "_")
    folder.mkdir(parents=True)
    target.prepare(folder)
    seeds, notes = target.seeds(), folder.with_suffix(".notes")
    start = 0
    while start < count:
        notes.write_text("")
        child = os.fork()
        if child == 0:
            _work(target, folder, notes, range(start, count), seed, seeds, inputs)
        _, status = os.waitpid(child, 0)
        lines = [json.loads(line) for line in notes.read_text().splitlines()]
        for index, found in lines:
            if found in (ACCEPTED, REFUSED):
                result.counts[found] += 1
            else:
                result.failures.append((index, found))
        start += len(lines)
        if start < count:
            death = f"killed by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "exit"
            result.failures.append((start, death))
            start += 1
    return result


def _work(target, folder, notes, indices, seed, seeds, inputs):
    """Write a line for each input; the one without a line is what ended the process."""
    os.chdir(folder)
    warnings.simplefilter("ignore")
    faulthandler.disable()
    # C libraries complain about damaged files there.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        with notes.open("a") as lines:
            for index in indices:
                data = inputs[index] if inputs else make(target, seeds, seed, index)
                signal.alarm(SECONDS)
                found = outcome(target, folder, data)
                signal.alarm(0)
                lines.write(json.dumps([index, found]) + "\n")
                lines.flush()
    finally:
        os._exit(0)
