"""The benchmark: complete rows, wrong results that are not measured, cases that agree."""

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from accelerated.experiments import (
    benchmark,
    benchmark_cases,
    benchmark_curves,
    benchmark_numpy,
    timing,
)
from accelerated.verify import equality

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    """Replace the large cases by one that adds two numbers."""

    def make(name, wrong=0.0, **changes):
        x = torch.arange(8.0)
        settings = {
            "ours": lambda backend: lambda: x + x + wrong,
            "oracle": lambda: 2 * x.double(),
            "tolerance": 1e-6,
            "peers": {"": lambda: lambda: x + x},
            "inputs": (x,),
        }
        return benchmark_cases.Case(name, "8", torch.float32, "nchw", **settings | changes)

    def install(wrong=0.0, **changes):
        monkeypatch.setattr(
            benchmark,
            "cases",
            lambda device: [
                ("add", lambda name: make(name, wrong, **changes)),
                ("other", lambda name: make(name)),
            ],
        )

    return install


def test_rows(small, tmp_path, capsys):
    small()
    assert benchmark.report(tmp_path, "cpu", seconds=0.0, only="add") == 0
    (file,) = tmp_path.iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["backend"] for row in rows] == ["torchvision", "torch"]
    for key in (
        "date",
        "commit",
        "device",
        "torch",
        "triton",
        "operator",
        "shape",
        "dtype",
        "layout",
    ):
        assert key in rows[1]
    assert 0 < rows[1]["p20_ms"] <= rows[1]["p50_ms"] <= rows[1]["p80_ms"]
    assert rows[1]["error"] == 0 and rows[1]["peer_ratio"] > 0 and rows[1]["timing"] == "clock"
    # Eight numbers are read and eight written.
    seconds, rate = rows[1]["p50_ms"] / 1000, rows[1]["copy_tb_s"] * 1e12
    assert rows[1]["bytes"] == 64 and rows[1]["matmul_tflop_s"] > 0
    assert rows[1]["copy_share"] == pytest.approx(64 / seconds / rate, abs=1e-3)
    assert benchmark.report(tmp_path, "cpu", seconds=0.0, only="add") == 0
    # The rows are appended.
    assert len(file.read_text().splitlines()) == 4


def test_a_wrong_result_is_not_measured(small, tmp_path, capsys):
    small(wrong=0.1)
    assert benchmark.report(tmp_path, "cpu", seconds=0.0) == 1
    row = json.loads((tmp_path / "cpu.jsonl").read_text().splitlines()[1])
    assert "not measured" in row["failed"] and "p50_ms" not in row
    assert "1 results were wrong" in capsys.readouterr().out


def unsupported():
    torch.linalg.qr(torch.zeros(2, 2, dtype=torch.bfloat16))


def out_of_memory():
    raise torch.OutOfMemoryError("out of memory")


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (unsupported, "no kernel"),
        (out_of_memory, "out of memory"),
        (lambda: [][0], "IndexError: list index out of range"),
    ],
)
def test_what_torchvision_cannot_do_is_a_row_and_no_stop(small, tmp_path, capsys, call, reason):
    opened = []
    small(
        peers={"": lambda: call, "our operators": lambda: lambda: opened.append("call")},
        under={"our operators": lambda: nullcontext(opened.append("with"))},
    )
    assert benchmark.report(tmp_path, "cpu", seconds=0.0) == 0
    rows = [json.loads(line) for line in (tmp_path / "cpu.jsonl").read_text().splitlines()]
    assert rows[0]["unmeasured"] == reason and "p50_ms" not in rows[0]
    assert rows[1]["variant"] == "our operators" and "p50_ms" in rows[1]
    assert opened.count("with") == 1 and opened[:2] == ["with", "call"]
    assert rows[2]["backend"] == "torch" and rows[2]["peer_ratio"] is None
    assert rows[-1]["operator"] == "other" and rows[-1]["p50_ms"] > 0
    assert reason in capsys.readouterr().out


def test_an_error_of_ours_is_a_failure_and_no_stop(small, tmp_path, capsys):
    small(ours=lambda backend: lambda: 1 / 0)
    assert benchmark.report(tmp_path, "cpu", seconds=0.0) == 1
    rows = [json.loads(line) for line in (tmp_path / "cpu.jsonl").read_text().splitlines()]
    assert rows[1]["failed"] == "ZeroDivisionError: division by zero" and len(rows) == 4


def test_variants_are_compared_before_they_are_measured(small, tmp_path, capsys):
    def fail(call):
        raise RuntimeError("it waits")

    small(
        variants={
            "same": lambda call: call,
            "wrong": lambda call: lambda: call() + 1,
            "impossible": fail,
        }
    )
    assert benchmark.report(tmp_path, "cpu", seconds=0.0, only="add") == 1
    rows = [json.loads(line) for line in (tmp_path / "cpu.jsonl").read_text().splitlines()]
    same, wrong, impossible = rows[2:]
    assert same["variant"] == "same" and same["peer_ratio"] > 0 and same["bytes"] == 64
    assert "not measured" in wrong["failed"] and "p50_ms" not in wrong
    assert impossible["unmeasured"] == "RuntimeError: it waits"


def test_a_compiled_model_that_fails_is_a_row(small, tmp_path, capsys):
    def compiled(who, seconds):
        if who == "torchvision":
            raise TimeoutError("not finished after 1 s")
        return {"p20_ms": 1.0, "p50_ms": 2.0, "p80_ms": 3.0}

    small(compiled=compiled, images=4)
    assert benchmark.report(tmp_path, "cpu", seconds=0.0, only="add", compiled=True) == 0
    rows = [json.loads(line) for line in (tmp_path / "cpu.jsonl").read_text().splitlines()]
    assert rows[-2]["unmeasured"] == "TimeoutError: not finished after 1 s"
    assert rows[-1]["variant"] == "compile" and rows[-1]["images_s"] == 2000


def test_a_budget_skips_the_last_cases_and_says_so(small, tmp_path, capsys):
    small()
    assert benchmark.report(tmp_path, "cpu", seconds=0.0, budget=-1) == 0
    assert "2 cases were skipped after -1 s: add x 1, other x 1" in capsys.readouterr().out
    # Readers of the rows need not know of cases that were not measured.
    assert (tmp_path / "cpu.jsonl").read_text() == ""


def test_flop_of_a_whole_model_are_counted(small, tmp_path, capsys):
    a, b = torch.ones(4, 5), torch.ones(5, 6)
    small(ours=lambda backend: lambda: a @ b, oracle=None, images=2)
    benchmark.report(tmp_path, "cpu", seconds=0.0, only="add")
    row = json.loads((tmp_path / "cpu.jsonl").read_text().splitlines()[-1])
    assert row["flop"] == 2 * 4 * 5 * 6 and "error" not in row
    # A CPU's rate of products is no ceiling.
    assert "matmul_share" not in row
    times = {"p50_ms": 2.0, "timing": "graph"}
    assert benchmark._shares(times, row, None, {"matmul": 1e6})["matmul_share"] == 0.12
    assert row["images_s"] == pytest.approx(2000 / row["p50_ms"], rel=0.01)


def test_a_process_returns_fails_dies_or_is_late():
    assert timing.in_a_process(abs, -3, limit=60) == 3
    with pytest.raises(RuntimeError, match="TypeError: bad operand"):
        timing.in_a_process(abs, "text")
    with pytest.raises(RuntimeError, match="ended without a result"):
        timing.in_a_process(os._exit, 1)
    with pytest.raises(TimeoutError, match=r"not finished after 0\.1 s"):
        timing.in_a_process(time.sleep, 60, limit=0.1)


def test_the_error_on_the_device():
    a = torch.tensor([1.0, 2.0])
    assert equality.device_error(a, a) == 0
    assert equality.device_error(a + torch.tensor([0.0, 1.0]), a) == 0.5
    assert equality.device_error([a, a * 2], [a, a]) == 1
    assert equality.device_error(a[:1], a) == float("inf")
    assert equality.device_error(a * float("nan"), a) == float("inf")
    actual, expected = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    assert equality.device_error(actual, expected) == pytest.approx(
        equality.error(actual, expected), rel=1e-12
    )


def test_it_needs_no_more_than_torch_and_numpy():
    """The command line and its packages are not imported."""
    code = """
import sys
for name in ("typer", "rich", "faster_coco_eval", "safetensors", "matplotlib"):
    sys.modules[name] = None
from accelerated.experiments import benchmark
assert benchmark.can_import("torch") and not benchmark.can_import("typer")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_curves_are_measured_and_drawn(small, monkeypatch, tmp_path, capsys):
    def make(name):
        x = torch.zeros(8)
        call = {"ours": lambda backend: lambda: x + 1, "oracle": None, "tolerance": 0.0}
        return benchmark_cases.Case(name, "8", torch.float32, "", **call)

    points = [
        (name, partial(benchmark_curves._on_curve, curve, at, make))
        for curve, name in (("rois", "roi_align_forward"), ("images", "detect"))
        for at in (1, 2, 4)
    ]
    monkeypatch.setattr(benchmark_curves, "cases", lambda device: points)
    assert benchmark.report(tmp_path, "cpu", seconds=0.0, curves=True) == 0
    rows = [json.loads(line) for line in (tmp_path / "cpu.jsonl").read_text().splitlines()]
    assert [(row["curve"], row["at"]) for row in rows[2:4]] == [("rois", 4), ("images", 1)]
    picture = tmp_path / "cpu.png"
    pixels = np.asarray(Image.open(picture).convert("RGB"), dtype=int)
    green = (pixels[..., 1] > pixels[..., 0] + 60) & (pixels[..., 1] > pixels[..., 2] + 60)
    # Two panels beside each other, a line in each.
    half = pixels.shape[1] // 2
    assert green[:, :half].any() and green[:, half:].any()
    picture.unlink()
    assert benchmark.report(tmp_path, "cpu", draw=True) == 0 and picture.exists()
    assert str(picture) in capsys.readouterr().out
    # Without Matplotlib there are rows and a hint.
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    picture.unlink()
    assert benchmark.report(tmp_path, "cpu", seconds=0.0, curves=True) == 0
    assert "Matplotlib is not installed" in capsys.readouterr().out and not picture.exists()


def test_a_file_without_a_curve_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no curve: measure with --curves"):
        benchmark.report(tmp_path, "cpu", draw=True)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_curves_cover_their_axes(kind):
    at = {}
    for name, make in benchmark_curves.cases(torch.device(kind)):
        curve, value, *_ = make.args
        at.setdefault((curve, name), []).append(value)
    assert {curve for curve, _ in at} == set(benchmark_curves.AXES)
    assert all(len(values) >= 3 and values == sorted(values) for values in at.values())


@pytest.mark.parametrize("backend", ["torch", "numpy"])
@pytest.mark.parametrize("operator", ["training_step", "detect"])
def test_numpy_and_torch_are_timed_on_the_same_work(operator, backend):
    row = benchmark_numpy.measure(operator, "tiny", [2, 64, 64], backend, 0.0)
    assert 0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"] and row["memory_mb"] >= 0


def test_rows_of_numpy_and_torch(monkeypatch):
    times = {"torch": {"p50_ms": 2.0}, "numpy": {"p50_ms": 5.0}}
    monkeypatch.setattr(
        benchmark_numpy,
        "in_a_process",
        lambda function, operator, name, shape, backend, seconds: times[backend],
    )
    rows = list(benchmark_numpy.numpy_and_torch(0.0, only="training"))
    assert [(row["operator"], row["backend"]) for row in rows] == [
        ("training_step", "torch"),
        ("training_step", "numpy"),
    ] * 2
    assert rows[1]["times_torch"] == 2.5 and rows[3]["shape"] == "torchvision_r50_fpn 1x320x480"
    assert {row["operator"] for row in benchmark_numpy.numpy_and_torch(0.0)} == {
        "detect",
        "training_step",
    }


@pytest.mark.gpu
def test_ways_to_time_a_call_on_a_gpu(device):
    x = torch.zeros(2**24, device=device)
    with timing.own_stream(device):
        calls = {"graph": lambda: x.add_(1), "profiler": lambda: x[0].item()}
        for way, call in calls.items():
            times = timing.quantiles(call, device, 0.01, with_host=False)
            assert times["timing"] == way and 0 < times["p20_ms"] <= times["p80_ms"] < 5
        assert timing.quantiles(calls["graph"], device, 0.01)["timing"] == "events"
        replay = timing.captured(lambda: x * 2)
        x.fill_(3)
        assert float(replay().sum()) == 6 * 2**24
        with pytest.raises(RuntimeError, match="no CUDA graph"):
            timing.captured(calls["profiler"])
        added = timing.quantiles(lambda: x * 2, device, 0.0)["memory_mb"]
    assert added == 64


@pytest.mark.gpu
def test_a_backward_pass_is_timed_as_a_graph(device):
    with timing.own_stream(device):
        case = benchmark_cases.pooling(
            "pyramid_roi_align_backward", torch.float32, "channels_last", device, rois=20
        )
        call = case.ours("triton")
        expected = [x.clone() for x in call()]
        for actual, x in zip(timing.captured(call)(), expected, strict=True):
            assert torch.equal(actual, x)
        assert timing.quantiles(call, device, 0.01, with_host=False)["timing"] == "graph"
