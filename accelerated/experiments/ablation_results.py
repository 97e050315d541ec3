"""The results of an ablation: means, spreads, and which of the paper's orderings they reproduce."""

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from accelerated.data.text_files import written_whole
from accelerated.drawing import curves
from accelerated.experiments.ablate import METRICS, Run, read_result
from accelerated.experiments.ablation_rows import Comparison, Row

PAPER = (
    "The paper's numbers are mask AP on COCO with pretrained ResNet-50 and ResNet-101,"
    " quoted from memory and not checked."
)
# Points of AP. The paper calls two rows equal below that: RoIWarp and RoIPool, or mean and max.
TIE = 0.5


@dataclass(frozen=True)
class Line:
    """A row of the table.

    values   {metric: its value for each finished seed, in points}
    """

    comparison: str
    row: Row
    values: dict[str, list[float]]

    @property
    def seeds(self) -> int:
        """The number of finished seeds."""
        return len(self.values["mask AP"])

    def mean(self, metric: str = "mask AP") -> float:
        """Average a metric over the seeds."""
        return statistics.fmean(self.values[metric])

    def text(self, metric: str) -> str:
        """Format a metric's mean and sample standard deviation over the seeds."""
        values = self.values[metric]
        if not values:
            return "-"
        if len(values) == 1:
            return f"{values[0]:.1f}"
        return f"{self.mean(metric):.1f} ± {statistics.stdev(values):.1f}"


def lines(comparisons: Sequence[Comparison], runs: Sequence[Run], output: Path) -> list[Line]:
    """Collect the results of every row of every comparison; rows without a result are included."""
    results = {run: read_result(output, run) for run in runs}
    table = []
    for comparison in comparisons:
        for row in comparison.rows:
            finished = [
                result
                for run, result in results.items()
                if run.changes == row.changes and result is not None
            ]
            values = {
                metric: [100 * (result[metric] or 0.0) for result in finished] for metric in METRICS
            }
            table.append(Line(comparison.title, row, values))
    return table


def spread(table: Sequence[Line]) -> float | None:
    """Pool the rows' standard deviations of mask AP over seeds; None if no row has two seeds."""
    rows = {line.row.changes: line.values["mask AP"] for line in table}.values()
    repeated = [values for values in rows if len(values) > 1]
    if not repeated:
        return None
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in repeated)
    return (squares / sum(len(values) - 1 for values in repeated)) ** 0.5


@dataclass(frozen=True)
class Ordering:
    """Two rows of a comparison and their differences in points of mask AP.

    better   the row that is better in the paper
    error    two standard errors of `ours`
    """

    worse: str
    better: str
    paper: float
    ours: float
    error: float
    verdict: str


def orderings(table: Sequence[Line]) -> list[Ordering]:
    """Compare every pair of rows within a comparison; empty if no row has two seeds.

    A difference is decided if it exceeds two standard errors, computed from the spread of the two
    rows or of all rows, whichever is larger.
    """
    overall = spread(table)
    if overall is None:
        return []
    out = []
    for worse, better in combinations(table, 2):
        if worse.comparison != better.comparison or not (worse.seeds and better.seeds):
            continue
        if worse.row.paper > better.row.paper:
            worse, better = better, worse
        paper, ours = better.row.paper - worse.row.paper, better.mean() - worse.mean()
        deviation = max(overall, spread((worse, better)) or 0.0)
        error = 2 * deviation * (1 / worse.seeds + 1 / better.seeds) ** 0.5
        verdict = _verdict(paper, ours, error)
        out.append(Ordering(worse.row.name, better.row.name, paper, ours, error, verdict))
    return out


def _verdict(paper, ours, error):
    if abs(ours) <= error:
        return "undecided" if paper >= TIE else "no difference, as in the paper"
    if paper < TIE:
        return "different, unlike in the paper"
    return "reproduced" if ours > 0 else "reversed"


def write(table: Sequence[Line], output: Path, iterations: int) -> None:
    """Write ablation.csv and ablation.png into the folder `output`."""
    header = ["comparison", "row", "paper (COCO, from memory)", "seeds", "iterations"]
    for metric in METRICS:
        header += [f"{metric} mean", f"{metric} standard deviation", f"{metric} of each seed"]
    with written_whole(Path(output) / "ablation.csv") as file:
        out = csv.writer(file)
        out.writerow([*header, "changes of the base"])
        for line in table:
            cells = [line.comparison, line.row.name, line.row.paper, line.seeds, iterations]
            for values in line.values.values():
                cells.append(f"{statistics.fmean(values):.3f}" if values else "")
                cells.append(f"{statistics.stdev(values):.3f}" if len(values) > 1 else "")
                cells.append(" ".join(f"{value:.3f}" for value in values))
            out.writerow([*cells, " ".join(line.row.changes)])
    groups = {}
    for line in table:
        entry = (line.row.name, line.values["mask AP"], line.row.paper)
        groups.setdefault(line.comparison, []).append(entry)
    figure = curves.comparisons(groups, unit="mask AP, points")
    curves.save(figure, Path(output) / "ablation.png")
