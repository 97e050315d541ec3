"""The log of a training run, a line of JSON per window of iterations, and what is shown of it.

A line holds: iteration (steps taken), each loss and their sum averaged over the window,
gradient_norm, learning_rate, seconds (per step), data_seconds (of these, waiting for the loader),
images_per_second, memory_mb (peak, of the GPU or of the process). The line of an evaluation holds
its metrics, and best, the iteration of the best evaluation so far.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accelerated.data.text_files import naming, written_whole
from accelerated.data.values import is_number, short
from accelerated.engine.progress import Shown


class Log:
    """A context manager that appends lines to `path` and shows the progress.

    Lines of later iterations than `start`, which a killed run may have written, are removed first.
    So the log of a resumed run does not show the interruption.

    path       None, for a process that is not the first: nothing is written or shown
    evaluated  whether the run was evaluated at step `start`
    """

    def __init__(self, path: str | Path | None, start: int, iterations: int, *, bar: bool = True):
        self.shown = Shown(start, iterations, visible=bar and path is not None)
        self._file, self.evaluated, self.start = None, False, start
        if path is None:
            return
        self.path = path = Path(path)
        kept = [line for line in read(path) if line["iteration"] <= start] if start else []
        with written_whole(path) as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
        # Without a buffer, whose content a failed write would leave for the next.
        self._file = path.open("ab", buffering=0)
        self.evaluated = any(line["iteration"] == start and "evaluation" in line for line in kept)

    def write(self, iteration: int, **values: Any) -> None:
        """Write one line to the disk, or none of it. Raises ValueError for NaN and infinity.

        The evaluation of the step `start`, which a finished run repeats, is not written twice.
        """
        again = self.evaluated and iteration == self.start and "evaluation" in values
        if self._file is None or again:
            return
        line = json.dumps({"iteration": iteration} | values, allow_nan=False).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            with naming(self.path):
                while line:
                    line = line[self._file.write(line) :]
                os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise
        if "loss" in values:
            self.shown.step(iteration, values)

    def __enter__(self) -> "Log":
        self.shown.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.shown.__exit__(*error)
        if self._file is not None:
            self._file.close()


def read(path: str | Path) -> list[dict]:
    """Read the lines of a log, but not a last one that a killed process left incomplete.

    Raises ValueError, which names the file and the line, for any other line that is damaged.
    """
    path, found = Path(path), []
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, start=1):
        values: Any = None
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines) and not line.endswith(b"\n"):
                break
        fits = isinstance(values, dict) and type(values.get("iteration")) is int
        # A line of steps holds numbers; an evaluation may hold anything.
        if not fits or ("loss" in values and not all(map(is_number, values.values()))):
            raise ValueError(
                f"{path}, line {number}: expected an object with an iteration and numbers, got"
                f" {short(line.decode(errors='replace').strip())}"
            )
        found.append(values)
    return found


class Window:
    """The steps since the last line. Only `read` waits for the device, where the losses stay."""

    def __init__(self, device: torch.device | str):
        self.device = torch.device(device)
        self._clear()

    def _clear(self):
        self.names, self.rows = [], []
        self.images, self.data_seconds, self.start = 0, 0.0, time.perf_counter()

    def __len__(self) -> int:
        return len(self.rows)

    def add(
        self,
        losses: dict[str, Tensor],
        loss: Tensor,
        norm: Tensor,
        images: int,
        data_seconds: float,
    ) -> None:
        """Add a step: its losses, their sum, the gradients' norm, its images and waiting time."""
        self.names = [*losses, "loss", "gradient_norm"]
        values = [*losses.values(), loss, norm]
        self.rows.append(torch.stack([value.detach().float() for value in values]))
        self.images += images
        self.data_seconds += data_seconds

    def read(self) -> tuple[dict, int | None]:
        """Return the averages of the window, and the index of its first non-finite step or None."""
        rows = torch.stack(self.rows).double().cpu()
        finite = rows.isfinite().all(1)
        first = None if finite.all() else int(torch.argmin(finite.int()))
        seconds = time.perf_counter() - self.start
        averages = dict(zip(self.names, rows.mean(0).tolist(), strict=True))
        values = averages | {
            "seconds": seconds / len(rows),
            "data_seconds": self.data_seconds / len(rows),
            "images_per_second": self.images / seconds,
            "memory_mb": _peak_memory_mb(self.device),
        }
        self._clear()
        return values, first


def _peak_memory_mb(device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
