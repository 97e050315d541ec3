"""The result of comparing NumPy with the backends, row by row."""

from collections.abc import Callable
from dataclasses import dataclass, field

from accelerated.verify.equality import Difference


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
        backends = dict.fromkeys(name for row in self.rows for name in row.differences)
        sides = " and ".join(["NumPy", *backends])
        if self.passed:
            return f"{sides} agree in all {self._count(lambda row: True)}."
        first = next(row for row in self.rows if not row.passed)
        failed = self._count(lambda row: not row.passed)
        return f"{sides} differ in {failed}, first in {first.name}: {first.verdict}"

    def _count(self, condition: Callable[[Row], bool]) -> str:
        counts = {name: sum(map(condition, rows)) for name, rows in self.sections.items()}
        *most, last = [f"{count} {name}" for name, count in counts.items() if count]
        return f"{', '.join(most)} and {last}" if most else last
