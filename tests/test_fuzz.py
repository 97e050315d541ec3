"""Damaged files of every kind: read, or refused in a line; `make fuzz` tries more of them."""

import os
import signal
from pathlib import Path

import pytest
from fuzz import runner
from fuzz.targets import TARGETS, Target

CORPUS = Path(__file__).parent / "fuzz" / "corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files(tmp_path, name):
    result = runner.run(name, 20, tmp_path)
    assert not result.failures
    assert sum(result.counts.values()) == 20


@pytest.mark.parametrize("name", sorted(path.name for path in CORPUS.iterdir()))
def test_files_that_failed_once(tmp_path, name):
    inputs = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    assert sum(map(len, inputs)) < 1 << 20
    kind = name if name in TARGETS else name.replace("_", " ")
    assert not runner.run(kind, len(inputs), tmp_path, inputs=inputs).failures


def test_seeds_are_valid_and_the_same_each_time(tmp_path):
    """Whole files are accepted, but for those with a trap."""
    for name, target in TARGETS.items():
        seeds = [seed for seed in target.seeds() if b"system" not in seed]
        result = runner.run(name, len(seeds), tmp_path, inputs=seeds)
        assert result.counts[runner.ACCEPTED] == len(seeds), (name, result)
        made = [runner.make(target, target.seeds(), 3, index) for index in range(5)]
        assert made == [runner.make(target, target.seeds(), 3, index) for index in range(5)]


def test_what_counts_as_a_failure(tmp_path, monkeypatch):
    """A traceback, a message of several lines, an execution, no end, too much memory, a crash."""

    def read(folder):
        exec((folder / "a").read_text(), {"os": os, "signal": signal})

    inputs = {
        "pass": runner.ACCEPTED,
        "raise ValueError('no')": runner.REFUSED,
        "raise OSError('no')": runner.REFUSED,
        "raise ValueError('a\\nb')": "several lines",
        "raise KeyError('a')": "KeyError",
        "'\\ud800'.encode()": "UnicodeEncodeError",
        "while True: pass": "killed by signal 14",
        "bytearray(1 << 33)": "MemoryError",
        "os.kill(os.getpid(), signal.SIGSEGV)": "killed by signal 11",
        f"open({runner.SPRUNG!r}, 'w')": "executed",
    }
    monkeypatch.setattr(runner, "SECONDS", 1)
    monkeypatch.setitem(TARGETS, "program", Target("a", list, read))
    result = runner.run("program", len(inputs), tmp_path, inputs=[t.encode() for t in inputs])
    found = dict(result.failures)
    for index, (text, expected) in enumerate(inputs.items()):
        if expected in (runner.ACCEPTED, runner.REFUSED):
            assert index not in found
        else:
            assert expected in found[index], (text, found)
