"""One HTML page of an evaluation, a run or several runs, which asks for nothing from outside."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from accelerated.analysis import panels
from accelerated.analysis.charts import swatch

FOLDER = Path(__file__).parent
BRANCHES = {"segm": "Masks", "bbox": "Boxes", "boundary": "Boundaries"}
METRICS = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "APs": "AP small",
    "APm": "AP medium",
    "APl": "AP large",
}
KINDS = {
    "localisation": ("Localisation errors", "of the right class, but not well placed"),
    "missed": ("Missed objects", "no detection comes near them"),
    "background": ("Detections of the background", "where there is no object"),
    "class": ("Wrong classes", "well placed, but of another class"),
    "duplicate": ("Duplicates", "of an object that a better detection matches"),
    "both": ("Wrong class and place", "near an object of another class, but not well placed"),
}
COLUMNS = {
    "objects": "Objects",
    "detections": "Detections",
    "mask_AP": "Mask AP",
    "box_AP": "Box AP",
    "boundary_AP": "Boundary AP",
    "AP50": "AP50",
    "best_threshold": "Best threshold",
    "best_F1": "F1",
    "precision": "Precision",
    "recall": "Recall",
}
# Columns with a bar in each cell.
BARS = ("mask_AP", "box_AP", "boundary_AP", "AP50", "best_F1")
COUNTS = ("objects", "detections")
# Names of runs with more letters are shortened.
LONG = 32
# Confusions of classes that are listed beside the matrix.
FREQUENT = 6


def render(content: Mapping[str, Any]) -> str:
    """Return the page of a report, a whole HTML file.

    content  what `report.json` holds: "title", "version", "runs"

    Nothing is loaded when the page is opened: styles, script and pictures stand in it, and its
    Content-Security-Policy allows nothing else. Without JavaScript it shows the same numbers.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"rate": rate, "signed": signed, "share": share}
    environment.globals |= {
        "swatch": swatch,
        "metrics": METRICS,
        "kinds": KINDS,
        "bars": BARS,
        "counts": COUNTS,
    }
    names = labels([run["name"] for run in content["runs"]])
    runs = [
        {**run, "name": name, "path": run["name"]}
        for run, name in zip(content["runs"], names, strict=True)
    ]
    evaluated = [run for run in runs if run["evaluation"]]
    logs = [run["log"] for run in runs if run["log"]]
    style = "".join(
        (FOLDER / name).read_text(encoding="utf-8") for name in ("tables.css", "page.css")
    )
    # The script's policy allows no style in an element: lengths of bars are classes.
    style += "".join(f".w{percent}{{--w:{percent}}}" for percent in range(101))
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    curve_panels, paths = panels.curves(runs)
    main, rest = panels.training(runs)
    return environment.get_template("page.html").render(
        content,
        style=Markup(style),
        script=Markup(script),
        policy=policy(style, script),
        several=len(runs) > 1,
        views=[view(run, index) for index, run in enumerate(runs)],
        evaluated=evaluated,
        absences=absences(runs),
        notes=notes(content, runs),
        summary=summary(runs),
        overview=overview(runs),
        training=main,
        losses=rest,
        validated=any(entry.get("validation") for log in logs for entry in log["evaluations"]),
        best=[log["best"] for log in logs if log["best"] is not None],
        errors=errors(runs),
        compared=compared(runs),
        curves=curve_panels,
        calibration=panels.calibration(runs),
        data={"paths": paths, "pictures": [picture_keys(run) for run in runs]},
    )


def policy(style: str, script: str) -> str:
    """Return the Content-Security-Policy that allows these two texts and pictures in the page."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest(style)}';"
        f" script-src 'sha256-{digest(script)}'; base-uri 'none'; form-action 'none'"
    )


def rate(value: float | None) -> str:
    """Write a value between 0 and 1; a dash if there is none."""
    return "–" if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """Write a difference with its sign; nothing if there is none."""
    if value is None:
        return ""
    text = f"{value:+.3f}"
    return "0.000" if text.strip("+-0.") == "" else text.replace("-", "−")


def share(part: float, whole: float) -> int:
    """Return a part in percent, of 0 to 100."""
    return round(100 * min(max(part / whole, 0), 1)) if whole else 0


def view(run: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return what the page shows of a single run."""
    evaluation = run["evaluation"]
    shown = {"assumed": "", **run, "index": index, "look": panels.look(index)}
    if not evaluation:
        return shown
    classes = evaluation["classes"]
    columns = {
        key: title
        for key, title in COLUMNS.items()
        if any(entry[key] is not None for entry in classes)
    }
    histograms = [panels.sizes(evaluation), panels.scores(evaluation)]
    return shown | {
        "evaluation": evaluation,
        "columns": columns,
        "histograms": [panel for panel in histograms if panel],
        "confusion": confusion(evaluation["confusion"]),
        "pictures": evaluation["pictures"],
    }


def labels(names: Sequence[str]) -> list[str]:
    """Return the names of the runs, without folders that all share where one is long."""
    parts = [name.split("/") for name in names]
    if len(names) < 2 or max(map(len, names)) <= LONG:
        return list(names)
    for end in (0, -1):
        while min(map(len, parts)) > 1 and len({part[end] for part in parts}) == 1:
            for part in parts:
                del part[end]
    return ["/".join(part) for part in parts]


def notes(content: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return what a reader of the numbers should know: {sentence: runs, or "" for all}."""
    told: dict[str, list[str]] = {note: [] for note in content.get("notes", [])}
    for run in runs:
        for note in (run["evaluation"] or {}).get("notes", []):
            told.setdefault(note, []).append(run["name"])
    every = [run["name"] for run in runs]
    return {
        note.rstrip(".") + ".": "" if names == every else ", ".join(names)
        for note, names in told.items()
    }


def absences(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Say of which runs there is no log or no evaluation: {"log" or "evaluation": sentence}."""
    out = {}
    for part, what in (("evaluation", "no evaluation yet"), ("log", "no log of a training")):
        without = [run["name"] for run in runs if not run[part]]
        subject = ", ".join(without) if len(runs) > 1 else "The run"
        verb = "have" if len(without) > 1 else "has"
        out[part] = f"{subject} {verb} {what}." if without else ""
    return out


def summary(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Say what matters, the best run, what costs most, what is found: [(run or "", sentences)]."""
    evaluated = [run for run in runs if run["evaluation"]]
    several = len(runs) > 1
    told = [("", _best(evaluated))]
    for run in evaluated:
        parts = [_costs(run["evaluation"]["errors"]), _found(run["evaluation"])]
        told.append((run["name"] if several else "", " ".join(filter(None, parts))))
    return [(name, sentence) for name, sentence in told if sentence]


def _best(evaluated):
    """Name the run with the highest AP, and compare it with the first."""
    for branch, what in (("segm", "masks"), ("bbox", "boxes")):
        values = [(run["evaluation"]["metrics"].get(branch) or {}).get("AP") for run in evaluated]
        known = [
            (value, run["name"])
            for value, run in zip(values, evaluated, strict=True)
            if value is not None
        ]
        if len(known) < 2:
            continue
        value, name = max(known, key=lambda pair: pair[0])
        first, first_name = known[0]
        if value == first:
            return f"{first_name} has the highest AP of {what}, {value:.3f}."
        return (
            f"{name} has the highest AP of {what}: {value:.3f}, {value - first:.3f} more than"
            f" {first_name}."
        )
    return ""


def _costs(errors):
    """Name the kinds of errors that cost most."""
    if not errors:
        return ""
    known = [entry for entry in errors["kinds"] if entry["cost"] is not None]
    first, second, *_ = [*sorted(known, key=lambda entry: -entry["cost"]), None, None]
    if first is None:
        return ""
    if first["cost"] < 0.0005:
        return "No kind of error costs as much as 0.001 of AP50."
    told = f"{KINDS[first['kind']][0]} cost {first['cost']:.3f} of AP50, more than any other kind"
    if second and second["cost"] >= 0.0005:
        told += f"; {KINDS[second['kind']][0].lower()} cost {second['cost']:.3f}"
    return told + "."


def _found(evaluation):
    """Say how many objects are found, and how many detections are wrong, from the confusions."""
    shown = evaluation["confusion"]
    if not shown:
        return ""
    matrix = shown["matrix"]
    objects = sum(map(sum, matrix[:-1]))
    found = sum(row[i] for i, row in enumerate(matrix[:-1]))
    wrong = sum(sum(row[:-1]) for row in matrix) - found
    return (
        f"With a score of at least {evaluation['threshold']:g}, {found} of {objects}"
        f" {'object is' if objects == 1 else 'objects are'} found, and {wrong}"
        f" {'detection is' if wrong == 1 else 'detections are'} wrong."
    )


def overview(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a group per kind of AP: rows of (run's index, name, [(value, difference)])."""
    groups = []
    for branch, title in BRANCHES.items():
        numbers = [(run["evaluation"] or {"metrics": {}})["metrics"].get(branch) for run in runs]
        first = next(filter(None, numbers), None)
        rows = [
            (index, run["name"], [_compared(own, first, key) for key in METRICS])
            for index, (run, own) in enumerate(zip(runs, numbers, strict=True))
            if own
        ]
        if rows:
            groups.append({"title": title, "rows": rows})
    return groups


def _compared(own, first, key):
    """Return a value, and its difference to that of the first run or None."""
    value, base = own.get(key), (first or {}).get(key)
    if own is first or value is None or base is None:
        return value, None
    return value, value - base


def errors(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the table of the kinds of errors: the costliest of the first run first."""
    evaluations = [run["evaluation"] for run in runs]
    shown = [
        (index, run["name"], evaluation["errors"])
        for index, (run, evaluation) in enumerate(zip(runs, evaluations, strict=True))
        if evaluation and evaluation["errors"]
    ]
    if not shown:
        return None
    by_kind = [{entry["kind"]: entry for entry in found["kinds"]} for _, _, found in shown]
    cost = {kind: by_kind[0].get(kind, {}).get("cost") or 0.0 for kind in KINDS}
    empty = {"count": None, "cost": None}
    rows = [
        (kind, [found.get(kind, empty) for found in by_kind])
        for kind in sorted(KINDS, key=lambda kind: -cost[kind])
    ]
    costs = [cell["cost"] or 0.0 for _, cells in rows for cell in cells]
    sums = [
        ("All wrong detections", [found["false_positives"] for _, _, found in shown]),
        ("All objects not found", [found["false_negatives"] for _, _, found in shown]),
    ]
    return {"runs": shown, "rows": rows, "most": max(costs, default=0.0), "sums": sums}


def compared(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the table of each class's AP in each run; None for a single one."""
    evaluated = [(index, run) for index, run in enumerate(runs) if run["evaluation"]]
    if len(evaluated) < 2:
        return None
    key = (
        "mask_AP" if all(run["evaluation"]["kind"] == "segm" for _, run in evaluated) else "box_AP"
    )
    by_name = [
        {entry["name"]: entry for entry in run["evaluation"]["classes"]} for _, run in evaluated
    ]
    rows = []
    for name in dict.fromkeys(name for found in by_name for name in found):
        entries = [found.get(name, {}) for found in by_name]
        objects = next(entry["objects"] for entry in entries if entry)
        rows.append((name, objects, [_compared(entry, entries[0], key) for entry in entries]))
    return {
        "measure": COLUMNS[key],
        "runs": [(index, run["name"]) for index, run in evaluated],
        "rows": rows,
    }


def confusion(shown: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the matrix with the sum of each row, and its most frequent confusions of classes."""
    if not shown:
        return None
    labels, matrix = shown["labels"], shown["matrix"]
    sums = [sum(row) for row in matrix]
    classes = range(len(labels) - 1)
    frequent = sorted(
        ((matrix[i][j], i, j) for i in classes for j in classes if i != j and matrix[i][j] > 1),
        key=lambda entry: (-entry[0], *entry[1:]),
    )
    return {
        "labels": labels,
        "rows": list(zip(labels, matrix, sums, strict=True)),
        "frequent": [(labels[i], labels[j], count, sums[i]) for count, i, j in frequent[:FREQUENT]],
    }


def picture_keys(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return by what the script filters the pictures of a run, in their order on the page."""
    pictures = run["evaluation"]["pictures"] if run["evaluation"] else []
    return [{key: picture[key] for key in ("rank", "classes", "errors")} for picture in pictures]
