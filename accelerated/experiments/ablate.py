"""The comparisons by which the paper argues [Mask R-CNN, table 2 and section 4.2], on any data set: a row each, trained alike.

Every row is a base configuration with a few fields changed, and every row is trained from scratch with the same seeds, images, steps
and optimizer. Rows of two comparisons that are the same configuration are trained once.

    OUTPUT/results/<row>-<seed>.json   configuration, schedule and metrics of one run, written when it is done
    OUTPUT/unfinished/<row>-<seed>-*/  checkpoints of the runs that are not
    OUTPUT/ablation.csv, ablation.png  made of what is in results/
"""

import csv
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import statistics
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch

from accelerated.data.synthetic import ShapesDataset
from accelerated.drawing import curves
from accelerated.engine import train as training
from accelerated.engine.evaluate import write_json
from reference import config as configuration
from reference import shapes as drawn

SHAPES = f"shapes, {drawn.HARD}"  # the built-in data in words
METRICS = {
    "mask AP": ("segm", "AP"),
    "mask AP50": ("segm", "AP50"),
    "mask AP75": ("segm", "AP75"),
    "box AP": ("bbox", "AP"),
}
PAPER = "The paper's numbers are mask AP on COCO (ResNet-50 and 101, pretrained), quoted from memory, not checked."
TIE = 0.5  # points of AP: below that the paper calls two rows equal, as it does RoIWarp and RoIPool, or mean and max


@dataclass(frozen=True)
class Row:
    name: str
    paper: float  # mask AP in points
    changes: tuple[str, ...]  # of the base, as `config.override` takes them


@dataclass(frozen=True)
class Comparison:
    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Scale:
    """How much is trained; `base` are changes of the preset `tiny`."""

    base: tuple[str, ...]
    stages: tuple[
        int, int
    ]  # of the models without a pyramid: the paper's C4, and its C5 with twice the stride
    heads: tuple[str, ...]  # changes for the first of these
    deep: int  # the other depth, beside the base's
    image_size: int  # of the shapes; the transform may enlarge it
    train_images: int
    val_images: int
    iterations: int
    seeds: int
    workers: int  # loader processes of each run


REDUCED = Scale(
    base=(
        "transform.min_size=[96]",
        "transform.max_size=96",
        "rpn.pre_nms_top_n_train=128",
        "rpn.post_nms_top_n_train=128",
        "rpn.pre_nms_top_n_test=128",
        "rpn.post_nms_top_n_test=64",
        "box_head.kind=two_fc",
        "mask_head.mlp_channels=256",
    ),
    stages=(
        3,
        4,
    ),  # strides 8 and 16: objects of 15 to 40 pixels take as many cells as COCO's on 16 and 32
    heads=(),  # the base's own: a stage of the backbone on every RoI takes as long as all the rest
    deep=34,
    image_size=96,
    train_images=2000,
    val_images=120,
    iterations=600,
    seeds=2,
    workers=0,
)
FULL = Scale(
    base=(
        "transform.min_size=[256]",
        "transform.max_size=256",
        "anchors.sizes=[[24], [48], [96], [192], [320]]",
        "backbone.depth=50",
        "backbone.width=32",
        "fpn.channels=64",
        "box_head.kind=two_fc",
        "box_head.channels=256",
        "mask_head.channels=64",
        "mask_head.convs=4",
        "optimizer.batch_size=16",
    ),
    stages=(4, 5),
    heads=(
        "shared_head=res5_unstrided",
        "box_head.kind=mean",
        "mask_head.convs=0",
        "mask_head.pooler.output_size=7",
    ),
    deep=101,
    image_size=128,
    train_images=5000,
    val_images=200,
    iterations=300,
    seeds=3,
    workers=3,
)


def base(scale):
    """The configuration that all rows change."""
    return _changed(configuration.preset("tiny"), scale.base)


def comparisons(scale) -> tuple[Comparison, ...]:
    """The paper's, each with its own choice last."""
    sizes = [[size for level in base(scale).anchors.sizes for size in level]]
    shallow = base(scale).backbone.depth

    def one_map(stage):
        levels = [
            f"{head}.pooler.{end}_level={stage}"
            for head in ("box_head", "mask_head")
            for end in ("min", "max")
        ]
        return ("neck=single", f"backbone.out_stage={stage}", f"anchors.sizes={sizes}", *levels)

    def pooled_by(operator, aggregate="mean"):
        values = {"operator": operator, "aggregate": aggregate}
        return tuple(
            f"{head}.pooler.{field}={value}"
            for head in ("box_head", "mask_head")
            for field, value in values.items()
        )

    fine, coarse = (f"C{stage}" for stage in scale.stages)
    c4, c5, fpn = one_map(scale.stages[0]) + scale.heads, one_map(scale.stages[1]), ()
    deep = (f"backbone.depth={scale.deep}",)
    return (
        Comparison(
            "(a) depth and neck",
            (
                Row(f"ResNet-{shallow}-{fine}", 30.3, c4),
                Row(f"ResNet-{scale.deep}-{fine}", 32.7, c4 + deep),
                Row(f"ResNet-{shallow}-FPN", 33.6, fpn),
                Row(f"ResNet-{scale.deep}-FPN", 35.4, fpn + deep),
            ),
        ),
        Comparison(
            f"(b) mask loss, {fine}",
            (Row("softmax", 24.8, (*c4, "mask_head.loss=softmax")), Row("sigmoid", 30.3, c4)),
        ),
        Comparison(
            f"(c) RoI operator, {fine}",
            (
                Row("RoIPool", 26.9, c4 + pooled_by("roi_pool")),
                Row("RoIWarp", 27.2, c4 + pooled_by("roi_warp")),
                Row("RoIAlign, max", 30.2, c4 + pooled_by("roi_align", "max")),
                Row("RoIAlign, mean", 30.3, c4),
            ),
        ),
        Comparison(
            f"(d) twice the stride, {coarse}",
            (
                Row(f"RoIPool, {coarse}", 23.6, c5 + pooled_by("roi_pool")),
                Row(f"RoIAlign, {coarse}", 30.9, c5),
            ),
        ),
        Comparison(
            "(e) mask head, FPN",
            (Row("MLP", 31.5, (*fpn, "mask_head.kind=mlp")), Row("FCN", 33.6, fpn)),
        ),
        Comparison(
            f"(f) masks per class, {fine}",
            (
                Row("class-agnostic", 29.7, (*c4, "mask_head.class_agnostic=true")),
                Row("class-specific", 30.3, c4),
            ),
        ),
    )


@dataclass(frozen=True)
class Run:
    """One training: a row that no earlier one equals, with one seed."""

    name: str
    changes: tuple[str, ...]
    config: configuration.Config  # with them
    seed: int
    iterations: int
    data: str  # what it is trained and evaluated on, in words

    @property
    def key(self):
        return "_".join(re.findall(r"\w+", self.name)) + f"-{self.seed}"

    def settings(self):
        """All that its result depends on, in JSON's types."""
        values = {
            "config": configuration.to_dict(self.config),
            "seed": self.seed,
            "iterations": self.iterations,
            "data": self.data,
        }
        return json.loads(json.dumps(values))


def shapes(scale) -> tuple[ShapesDataset, ShapesDataset]:
    """The built-in data to train and to evaluate on: hard shapes."""
    options = {"size": scale.image_size, "style": drawn.HARD}
    return ShapesDataset(scale.train_images, seed=10, **options), ShapesDataset(
        scale.val_images, seed=11, **options
    )


def plan(
    scale, train_data, val_data, *, data, changes=(), seeds=None, iterations=None
) -> tuple[tuple[Comparison, ...], list[Run]]:
    """The comparisons and the runs they take, seed by seed, so that an interrupted ablation has something of every row.

    changes            of the base, over those of `scale`
    seeds, iterations  instead of the scale's: this many seeds from 0 on, this many steps
    data               the data sets in words: results of others are not taken for these
    """
    scale = replace(
        scale, base=(*scale.base, *changes, f"num_classes={len(train_data.class_names)}")
    )
    compared, config, names = comparisons(scale), base(scale), {}
    for comparison in compared:
        for row in comparison.rows:
            names.setdefault(row.changes, row.name)
    configs = {row: _changed(config, row) for row in names}
    for changed in configs.values():
        configuration.check(changed)
    data = f"{data}: {len(train_data)} images to train on, {len(val_data)} to evaluate"
    numbers, steps = range(seeds or scale.seeds), iterations or scale.iterations
    return compared, [
        Run(name, row, configs[row], seed, steps, data)
        for seed in numbers
        for row, name in names.items()
    ]


def unfinished(todo, output) -> list[Run]:
    """Those without a result in OUTPUT/results. ValueError where one of the same name was made with other settings."""
    found = {run: _read(output, run) for run in todo}
    for run, result in found.items():
        if result is not None and result["settings"] != run.settings():
            raise ValueError(
                f"{_result(output, run)} was made with other settings: choose another folder"
            )
    return [run for run in todo if found[run] is None]


def ablate(left, output, train_data, val_data, *, device="cpu", jobs=1, workers=0, announce=print):
    """Train, evaluate and write the result of each Run in `left`, `jobs` at a time; `announce` gets a line of text as each is done."""
    arguments = [(run, Path(output), train_data, val_data, device, workers) for run in left]
    finished = (
        (_measure(*each) for each in arguments) if jobs == 1 else _side_by_side(arguments, jobs)
    )
    for number, (run, result) in enumerate(finished, start=1):
        score = 100 * (result["mask AP"] or 0)
        announce(
            f"{number}/{len(left)}  {run.name}, seed {run.seed}: mask AP {score:.1f} after {result['seconds']:.0f} s"
        )


def _side_by_side(todo, jobs):
    """(Run, result) of each as it is done, in `jobs` processes with their share of the cores."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(jobs, context, _start, (threads,)) as pool:
        try:
            for future in as_completed([pool.submit(_measure, *arguments) for arguments in todo]):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _start(threads):
    """In a new process: it leaves Ctrl-C to its parent, and does not outlive it."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _measure(run, output, train_data, val_data, device, workers):
    """Train from scratch, or go on from the last checkpoint, evaluate, and write the result. Returns (run, result)."""
    digest = hashlib.sha256(json.dumps(run.settings()).encode()).hexdigest()[
        :8
    ]  # no other settings go on from here
    start, folder = time.perf_counter(), output / "unfinished" / f"{run.key}-{digest}"
    trained = training.train(
        *(run.config, train_data, folder),
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
        raise KeyboardInterrupt
    result = {name: trained.metrics[kind][key] for name, (kind, key) in METRICS.items()}
    result |= {"seconds": time.perf_counter() - start, "settings": run.settings()}
    write_json(_result(output, run), result)
    shutil.rmtree(folder)
    return run, result


def _result(output, run):
    return Path(output) / "results" / f"{run.key}.json"


def _read(output, run):
    path = _result(output, run)
    return json.loads(path.read_text()) if path.exists() else None


def _changed(config, changes):
    for change in changes:
        config = configuration.override(config, change)
    return config


@dataclass(frozen=True)
class Line:
    """A row of the table: of each metric the values of the seeds that are done, in points."""

    comparison: str
    row: Row
    values: dict[str, list[float]]

    @property
    def seeds(self):
        return len(self.values["mask AP"])

    def mean(self, metric="mask AP"):
        return statistics.fmean(self.values[metric])

    def text(self, metric):
        """Mean and sample standard deviation over the seeds."""
        values = self.values[metric]
        return (
            "-"
            if not values
            else f"{self.mean(metric):.1f}"
            + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")
        )


def lines(compared, todo, output) -> list[Line]:
    """Of every row of every comparison, also of those that have no result yet."""
    found = {run: _read(output, run) for run in todo}
    out = []
    for comparison in compared:
        for row in comparison.rows:
            results = [
                result
                for run, result in found.items()
                if run.changes == row.changes and result is not None
            ]
            out.append(
                Line(
                    comparison.title,
                    row,
                    {name: [100 * (r[name] or 0.0) for r in results] for name in METRICS},
                )
            )
    return out


def spread(table) -> float | None:
    """Standard deviation of mask AP over seeds, rows taken together; None where no row has two seeds."""
    rows = {line.row.changes: line.values["mask AP"] for line in table}.values()
    several = [values for values in rows if len(values) > 1]
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in several)
    return (squares / sum(len(values) - 1 for values in several)) ** 0.5 if several else None


@dataclass(frozen=True)
class Ordering:
    """Two rows of a comparison; differences in points of mask AP."""

    worse: str
    better: str
    paper: float
    ours: float
    error: float  # twice the standard error of `ours`
    verdict: str


def orderings(table) -> list[Ordering]:
    """Of every pair within a comparison that has results; none where no row has two seeds.

    A difference is decided where it exceeds twice its standard error, by the spread of these two rows or of all, whichever is larger.
    """
    overall, out = spread(table), []
    if overall is None:
        return out
    for a, b in combinations(table, 2):
        if a.comparison != b.comparison or not (a.seeds and b.seeds):
            continue
        if a.row.paper > b.row.paper:
            a, b = b, a
        paper, ours = b.row.paper - a.row.paper, b.mean() - a.mean()
        deviation = max(overall, spread((a, b)) or 0.0)
        error = 2 * deviation * (1 / a.seeds + 1 / b.seeds) ** 0.5
        if abs(ours) <= error:
            verdict = "not decided" if paper >= TIE else "no difference seen, as in the paper"
        else:
            verdict = (
                "here they differ" if paper < TIE else "reproduced" if ours > 0 else "reversed"
            )
        out.append(Ordering(a.row.name, b.row.name, paper, ours, error, verdict))
    return out


def write(table, output, iterations):
    """The CSV and the figure."""
    path = Path(output) / "ablation.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        statistics_of = [
            f"{metric} {what}"
            for metric in METRICS
            for what in ("mean", "standard deviation", "of each seed")
        ]
        out.writerow(
            [
                "comparison",
                "row",
                "paper (COCO, from memory)",
                "seeds",
                "iterations",
                *statistics_of,
                "changes of the base",
            ]
        )
        for line in table:
            numbers = []
            for values in line.values.values():
                numbers += [
                    f"{statistics.fmean(values):.3f}" if values else "",
                    f"{statistics.stdev(values):.3f}" if len(values) > 1 else "",
                    " ".join(f"{value:.3f}" for value in values),
                ]
            out.writerow(
                [
                    line.comparison,
                    line.row.name,
                    line.row.paper,
                    line.seeds,
                    iterations,
                    *numbers,
                    " ".join(line.row.changes),
                ]
            )
    groups = {}
    for line in table:
        groups.setdefault(line.comparison, []).append(
            (line.row.name, line.values["mask AP"], line.row.paper)
        )
    curves.comparisons(groups, Path(output) / "ablation.png", unit="mask AP, points")
