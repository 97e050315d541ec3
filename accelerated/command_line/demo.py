"""The two demonstrations of `maskrcnn demo`: from synthetic data to verified detections, and
training in NumPy compared with PyTorch."""

import json
import sys
import time
from itertools import chain, count
from pathlib import Path

import torch
import typer
from rich.progress import track

from accelerated.command_line import report
from accelerated.command_line.arguments import INTERPRETED
from accelerated.data import synthetic
from accelerated.drawing import curves, detections
from accelerated.engine.train import train
from accelerated.verify import detection, equality, training
from reference import config as configuration


def train_on_shapes(
    output: Path,
    iterations: int,
    batch_size: int | None,
    workers: int,
    device: torch.device,
    seed: int,
) -> bool:
    """Train `tiny` on synthetic shapes, evaluate it, draw its detections, verify it against NumPy.

    Returns whether the implementations agree. An interruption raises typer.Exit.
    """
    start = time.perf_counter()
    console = report.console()
    output = _unused(output)
    config = configuration.preset("tiny")
    train_data = synthetic.ShapesDataset(2000, seed=2 * seed)
    val_data = synthetic.ShapesDataset(100, seed=2 * seed + 1)
    console.print(
        f"Training the preset tiny on {len(train_data)} images of synthetic shapes:"
        f" {iterations} steps on {device}."
    )
    result = train(
        config,
        train_data,
        output,
        iterations=iterations,
        batch_size=batch_size,
        workers=workers,
        device=device,
        seed=seed,
        evaluation=val_data,
    )
    if result.interrupted:
        raise typer.Exit(128 + result.interrupted)
    assert result.metrics is not None, "evaluated at the end"
    console.print(report.metrics(result.metrics))
    curves.save(curves.loss_curve(output / "log.jsonl"), output / "loss.png")
    model = result.model.eval()
    images = [val_data[index].image for index in range(min(12, len(val_data)))]
    drawings = [
        detections.draw(image, model.detect([image])[0], val_data.class_names, scale=2)
        for image in images
    ]
    detections.save(detections.sheet(drawings, 4), output / "predictions.png")
    limit = INTERPRETED if device.type == "cpu" else None
    comparison = detection.compare(model, images[0], proposals=limit)
    report.print_verification(console, comparison)
    mask_ap, box_ap = (result.metrics[branch]["AP"] for branch in ("segm", "bbox"))
    console.print(
        f"Mask AP {mask_ap:.3f}, box AP {box_ap:.3f} on {len(val_data)}"
        " images not used in training."
    )
    console.print(
        f"{time.perf_counter() - start:.0f} s."
        f" In {output}: predictions.png, loss.png, log.jsonl, last, evaluations."
    )
    return comparison.passed


def train_in_numpy(
    output: Path, iterations: int, batch_size: int | None, device: torch.device, seed: int
) -> bool:
    """Train `tiny` on synthetic shapes in NumPy alone and again in PyTorch; draw both loss curves.

    Returns whether all losses agree in every step.
    """
    console = report.console()
    output = _unused(output)
    config = configuration.preset("tiny")
    console.print(
        f"Training the preset tiny twice on synthetic shapes, in NumPy alone and in PyTorch on"
        f" {device}: {iterations} steps of {batch_size or config.optimizer.batch_size} images in"
        f" float64, with the same initial weights, images and samples."
    )
    steps = training.train(config, iterations, batch_size=batch_size, seed=seed, device=device)
    pairs = list(track(steps, total=iterations, transient=True, disable=not sys.stdout.isatty()))
    output.mkdir(parents=True)
    (output / "log.jsonl").write_text("".join(json.dumps(vars(pair)) + "\n" for pair in pairs))
    curves.save(curves.loss_comparison(pairs), output / "loss.png")
    console.print(report.training(pairs))
    worst = max(pairs, key=lambda pair: pair.difference)
    passed = worst.difference <= equality.MODEL["float64"]
    console.print(
        f"The five losses {'agree' if passed else 'differ'}: the largest relative difference is"
        f" {worst.difference:.1e}, in step {worst.iteration}."
    )
    if not passed:
        console.print(
            "Rounding errors grow from step to step; the runs part as soon as they make one side"
            " sample another candidate."
        )
    console.print(f"In {output}: loss.png, log.jsonl.")
    return passed


def _unused(output):
    """Return the folder, or the first of OUTPUT-2, OUTPUT-3, ... that contains no run."""
    numbered = (output.with_name(f"{output.name}-{index}") for index in count(2))
    folders = chain([output], numbered)
    return next(folder for folder in folders if not folder.exists() or not any(folder.iterdir()))
