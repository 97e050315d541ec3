"""The command `train`."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from accelerated.command_line import loading, run_options
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
    Patience,
    PixelRange,
    Preset,
    Seed,
    SkipInvalid,
    Split,
    Val,
    ValImages,
    Workers,
)

if TYPE_CHECKING:
    from accelerated.data.coco import CocoDataset
    from accelerated.engine.train import Result


def train_model(
    context: typer.Context,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run (required).",
            is_eager=True,
            callback=run_options.take_from_run,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Training data, in any format of docs/data.md (required, unless a run is resumed)."
        ),
    ] = None,
    images: Images = None,
    iterations: Annotated[
        int | None, typer.Option(help="Training steps (default: 1000).", min=1)
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(help="Passes over the data, such as 12.5, instead of --iterations."),
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
    checkpoint_minutes: Annotated[
        float,
        typer.Option(
            help="Also write a checkpoint when so many minutes have passed since the last one"
            " (0: never).",
            min=0,
        ),
    ] = 0,
    ema: Annotated[
        float,
        typer.Option(
            help="Average the weights over the steps with this decay, such as 0.999; what is"
            " evaluated and stored is the average (0: none).",
            min=0,
        ),
    ] = 0,
    accumulate: Annotated[
        int,
        typer.Option(
            help="Work on each batch in this many equal parts: the same result in less memory"
            " and more time (1: at once).",
            min=1,
        ),
    ] = 1,
    rate: Annotated[
        list[str] | None,
        typer.Option(
            help="Multiply the learning rate of parameters by a factor, such as backbone.*=0.1."
            " May be repeated; the last pattern that fits a name counts.",
            metavar="PATTERN=FACTOR",
        ),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            help="Do not train the parameters of these names, such as backbone.*; may be repeated."
            " Batch norms without trained parameters keep their statistics.",
            metavar="PATTERN",
        ),
    ] = None,
    stop_early: Annotated[
        int,
        typer.Option(
            help="End after this many evaluations without a better average precision, as if"
            " finished (0: never).",
            min=0,
        ),
    ] = 0,
    validation_losses: Annotated[
        bool,
        typer.Option(
            "--validation-losses",
            help="Compute the losses on the validation data too, at each evaluation.",
        ),
    ] = False,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard", help="Write the numbers of the log to OUTPUT/tensorboard as well."
        ),
    ] = False,
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
            help="Continue the run in the output folder, with its own options and configuration;"
            " start one if there is none.",
            is_eager=True,
            callback=run_options.take_from_run,
        ),
    ] = False,
    resume_from: Annotated[
        int | None,
        typer.Option(
            help="With --resume, continue from the checkpoint of this step instead of the last.",
            min=0,
        ),
    ] = None,
    keep_schedule: Annotated[
        bool,
        typer.Option(
            "--keep-schedule",
            help="With --resume and another length, keep the learning rates of the old length.",
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
    patience: Patience = 1800.0,
) -> None:
    """Train a model on a data set."""
    if output is None:
        raise ValueError("name the folder of the run with --output")
    # Errors in the options come before the time that the data takes.
    torch_device = loading.select_device(device, backend)
    loading.join(context, torch_device, patience)
    from accelerated import processes
    from accelerated.command_line import introduction
    from accelerated.command_line.configuration import configuration, continuation, sets_warmup
    from accelerated.data.summary import input_objects
    from accelerated.engine import (
        checkpoint,
        fingerprint,
        group,
        lock,
        run_folder,
        settings,
        start,
    )
    from accelerated.engine.held_out import hold_out
    from accelerated.engine.train import train, watchers

    compiler = "inductor" if compile else None
    settings.check_execution(torch_device, fixed_shapes, compiler, graph, accumulate)
    watchers(evaluate_every, stop_early, tensorboard)
    # Until the command ends.
    loading.note(context.with_resource(lock.held(output)))
    resumed = run_folder.origin(output, resume, resume_from)
    _check_options(context, output, resume, resumed is not None)
    assert data is not None, "checked"

    def open_data(masks):
        reading = loading.reading(crowd, exif, boxes_as_masks, pixel_range, masks)
        return loading.open_dataset(data, images, skip_invalid, reading=reading)

    if resumed is not None:
        typed = preset if run_options.is_given(context, "preset") else None
        again = changes if run_options.is_given(context, "changes") else None
        origin = continuation(output, resumed, typed, changes or [], open_data, again or [])
    else:
        origin = configuration(preset, weights, changes or [], names, open_data)
    config, dataset, evaluation = origin.config, origin.dataset, None
    if split is not None:
        with group.in_turn():
            dataset, evaluation, val = hold_out(dataset, output, split, seed)
    elif val:
        folder, reading = val_images or images, dataset.reading
        evaluation = loading.open_dataset(val, folder, skip_invalid, reading=reading)

    batch_size = batch_size or config.optimizer.batch_size
    if epochs is not None:
        iterations = math.ceil(epochs * math.ceil(len(dataset) / batch_size))
    iterations, warmup = iterations or 1000, config.optimizer.warmup_iterations
    if resumed is None and not sets_warmup(changes or []):
        config = settings.fit_warmup(config, iterations)
    tuning = {"ema": ema, "accumulate": accumulate}
    tuning |= {"rates": tuple(rate or ()), "freeze": tuple(freeze or ())}
    run = settings.Settings(seed, batch_size, amp, iterations, iterations, fixed_shapes, **tuning)
    run = start.check(output, config, dataset, evaluation, run, resumed, keep_schedule)

    last = None if resumed is None else checkpoint.read(resumed)
    objects = input_objects(dataset, config.transform)
    plan = introduction.Plan(
        config=config,
        origin=origin.text,
        resumed=None if last is None else last.iteration,
        weights=weights,
        data=(data, dataset),
        val=(val, evaluation) if val and evaluation else None,
        objects=objects,
        settings=run,
        warmup=warmup,
        device=torch_device,
        compile=compile,
        graph=graph,
    )
    print(*origin.lines, *introduction.introduction(plan), sep="\n", flush=True)
    warnings = [_shared_images(dataset, evaluation), objects.advice]
    if last is not None:
        warnings.append(start.schedule_change(last.path, iterations, batch_size, keep_schedule))
        machine = settings.machine(torch_device, compiler)
        warnings.append(settings.machine_change(last.machine, machine))
        warnings += fingerprint.changes(output, dataset, evaluation) + run_folder.remarks(output)
    loading.note(f"warning: {warning}" for warning in warnings if warning)

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
        **tuning,
        weights=origin.weights,
        resume=resume,
        resume_from=resume_from,
        keep_schedule=keep_schedule,
        evaluation=evaluation,
        evaluate_every=evaluate_every,
        stop_early=stop_early,
        validation_losses=validation_losses,
        tensorboard=tensorboard,
        checkpoint_every=checkpoint_every,
        checkpoint_minutes=checkpoint_minutes,
        options=run_options.to_keep(context, iterations=iterations, batch_size=batch_size),
    )
    if processes.is_first():
        _report(result, output)
    if result.interrupted:
        raise typer.Exit(128 + result.interrupted)


def _check_options(context: typer.Context, output: Path, resume: bool, continued: bool) -> None:
    """Raise ValueError for options that are missing, contradict each other or would do nothing."""
    options = context.params
    data, val, split, epochs = (options[name] for name in ("data", "val", "split", "epochs"))
    if data is None and not resume:
        raise ValueError("name the data to train on with --data")
    if data is None:
        what = "does not say what it was trained on" if continued else "holds no run yet"
        raise ValueError(f"{output} {what}: name the data with --data")
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS") or 0) > 0 and not resume:
        raise ValueError(
            "torchrun --max-restarts starts the run again, which needs it to go on: add --resume"
        )
    both = epochs is not None and run_options.is_given(context, "iterations")
    if both or (epochs is not None and not 0 < epochs < math.inf):
        raise ValueError("--epochs: expected a number above 0, and no --iterations beside it")
    if split is not None and val:
        raise ValueError("--split makes validation data of --data: leave --val out")
    for name, used, needed in (
        ("val_images", val is not None, "--val"),
        ("evaluate_every", val is not None or split is not None, "--val or --split"),
        ("validation_losses", val is not None or split is not None, "--val or --split"),
        ("names", options["weights"] is not None, "--weights"),
    ):
        if run_options.is_given(context, name) and not used:
            raise ValueError(f"--{name.replace('_', '-')} does nothing without {needed}")


def _shared_images(dataset: "CocoDataset", evaluation: "CocoDataset | None") -> str | None:
    """Warn of images that are in the training data and in the validation data."""
    from accelerated.command_line import report

    shared = len(dataset.files() & evaluation.files()) if evaluation is not None else 0
    if evaluation is None or not shared:
        return None
    some = f"{shared} of the {report.count(len(evaluation), 'validation image')}"
    return f"{some} are trained on: average precision says little about new images"


def _report(result: "Result", output: Path) -> None:
    """Print the result of a run, and draw its losses."""
    from accelerated.command_line import report
    from accelerated.drawing import curves
    from accelerated.engine.run_folder import naming_checkpoint

    with naming_checkpoint(output):
        curves.save(curves.loss_curve(output / "log.jsonl"), output / "loss.png")
    if result.metrics:
        report.console().print(report.metrics(result.metrics))
    best, steps = result.best, report.count(result.iteration, "step")
    if best:
        print(f"Best {best.metric} {best.value:.3f} at step {best.iteration}: {output / 'best'}.")
    if result.stopped:
        print(f"Ended early: {result.stopped}.")
    if result.interrupted:
        print(f"Interrupted after {steps}: continue with --resume.")
    else:
        where = f"Weights: {output / 'last'}. Loss curve: {output / 'loss.png'}."
        print(f"Trained for {steps}. {where}")
