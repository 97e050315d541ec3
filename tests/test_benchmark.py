"""The benchmark: complete rows, wrong results that are not measured, cases that agree."""

import json
import subprocess
import sys

import pytest
import torch

from accelerated.experiments import benchmark, benchmark_cases, benchmark_numpy
from accelerated.verify import equality


@pytest.fixture
def small(monkeypatch):
    """Replace the large cases by one that adds two numbers."""

    def make(name, wrong=0.0):
        x = torch.arange(8.0)
        return benchmark_cases.Case(
            name,
            "8",
            torch.float32,
            "nchw",
            ours=lambda backend: lambda: x + x + wrong,
            oracle=lambda: 2 * x.double(),
            tolerance=1e-6,
            peer=lambda: x + x,
        )

    def install(wrong=0.0):
        monkeypatch.setattr(
            benchmark,
            "cases",
            lambda device: [
                ("add", lambda name: make(name, wrong)),
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
    assert rows[1]["error"] == 0 and rows[1]["peer_ratio"] > 0
    assert benchmark.report(tmp_path, "cpu", seconds=0.0, only="add") == 0
    # The rows are appended.
    assert len(file.read_text().splitlines()) == 4


def test_a_wrong_result_is_not_measured(small, tmp_path, capsys):
    small(wrong=0.1)
    assert benchmark.report(tmp_path, "cpu", seconds=0.0) == 1
    row = json.loads((tmp_path / "cpu.jsonl").read_text().splitlines()[1])
    assert "not measured" in row["failed"] and "p50_ms" not in row
    assert "1 results were wrong" in capsys.readouterr().out


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
for name in ("typer", "rich", "pycocotools", "safetensors", "matplotlib"):
    sys.modules[name] = None
from accelerated.experiments import benchmark
assert benchmark.can_import("torch") and not benchmark.can_import("typer")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_random_boxes_lie_inside():
    boxes = benchmark_cases.random_boxes(500, 50, 90, 4, 40, torch.Generator().manual_seed(0))
    assert (boxes >= 0).all() and (boxes[:, [0, 2]] <= 90).all() and (boxes[:, [1, 3]] <= 50).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (sides > 3.99).all() and (sides < 40.01).all()


@pytest.mark.parametrize("operator", ["training_step", "detect"])
def test_the_whole_model_agrees_with_float64(operator):
    case = benchmark_cases.whole_model(operator, torch.float32, torch.device("cpu"))
    assert equality.device_error(case.ours("torch")(), case.oracle()) <= case.tolerance


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
@pytest.mark.parametrize(
    "operator",
    [
        f"{name}_{way}"
        for name in ("roi_align", "roi_pool", "pyramid_roi_align")
        for way in ("forward", "backward")
    ],
)
def test_operators_agree_with_float64(operator, device, backend):
    case = benchmark_cases.pooling(operator, torch.float32, "channels_last", device)
    assert equality.device_error(case.ours(backend)(), case.oracle()) <= case.tolerance
