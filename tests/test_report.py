"""Tables of metrics without objects, of classes that do not occur, of every problem."""

import io

import numpy as np
import pytest
from rich.console import Console

from accelerated.command_line import report
from accelerated.data import lint
from accelerated.data.annotations import Problem
from accelerated.verify.equality import difference
from accelerated.verify.report import Report, Row
from accelerated.verify.training import Pair


def text(*tables):
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(*tables)
    return console.export_text()


def test_metrics():
    values = {
        branch: dict.fromkeys(report.METRICS, 0.25)
        | {"APl": None, "classes": {"disc": 0.5, "star": None}}
        for branch in ("bbox", "segm")
    }
    shown = text(report.metrics(values), report.class_metrics(values))
    assert shown.count("0.250") == 10 and "disc" in shown and "star" not in shown


def test_metrics_without_masks():
    values = {
        "bbox": dict.fromkeys(report.METRICS, 0.25) | {"classes": {"disc": 0.5, "star": None}}
    }
    shown = text(report.metrics(values), report.class_metrics(values))
    assert (
        shown.count("0.250") == 6
        and "bbox AP" in shown
        and "0.500" in shown
        and "segm" not in shown
        and "star" not in shown
    )


def test_every_problem_is_listed():
    listed = [Problem("c", "reject", "image", "a.png", i, None, f"m{i} [red]") for i in range(300)]
    found = lint.Report(listed, images=0, annotations=0)
    shown = text(*report.problems(found, "data.json", everything=True))
    assert (
        "data.json: 300 problems" in shown
        and all(f"m{i} " in shown for i in range(300))
        and "None" not in shown
    )
    # Otherwise a few of each kind.
    shown = text(*report.problems(found, "data.json"))
    assert "m4 " in shown and "m5 " not in shown and "and 295 more" in shown


def test_data_set():
    spread = {"min": 1, "median": 2.5, "max": 9}
    keys = ("objects_per_image", "image_width", "image_height")
    categories = [
        {"id": 7, "name": "few", "objects": 1},
        {"id": 8, "name": "many", "objects": 5},
        {"id": 9, "name": "none", "objects": 0},
    ]
    counts = {
        "images": 3,
        "negatives": 1,
        "objects": 6,
        "crowds": 0,
        "area": {"small": 1, "medium": 2, "large": 3},
    }
    shown = text(*report.dataset(counts | dict.fromkeys(keys, spread) | {"categories": categories}))
    assert (
        "1 to 9, median 2.5" in shown
        and shown.index("many") < shown.index("few")
        and "1 other categories" in shown
    )


def test_verification():
    """Stages have absolute differences, parameters a number for each side and long names."""
    differences = {"torch": difference(np.array([1.0, 2.5]), np.array([1.0, 2.0]))}
    parameter = Row(
        "backbone.layer4.0.downsample.0.weight",
        "2048 1024 1 1",
        differences,
        1e-9,
        {"NumPy": 3.0, "torch": 3.25},
    )
    result = Report(
        "A title",
        {"stages": [Row("C2", "2", differences, 1.0)], "gradients": [parameter]},
        {"triton": "why"},
    )
    stages, gradients = (text(table) for table in report.verification(result))
    assert (
        "A title" in stages
        and "5.0e-01" in stages
        and "ok" in stages
        and "largest difference" in stages
    )
    words = gradients.split("weight", 1)[1].split()
    assert words == ["2048", "1024", "1", "1", "3", "3.25", "2.5e-01", "-", "differs", ">", "1e-09"]
    console = Console(width=140, record=True, file=io.StringIO())
    assert report.print_verification(console, result) is False
    assert "triton did not run: why" in (shown := console.export_text()) and result.summary in shown


@pytest.mark.parametrize("count", [1, 2, 7, 30, 100])
def test_training(count):
    """A line every few steps and for the last; no difference falls between two lines."""
    pairs = [
        Pair(i, {"mask": 1.0}, {"mask": 1.5 if i == count // 2 else 1.0}, 0.5, 0.25)
        for i in range(1, count + 1)
    ]
    shown = [
        line.split()
        for line in text(report.training(pairs)).splitlines()
        if line.split()[:1] and line.split()[0].isdigit()
    ]
    steps = [int(line[0]) for line in shown]
    assert steps == sorted(set(steps)) and steps[0] == 1 and steps[-1] == count and len(steps) <= 15
    assert sum(line[3] == "5.0e-01" for line in shown) == (count > 1)
    assert shown[0][4:] == ["0.50", "0.25"]
