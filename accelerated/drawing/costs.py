"""Plot what the benchmark measured against the size of its input, with Matplotlib."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from accelerated.drawing.curves import DPI

# A library's colour and an operator's line, the same in all panels.
COLORS = {"triton": "C0", "torch": "C2", "torchvision": "C1"}
LINES = ("-", "--")


def curves(rows: Sequence[Mapping], axes: Mapping[str, str], *, title: str) -> Figure:
    """Plot the median time of each operator and backend, a panel for each curve.

    rows   each with curve, at, operator, backend, p20_ms, p50_ms and p80_ms, perhaps variant
    axes   {curve: label of the horizontal axis}; curves without a row get no panel

    Bands reach from p20 to p80. Both axes are logarithmic.
    """
    found = [name for name in axes if any(row["curve"] == name for row in rows)]
    columns = min(2, len(found))
    lines = -(-len(found) // columns)
    figure = Figure(figsize=(5.2 * columns, 4.3 * lines), dpi=DPI, layout="constrained")
    figure.suptitle(f"{title}: medians, with bands from p20 to p80")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for panel, name in zip(panels, found, strict=False):
        _panel(panel, [row for row in rows if row["curve"] == name], axes[name])
    for panel in list(panels)[len(found) :]:
        panel.set_visible(False)
    return figure


def _panel(panel, rows, label):
    series = {}
    for row in sorted(rows, key=lambda row: row["at"]):
        who = (row["operator"], row["backend"], row.get("variant", ""))
        series.setdefault(who, []).append(row)
    operators = list(dict.fromkeys(operator for operator, _, _ in series))
    for (operator, backend, variant), points in series.items():
        line = {"color": COLORS.get(backend, "C7"), "linestyle": LINES[operators.index(operator)]}
        # A variant is the same library in another way: fainter.
        alpha = 0.45 if variant else 1.0
        at = [point["at"] for point in points]
        low, middle, high = ([point[f"p{q}_ms"] for point in points] for q in (20, 50, 80))
        name = ", ".join(filter(None, (operator.replace("_", " "), backend, variant)))
        panel.plot(at, middle, marker="o", markersize=3, label=name, alpha=alpha, **line)
        panel.fill_between(at, low, high, color=line["color"], alpha=0.12, linewidth=0)
    ticks = sorted({row["at"] for row in rows})
    panel.set(xscale="log", yscale="log", xlabel=label, ylabel="ms")
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    times = [row[f"p{q}_ms"] for row in rows for q in (20, 80)]
    # At least a factor of ten, which small differences do not fill.
    margin = max(1.2, math.sqrt(10 * min(times) / max(times)))
    panel.set_ylim(min(times) / margin, max(times) * margin)
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_minor_locator(NullLocator())
    panel.grid(alpha=0.3)
    # Below, where it hides no line.
    panel.legend(
        fontsize=8, ncols=2, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12)
    )
