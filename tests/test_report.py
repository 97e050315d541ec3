"""Tables say what they are given: metrics without objects, classes that do not occur, every problem."""

import io
from types import SimpleNamespace

import pytest

pytest.importorskip("rich")

from rich.console import Console

from accelerated import report


def text(*tables):
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(*tables)
    return console.export_text()


def test_metrics():
    values = {
        kind: dict.fromkeys(report.METRICS, 0.25) | {"APl": None, "classes": {"disc": 0.5, "star": None}} for kind in ("bbox", "segm")
    }
    shown = text(report.metrics(values), report.class_metrics(values))
    assert shown.count("0.250") == 10 and "disc" in shown and "star" not in shown


def test_every_problem_is_listed():
    found = [SimpleNamespace(severity="reject", code="c", image_id=i, annotation_id=None, message=f"m{i} [red]") for i in range(300)]
    shown = text(report.problems(found))
    assert "300 problems" in shown and all(f"m{i} " in shown for i in range(300)) and "None" not in shown


def test_data_set():
    spread = {"min": 1, "median": 2.5, "max": 9}
    keys = ("objects_per_image", "image_width", "image_height")
    categories = [{"id": 7, "name": "few", "objects": 1}, {"id": 8, "name": "many", "objects": 5}, {"id": 9, "name": "none", "objects": 0}]
    counts = {"images": 3, "negatives": 1, "objects": 6, "crowds": 0, "area": {"small": 1, "medium": 2, "large": 3}}
    shown = text(*report.dataset(counts | dict.fromkeys(keys, spread) | {"categories": categories}))
    assert "1 to 9, median 2.5" in shown and shown.index("many") < shown.index("few") and "1 other categories" in shown
