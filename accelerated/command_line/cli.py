"""The command line, `maskrcnn`. Commands parse, call and print; heavy imports wait until a command runs.

Exit codes: 0 done; 1 a comparison failed, or `inspect` found problems; 2 bad input, said in one line (MASKRCNN_DEBUG=1: with traceback).
"""

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from accelerated.command_line import arguments
from accelerated.command_line.arguments import (
    Backend,
    BatchSize,
    Changes,
    Data,
    Device,
    Images,
    Output,
    Preset,
    Seed,
    SkipInvalid,
    Threshold,
    Weights,
    Workers,
)

app = typer.Typer(
    name="maskrcnn",
    help="Mask R-CNN, twice: a NumPy oracle, and the same algorithm in PyTorch with Triton kernels.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def main():
    """Entry point: expected errors become one line on stderr and exit code 2."""
    os.environ.setdefault(
        "GOMP_SPINCOUNT", "1000"
    )  # threads that spin for work longer slow training tenfold where cores are shared
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # NumPy's likewise
    try:
        app()
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("MASKRCNN_DEBUG"):
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"maskrcnn: {text if len(text) < 600 else text[:600] + ' ...'}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def demo(
    output: Annotated[
        Path,
        typer.Option(
            help="Folder of the results; with a number behind it where it holds a run already."
        ),
    ] = Path("runs/demo"),
    numpy: Annotated[
        bool,
        typer.Option(
            "--numpy", help="Train in NumPy alone, and again in PyTorch: the two loss curves."
        ),
    ] = False,
    iterations: Annotated[
        int | None, typer.Option(help="Training steps; default: 1200, with --numpy 100.", min=1)
    ] = None,
    batch_size: BatchSize = None,
    workers: Workers = 0,
    device: Device = "auto",
    backend: Backend = "auto",
    seed: Seed = 0,
):
    """Train a tiny model on synthetic shapes, evaluate it, draw what it finds, and verify it against NumPy."""
    if numpy:
        os.environ.setdefault(
            "OPENBLAS_NUM_THREADS", "1"
        )  # matrices so small gain nothing from a second, which slows all on shared cores
    device = arguments.prepare(device, backend, interpret=not numpy)
    from accelerated.command_line import demo as demonstration

    if numpy:
        passed = demonstration.train_in_numpy(output, iterations or 100, batch_size, device, seed)
    else:
        passed = demonstration.train(output, iterations or 1200, batch_size, workers, device, seed)
    raise typer.Exit(130 if passed is None else 0 if passed else 1)


@app.command()
def train(
    data: Data,
    images: Images,
    output: Output,
    iterations: Annotated[int, typer.Option(help="Training steps.", min=1)] = 1000,
    preset: Preset = "tiny",
    changes: Changes = [],  # noqa: B006
    val: Annotated[Path | None, typer.Option(help="Annotations to evaluate on.")] = None,
    val_images: Annotated[
        Path | None, typer.Option(help="Their images; default: as --images.")
    ] = None,
    evaluate_every: Annotated[
        int, typer.Option(help="Steps between evaluations; 0: only at the end.", min=0)
    ] = 0,
    checkpoint_every: Annotated[
        int, typer.Option(help="Steps between checkpoints; 0: only at the end.", min=0)
    ] = 500,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Start from these: a checkpoint, or a torchvision Mask R-CNN or ResNet file."
        ),
    ] = None,
    batch_size: BatchSize = None,
    workers: Workers = 0,
    device: Device = "auto",
    backend: Backend = "auto",
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from OUTPUT/last.")] = False,
    amp: Annotated[bool, typer.Option("--amp", help="bfloat16 where it is safe.")] = False,
    skip_invalid: SkipInvalid = False,
):
    """Train on a COCO-format data set."""
    from dataclasses import replace

    from reference import config as configuration

    config = configuration.preset(preset)
    for change in changes:
        config = configuration.override(config, change)
    device = arguments.prepare(device, backend)
    from accelerated.command_line import report
    from accelerated.drawing import curves
    from accelerated.engine import train as training

    dataset = arguments.dataset(data, images, skip_invalid)
    evaluation = arguments.dataset(val, val_images or images, skip_invalid) if val else None
    result = training.train(
        *(replace(config, num_classes=len(dataset.class_names)), dataset, output),
        iterations=iterations,
        batch_size=batch_size,
        workers=workers,
        device=device,
        seed=seed,
        amp=amp,
        weights=weights,
        resume=resume,
        evaluation=evaluation,
        evaluate_every=evaluate_every,
        checkpoint_every=checkpoint_every,
    )
    console = report.console()
    curves.loss_curve(output / "log.jsonl", output / "loss.png")
    if result.metrics:
        console.print(report.metrics(result.metrics))
    if result.interrupted:
        console.print(f"Interrupted after {result.iteration} steps; --resume goes on.")
        raise typer.Exit(130)
    console.print(
        f"{result.iteration} steps; weights in {output / 'last'}, loss curve in {output / 'loss.png'}"
    )


@app.command()
def evaluate(
    checkpoint: Weights,
    data: Data,
    images: Images,
    output: Output = Path("evaluation"),
    batch_size: Annotated[int, typer.Option(help="Images at once.", min=1)] = 1,
    workers: Workers = 0,
    device: Device = "auto",
    backend: Backend = "auto",
    skip_invalid: SkipInvalid = False,
):
    """COCO's average precision of boxes and masks."""
    device = arguments.prepare(device, backend)
    from accelerated.command_line import report
    from accelerated.engine import evaluate as evaluation

    model, known = arguments.load(checkpoint, device)
    dataset = arguments.dataset(data, images, skip_invalid)
    arguments.check_classes(checkpoint, model, known, data, dataset)
    metrics = evaluation.evaluate(
        model,
        dataset,
        batch_size=batch_size,
        workers=workers,
        output=output,
        bar=sys.stderr.isatty(),
    )
    console = report.console()
    console.print(report.metrics(metrics), report.class_metrics(metrics))
    console.print(f"Written: {output / 'results.json'}, {output / 'metrics.json'}")


@app.command()
def predict(
    checkpoint: Weights,
    pictures: Annotated[
        list[str], typer.Argument(help="Picture files, folders or globs.", metavar="PICTURES...")
    ],
    output: Output = Path("predictions"),
    threshold: Threshold = 0.5,
    device: Device = "auto",
    backend: Backend = "auto",
):
    """Draw the objects in pictures, and write them in COCO's format. A picture that cannot be read is named, and the others are done."""
    device = arguments.prepare(device, backend)
    from accelerated.engine import predict as prediction

    model, categories = arguments.load(checkpoint, device)
    result = prediction.predict(
        model,
        pictures,
        output,
        categories=categories or arguments.unnamed(model),
        threshold=threshold,
        bar=sys.stderr.isatty(),
    )
    for path, reason in result.failed:
        print(f"maskrcnn: {reason if path in reason else f'{path}: {reason}'}", file=sys.stderr)
    done = result.predictions
    print(
        f"{len(done['annotations'])} objects in {len(done['images'])} pictures, drawn in {output}, listed in {output / 'predictions.json'}"
    )
    if result.failed:
        raise typer.Exit(2)


@app.command()
def verify(
    checkpoint: Weights,
    pictures: Annotated[
        list[Path],
        typer.Argument(help="Pictures; with --train they are one batch.", metavar="IMAGE"),
    ],
    train: Annotated[
        bool,
        typer.Option("--train", help="Compare a training step: losses, gradients and new weights."),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            help="With --train: the pictures' annotations, COCO json. Default: what the model itself finds is taken for true."
        ),
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="... with at least this score.", min=0, max=1)
    ] = 0.5,
    dtype: Annotated[str, typer.Option(help="float64 or float32.")] = "float64",
    proposals: Annotated[
        int | None,
        typer.Option(
            help="Follow only so many proposals, and train on so many of an image's RoIs; default: all on a GPU, "
            f"{arguments.INTERPRETED} and {arguments.INTERPRETED_TRAINING} where Triton is interpreted.",
            min=1,
        ),
    ] = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Of the choice of samples in training.", min=0)] = 0,
):
    """NumPy, PyTorch and Triton on the same weights and pictures, stage by stage; with --train one training step, number by number."""
    if data and not train:
        raise ValueError("--data: annotations play a part in training only; add --train")
    device = arguments.prepare(device, "auto", interpret=True)
    from accelerated.command_line import report
    from accelerated.data import images
    from accelerated.verify import detection, training

    console = report.console()
    model, known = arguments.load(checkpoint, device)
    arrays = [images.read(picture) for picture in pictures]
    if proposals is None and device.type == "cpu":
        proposals = arguments.INTERPRETED_TRAINING if train else arguments.INTERPRETED
        console.print(
            f"On a CPU Triton's kernels are interpreted: at most {proposals} {'RoIs' if train else 'proposals'} of each image."
        )
    if not train:
        results = (
            detection.compare(model, image, dtype=dtype, proposals=proposals) for image in arrays
        )
    else:
        if data:
            opened = arguments.dataset(data, ".", open_images=False)
            arguments.check_classes(checkpoint, model, known, data, opened)
            targets = arguments.annotated(opened, pictures)
        else:
            targets = training.own_targets(model, arrays, threshold)
            console.print(
                f"No --data: what the model itself finds, scoring {threshold:g} or more, is taken for the ground truth."
            )
        results = [training.compare(model, arrays, targets, dtype=dtype, rois=proposals, seed=seed)]
    passed = [report.print_verification(console, result) for result in results]
    raise typer.Exit(0 if all(passed) else 1)


@app.command()
def inspect(
    data: Data,
    images: Images,
    output: Annotated[
        Path | None,
        typer.Option(help="Write a sample of the images with their masks into this picture file."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Images in that sample.", min=1)] = 12,
    seed: Seed = 0,
):
    """What a data set holds and everything that is wrong with it."""
    from accelerated.command_line import report
    from accelerated.data import lint
    from accelerated.data.summary import summary
    from accelerated.drawing import detections

    console = report.console()
    found = lint.check(data, images)
    if found.problems:
        console.print(report.problems(found.problems))
    if not found.fatal:
        dataset = arguments.dataset(data, images, skip_invalid=True)
        for table in report.dataset(summary(dataset)):
            console.print(table)
        if output is not None and len(dataset):
            detections.save(detections.sample(dataset, samples, seed), output)
            console.print(f"Sample in {output}")
    stop = len(found.blocking)
    if stop:
        way_out = (
            "the file must be corrected"
            if found.fatal
            else "correct them, or train with --skip-invalid"
        )
        console.print(f"{stop} of them stop{'s' * (stop == 1)} training: {way_out}.")
    raise typer.Exit(1 if stop else 0)


@app.command()
def convert(
    checkpoint: Weights,
    target: Annotated[
        Path,
        typer.Argument(
            help="FILE.safetensors or FILE.pth for others, or a new folder for a checkpoint of ours."
        ),
    ],
    preset: Annotated[
        str | None,
        typer.Option(help="The switches that the tensors do not show; default: found out."),
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Whose names in FILE: torchvision or detectron2; default: detectron2 if the background is last.",
        ),
    ] = None,
):
    """Between other people's checkpoints and ours: to a file in torchvision's or detectron2's names, to a folder of ours."""
    from accelerated import interop, optimizer
    from accelerated.engine import checkpoint as checkpoints

    if target.exists():
        raise ValueError(f"{target} exists already")
    model = interop.load(checkpoint, preset)
    if target.suffix:
        interop.save(model, target, names)
    else:
        fresh = optimizer.build(model, model.config.optimizer)
        checkpoints.save(
            target,
            model,
            model.config,
            arguments.categories(checkpoint) or arguments.unnamed(model),
            fresh,
            0,
        )
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {model.config.num_classes} classes, written to {target}"
    )


@app.command()
def benchmark(
    output: Output = Path("benchmarks/results"),
    device: Device = "auto",
    seconds: Annotated[float, typer.Option(help="Spent on each timing.", min=0)] = 0.5,
    only: Annotated[str, typer.Option(help="Only operators whose name holds this.")] = "",
    model: Annotated[
        bool,
        typer.Option("--model", help="Also whole models and training steps, NumPy beside PyTorch."),
    ] = False,
):
    """Times of the operators, of a training step and of inference; JSON lines are appended in OUTPUT."""
    device = arguments.prepare(device, "auto")
    from accelerated.experiments import benchmark as bench

    raise typer.Exit(
        bench.report(output=output, device=device, seconds=seconds, only=only, model=model)
    )


@app.command()
def doctor():
    """Versions, devices, and which backend runs and why."""
    from accelerated.command_line import doctor as examination
    from accelerated.command_line import report

    console = report.console()
    console.print(report.table("Packages", ["package", "version"], examination.versions()))
    console.print(report.table("Devices", ["device", "what it is"], examination.devices()))
    console.print(report.table("Backends", ["device", '"auto" means'], examination.backends()))
    missing = examination.missing()
    for line in missing:
        console.print(f"Does not import: {line}")
    if not missing:
        console.print("Everything is in place; nothing has to be compiled.")
    raise typer.Exit(1 if missing else 0)


@app.command()
def ablate(
    output: Output = Path("runs/ablation"),
    reduced: Annotated[
        bool | None,
        typer.Option(
            "--reduced/--full",
            help="Narrow nets and few steps, or the paper's depths; default: reduced on a CPU.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Annotations, COCO json; default: shapes made hard on purpose."),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Their images.")] = None,
    val: Annotated[Path | None, typer.Option(help="Annotations to evaluate on.")] = None,
    val_images: Annotated[
        Path | None, typer.Option(help="Their images; default: as --images.")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            help="Runs of each row, with seeds 0, 1, ..; default: 2 reduced, 3 in full.", min=1
        ),
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="Training steps of each.", min=1)] = None,
    changes: Changes = [],  # noqa: B006
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Runs at a time, each a process; default: as many as cores, at most 4.", min=1
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Loader processes of each run; default: 0 reduced, 3 in full.", min=0),
    ] = None,
    device: Device = "auto",
    backend: Backend = "auto",
    skip_invalid: SkipInvalid = False,
):
    """Train the paper's comparisons, a few seeds of each, and set them beside its numbers. Run again, it goes on where it stopped."""
    start = time.perf_counter()
    device = arguments.prepare(device, backend)
    from accelerated.command_line import report
    from accelerated.experiments import ablate as ablation

    reduced = device.type == "cpu" if reduced is None else reduced
    scale = ablation.REDUCED if reduced else ablation.FULL
    if data is None:
        train_data, val_data = ablation.shapes(scale)
    elif images is None or val is None:
        raise ValueError("--data needs --images, and --val to evaluate on")
    else:
        train_data, val_data = (
            arguments.dataset(data, images, skip_invalid),
            arguments.dataset(val, val_images or images, skip_invalid),
        )
    compared, todo = ablation.plan(
        *(scale, train_data, val_data),
        changes=changes,
        seeds=seeds,
        iterations=iterations,
        data=ablation.SHAPES if data is None else f"{data}, {val}",
    )
    left = ablation.unfinished(todo, output)
    console = report.console()
    console.print(
        f"{len(todo)} runs of {todo[0].iterations} steps, {len(left)} of them to do, on {len(train_data)} images and {device}."
    )
    options = {
        "device": device,
        "jobs": jobs or min(4, os.cpu_count() or 1),
        "workers": scale.workers if workers is None else workers,
    }
    try:
        ablation.ablate(left, output, train_data, val_data, **options, announce=console.print)
    finally:
        table = ablation.lines(compared, todo, output)
        if any(line.seeds for line in table):
            ablation.write(table, output, todo[0].iterations)
            console.print(*report.ablation(table, todo[0].iterations), ablation.PAPER)
            console.print(
                f"{time.perf_counter() - start:.0f} s. In {output}: ablation.csv, ablation.png, results"
            )
