"""The two demonstrations of `maskrcnn demo`: the whole way from nothing to detections, and NumPy training beside PyTorch."""

import json
import sys
import time
from itertools import chain, count

from rich.progress import track

from accelerated.command_line import report
from accelerated.command_line.arguments import INTERPRETED
from accelerated.data import synthetic
from accelerated.drawing import curves, detections
from accelerated.engine import train as training
from accelerated.verify import detection, equality
from accelerated.verify import training as verify_training
from reference import config as configuration


def train(output, iterations, batch_size, workers, device, seed) -> bool | None:
    """Train `tiny` on shapes, evaluate it, draw what it finds, verify it against NumPy; whether they agree, None if interrupted."""
    start, console, output = time.perf_counter(), report.console(), _unused(output)
    config = configuration.preset("tiny")
    train_data, val_data = (
        synthetic.ShapesDataset(2000, seed=2 * seed),
        synthetic.ShapesDataset(100, seed=2 * seed + 1),
    )
    console.print(
        f"Training the tiny preset on {len(train_data)} images of shapes for {iterations} steps on {device}."
    )
    result = training.train(
        *(config, train_data, output),
        iterations=iterations,
        batch_size=batch_size,
        workers=workers,
        device=device,
        seed=seed,
        evaluation=val_data,
    )
    if result.interrupted:
        return None
    console.print(report.metrics(result.metrics))
    curves.loss_curve(output / "log.jsonl", output / "loss.png")
    model, shown = (
        result.model.eval(),
        [val_data[index].image for index in range(min(12, len(val_data)))],
    )
    pictures = [
        detections.draw(image, model.detect([image])[0], val_data.class_names, scale=2)
        for image in shown
    ]
    detections.save(detections.sheet(pictures, 4), output / "predictions.png")
    checked = detection.compare(
        model, shown[0], proposals=INTERPRETED if device.type == "cpu" else None
    )
    report.print_verification(console, checked)
    console.print(
        f"Mask AP {result.metrics['segm']['AP']:.3f}, box AP {result.metrics['bbox']['AP']:.3f} on {len(val_data)} images not trained on."
    )
    console.print(
        f"{time.perf_counter() - start:.0f} s in all. In {output}: predictions.png, loss.png, log.jsonl, last, evaluations"
    )
    return checked.passed


def train_in_numpy(output, iterations, batch_size, device, seed) -> bool:
    """Train `tiny` on shapes in NumPy alone and again in PyTorch, draw both loss curves; whether they agree to the end."""
    console, output = report.console(), _unused(output)
    config = configuration.preset("tiny")
    console.print(
        f"Training the tiny preset on shapes for {iterations} steps of {batch_size or config.optimizer.batch_size} images, twice, in "
        f"float64: in NumPy alone, and in PyTorch on {device}, from the same weights, on the same images and samples."
    )
    steps = verify_training.train(
        config, iterations, batch_size=batch_size, seed=seed, device=device
    )
    pairs = list(track(steps, total=iterations, transient=True, disable=not sys.stdout.isatty()))
    output.mkdir(parents=True)
    (output / "log.jsonl").write_text("".join(json.dumps(vars(pair)) + "\n" for pair in pairs))
    curves.loss_comparison(pairs, output / "loss.png")
    console.print(report.training(pairs))
    worst = max(pairs, key=lambda pair: pair.difference)
    passed = worst.difference <= equality.MODEL["float64"]
    console.print(
        f"The five losses {'agree' if passed else 'differ'}: {worst.difference:.1e} apart at most, relative, in step {worst.iteration}."
        + (
            ""
            if passed
            else " Rounding grows from step to step, and once it makes one side sample another candidate they part."
        )
    )
    console.print(f"In {output}: loss.png, log.jsonl")
    return passed


def _unused(output):
    """The folder, or that with the first number behind it that holds no run."""
    folders = chain([output], (output.with_name(f"{output.name}-{n}") for n in count(2)))
    return next(folder for folder in folders if not folder.exists() or not any(folder.iterdir()))
