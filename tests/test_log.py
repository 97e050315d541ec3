"""engine.log: lines survive a kill, averages are read back once, a resumed log has no seam."""

import json
import math
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from accelerated.drawing import curves
from accelerated.engine import log


def test_lines_are_on_the_disk_at_once_and_a_torn_one_is_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    with log.Log(path, 0, 10, bar=False) as lines:
        lines.write(5, loss=1.5, learning_rate=0.1)
        assert log.read(path) == [{"iteration": 5, "loss": 1.5, "learning_rate": 0.1}]
        with pytest.raises(ValueError):
            lines.write(6, loss=math.nan)
    with path.open("a") as file:
        file.write('{"iteration": 10, "lo')
    assert [line["iteration"] for line in log.read(path)] == [5]


def test_a_resumed_log_has_no_line_of_the_lost_steps(tmp_path):
    path = tmp_path / "log.jsonl"
    with log.Log(path, 0, 10, bar=False) as lines:
        for iteration in (2, 4, 6):
            lines.write(iteration)
    with log.Log(path, 4, 10, bar=False) as lines:
        lines.write(6, again=True)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"iteration": 2},
        {"iteration": 4},
        {"iteration": 6, "again": True},
    ]
    # A new run.
    with log.Log(path, 0, 10, bar=False):
        assert log.read(path) == []


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        "3",
        "null",
        "{}",
        '{"iteration": "2"}',
        '{"iteration": true}',
        '{"iteration": 1.5}',
        "x",
        '{"iteration": 2, "loss": "1"}',
        '{"iteration": 2, "loss": [1]}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_a_line_that_is_none_is_named(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"iteration": 1}\n' + line.encode("latin1") + b'\n{"iteration": 3}\n')
    for read in (log.read, lambda path: log.Log(path, 2, 9, bar=False), curves.loss_curve):
        with pytest.raises(ValueError, match=r"log\.jsonl, line 2: expected an object") as error:
            read(path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 300 + len(str(path))
    assert path.read_bytes().endswith(b'\n{"iteration": 3}\n'), "nothing is lost"


def test_a_resumed_log_knows_whether_its_step_was_evaluated(tmp_path):
    path = tmp_path / "log.jsonl"
    with log.Log(path, 0, 10, bar=False) as lines:
        assert not lines.evaluated
        lines.write(2)
        lines.write(2, evaluation={})
        lines.write(4)
    for start, evaluated in ((4, False), (2, True)):
        with log.Log(path, start, 10, bar=False) as lines:
            assert lines.evaluated is evaluated


def test_window_averages_and_finds_the_first_step_that_is_not_finite():
    window = log.Window("cpu")
    for value in (1.0, 2.0, 6.0):
        loss = torch.tensor(value, requires_grad=True)
        window.add(
            {"class": loss, "mask": 2 * loss},
            3 * loss,
            torch.tensor(0.5),
            images=4,
            data_seconds=0.25,
        )
    assert len(window) == 3
    values, first = window.read()
    assert first is None and len(window) == 0
    assert (values["class"], values["mask"], values["loss"], values["gradient_norm"]) == (
        3.0,
        6.0,
        9.0,
        0.5,
    )
    assert (
        values["data_seconds"] == 0.25
        and values["seconds"] > 0
        and values["images_per_second"] > 0
        and values["memory_mb"] > 1
    )
    for value, norm in ((1.0, 1.0), (1.0, math.inf), (math.nan, 1.0)):
        window.add({"class": torch.tensor(value)}, torch.tensor(value), torch.tensor(norm), 1, 0.0)
    assert window.read()[1] == 1


def test_a_closed_terminal_or_pipe_does_not_stop_the_run():
    code = """
        from accelerated.engine.progress import Shown
        for _ in range(2):
            with Shown(0, 2) as shown:
                shown.step(1, dict(loss=1, learning_rate=1, images_per_second=1, seconds=1))
                shown.say("evaluated")
    """
    read, written = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", textwrap.dedent(code)]
    ended = subprocess.run(command, stdout=written, stderr=subprocess.PIPE, text=True)
    os.close(written)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_last_evaluation_is_written_once(tmp_path):
    """A run that was killed at its very end evaluates again when it is resumed."""
    path = tmp_path / "log.jsonl"
    for start in (0, 4, 4):
        with log.Log(path, start, 4, bar=False) as lines:
            lines.write(4, evaluation={"AP": 0.5})
    assert log.read(path) == [{"iteration": 4, "evaluation": {"AP": 0.5}}]
