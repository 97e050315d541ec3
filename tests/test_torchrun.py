"""Commands under torchrun: several processes do the work of one, and survive accidents."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import shapes_file, small

from accelerated.engine import checkpoint, log

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    shapes_file.pictures(root / "images")
    (root / "train.json").write_text(json.dumps(shapes_file.data()))
    return root


def arguments(data, output, *more, iterations=6):
    fixed = ("--preset", "tiny", *small.CHANGES, "--batch-size", 4, "--device", "cpu")
    lengths = ("--iterations", iterations, "--checkpoint-every", 2)
    return ["train", "--data", data / "train.json", "--output", output, *fixed, *lengths, *more]


def start(count, *words, accident="", restarts=0):
    """Start the command in several processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += [f"--nproc-per-node={count}", f"--max-restarts={restarts}"]
    environment = os.environ | {"ACCIDENT": accident, "PYTHONPATH": str(ROOT)}
    # As torchrun does for several; the last bits of a sum depend on it.
    environment["OMP_NUM_THREADS"] = "1"
    return subprocess.Popen(
        [*launcher, ROOT / "tests" / "support" / "accident.py", *map(str, words)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def run(*words, **keywords):
    """Return exit code, standard output and standard error of the command."""
    process = start(*words, **keywords)
    try:
        out, error = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, error


def weights(output):
    return load_file(checkpoint.find(output) / "model.safetensors")


def assert_same(a, b):
    for name, tensor in weights(a).items():
        assert torch.equal(tensor, weights(b)[name]), name


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run of two processes without an accident."""
    output = tmp_path_factory.mktemp("whole") / "run"
    code, out, error = run(2, *arguments(data, output, "--val", data / "train.json"))
    assert code == 0, error
    return output, out, error


def test_the_first_process_writes_and_prints(whole):
    output, out, error = whole
    assert out.count("Trained for 6 steps") == 1 and out.count("Average precision") == 1
    assert "2 processes of 2 of these images each" in out and "Traceback" not in error
    assert [line["iteration"] for line in log.read(output / "log.jsonl")][-1] == 6
    assert sorted(p.name for p in (output / "checkpoints").iterdir()) == [
        "00000002",
        "00000004",
        "00000006",
    ]


def test_a_killed_process_changes_nothing(data, whole, tmp_path):
    """torchrun starts all again; they go on from the last checkpoint, bit for bit."""
    words = arguments(data, tmp_path / "run", "--val", data / "train.json", "--resume")
    code, out, error = run(2, *words, accident="kill:1:3", restarts=1)
    assert code == 0, error
    assert "resumed from step 2" in out and "process 0" not in out
    assert_same(whole[0], tmp_path / "run")


def test_restarts_need_resume(data, command, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    code, _, error = command(*arguments(data, tmp_path / "run"))
    assert code == 2 and "add --resume" in error and not (tmp_path / "run").exists()


def test_a_stopped_process_is_named(data, tmp_path):
    words = arguments(data, tmp_path / "run", "--patience", 3)
    process = start(2, *words, accident="stop:1:3")
    assert process.stderr is not None
    line = next((line for line in process.stderr if line.startswith("maskrcnn: of 2 ")), "")
    named = re.search(r"of 2 processes, 1 \(pid (\d+) on .*, last at step 2, did not .* 3 s", line)
    assert named, line
    # torchrun would give it 30 seconds.
    os.kill(int(named[1]), signal.SIGKILL)
    process.communicate(timeout=100)
    assert process.returncode != 0
    assert checkpoint.read(tmp_path / "run").iteration == 2


def test_a_signal_to_torchrun_saves(data, whole, tmp_path):
    """All processes agree on the step, and the run goes on from there as if nothing had been."""
    output = tmp_path / "run"
    words = arguments(data, output, "--val", data / "train.json", iterations=2000)
    process = start(2, *words)
    deadline = time.monotonic() + 120
    while not checkpoint.exists(output) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=120)
    assert "Interrupted after " in out, error
    step = checkpoint.read(output).iteration
    assert f"Interrupted after {step} steps" in out and 2 <= step < 2000


def test_another_number_of_processes_is_said(data, whole, command, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(whole[0], output, symlinks=True)
    code, _, error = command(*arguments(data, output, "--resume", iterations=8))
    assert code == 0 and "goes on, but not bit for bit: processes: 2 before, 1 now" in error
    assert checkpoint.read(output).iteration == 8


def test_evaluation_and_prediction_are_those_of_one_process(data, whole, tmp_path):
    """To the bit, as each process has as many threads."""
    model, images = whole[0], data / "images"
    evaluating = ("evaluate", model, "--data", data / "train.json", "--device", "cpu")
    predicting = ("predict", model, images, "--threshold", 0.0, "--device", "cpu")
    files = ("results.json", "metrics.json"), ("predictions.json",)
    for words, names in zip((evaluating, predicting), files, strict=True):
        for count in (1, 2):
            code, _, error = run(count, *words, "--output", tmp_path / str(count))
            assert code == 0 and "Traceback" not in error, error
        for name in names:
            one, two = ((tmp_path / folder / name).read_bytes() for folder in "12")
            assert len(one) > 100 and one == two, name
    names = [{path.name for path in (tmp_path / folder).iterdir()} for folder in "12"]
    assert names[0] == names[1] and "img3.png" in str(names)
