"""The ablation: train and evaluate the configurations of the paper's comparisons.

Each configuration is trained from scratch, with several seeds, which are the same for all, as are
images, steps and optimizer. Equal rows of two comparisons are trained once.

    OUTPUT/results/<row>-<seed>.json    configuration, schedule and metrics of a finished run
    OUTPUT/unfinished/<row>-<seed>-*/   checkpoints of an unfinished run
    OUTPUT/ablation.csv, ablation.png   made from results/ (ablation_results.py)
"""

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from accelerated.data.dataset import Dataset
from accelerated.data.synthetic import ShapesDataset
from accelerated.data.text_files import write_json
from accelerated.engine.train import train
from accelerated.experiments.ablation_rows import Comparison, Scale, base, comparisons
from accelerated.interop import ranges
from reference.config import Config, check, override, to_dict
from reference.shapes import HARD

# Describes the built-in data in the settings of a run.
SHAPES = f"shapes, {HARD}"
METRICS = {
    "mask AP": ("segm", "AP"),
    "mask AP50": ("segm", "AP50"),
    "mask AP75": ("segm", "AP75"),
    "box AP": ("bbox", "AP"),
}


@dataclass(frozen=True)
class Run:
    """One training: a configuration and a seed.

    name      of the first row with this configuration
    changes   to the base configuration, with which they make up `config`
    data      description of the data sets
    """

    name: str
    changes: tuple[str, ...]
    config: Config
    seed: int
    iterations: int
    data: str

    @property
    def key(self) -> str:
        """The run's file name."""
        return "_".join(re.findall(r"\w+", self.name)) + f"-{self.seed}"

    def settings(self) -> dict:
        """Return everything that the result depends on, in JSON's types."""
        values = {
            "config": to_dict(self.config),
            "seed": self.seed,
            "iterations": self.iterations,
            "data": self.data,
        }
        return json.loads(json.dumps(values))


def shape_datasets(scale: Scale) -> tuple[ShapesDataset, ShapesDataset]:
    """Create the built-in data, hard synthetic shapes, for training and evaluation."""
    return (
        ShapesDataset(scale.train_images, seed=10, size=scale.image_size, style=HARD),
        ShapesDataset(scale.val_images, seed=11, size=scale.image_size, style=HARD),
    )


def plan(
    scale: Scale,
    train_data: Dataset,
    val_data: Dataset,
    *,
    data: str,
    changes: Sequence[str] = (),
    seeds: int | None = None,
    iterations: int | None = None,
) -> tuple[tuple[Comparison, ...], list[Run]]:
    """List the comparisons and their runs, seed by seed, so that every row has a result early.

    data         description of the data sets; results on other data are not reused
    changes      to the base configuration, applied after the scale's
    seeds        number of seeds (default: the scale's), starting at 0
    iterations   training steps (default: the scale's)
    """
    classes = f"num_classes={len(train_data.class_names)}"
    scale = replace(scale, base=(*scale.base, *changes, classes))
    compared, config = comparisons(scale), base(scale)
    names = {}
    for comparison in compared:
        for row in comparison.rows:
            names.setdefault(row.changes, row.name)
    configs = {row: override(config, *row) for row in names}
    for row_config in configs.values():
        check(ranges.check(row_config))
    data = f"{data}: {len(train_data)} images to train on, {len(val_data)} to evaluate"
    steps = iterations or scale.iterations
    runs = [
        Run(name, row, configs[row], seed, steps, data)
        for seed in range(seeds or scale.seeds)
        for row, name in names.items()
    ]
    return compared, runs


def unfinished(runs: Sequence[Run], output: Path) -> list[Run]:
    """List the runs without a result in OUTPUT/results.

    Raises ValueError if a result of the same name was made with other settings.
    """
    remaining = []
    for run in runs:
        result = read_result(output, run)
        if result is None:
            remaining.append(run)
        elif result["settings"] != run.settings():
            raise ValueError(
                f"{_result_path(output, run)} was made with other settings; choose another folder"
            )
    return remaining


def ablate(
    runs: Sequence[Run],
    output: Path,
    train_data: Dataset,
    val_data: Dataset,
    *,
    device: torch.device | str = "cpu",
    jobs: int = 1,
    workers: int = 0,
    announce: Callable[[str], Any] = print,
) -> None:
    """Train and evaluate each run and write its result.

    jobs       runs at a time
    workers    data loading processes per run
    announce   receives a line of text after each run
    """
    arguments = [(run, Path(output), train_data, val_data, device, workers) for run in runs]
    if jobs == 1:
        finished = (_measure(*each) for each in arguments)
    else:
        finished = _in_parallel(arguments, jobs)
    for count, (run, result) in enumerate(finished, start=1):
        announce(
            f"{count}/{len(runs)}  {run.name}, seed {run.seed}:"
            f" mask AP {100 * (result['mask AP'] or 0):.1f} after {result['seconds']:.0f} s"
        )


def read_result(output: Path, run: Run) -> dict | None:
    """Read the result of a run; None if it has none yet."""
    path = _result_path(output, run)
    return json.loads(path.read_text()) if path.exists() else None


def _in_parallel(arguments, jobs) -> Iterator[tuple[Run, dict]]:
    """Yield (run, result) as runs finish, in `jobs` processes that share the cores."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(jobs, context, _start, (threads,)) as pool:
        try:
            for future in as_completed([pool.submit(_measure, *each) for each in arguments]):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _start(threads):
    """Set up a new process: it leaves Ctrl-C to its parent and ends with it."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _measure(run, output, train_data, val_data, device, workers):
    """Train from scratch or from the last checkpoint, evaluate, write the result; return both."""
    start = time.perf_counter()
    # The digest keeps a run with other settings from continuing this one's checkpoints.
    digest = hashlib.sha256(json.dumps(run.settings()).encode()).hexdigest()[:8]
    folder = output / "unfinished" / f"{run.key}-{digest}"
    trained = train(
        run.config,
        train_data,
        folder,
        iterations=run.iterations,
        seed=run.seed,
        device=device,
        workers=workers,
        evaluation=val_data,
        resume=(folder / "last").exists(),
        keep=1,
        bar=False,
    )
    if trained.interrupted:
        raise SystemExit(128 + trained.interrupted)
    assert trained.metrics is not None, "evaluated at the end"
    result = {name: trained.metrics[branch][key] for name, (branch, key) in METRICS.items()}
    result |= {"seconds": time.perf_counter() - start, "settings": run.settings()}
    write_json(_result_path(output, run), result)
    shutil.rmtree(folder)
    return run, result


def _result_path(output, run):
    return Path(output) / "results" / f"{run.key}.json"
