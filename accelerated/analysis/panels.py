"""The charts of a report: which lines and bars each of them has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from accelerated.analysis.charts import (
    LARGE,
    SMALL,
    UNIT,
    Axis,
    Frame,
    Line,
    axis,
    bar_chart,
    finite,
    line_chart,
)
from accelerated.drawing.curves import LOSSES

Run = Mapping[str, Any]

LOOKS = 8
LOSS_TITLES = {
    "loss": "Sum of the losses",
    "rpn_objectness": "RPN: objectness",
    "rpn_box": "RPN: boxes",
    "class": "Class",
    "box": "Boxes",
    "mask": "Masks",
}
AP_TITLES = {"segm": "Mask AP", "bbox": "Box AP"}
RATE_TITLES = {
    "precision50": "Precision by recall, IoU 0.5",
    "precision75": "Precision by recall, IoU 0.75",
    "precision": "Precision by score",
    "recall_by_score": "Recall by score",
    "F1": "F1 by score",
}
BY_RECALL = ("precision50", "precision75")
CURVES = {"precision50": "IoU 0.5", "precision75": "IoU 0.75", "recall_by_score": "recall"}


@dataclass(frozen=True)
class Panel:
    """A chart with its title, a remark beside it, and a legend of (look of a line, meaning)."""

    title: str
    chart: Markup
    note: str = ""
    legend: tuple[tuple[str, str], ...] = ()


def look(index: int) -> str:
    """Return the CSS class of the colour of a run."""
    return f"run{index % LOOKS + 1}"


def training(runs: Sequence[Run]) -> tuple[list[Panel], list[Panel]]:
    """Return the main charts of the logs, the sum of the losses and AP, and those of the rest."""
    logged = [(index, run) for index, run in enumerate(runs) if run["log"]]
    iterations = [
        entry["iteration"]
        for _, run in logged
        for entry in [*run["log"]["steps"], *run["log"]["evaluations"]]
    ]
    steps = Axis(0, max([1, *iterations]), label="step")
    several = len(runs) > 1
    size = SMALL if several else LARGE
    precisions = {branch: _precisions(logged, branch, several) for branch in AP_TITLES}
    main = [_lines("Sum of the losses", _losses(logged, "loss", several), steps, size, log=True)]
    if several:
        main += [
            _lines(title, precisions[branch], steps, size) for branch, title in AP_TITLES.items()
        ]
    else:
        lines = [line for found in precisions.values() for line in found if line.x]
        panel = _lines("Average precision", lines, steps, size)
        legend = tuple((line.look, line.name) for line in lines)
        main.append(panel and replace(panel, legend=legend))
    rest = [
        _lines(LOSS_TITLES[name], _losses(logged, name, several), steps, log=True)
        for name in LOSSES
    ]
    rates = [
        Line(run["name"], *_series(run["log"]["steps"], "learning_rate"), look(i), _end(i, several))
        for i, run in logged
    ]
    rest.append(_lines("Learning rate", rates, steps))
    return [panel for panel in main if panel], [panel for panel in rest if panel]


def curves(runs: Sequence[Run]) -> tuple[list[Panel], dict[str, dict[str, list]]]:
    """Return the charts of precision and recall, drawn for all classes, and each class's lines.

    The second is {class: {key of a line: [the `d` of its path, the y of the text at its end]}}. Its
    key "" stands for all classes.
    """
    several = len(runs) > 1
    size = SMALL if several else LARGE
    panels: list[Panel] = []
    paths: dict[str, dict[str, list]] = {}
    for title, keys in _curve_groups(several):
        x = Axis(0, 1, label="recall" if keys[0] in BY_RECALL else "score at least")
        frame = Frame(x, UNIT, size, several)
        by_class = _curve_lines(runs, keys, several)
        for name, lines in by_class.items():
            heights = {line.key: round(height, 1) for line, height in frame.heights(lines)}
            paths.setdefault(name, {}).update(
                {line.key: [frame.path(line.x, line.y), heights.get(line.key)] for line in lines}
            )
        if lines := by_class.get("", []):
            alt = f"{title}, of all classes: " + "; ".join(map(_ends_of, lines))
            legend = () if several else tuple((line.look, line.name) for line in lines)
            chart = line_chart(lines, frame.x, frame.y, alt, size=size)
            panels.append(Panel(title, chart, legend=legend))
    return panels, paths


def _curve_lines(runs: Sequence[Run], keys: Sequence[str], several: bool) -> dict[str, list[Line]]:
    """Return the lines of each class, "" for all classes."""
    by_class: dict[str, list[Line]] = {}
    for index, run in enumerate(runs):
        found = run["evaluation"]["curves"] if run["evaluation"] else []
        for position, curve in enumerate(found):
            lines = by_class.setdefault(curve["class"] if position else "", [])
            for key, style in zip(keys, ("", " dashed", " dotted"), strict=False):
                x = curve["recall" if key in BY_RECALL else "scores"]
                name = run["name"] if several else CURVES.get(key, key)
                mark, end = f"{index} {key}", _end(index, several)
                if curve[key] is not None:
                    lines.append(Line(name, x, curve[key], look(index) + style, end, key=mark))
    return by_class


def _curve_groups(several: bool) -> list[tuple[str, list[str]]]:
    """Return [(title of a chart, keys of its lines)]; of several runs, a chart has one of each."""
    if several:
        return [(title, [key]) for key, title in RATE_TITLES.items()]
    return [
        ("Precision by recall", [*BY_RECALL]),
        ("Precision, recall and F1 by score", ["precision", "recall_by_score", "F1"]),
    ]


def sizes(evaluation: Mapping[str, Any]) -> Panel | None:
    """Draw how many objects of each size are found and missed."""
    shown = evaluation["sizes"]
    if not shown or not any(shown["objects"]):
        return None
    edges, found, objects = shown["edges"], shown["found"], shown["objects"]
    missed = [total - part for total, part in zip(objects, found, strict=True)]
    titles = [
        f"{low:.0f} to {high:.0f} pixels: {part} of {total} found"
        for low, high, part, total in zip(edges, edges[1:], found, objects, strict=False)
    ]
    label = "square root of the area, pixels"
    positive = edges[0] > 0
    x = Axis(edges[0], edges[-1], log=positive, label=label)
    stacks = [("right", found), ("wrong", missed)]
    rules = [(32.0, "medium"), (96.0, "large")]
    alt = "Objects by size: " + "; ".join(
        title for title, total in zip(titles, objects, strict=True) if total
    )
    chart = bar_chart(edges, stacks, x, titles, alt, rules)
    legend = (("right", "found"), ("wrong", "missed"))
    return Panel("Objects by size", chart, legend=legend)


def scores(evaluation: Mapping[str, Any]) -> Panel | None:
    """Draw how many detections of each score are right and wrong."""
    shown = evaluation["scores"]
    if not shown or not any([*shown["right"], *shown["wrong"]]):
        return None
    edges, right, wrong = shown["edges"], shown["right"], shown["wrong"]
    titles = [
        f"score {low:.2f} to {high:.2f}: {good} right, {bad} wrong"
        for low, high, good, bad in zip(edges, edges[1:], right, wrong, strict=False)
    ]
    alt = "Detections by score: " + "; ".join(titles)
    x = Axis(edges[0], edges[-1], label="score")
    chart = bar_chart(edges, [("right", right), ("wrong", wrong)], x, titles, alt)
    legend = (("right", "right"), ("wrong", "wrong"))
    return Panel("Detections by score", chart, legend=legend)


def calibration(runs: Sequence[Run]) -> Panel | None:
    """Draw which share of the detections with about the same score is right."""
    several = len(runs) > 1
    lines = []
    for index, run in enumerate(runs):
        shown = run["evaluation"] and run["evaluation"]["calibration"]
        bins = [entry for entry in shown["bins"] if entry["count"]] if shown else []
        if bins:
            x, y = [entry["score"] for entry in bins], [entry["precision"] for entry in bins]
            name = f"{run['name']}: share that is right"
            lines.append(Line(name, x, y, look(index), _end(index, several), dots=True))
    if not lines:
        return None
    alt = "Share of right detections by score: " + "; ".join(_ends_of(line) for line in lines)
    score = Axis(0, 1, label="score")
    chart = line_chart(lines, score, UNIT, alt, diagonal=True)
    return Panel("Calibration: share that is right", chart)


def _lines(
    title: str,
    lines: list[Line],
    x: Axis,
    size: tuple[int, int] = SMALL,
    log: bool = False,
) -> Panel | None:
    """Draw lines with an axis that holds them; None without a value."""
    lines = [line for line in lines if finite(line.y)]
    if not lines:
        return None
    y = axis([value for line in lines for value in line.y], log=log)
    alt = f"{title}: " + "; ".join(_ends_of(line) for line in lines)
    note = "log scale" if y.log else ""
    return Panel(title, line_chart(lines, x, y, alt, size=size), note)


def _losses(logged, name: str, several: bool) -> list[Line]:
    lines = []
    for index, run in logged:
        log, who = run["log"], f"{run['name']}: " if several else ""
        x, y = _series(log["steps"], name)
        lines.append(Line(f"{who}training", x, y, look(index), _end(index, several)))
        seen = [entry | entry["validation"] for entry in log["evaluations"] if _validated(entry)]
        x, y = _series(seen, name)
        lines.append(Line(f"{who}validation", x, y, f"{look(index)} dotted", dots=True))
    return lines


def _validated(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("validation"))


def _precisions(logged, branch: str, several: bool) -> list[Line]:
    lines = []
    for index, run in logged:
        log = run["log"]
        seen = [entry for entry in log["evaluations"] if entry.get(branch)]
        x, y = [entry["iteration"] for entry in seen], [entry[branch]["AP"] for entry in seen]
        best = x.index(log["best"]) if log["best"] in x else None
        name, style = run["name"], ""
        if not several:
            name, style = ("masks", "") if branch == "segm" else ("boxes", " dashed")
        end = _end(index, several)
        lines.append(Line(name, x, y, look(index) + style, end, best, dots=True))
    return lines


def _series(entries: Sequence[Mapping[str, Any]], name: str) -> tuple[list, list]:
    return [e["iteration"] for e in entries], [e.get(name) for e in entries]


def _end(index: int, several: bool) -> str:
    """Return the number of a run, which stands at the end of its lines and in the legend."""
    return str(index + 1) if several else ""


def _ends_of(line: Line) -> str:
    """Describe a line for those who do not see it."""
    known = finite(line.y)
    best = f", the best {line.y[line.best]:.3g}" if line.best is not None else ""
    return f"{line.name} from {known[0]:.3g} to {known[-1]:.3g}{best}" if known else line.name
