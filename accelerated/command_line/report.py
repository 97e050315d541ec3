"""What the command line shows: tables of data, of results, of comparisons."""

import sys

from rich import box
from rich.console import Console
from rich.table import Table

from accelerated.experiments import ablate

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def console() -> Console:
    """Standard output, 140 columns wide where it is no terminal; texts are shown as they are."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 140)


def table(title, columns, rows) -> Table:
    out = Table(*columns, title=title, box=box.SIMPLE, title_justify="left", title_style="bold")
    for row in rows:
        out.add_row(*("" if value is None else str(value) for value in row))
    return out


def metrics(values) -> Table:
    """Of `engine.evaluate.evaluate`; without a mask branch there is no row of masks."""
    rows = [
        (kind, *("-" if found[key] is None else f"{found[key]:.3f}" for key in METRICS))
        for kind, found in values.items()
    ]
    return table("Average precision", ["", *METRICS], rows)


def class_metrics(values) -> Table:
    """The average precision of each class that has objects."""
    classes = [found["classes"] for found in values.values()]
    rows = [[name, *(of[name] for of in classes)] for name in classes[0]]
    rows = [(name, *(f"{value:.3f}" for value in row)) for name, *row in rows if None not in row]
    return table("By class", ["", *(f"{kind} AP" for kind in values)], rows)


def verification(result, backends=("torch", "triton")) -> list[Table]:
    """Of `verify.compare` and `verify.training.compare`, a table for each section: differences relative to the largest entry, and of
    stages the largest of all in absolute numbers; of losses, gradients and weights the number that stands for each side."""
    tables = []
    for name, rows in result.sections.items():
        sides = [side for side in ("NumPy", *backends) if any(side in row.values for row in rows)]
        columns = [
            name,
            "shape",
            *sides,
            *(f"NumPy - {backend}" for backend in backends),
            *([] if sides else ["largest difference"]),
        ]
        tables.append(
            table(
                None if tables else result.title,
                [*columns, "verdict"],
                [_compared(row, sides, backends) for row in rows],
            )
        )
    return tables


def _compared(row, sides, backends):
    values = [f"{row.values[side]:.5g}" if side in row.values else "-" for side in sides]
    return (
        row.name,
        row.shape,
        *values,
        *map(row.text, backends),
        *([] if sides else [row.largest]),
        row.verdict,
    )


def print_verification(console, result) -> bool:
    """Show all of a comparison, and say how it ended; whether it passed."""
    console.print(*verification(result))
    for backend, reason in result.skipped.items():
        console.print(f"{backend} did not run: {reason}")
    console.print(result.summary)
    return result.passed


def training(pairs, lines=12) -> Table:
    """Of `verify.training.train`: the sum of the losses on both sides every few steps, the largest difference of any loss in between."""
    every, rows = -(-len(pairs) // lines), []
    ends = sorted({1, *range(every, len(pairs), every), len(pairs)})
    for start, end in zip([0, *ends], ends, strict=False):
        window = pairs[start:end]
        losses = (f"{sum(side.values()):.12f}" for side in (window[-1].numpy, window[-1].torch))
        seconds = (
            f"{sum(values) / len(window):.2f}"
            for values in zip(*((p.numpy_seconds, p.torch_seconds) for p in window), strict=True)
        )
        rows.append((end, *losses, f"{max(pair.difference for pair in window):.1e}", *seconds))
    return table(
        "Loss",
        ["step", "NumPy", "PyTorch", "largest difference", "NumPy s/step", "PyTorch s/step"],
        rows,
    )


def problems(found) -> Table:
    """Of `data.lint.check`, every one."""
    rows = [(p.severity, p.code, p.image_id, p.annotation_id, p.message) for p in found]
    return table(
        f"{len(found)} problem{'s' * (len(found) > 1)}",
        ["severity", "code", "image", "annotation", "what"],
        rows,
    )


def dataset(summary) -> list[Table]:
    """Of `data.summary.summary`: counts and sizes, and objects per class."""
    area = summary["area"]
    rows = [
        ("images", summary["images"]),
        ("  without objects", summary["negatives"]),
        ("  height, pixels", _spread(summary["image_height"])),
        ("  width, pixels", _spread(summary["image_width"])),
        ("objects", summary["objects"]),
        ("  per image", _spread(summary["objects_per_image"])),
        (
            "  small, medium, large",
            f"{area['small']} below 32x32 pixels, {area['medium']}, {area['large']} from 96x96 on",
        ),
        ("crowd regions", summary["crowds"]),
    ]
    found = sorted((c for c in summary["categories"] if c["objects"]), key=lambda c: -c["objects"])
    classes = [(c["objects"], c["name"], c["id"]) for c in found]
    if missing := len(summary["categories"]) - len(found):
        classes.append((0, f"{missing} other categories", ""))
    return [
        table("Data set", ["", ""], rows),
        table("Classes", ["objects", "class", "category id"], classes),
    ]


def ablation(lines, iterations) -> list[Table]:
    """Of `ablate.lines`: the results, and which of the paper's orderings they show."""
    seeds, results, above = max(line.seeds for line in lines), [], None
    for line in lines:
        title = "" if line.comparison == above else line.comparison
        results.append(
            (
                title,
                line.row.name,
                f"{line.row.paper:.1f}",
                line.seeds,
                *map(line.text, line.values),
            )
        )
        above = line.comparison
    columns = ["comparison", "row", "paper", "seeds", *lines[0].values]
    pairs = [
        (
            f"{o.better} over {o.worse}",
            f"{o.paper:+.1f}",
            f"{o.ours:+.1f} ± {o.error:.1f}",
            o.verdict,
        )
        for o in ablate.orderings(lines)
    ]
    out = [
        table(
            f"Average precision in points after {iterations} steps: mean ± standard deviation over {seeds} seeds",
            columns,
            results,
        )
    ]
    if pairs:
        out.append(
            table(
                "Differences in mask AP ± twice their standard error",
                ["", "paper", "here", "verdict"],
                pairs,
            )
        )
    return out


def _spread(values):
    return "{min} to {max}, median {median:g}".format(**values)
