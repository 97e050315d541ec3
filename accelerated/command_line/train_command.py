"""The command `train`."""

import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from accelerated.command_line import arguments, run_options
from accelerated.command_line.arguments import (
    Amp,
    Backend,
    BatchSize,
    BoxesAsMasks,
    Changes,
    Crowd,
    Device,
    Exif,
    Images,
    Names,
    PixelRange,
    Preset,
    Seed,
    SkipInvalid,
    Split,
    Val,
    ValImages,
    Workers,
)


def train_model(
    context: typer.Context,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Output folder, of one run; required.",
            is_eager=True,
            callback=run_options.take_from_run,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Data set, as `inspect` takes it; a resumed run knows its own."),
    ] = None,
    images: Images = None,
    iterations: Annotated[
        int | None, typer.Option(help="Training steps (default: 1000).", min=1)
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(help="Length in passes over the data instead of --iterations, such as 12.5."),
    ] = None,
    preset: Preset = None,
    changes: Changes = None,
    val: Val = None,
    val_images: ValImages = None,
    split: Split = None,
    evaluate_every: Annotated[
        int,
        typer.Option(
            help="Steps between evaluations (0: only at the end); OUTPUT/best is the checkpoint"
            " with the highest average precision.",
            min=0,
        ),
    ] = 0,
    checkpoint_every: Annotated[
        int,
        typer.Option(help="Steps between checkpoints (0: at evaluations and at the end).", min=0),
    ] = 500,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Initial weights: a run or checkpoint; a torchvision, detectron2,"
            " maskrcnn-benchmark or Caffe2 file of a detector or a backbone; or a name of"
            " `maskrcnn weights`, such as coco (default: random)."
        ),
    ] = None,
    names: Names = None,
    batch_size: BatchSize = None,
    workers: Workers = 0,
    device: Device = "auto",
    backend: Backend = "auto",
    seed: Seed = 0,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in the output folder with its own options and configuration;"
            " start it if there is none.",
            is_eager=True,
            callback=run_options.take_from_run,
        ),
    ] = False,
    keep_schedule: Annotated[
        bool,
        typer.Option(
            "--keep-schedule",
            help="When --iterations changes with --resume, keep the learning rates of the length"
            " before.",
        ),
    ] = False,
    amp: Amp = False,
    fixed_shapes: Annotated[
        bool,
        typer.Option("--fixed-shapes", help="Pad all batches to at most six shapes."),
    ] = False,
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Compile the losses (with --fixed-shapes)."),
    ] = False,
    graph: Annotated[
        bool,
        typer.Option("--graph", help="Replay steps as CUDA graphs (with --fixed-shapes)."),
    ] = False,
    skip_invalid: SkipInvalid = False,
    crowd: Crowd = "ignore",
    exif: Exif = None,
    boxes_as_masks: BoxesAsMasks = False,
    pixel_range: PixelRange = None,
) -> None:
    """Train a model on a data set."""
    if output is None:
        raise ValueError("name the folder of the run with --output")
    if data is None and not resume:
        raise ValueError("name the data to train on with --data")
    # Errors in the options come before the time that the data takes.
    torch_device = arguments.select_device(device, backend)
    from accelerated.command_line import introduction, report
    from accelerated.command_line.configuration import configuration, continuation, sets_warmup
    from accelerated.data.summary import input_objects
    from accelerated.drawing import curves
    from accelerated.engine import checkpoint, settings, start
    from accelerated.engine.held_out import hold_out
    from accelerated.engine.train import train

    continued = resume and checkpoint.exists(output)
    compiler = "inductor" if compile else None
    settings.check_execution(torch_device, fixed_shapes, compiler, graph)
    if data is None:
        what = "does not say what it was trained on" if continued else "holds no run yet"
        raise ValueError(f"{output} {what}: name the data with --data")
    both = epochs is not None and run_options.is_given(context, "iterations")
    if both or (epochs is not None and not 0 < epochs < math.inf):
        raise ValueError("--epochs: expected a number above 0, and no --iterations beside it")
    if split is not None and val:
        raise ValueError("--split makes validation data of --data: leave --val out")
    _check_used(context, val, split, weights)

    def open_data(masks):
        reading = arguments.reading(crowd, exif, boxes_as_masks, pixel_range, masks)
        return arguments.open_dataset(data, images, skip_invalid, reading=reading)

    if continued:
        typed = preset if run_options.is_given(context, "preset") else None
        begin = continuation(output, typed, changes or [], open_data)
    else:
        begin = configuration(preset, weights, changes or [], names, open_data)
    config, dataset = begin.config, begin.dataset
    evaluation = None
    if split is not None:
        dataset, evaluation, val = hold_out(dataset, output, split, seed)
    elif val:
        folder, reading = val_images or images, dataset.reading
        evaluation = arguments.open_dataset(val, folder, skip_invalid, reading=reading)
    batch_size = batch_size or config.optimizer.batch_size
    if epochs is not None:
        iterations = math.ceil(epochs * math.ceil(len(dataset) / batch_size))
    iterations, warmup = iterations or 1000, config.optimizer.warmup_iterations
    if not continued and not sets_warmup(changes or []):
        config = settings.fit_warmup(config, iterations)
    plan = settings.Settings(seed, batch_size, amp, iterations, fixed_shapes, iterations)
    plan = start.check(output, config, dataset, evaluation, plan, resume, keep_schedule)
    objects = input_objects(dataset, config.transform)
    lines = introduction.introduction(
        introduction.Plan(
            config=config,
            origin=begin.origin,
            start=_start(output if continued else None, weights),
            data=(data, dataset),
            val=(val, evaluation) if val and evaluation else None,
            objects=objects,
            settings=plan,
            warmup=warmup,
            device=torch_device,
            execution=_execution(amp, fixed_shapes, compile, graph),
        )
    )
    print(*begin.lines, *lines, sep="\n", flush=True)
    shared = len(dataset.files() & evaluation.files()) if evaluation is not None else 0
    if shared:
        some = f"{shared} of the {report.count(len(evaluation), 'validation image')}"
        message = f"{some} are trained on: average precision says little about new images"
        print(f"maskrcnn: warning: {message}", file=sys.stderr)
    if objects.advice:
        print(f"maskrcnn: warning: {objects.advice}", file=sys.stderr)
    change = start.schedule_change(output, iterations, batch_size) if continued else None
    if change:
        goes_on = "the former" if keep_schedule else "the latter (--keep-schedule: the former)"
        print(f"maskrcnn: warning: {change}; training goes on with {goes_on}", file=sys.stderr)
    result = train(
        config,
        dataset,
        output,
        iterations=iterations,
        batch_size=batch_size,
        workers=workers,
        device=torch_device,
        seed=seed,
        amp=amp,
        fixed_shapes=fixed_shapes,
        compile=compiler,
        graph=graph,
        weights=begin.weights,
        resume=resume,
        keep_schedule=keep_schedule,
        evaluation=evaluation,
        evaluate_every=evaluate_every,
        checkpoint_every=checkpoint_every,
        options=run_options.to_keep(context, iterations=iterations, batch_size=batch_size),
    )
    curves.loss_curve(output / "log.jsonl").savefig(output / "loss.png")
    if result.metrics:
        report.console().print(report.metrics(result.metrics))
    best = result.best
    if best:
        print(f"Best {best.metric} {best.value:.3f} at step {best.iteration}: {output / 'best'}.")
    if result.interrupted:
        print(f"Interrupted after {report.count(result.iteration, 'step')}: go on with --resume.")
        raise typer.Exit(130)
    print(
        f"Trained for {report.count(result.iteration, 'step')}."
        f" Weights: {output / 'last'}. Loss curve: {output / 'loss.png'}."
    )


def _check_used(context, val, split, weights):
    """Raise ValueError for an option that was typed and would do nothing."""
    evaluated = val is not None or split is not None
    for name, used, needed in (
        ("val_images", val is not None, "--val"),
        ("evaluate_every", evaluated, "--val or --split"),
        ("names", weights is not None, "--weights"),
    ):
        if run_options.is_given(context, name) and not used:
            raise ValueError(f"--{name.replace('_', '-')} does nothing without {needed}")


def _start(run, weights):
    from accelerated.engine import checkpoint

    if run is not None:
        return f"resumed from step {checkpoint.read(run).iteration}"
    return "random weights" if weights is None else f"weights of {weights}"


def _execution(amp, fixed_shapes, compile, graph):
    named = {"fixed shapes": fixed_shapes, "compiled": compile, "CUDA graphs": graph}
    precision = "bfloat16 autocast" if amp else "float32"
    return (precision, *(name for name, chosen in named.items() if chosen))
