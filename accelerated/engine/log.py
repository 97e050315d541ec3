"""What a training run says: one line of JSON per window of iterations, and one progress bar.

A line holds: iteration (steps taken), every loss and their sum averaged over the window, gradient_norm, learning_rate, seconds
(per step), data_seconds (of these, waiting for the loader), images_per_second, memory_mb (peak, of the GPU or of the process).
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor


class Log:
    """Appends to `path` and moves the bar; a context manager.

    Lines of a run that got further than `start` before it was killed are cut off first, so that a resumed run's log reads as
    if nothing had happened.
    """

    def __init__(self, path, start: int, iterations: int, *, bar: bool = True):
        path = Path(path)
        kept = [line for line in _lines(path) if line["iteration"] <= start] if start else []
        partial = path.with_name(f".{path.name}")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(path)
        self._file = path.open("a")
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        ]
        self._bar = Progress(*columns, disable=not bar)
        self._task = self._bar.add_task("starting", total=iterations, completed=start)

    def write(self, iteration: int, **values):
        """One line, on the disk before this returns; NaN and infinity are refused with ValueError."""
        self._file.write(json.dumps({"iteration": iteration} | values, allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        if "loss" in values:
            self._bar.update(
                self._task,
                completed=iteration,
                description=f"loss {values['loss']:.3f}  lr {values['learning_rate']:.2g}",
            )

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *error):
        self._bar.stop()
        self._file.close()


def read(path) -> list[dict]:
    """The lines of a log; a last line that was cut short is left out."""
    return list(_lines(Path(path)))


def _lines(path):
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


class Window:
    """The steps since the last line. Losses stay on the device until `read`, which is the only thing that waits for it."""

    def __init__(self, device):
        self.device = torch.device(device)
        self._clear()

    def _clear(self):
        self.names, self.rows, self.images, self.data_seconds, self.start = (
            [],
            [],
            0,
            0.0,
            time.perf_counter(),
        )

    def __len__(self):
        return len(self.rows)

    def add(
        self,
        losses: dict[str, Tensor],
        loss: Tensor,
        norm: Tensor,
        images: int,
        data_seconds: float,
    ):
        self.names = [*losses, "loss", "gradient_norm"]
        self.rows.append(
            torch.stack([value.detach().float() for value in (*losses.values(), loss, norm)])
        )
        self.images += images
        self.data_seconds += data_seconds

    def read(self) -> tuple[dict, int | None]:
        """(averages for a line of the log, how many steps into the window the first one lies that was not finite or None)."""
        rows = torch.stack(self.rows).double().cpu()
        finite = rows.isfinite().all(1)
        first = None if finite.all() else int(torch.argmin(finite.int()))
        seconds = time.perf_counter() - self.start
        values = dict(zip(self.names, rows.mean(0).tolist(), strict=True)) | {
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
