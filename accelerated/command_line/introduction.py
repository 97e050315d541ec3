"""The first lines of a training run: what is trained on what, how, and how long."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from accelerated import backend, processes
from accelerated.command_line.report import count
from accelerated.data.dataset import Dataset
from accelerated.data.summary import InputObjects, summary
from accelerated.engine import layers
from accelerated.engine.settings import Settings
from accelerated.mask_rcnn import MaskRCNN
from reference.config import Augment, Backbone, Config, Optimizer, Transform


@dataclass(frozen=True)
class Plan:
    """A run before it starts.

    origin       where the configuration is from, such as "preset small"
    resumed      steps that a resumed run has taken; None: a new run
    weights      what the initial weights are of; None: random
    data, val    (name, data set); None: no evaluation
    objects      of the training data, in the network's input
    warmup       the configuration's steps of warm-up, of which the run may take fewer
    compile, graph  how steps are run
    """

    config: Config
    origin: str
    resumed: int | None
    weights: str | None
    data: tuple[Path, Dataset]
    val: tuple[Path, Dataset] | None
    objects: InputObjects
    settings: Settings
    warmup: int
    device: torch.device
    compile: bool
    graph: bool


def introduction(plan: Plan) -> list[str]:
    """Describe a run in ten lines, and a line for each feature that is off by default."""
    config, settings, size = plan.config, plan.settings, len(plan.data[1])
    epochs = settings.iterations * settings.batch_size / size
    rows = {
        "Data": describe_data(*plan.data),
        "Validation": describe_data(*plan.val) if plan.val else "none; add --val or --split",
        "Model": f"{plan.origin}: {_architecture(config)}, {parameters(config) / 1e6:.1f} million"
        f" parameters, {_start(plan)}",
        "Input": describe_input(config.transform, plan.objects),
        "Length": f"{count(settings.iterations, 'step')} of {count(settings.batch_size, 'image')},"
        f" {epochs:.1f} epochs of {count(size, 'image')}",
        "Learning rate": _rate(config.optimizer, settings.batch_size),
        "Schedule": _schedule(config.optimizer, settings.schedule),
        "Warm-up": _warmup(config.optimizer.warmup_iterations, plan.warmup),
        **_tuning(config, settings),
        "Seed": str(settings.seed),
        "Runs on": _machine(plan),
    }
    width = max(map(len, rows)) + 2
    return [f"{label:{width}}{text}" for label, text in rows.items()]


def describe_data(name: Path, dataset: Dataset) -> str:
    """Count the images, objects and classes of a data set in a line."""
    numbers = summary(dataset)
    names = dataset.class_names[:4] + ["..."] * (len(dataset.class_names) > 4)
    text = f"{name}: {count(numbers['images'], 'image')}, {count(numbers['objects'], 'object')}"
    if numbers["negatives"]:
        text += f" ({count(numbers['negatives'], 'image')} without)"
    classes = count(len(dataset.class_names), "class", "classes")
    return f"{text}, {classes} ({', '.join(names)})"


def describe_input(transform: Transform, objects: InputObjects) -> str:
    """Tell the size of the images in the network's input, and of their objects."""
    return f"{_resizing(transform)}; {objects}"


def parameters(config: Config) -> int:
    """Count the parameters of a model, trained or frozen, without their memory."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in MaskRCNN(config).parameters())


def _start(plan: Plan) -> str:
    if plan.resumed is not None:
        return f"resumed from step {plan.resumed}"
    return "random weights" if plan.weights is None else f"weights of {plan.weights}"


def _architecture(config: Config) -> str:
    network = _network(config.backbone)
    neck = f"FPN of {config.fpn.channels} channels" if config.neck == "fpn" else "a single map"
    return f"{network}, {neck}{'' if config.mask_head.kind != 'none' else ', no masks'}"


def _network(backbone: Backbone) -> str:
    if backbone.kind == "vgg":
        return "VGG-16"
    groups = f"-{backbone.groups}x{backbone.group_width}d" if backbone.groups > 1 else ""
    name = f"{'ResNeXt' if groups else 'ResNet'}-{backbone.depth}{groups}"
    return name if backbone.width == 64 else f"{name} of width {backbone.width}"


def _resizing(transform: Transform) -> str:
    if not transform.min_size:
        return "images in their own size"
    low, high = min(transform.min_size), max(transform.min_size)
    if low >= transform.max_size:
        return f"long side {transform.max_size} pixels"
    short = str(low) if low == high else f"{low} to {high}"
    return f"short side {short} pixels, long side at most {transform.max_size}"


def _rate(optimizer: Optimizer, batch_size: int) -> str:
    name = {"sgd": "SGD", "adamw": "AdamW"}[optimizer.kind]
    rate = optimizer.learning_rate * batch_size / optimizer.batch_size
    return (
        f"{name}, {rate:.3g}: {optimizer.learning_rate:.3g} for {optimizer.batch_size} images,"
        f" x {batch_size}/{optimizer.batch_size} for this batch size"
    )


def _schedule(optimizer: Optimizer, iterations: int) -> str:
    if optimizer.schedule == "cosine":
        return f"cosine, down to 0 at step {iterations}"
    steps = [str(round(step * iterations)) for step in optimizer.steps]
    return f"times {optimizer.gamma:g} at step{'s' * (len(steps) > 1)} {' and '.join(steps)}"


def _warmup(steps: int, configured: int) -> str:
    if steps == configured:
        return count(steps, "step")
    return f"{count(steps, 'step')} instead of {configured}, at most a tenth of the run"


def _tuning(config: Config, settings: Settings) -> dict[str, str]:
    """Describe what is off by default, where it is on."""
    plain, rows = Augment(), {}
    augment = asdict(config.augment).items()
    changed = [f"{name}={json.dumps(x)}" for name, x in augment if x != getattr(plain, name)]
    if changed:
        rows["Augmentation"] = ", ".join(changed)
    if settings.rates or settings.freeze:
        model = layers.check(config, settings.freeze, settings.rates)
    if settings.freeze:
        rows["Frozen"] = layers.frozen_summary(model, settings.freeze)
    if settings.rates:
        rows["Rates"] = layers.rates_summary(model, settings.rates)
    if settings.ema:
        decay = f"decay {settings.ema:g}, warmed up"
        rows["Average"] = f"{decay}; evaluated and stored instead of the weights"
    if settings.accumulate > 1:
        size = settings.batch_size // settings.accumulate // processes.number()
        rows["In parts"] = f"{settings.accumulate} of {count(size, 'image')} each"
    return rows


def _machine(plan: Plan) -> str:
    device, settings = plan.device, plan.settings
    operators = backend.resolve("auto", torch.empty(0, device=device))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = count(torch.get_num_threads(), "thread")
    precision = "bfloat16 autocast" if settings.amp else "float32"
    several = f"{processes.number()} processes of {settings.batch_size // processes.number()}"
    ways = {f"{several} of these images each": processes.number() > 1}
    ways |= {"fixed shapes": settings.fixed_shapes, "compiled": plan.compile}
    ways |= {"CUDA graphs": plan.graph}
    chosen = [way for way, used in ways.items() if used]
    return ", ".join([f"{name} with {threads}", f"backend {operators}", precision, *chosen])
