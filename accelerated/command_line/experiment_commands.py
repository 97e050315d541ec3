"""Commands that run an experiment: demo, ablate, benchmark."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from accelerated.command_line import loading
from accelerated.command_line.arguments import (
    Backend,
    BatchSize,
    Changes,
    Device,
    Output,
    Seed,
    SkipInvalid,
    Val,
    ValImages,
    Workers,
)


def run_demo(
    output: Annotated[
        Path,
        typer.Option(help="Output folder; a number is appended if it already contains a run."),
    ] = Path("runs/demo"),
    numpy: Annotated[
        bool,
        typer.Option(
            "--numpy", help="Train in NumPy alone and again in PyTorch; compare the loss curves."
        ),
    ] = False,
    iterations: Annotated[
        int | None,
        typer.Option(help="Training steps (default: 1200, with --numpy 100).", min=1),
    ] = None,
    batch_size: BatchSize = None,
    workers: Workers = 0,
    device: Device = "auto",
    backend: Backend = "auto",
    seed: Seed = 0,
) -> None:
    """Train a tiny model on synthetic shapes, evaluate it, draw its detections and verify it."""
    if numpy:
        # So small matrices gain nothing from a second thread, which slows them on shared cores.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    torch_device = loading.select_device(device, backend, interpret=not numpy)
    from accelerated.command_line import demo

    if numpy:
        passed = demo.train_in_numpy(output, iterations or 100, batch_size, torch_device, seed)
    else:
        passed = demo.train_on_shapes(
            output, iterations or 1200, batch_size, workers, torch_device, seed
        )
    raise typer.Exit(0 if passed else 1)


def run_ablation(
    context: typer.Context,
    output: Output = Path("runs/ablation"),
    reduced: Annotated[
        bool | None,
        typer.Option(
            "--reduced/--full",
            help="Narrow networks and small images, or the paper's depths (default: --reduced on a"
            " CPU, --full on a GPU).",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Annotation file of the training data in COCO format (default: synthetic shapes)."
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder with the images that --data names.")
    ] = None,
    val: Val = None,
    val_images: ValImages = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            help="Runs per configuration, with seeds 0, 1, ... (default: 2 with --reduced, 3 with"
            " --full).",
            min=1,
        ),
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(
            help="Training steps per run (default: 600 with --reduced, 300 with --full).",
            min=1,
        ),
    ] = None,
    changes: Changes = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Runs at a time, each in its own process (default: number of cores, at most 4).",
            min=1,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Data loading processes per run (default: 0 with --reduced, 3 with --full).",
            min=0,
        ),
    ] = None,
    device: Device = "auto",
    backend: Backend = "auto",
    skip_invalid: SkipInvalid = False,
) -> None:
    """Repeat the paper's comparisons and print the results next to its numbers.

    Every configuration is trained with several seeds. Finished runs are kept: run the command again
    to continue an interrupted ablation.
    """
    start = time.perf_counter()
    torch_device = loading.select_device(device, backend)
    from accelerated.command_line import report
    from accelerated.engine import lock
    from accelerated.experiments import ablate, ablation_results
    from accelerated.experiments.ablation_rows import FULL, REDUCED

    # Until the command ends.
    loading.note(context.with_resource(lock.held(output)))
    if reduced is None:
        reduced = torch_device.type == "cpu"
    scale = REDUCED if reduced else FULL
    if data is None:
        train_data, val_data = ablate.shape_datasets(scale)
        description = ablate.SHAPES
    elif images is None or val is None:
        raise ValueError("--data also needs --images and --val")
    else:
        train_data = loading.open_dataset(data, images, skip_invalid)
        val_data = loading.open_dataset(val, val_images or images, skip_invalid)
        description = f"{data}, {val}"
    comparisons, runs = ablate.plan(
        scale,
        train_data,
        val_data,
        data=description,
        changes=changes or [],
        seeds=seeds,
        iterations=iterations,
    )
    remaining = ablate.unfinished(runs, output)
    steps = runs[0].iterations
    console = report.console()
    console.print(
        f"{len(remaining)} of {len(runs)} runs to do:"
        f" {steps} steps each, on {len(train_data)} images, on {torch_device}."
    )
    try:
        ablate.ablate(
            remaining,
            output,
            train_data,
            val_data,
            device=torch_device,
            jobs=jobs or min(4, os.cpu_count() or 1),
            workers=scale.workers if workers is None else workers,
            announce=console.print,
        )
    finally:
        lines = ablation_results.lines(comparisons, runs, output)
        if any(line.seeds for line in lines):
            ablation_results.write(lines, output, steps)
            console.print(*report.ablation(lines, steps), ablation_results.PAPER)
            console.print(
                f"{time.perf_counter() - start:.0f} s."
                f" In {output}: ablation.csv, ablation.png, results."
            )


def run_benchmark(
    output: Output = Path("benchmarks/results"),
    device: Device = "auto",
    seconds: Annotated[float, typer.Option(help="Seconds per measurement.", min=0)] = 0.5,
    only: Annotated[
        str,
        typer.Option(help="Measure only operators whose name contains this text (default: all)."),
    ] = "",
    model: Annotated[
        bool,
        typer.Option(
            "--model", help="Also compare whole models and training steps of NumPy and PyTorch."
        ),
    ] = False,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Also time whole models run by torch.compile, ours and torchvision's. (--compiled"
            " times nothing.)",
        ),
    ] = False,
    curves: Annotated[
        bool,
        typer.Option(
            "--curves",
            help="Measure time against the numbers of RoIs, pixels, images and objects instead, and"
            " draw it.",
        ),
    ] = False,
    draw: Annotated[
        bool,
        typer.Option("--draw", help="Measure nothing, and draw the curves measured before."),
    ] = False,
    budget: Annotated[
        float,
        typer.Option(
            help="Seconds after which no case begins (default: no limit).",
            min=0,
            show_default=False,
        ),
    ] = float("inf"),
    counted: Annotated[
        bool,
        typer.Option(
            "--compiled",
            help="Time nothing: compile the Triton kernels for sm_80, sm_90 and sm_100, which needs"
            " no GPU, and print what their machine code and a step's operators cost. (--compile is"
            " for models.)",
        ),
    ] = False,
    every: Annotated[
        bool,
        typer.Option(
            "--all", help="With --compiled: every dtype, layout and convention; some minutes."
        ),
    ] = False,
) -> None:
    """Measure the operators, training steps and inference, ours and torchvision's.

    Results are appended to a file of JSON lines in the output folder. On a GPU a row says how it
    was timed: "graph" and "profiler" without the time in which the GPU waits for the host.
    """
    if counted:
        from accelerated.experiments import compiled as compiled_experiment

        compiled_experiment.report(every)
        return
    if every:
        raise ValueError("--all also needs --compiled")
    torch_device = loading.select_device(device, "auto")
    from accelerated.experiments import benchmark

    result = benchmark.report(
        output,
        torch_device,
        seconds,
        only,
        model=model,
        compiled=compiled,
        curves=curves,
        draw=draw,
        budget=budget,
    )
    raise typer.Exit(result)
