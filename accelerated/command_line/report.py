"""Tables of the command line: data sets, results and comparisons."""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from accelerated.data.lint import Report as Findings
from accelerated.experiments.ablation_results import Line, orderings
from accelerated.verify.report import Report, Row
from accelerated.verify.training import Pair

# Problems of a kind that are shown.
EXAMPLES = 5
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def console() -> Console:
    """Create a console on standard output, 140 columns wide unless that is a terminal."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 140)


def count(number: int, singular: str, plural: str = "") -> str:
    """Write a number with its noun, such as "1 image" or "2 images"."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence]) -> Table:
    """Create a table of texts; None becomes an empty cell."""
    out = Table(*columns, title=title, box=box.SIMPLE, title_justify="left", title_style="bold")
    for row in rows:
        out.add_row(*("" if value is None else str(value) for value in row))
    return out


def metrics(values: dict[str, dict]) -> Table:
    """Show the result of `engine.evaluate.evaluate`: a row for boxes and, if present, for masks."""
    rows = []
    for branch, numbers in values.items():
        texts = ("-" if numbers[key] is None else f"{numbers[key]:.3f}" for key in METRICS)
        rows.append((branch, *texts))
    return table("Average precision", ["", *METRICS], rows)


def class_metrics(values: dict[str, dict]) -> Table:
    """Show the average precision of each class that has objects."""
    classes = [numbers["classes"] for numbers in values.values()]
    rows = []
    for name in classes[0]:
        numbers = [of_branch[name] for of_branch in classes]
        if None not in numbers:
            rows.append((name, *(f"{number:.3f}" for number in numbers)))
    return table("By class", ["", *(f"{branch} AP" for branch in values)], rows)


def verification(result: Report, backends: Sequence[str] = ("torch", "triton")) -> list[Table]:
    """Show a comparison, one table per section, with the relative error of each backend.

    For stages there is also the largest absolute difference; for losses, gradients and weights one
    value per implementation.
    """
    tables = []
    for section, rows in result.sections.items():
        sides = [side for side in ("NumPy", *backends) if any(side in row.values for row in rows)]
        columns = [section, "shape", *sides, *(f"NumPy - {backend}" for backend in backends)]
        if not sides:
            columns.append("largest difference")
        columns.append("verdict")
        cells = [_compared(row, sides, backends) for row in rows]
        tables.append(table(None if tables else result.title, columns, cells))
    return tables


def _compared(row: Row, sides, backends):
    cells = [row.name, row.shape]
    cells += [f"{row.values[side]:.5g}" if side in row.values else "-" for side in sides]
    cells += [row.text(backend) for backend in backends]
    if not sides:
        cells.append(row.largest)
    return [*cells, row.verdict]


def print_verification(console: Console, result: Report) -> bool:
    """Print a comparison and its summary; return whether it passed."""
    console.print(*verification(result))
    for backend, reason in result.skipped.items():
        console.print(f"{backend} did not run: {reason}")
    console.print(result.summary)
    return result.passed


def training(pairs: Sequence[Pair], lines: int = 12) -> Table:
    """Show a training run of both implementations, a row every few steps.

    A row has the sums of the losses in its step; the largest difference of any loss and the mean
    times are those since the row above.
    """
    every, rows = -(-len(pairs) // lines), []
    ends = sorted({1, *range(every, len(pairs), every), len(pairs)})
    for start, end in zip([0, *ends], ends, strict=False):
        window = pairs[start:end]
        rows.append(
            (
                end,
                f"{sum(window[-1].numpy.values()):.12f}",
                f"{sum(window[-1].torch.values()):.12f}",
                f"{max(pair.difference for pair in window):.1e}",
                f"{sum(pair.numpy_seconds for pair in window) / len(window):.2f}",
                f"{sum(pair.torch_seconds for pair in window) / len(window):.2f}",
            )
        )
    return table(
        "Loss",
        ["step", "NumPy", "PyTorch", "largest difference", "NumPy s/step", "PyTorch s/step"],
        rows,
    )


def problems(found: Findings, name: str, everything: bool = False) -> list[Table]:
    """Show the problems that `data.lint.check` found in a file, their causes first.

    everything  list every problem, not five of each kind and none that a cause explains
    """
    total = len(found.problems)
    title = f"{name}: {count(total, 'problem')}"
    causes = [
        (c.severity, c.code, c.message, f"{len(c.problems)} of {total}", c.problems[0].where)
        for c in found.causes
    ]
    listed = found.problems if everything else found.unexplained
    kinds = Counter((problem.severity, problem.code) for problem in listed)
    rows, shown = [], Counter()
    for problem in listed:
        kind = problem.severity, problem.code
        shown[kind] += 1
        if everything or shown[kind] <= EXAMPLES:
            # A file of another format, before its image has a number.
            file = problem.file if problem.file != name else None
            where = problem.image_id if problem.image_id is not None else file
            rows.append((*kind, where, problem.annotation_id, problem.message))
        if not everything and shown[kind] == kinds[kind] > EXAMPLES:
            rows.append((*kind, "", "", f"... and {kinds[kind] - EXAMPLES} more; --all lists them"))
    columns = ["severity", "code", "image or file", "annotation", "problem"]
    heads = ["severity", "cause", "", "explains", "first"]
    tables = [table(title, heads, causes)] if causes else []
    if rows:
        tables.append(table(None if causes else title, columns, rows))
    return tables


def repairs(counts: dict[tuple[str, str, str], int]) -> Table:
    """Show how many entries of a data set were changed, by problem."""
    rows = [(number, *kind) for kind, number in counts.items()]
    return table("Repaired", ["entries", "problem", "list", "change"], rows)


def dataset(summary: dict) -> list[Table]:
    """Show the result of `data.summary.summary`: counts and sizes, and the objects per class.

    What has nothing to count is left out: all without an image, and classes without an object.
    """
    if not summary["images"]:
        return []
    area = summary["area"]
    rows = [
        ("images", summary["images"]),
        ("  without objects", summary["negatives"]),
        ("  height, pixels", _spread(summary["image_height"])),
        ("  width, pixels", _spread(summary["image_width"])),
        ("objects", summary["objects"]),
    ]
    if summary["objects"]:
        rows += [
            ("  per image", _spread(summary["objects_per_image"])),
            ("  small (area < 32x32 pixels)", area["small"]),
            ("  medium", area["medium"]),
            ("  large (area >= 96x96 pixels)", area["large"]),
        ]
    rows.append(("crowd regions", summary["crowds"]))
    categories = sorted(summary["categories"], key=lambda category: -category["objects"])
    used = [category for category in categories if category["objects"]]
    classes = [(category["objects"], category["name"], category["id"]) for category in used]
    unused = len(categories) - len(used)
    if unused:
        classes.append((0, f"{unused} other categories", ""))
    tables = [table("Data set", ["", ""], rows)]
    if used:
        tables.append(table("Classes", ["objects", "class", "category id"], classes))
    return tables


def ablation(lines: Sequence[Line], iterations: int) -> list[Table]:
    """Show the results of an ablation, and which of the paper's orderings they reproduce."""
    rows, previous = [], None
    for line in lines:
        title = "" if line.comparison == previous else line.comparison
        texts = [line.text(metric) for metric in line.values]
        rows.append((title, line.row.name, f"{line.row.paper:.1f}", line.seeds, *texts))
        previous = line.comparison
    results = table(
        f"Average precision in points after {count(iterations, 'step')}:"
        f" mean ± standard deviation over {count(max(line.seeds for line in lines), 'seed')}",
        ["comparison", "row", "paper", "seeds", *lines[0].values],
        rows,
    )
    differences = [
        (
            f"{ordering.better} over {ordering.worse}",
            f"{ordering.paper:+.1f}",
            f"{ordering.ours:+.1f} ± {ordering.error:.1f}",
            ordering.verdict,
        )
        for ordering in orderings(lines)
    ]
    if not differences:
        return [results]
    title = "Differences in mask AP ± two standard errors"
    return [results, table(title, ["", "paper", "here", "verdict"], differences)]


def _spread(values):
    return f"{values['min']} to {values['max']}, median {values['median']:g}"
