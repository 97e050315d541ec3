"""The result of comparing NumPy with the backends, row by row."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from accelerated.verify.equality import (
    Difference,
    assert_close,
    assert_equal,
    difference,
    to_numpy,
)


@dataclass(frozen=True)
class Row:
    """The comparison of one stage, loss or parameter."""

    name: str
    shape: str
    # By backend, each against NumPy.
    differences: dict[str, Difference]
    # Of the relative difference; 0 for discrete results.
    tolerance: float
    # By implementation: one number to show, such as a loss or a norm.
    values: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Tell whether every backend is within the tolerance."""
        return all(d.relative <= self.tolerance for d in self.differences.values())

    @property
    def verdict(self) -> str:
        """The result in words: "ok", "equal" for discrete results, or what is wrong."""
        if self.passed:
            return "ok" if self.tolerance or not self.differences else "equal"
        worst = max(self.differences.values(), key=lambda d: d.relative)
        if worst.reason:
            return worst.reason
        if self.tolerance:
            return f"differs > {self.tolerance:g}"
        return f"{worst.wrong} entries differ"

    @property
    def largest(self) -> str:
        """The largest absolute difference of any backend, as text."""
        return f"{max((d.absolute for d in self.differences.values()), default=0.0):.1e}"

    def text(self, backend: str) -> str:
        """Return the backend's relative difference as text, "-" if it was not compared."""
        result = self.differences.get(backend)
        return "-" if result is None or result.reason else f"{result.relative:.1e}"


@dataclass(frozen=True)
class Report:
    """A comparison: its rows by section, such as "stages" or "gradients"."""

    title: str
    sections: dict[str, list[Row]]
    # {backend: why it did not run}
    skipped: dict[str, str]

    @classmethod
    def of(cls, title: str, rows: Iterable[Row], section: str = "results") -> "Report":
        """Make a report of rows such as those of `check`; `section` says what they are.

        Raises ValueError if there is no row.
        """
        rows = list(rows)
        if not rows:
            raise ValueError(f"{title}: nothing was compared")
        return cls(title, {section: rows}, {})

    @property
    def rows(self) -> list[Row]:
        """The rows of all sections."""
        return [row for rows in self.sections.values() for row in rows]

    @property
    def passed(self) -> bool:
        """Tell whether every row passed."""
        return all(row.passed for row in self.rows)

    @property
    def summary(self) -> str:
        """One sentence: who agrees in how many rows, or the first row that differs."""
        sides = " and ".join(["NumPy", *self._backends()])
        if self.passed:
            return f"{sides} agree in all {self._count(lambda row: True)}."
        first = next(row for row in self.rows if not row.passed)
        failed = self._count(lambda row: not row.passed)
        return f"{sides} differ in {failed}, first in {first.name}: {first.verdict}"

    def _repr_html_(self) -> str:
        """Show the report in a notebook: a table, the skipped backends and the summary.

        The column NumPy holds the value of a row: a loss or a norm. It is left out if no row has
        one. The verdict is words, and the colours are those of the page.
        """
        backends = self._backends()
        valued = any("NumPy" in row.values for row in self.rows)
        columns = ["section", "name", "shape", *["NumPy"] * valued]
        columns += [f"NumPy - {backend}" for backend in backends]
        lines = [_html_row("th", [*columns, "tolerance", "verdict"])]
        for section, rows in self.sections.items():
            for row in rows:
                value = f"{row.values['NumPy']:.5g}" if "NumPy" in row.values else "-"
                cells = [section, row.name, row.shape, *[value] * valued]
                cells += [row.text(backend) for backend in backends]
                lines.append(_html_row("td", [*cells, f"{row.tolerance:g}", row.verdict]))
        notes = [f"{backend} did not run: {reason}" for backend, reason in self.skipped.items()]
        table = "\n".join([f"<caption>{escape(self.title)}</caption>", *lines])
        notes = [f"<p>{escape(note)}</p>" for note in [*notes, self.summary]]
        return "\n".join([f"<table>\n{table}\n</table>", *notes])

    def _backends(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row.differences))

    def _count(self, condition: Callable[[Row], bool]) -> str:
        counts = {name: sum(map(condition, rows)) for name, rows in self.sections.items()}
        *most, last = [f"{count} {name}" for name, count in counts.items() if count]
        return f"{', '.join(most)} and {last}" if most else last


def check(name: str, oracle: Any, accelerated: dict[str, Any], tolerance: float) -> Row:
    """Compare a result of the oracle with those of the backends, and require that they agree.

    oracle       array
    accelerated  {backend: array or tensor of any dtype and device}
    tolerance    of max|a - r| / max|r|; 0: the results must be exactly equal

    The values of the row are the L2 norms of the results.
    Raises AssertionError with the name, the backend, the tolerance and the worst index if a backend
    differs by more, and ValueError if there is no backend.
    """
    if not accelerated:
        raise ValueError(f"{name}: there is no backend to compare")
    for backend, result in accelerated.items():
        what = f"{name}, {backend}, tolerance {tolerance:g}"
        if tolerance:
            assert_close(result, oracle, tolerance, what)
        else:
            assert_equal(result, oracle, what)
    results = {"NumPy": oracle, **accelerated}
    return Row(
        name,
        " ".join(map(str, np.shape(oracle))),
        {backend: difference(result, oracle) for backend, result in accelerated.items()},
        tolerance,
        {side: float(np.linalg.norm(to_numpy(result))) for side, result in results.items()},
    )


def _html_row(tag, cells):
    """Make a table row; `tag` is th or td. JupyterLab aligns cells to the right by default."""
    style = ' style="text-align: left"'
    return f"<tr>{''.join(f'<{tag}{style}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
