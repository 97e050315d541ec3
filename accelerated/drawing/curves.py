"""Plot losses and comparisons with Matplotlib; the caller shows or saves the figure.

Figures are built without pyplot, so that the caller's Matplotlib backend stays what it is.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from accelerated.data.text_files import written_whole
from accelerated.data.values import is_number
from accelerated.engine import log as engine_log

DPI = 120
LOSSES = ("rpn_objectness", "rpn_box", "class", "box", "mask")


def loss_curve(log: str | Path) -> Figure:
    """Plot the losses of a training log over the iterations.

    log  JSON lines; those with "iteration" and "loss" are steps, and may hold the single losses

    Dots are single lines of the log, lines their running mean. Losses on the validation data, if
    evaluations computed them, are dashed and of the same colour.
    Raises ValueError if the log holds no training step.
    """
    lines = engine_log.read(log)
    steps = [line for line in lines if "loss" in line]
    if not steps:
        raise ValueError(f"{log}: no training step in the log")
    iterations = [step["iteration"] for step in steps]
    figure = Figure(figsize=(7, 4.5), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for name in ("loss", *(name for name in LOSSES if name in steps[0])):
        values = np.array([step.get(name, np.nan) for step in steps], dtype=float)
        mean = _running_mean(values, max(1, len(values) // 40))
        (line,) = axes.plot(iterations, mean, label=name, linewidth=2 if name == "loss" else 1)
        axes.plot(iterations, values, ".", markersize=2, alpha=0.25, color=line.get_color())
        validation = _validation(lines, name)
        if validation:
            dashed = {"color": line.get_color(), "linewidth": line.get_linewidth()}
            axes.plot(*zip(*validation, strict=True), "x--", markersize=4, **dashed)
    if _validation(lines, "loss"):
        axes.plot([], [], "x--", color="gray", markersize=4, label="validation")
    axes.set(xlabel="iteration", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    return figure


def _validation(lines, name):
    """List (iteration, loss) of the evaluations that have a loss, or of "loss" all, to add up."""
    found = []
    for line in lines:
        losses = line.get("validation")
        if isinstance(losses, dict):
            values = list(losses.values()) if name == "loss" else [losses.get(name)]
            numbers = [float(value) for value in values if is_number(value)]
            if numbers and len(numbers) == len(values):
                found.append((line["iteration"], sum(numbers)))
    return found


def save(figure: Figure, path: str | Path) -> None:
    """Write a whole PNG file or none of it."""
    with written_whole(path, "wb") as file:
        figure.savefig(file, format="png")


def loss_comparison(pairs: Sequence[Any]) -> Figure:
    """Plot both loss curves of `verify.training.train`, and their difference.

    pairs  [verify.training.Pair]
    """
    steps = [pair.iteration for pair in pairs]
    numpy_losses = [sum(pair.numpy.values()) for pair in pairs]
    torch_losses = [sum(pair.torch.values()) for pair in pairs]
    # A logarithmic axis has no 0.
    differences = [max(pair.difference, 1e-17) for pair in pairs]
    figure = Figure(figsize=(7, 5.5), dpi=DPI, layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    above.plot(steps, numpy_losses, color="tab:orange", alpha=0.6, linewidth=6, label="NumPy")
    above.plot(steps, torch_losses, color="black", linewidth=1, label="PyTorch")
    above.set(ylabel="loss")
    above.legend()
    below.plot(steps, differences, color="tab:red")
    below.set(xlabel="step", ylabel="largest relative\ndifference of a loss")
    below.set(yscale="log", ylim=(1e-17, None))
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return figure


def comparisons(
    groups: Mapping[str, Sequence[tuple[str, Sequence[float], float]]], *, unit: str
) -> Figure:
    """Plot groups of measurements and the published numbers.

    groups  {title: [(name, values, published number)]}; `values` may be empty
    unit    label of the horizontal axes

    Each group gets a panel, each name a row: dots for the values, a bar for their mean and standard
    deviation, a diamond for the published number.
    """
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.1 * rows), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[len(groups) :]:
        axes.set_visible(False)
    handles = {}
    for axes, (title, measurements) in zip(panels.flat, groups.items(), strict=False):
        _panel(axes, measurements)
        axes.set(title=title, xlabel=unit)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles[label] = handle
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    return figure


def _panel(axes, measurements):
    for y, (_, values, published) in enumerate(measurements):
        axes.plot(published, y, "D", color="none", markeredgecolor="gray", label="paper, COCO")
        if not values:
            continue
        deviation = np.std(values, ddof=1) if len(values) > 1 else 0
        bar = {"fmt": "|", "color": "C0", "markersize": 14, "capsize": 3}
        label = "mean, standard deviation"
        axes.errorbar(np.mean(values), y, xerr=deviation, label=label, **bar)
        axes.plot(values, [y] * len(values), ".", color="C1", label="seeds")
    axes.set(yticks=range(len(measurements)), yticklabels=[name for name, _, _ in measurements])
    axes.set(ylim=(len(measurements) - 0.5, -0.5))
    axes.grid(alpha=0.3, axis="x")


def _running_mean(values, window):
    """Return the mean of the last `window` values up to each one; fewer at the start."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
