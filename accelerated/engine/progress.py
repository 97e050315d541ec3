"""The progress of a training run on standard output: a bar in a terminal, elsewhere lines."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# Seconds between two lines where there is no terminal.
EVERY = 30.0


class Shown:
    """A context manager that shows the steps from `start` to `iterations`, or nothing."""

    def __init__(self, start: int, iterations: int, *, visible: bool = True):
        self.iterations = iterations
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        ]
        self._bar = Progress(*columns, disable=not visible)
        console = self._bar.console
        self._lines = visible and not (console.is_terminal or console.is_jupyter)
        # The bar would write one line, at the end.
        self._bar.disable = self._bar.disable or self._lines
        self._task = self._bar.add_task("starting", total=iterations, completed=start)
        self._due = 0.0

    def step(self, iteration: int, values: dict[str, float]) -> None:
        """Show a line of the log: loss, learning_rate, images_per_second and seconds per step."""
        text = f"loss {values['loss']:.3f}  lr {values['learning_rate']:.2g}"
        self._bar.update(self._task, completed=iteration, description=text)
        now = time.monotonic()
        if self._lines and (now >= self._due or iteration == self.iterations):
            self._due = now + EVERY
            left = (self.iterations - iteration) * values["seconds"]
            self.say(
                f"step {iteration} of {self.iterations}  {text}"
                f"  {values['images_per_second']:.1f} images/s  {duration(left)} left"
            )

    def say(self, text: str) -> None:
        """Write a line, above the bar if there is one."""
        with _seen_or_not():
            if self._lines:
                print(text, flush=True)
            elif not self._bar.disable:
                self._bar.console.print(text, markup=False, highlight=False)

    def __enter__(self) -> "Shown":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        with _seen_or_not():
            self._bar.stop()


@contextmanager
def _seen_or_not() -> Iterator[None]:
    """Go on where a closed terminal or pipe takes no more: the rest of the output is dropped."""
    try:
        yield
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def duration(seconds: float) -> str:
    """Write a time such as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
