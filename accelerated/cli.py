"""The command line, `maskrcnn`. Commands parse, call and print; heavy imports wait until a command runs.

Exit codes: 0 done; 1 a comparison failed, or `inspect` found problems; 2 bad input, said in one line (MASKRCNN_DEBUG=1: with traceback).
"""

import os
import sys
import time
from itertools import chain, count
from pathlib import Path
from typing import Annotated

import typer

INTERPRETED = 32  # proposals that `verify` follows on a CPU: there Triton's kernels are interpreted, half a second for each

app = typer.Typer(
    name="maskrcnn",
    help="Mask R-CNN, twice: a NumPy oracle, and the same algorithm in PyTorch with Triton kernels.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Weights = Annotated[str, typer.Argument(help="A run's folder, one of its checkpoints, or a torchvision state dict.", metavar="CHECKPOINT")]
Data = Annotated[Path, typer.Option(help="Annotations, COCO json.")]
Images = Annotated[Path, typer.Option(help="Folder that the file names in the json are relative to.")]
Preset = Annotated[
    str, typer.Option(help="Configuration to start from: tiny, torchvision_r50_fpn, torchvision_r50_fpn_v2, detectron2_r50_fpn.")
]
Changes = Annotated[list[str], typer.Option("--set", help="Change one field of the configuration, FIELD=VALUE; repeatable.")]
Output = Annotated[Path, typer.Option(help="Folder of the results.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Backend = Annotated[str, typer.Option(help="How the operators run: auto, torch or triton.")]
BatchSize = Annotated[int | None, typer.Option(help="Images per step; default: the configuration's.", min=1)]
Workers = Annotated[int, typer.Option(help="Loader processes.", min=0)]
Seed = Annotated[int, typer.Option(min=0)]
Threshold = Annotated[float, typer.Option(help="Objects that score less are left out.", min=0, max=1)]
SkipInvalid = Annotated[bool, typer.Option("--skip-invalid", help="Leave out what `inspect` calls broken, instead of refusing.")]


def main():
    """Entry point: expected errors become one line on stderr and exit code 2."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # threads that spin for work longer slow training tenfold where cores are shared
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
    output: Annotated[Path, typer.Option(help="Folder of the results; with a number behind it where it holds a run already.")] = Path(
        "runs/demo"
    ),
    iterations: Annotated[int, typer.Option(help="Training steps.", min=1)] = 1200,
    batch_size: BatchSize = None,
    workers: Workers = 0,
    device: Device = "auto",
    backend: Backend = "auto",
    seed: Seed = 0,
):
    """Train a tiny model on synthetic shapes, evaluate it, draw what it finds, and verify it against NumPy."""
    start = time.perf_counter()
    device = _prepare(device, backend, interpret=True)
    from accelerated import report, visualize
    from accelerated import verify as verification
    from accelerated.data.synthetic import ShapesDataset
    from accelerated.engine import train as training
    from reference import config as configuration

    folders = chain([output], (output.with_name(f"{output.name}-{n}") for n in count(2)))
    output = next(folder for folder in folders if not (folder / "last").exists())
    console = report.console()
    config = configuration.preset("tiny")
    train_data, val_data = ShapesDataset(2000, seed=2 * seed), ShapesDataset(100, seed=2 * seed + 1)
    console.print(f"Training the tiny preset on {len(train_data)} images of shapes for {iterations} steps on {device}.")
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
        raise typer.Exit(130)
    console.print(report.metrics(result.metrics))
    visualize.loss_curve(output / "log.jsonl", output / "loss.png")
    model, shown = result.model.eval(), [val_data[index].image for index in range(min(12, len(val_data)))]
    pictures = [visualize.draw(image, model.detect([image])[0], val_data.class_names, scale=2) for image in shown]
    visualize.save(visualize.sheet(pictures, 4), output / "predictions.png")
    checked = verification.compare(model, shown[0], proposals=INTERPRETED if device.type == "cpu" else None)
    _print_verification(console, checked)
    console.print(
        f"Mask AP {result.metrics['segm']['AP']:.3f}, box AP {result.metrics['bbox']['AP']:.3f} on {len(val_data)} images not trained on."
    )
    console.print(f"{time.perf_counter() - start:.0f} s in all. In {output}: predictions.png, loss.png, log.jsonl, last, evaluations")
    raise typer.Exit(0 if checked.passed else 1)


@app.command()
def train(
    data: Data,
    images: Images,
    output: Output,
    iterations: Annotated[int, typer.Option(help="Training steps.", min=1)] = 1000,
    preset: Preset = "tiny",
    changes: Changes = [],  # noqa: B006
    val: Annotated[Path | None, typer.Option(help="Annotations to evaluate on.")] = None,
    val_images: Annotated[Path | None, typer.Option(help="Their images; default: as --images.")] = None,
    evaluate_every: Annotated[int, typer.Option(help="Steps between evaluations; 0: only at the end.", min=0)] = 0,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints; 0: only at the end.", min=0)] = 500,
    weights: Annotated[
        Path | None, typer.Option(help="Start from these: a checkpoint, or a torchvision Mask R-CNN or ResNet file.")
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
    device = _prepare(device, backend)
    from accelerated import report, visualize
    from accelerated.engine import train as training

    dataset = _dataset(data, images, skip_invalid)
    evaluation = _dataset(val, val_images or images, skip_invalid) if val else None
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
    visualize.loss_curve(output / "log.jsonl", output / "loss.png")
    if result.metrics:
        console.print(report.metrics(result.metrics))
    if result.interrupted:
        console.print(f"Interrupted after {result.iteration} steps; --resume goes on.")
        raise typer.Exit(130)
    console.print(f"{result.iteration} steps; weights in {output / 'last'}, loss curve in {output / 'loss.png'}")


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
    device = _prepare(device, backend)
    from accelerated import report
    from accelerated.engine import evaluate as evaluation

    model, categories = _load(checkpoint, device)
    dataset = _dataset(data, images, skip_invalid)
    if len(dataset.class_names) != model.config.num_classes:
        raise ValueError(f"{checkpoint} knows {model.config.num_classes} classes, {data} has {len(dataset.class_names)} categories")
    if categories and categories != evaluation.categories(dataset):
        raise ValueError(f"{checkpoint} was trained on other categories than those of {data}")
    metrics = evaluation.evaluate(model, dataset, batch_size=batch_size, workers=workers, output=output, bar=sys.stderr.isatty())
    console = report.console()
    console.print(report.metrics(metrics), report.class_metrics(metrics))
    console.print(f"Written: {output / 'results.json'}, {output / 'metrics.json'}")


@app.command()
def predict(
    checkpoint: Weights,
    pictures: Annotated[list[str], typer.Argument(help="Picture files, folders or globs.", metavar="PICTURES...")],
    output: Output = Path("predictions"),
    threshold: Threshold = 0.5,
    device: Device = "auto",
    backend: Backend = "auto",
):
    """Draw the objects in pictures, and write them in COCO's format. A picture that cannot be read is named, and the others are done."""
    device = _prepare(device, backend)
    from accelerated.engine import predict as prediction

    model, categories = _load(checkpoint, device)
    result = prediction.predict(
        model, pictures, output, categories=categories or _unnamed(model), threshold=threshold, bar=sys.stderr.isatty()
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
    image: Annotated[Path, typer.Argument(help="A picture.")],
    dtype: Annotated[str, typer.Option(help="float64 or float32.")] = "float64",
    proposals: Annotated[
        int | None,
        typer.Option(help=f"Follow only so many proposals; default: all on a GPU, {INTERPRETED} where Triton is interpreted.", min=1),
    ] = None,
    device: Device = "auto",
):
    """NumPy, PyTorch and Triton on the same weights and picture, stage by stage."""
    device = _prepare(device, "auto", interpret=True)
    from accelerated import report
    from accelerated import verify as verification
    from accelerated.data import images

    model, _ = _load(checkpoint, device)
    if proposals is None and device.type == "cpu":
        proposals = INTERPRETED
    checked = verification.compare(model, images.read(image), dtype=dtype, proposals=proposals)
    _print_verification(report.console(), checked)
    raise typer.Exit(0 if checked.passed else 1)


@app.command()
def inspect(
    data: Data,
    images: Images,
    output: Annotated[Path | None, typer.Option(help="Write a sample of the images with their masks into this picture file.")] = None,
    samples: Annotated[int, typer.Option(help="Images in that sample.", min=1)] = 12,
    seed: Seed = 0,
):
    """What a data set holds and everything that is wrong with it."""
    from accelerated import report, visualize
    from accelerated.data import lint
    from accelerated.data.summary import summary

    console = report.console()
    found = lint.check(data, images)
    if found.problems:
        console.print(report.problems(found.problems))
    if not found.fatal:
        dataset = _dataset(data, images, skip_invalid=True)
        for table in report.dataset(summary(dataset)):
            console.print(table)
        if output is not None and len(dataset):
            visualize.save(visualize.sample(dataset, samples, seed), output)
            console.print(f"Sample in {output}")
    stop = len(found.blocking)
    if stop:
        way_out = "the file must be corrected" if found.fatal else "correct them, or train with --skip-invalid"
        console.print(f"{stop} of them stop{'s' * (stop == 1)} training: {way_out}.")
    raise typer.Exit(1 if stop else 0)


@app.command()
def convert(
    checkpoint: Weights,
    target: Annotated[Path, typer.Argument(help="FILE.safetensors or FILE.pth for others, or a new folder for a checkpoint of ours.")],
    preset: Annotated[str | None, typer.Option(help="The switches that the tensors do not show; default: found out.")] = None,
    names: Annotated[
        str | None,
        typer.Option("--format", help="Whose names in FILE: torchvision or detectron2; default: detectron2 if the background is last."),
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
        checkpoints.save(target, model, model.config, _categories(checkpoint) or _unnamed(model), fresh, 0)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {model.config.num_classes} classes, written to {target}")


@app.command()
def benchmark(
    output: Output = Path("benchmarks/results"),
    device: Device = "auto",
    seconds: Annotated[float, typer.Option(help="Spent on each timing.", min=0)] = 0.5,
    only: Annotated[str, typer.Option(help="Only operators whose name holds this.")] = "",
    model: Annotated[bool, typer.Option("--model", help="Also ResNet-50-FPN at 800x1333, NumPy beside PyTorch.")] = False,
):
    """Times of the operators, of a training step and of inference; JSON lines are appended in OUTPUT."""
    device = _prepare(device, "auto")
    from accelerated import benchmark as bench

    raise typer.Exit(bench.report(output=output, device=device, seconds=seconds, only=only, model=model))


@app.command()
def doctor():
    """Versions, devices, and which backend runs and why."""
    from accelerated import doctor as examination
    from accelerated import report

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
        bool | None, typer.Option("--reduced/--full", help="Narrow nets and few steps, or the paper's depths; default: reduced on a CPU.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Annotations, COCO json; default: shapes made hard on purpose.")] = None,
    images: Annotated[Path | None, typer.Option(help="Their images.")] = None,
    val: Annotated[Path | None, typer.Option(help="Annotations to evaluate on.")] = None,
    val_images: Annotated[Path | None, typer.Option(help="Their images; default: as --images.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of each row, with seeds 0, 1, ..; default: 2 reduced, 3 in full.", min=1)] = None,
    iterations: Annotated[int | None, typer.Option(help="Training steps of each.", min=1)] = None,
    changes: Changes = [],  # noqa: B006
    jobs: Annotated[int | None, typer.Option(help="Runs at a time, each a process; default: as many as cores, at most 4.", min=1)] = None,
    workers: Workers = 0,
    device: Device = "auto",
    backend: Backend = "auto",
    skip_invalid: SkipInvalid = False,
):
    """Train the paper's comparisons, a few seeds of each, and set them beside its numbers. Run again, it goes on where it stopped."""
    start = time.perf_counter()
    device = _prepare(device, backend)
    from accelerated import ablate as ablation
    from accelerated import report

    reduced = device.type == "cpu" if reduced is None else reduced
    scale = ablation.REDUCED if reduced else ablation.FULL
    if data is None:
        train_data, val_data = ablation.shapes(scale)
    elif images is None or val is None:
        raise ValueError("--data needs --images, and --val to evaluate on")
    else:
        train_data, val_data = _dataset(data, images, skip_invalid), _dataset(val, val_images or images, skip_invalid)
    compared, todo = ablation.plan(
        *(scale, train_data, val_data),
        changes=changes,
        seeds=seeds,
        iterations=iterations,
        data=ablation.SHAPES if data is None else f"{data}, {val}",
    )
    console = report.console()
    console.print(f"{len(todo)} runs of {todo[0].iterations} steps on {len(train_data)} images, {len(val_data)} to evaluate; on {device}.")
    try:
        ablation.ablate(
            todo,
            output,
            train_data,
            val_data,
            device=device,
            jobs=jobs or min(4, os.cpu_count() or 1),
            workers=workers,
            announce=console.print,
        )
    finally:
        table = ablation.lines(compared, todo, output)
        ablation.write(table, output, todo[0].iterations)
        console.print(*report.ablation(table, todo[0].iterations), ablation.PAPER)
        console.print(f"{time.perf_counter() - start:.0f} s. In {output}: ablation.csv, ablation.png, results")


def _prepare(device, backend, interpret=False):
    """The torch device; sets what must be set before anything imports Triton. `interpret`: without a GPU, let kernels be interpreted."""
    import torch

    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"--backend {backend}: expected auto, torch or triton")
    if backend != "auto":
        os.environ["MASKRCNN_BACKEND"] = backend
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"--device {device}: expected auto, cpu, cuda or cuda:NUMBER") from None
    if chosen.type == "cuda" and not (torch.cuda.is_available() and (chosen.index or 0) < torch.cuda.device_count()):
        raise ValueError(f"--device {device}: PyTorch {torch.__version__} sees {torch.cuda.device_count()} GPUs")
    if interpret and chosen.type == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")
    return chosen


def _load(checkpoint, device):
    """(model in evaluation mode on the device, its categories or None for a foreign file)."""
    from accelerated import interop

    return interop.load(checkpoint).to(device).eval(), _categories(checkpoint)


def _categories(checkpoint):
    from accelerated.engine import checkpoint as checkpoints

    return checkpoints.read(checkpoint).categories if Path(checkpoint).is_dir() else None


def _unnamed(model):
    return [{"id": k, "name": f"class {k}"} for k in range(1, model.config.num_classes + 1)]


def _dataset(data, images, skip_invalid):
    """The data set; its list of problems, or what --skip-invalid leaves out, goes to stderr line by line."""
    from accelerated.data.coco import CocoDataset

    try:
        dataset = CocoDataset(data, images, skip_invalid=skip_invalid)
        for problem in dataset.report.blocking:
            print(f"maskrcnn: {data}: left out: {problem}", file=sys.stderr)
        return dataset
    except ValueError as error:
        if str(error).count("\n") < 2 or os.environ.get("MASKRCNN_DEBUG"):
            raise
        print(f"maskrcnn: {data}: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def _print_verification(console, checked):
    from accelerated import report

    console.print(report.verification(checked))
    for backend, reason in checked.skipped.items():
        console.print(f"{backend} did not run: {reason}")
    console.print(checked.summary)
