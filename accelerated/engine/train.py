"""Training: loader -> losses -> backward -> clip -> step -> log -> checkpoint, in a loop one can read.

    RUN/log.jsonl  RUN/checkpoints/<iteration>/  RUN/last  RUN/evaluations/<iteration>/

What a step draws (images, augmentation, sampling priorities) is a function of (seed, iteration) alone, so the state of a run is its
weights, its optimizer and the number of steps taken, and a resumed run on a CPU goes on bit for bit.
Nothing waits for the device between two lines of the log.
"""

import json
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from accelerated import interop
from accelerated import optimizer as optim
from accelerated.data.loader import loader
from accelerated.engine import checkpoint
from accelerated.engine.checkpoint import PREDICTORS
from accelerated.engine.evaluate import categories, evaluate
from accelerated.engine.failure import NotFiniteError, first_failure
from accelerated.engine.log import Log, Window
from accelerated.mask_rcnn import MaskRCNN
from reference.config import Config, to_dict


@dataclass(frozen=True)
class Result:
    model: MaskRCNN
    iteration: int  # steps taken
    interrupted: bool  # by SIGINT, after a checkpoint
    metrics: dict | None  # of the last evaluation


def train(
    config: Config,
    dataset,
    output,
    *,
    iterations: int,
    batch_size: int | None = None,
    workers: int = 0,
    device="cpu",
    seed: int = 0,
    amp: bool = False,
    weights=None,
    resume: bool = False,
    evaluation=None,
    evaluate_every: int = 0,
    checkpoint_every: int = 1000,
    keep: int = 3,
    log_every: int = 20,
    bar: bool = True,
) -> Result:
    """Train a MaskRCNN of `config` on `dataset` for `iterations` steps, writing into the folder `output`.

    batch_size        images per step (default: config.optimizer.batch_size); the learning rate scales with it
    amp               bfloat16 autocast
    weights           file or folder to start from (see `interop`); None: from scratch
    resume            go on from output/last, with the configuration, seed and batch size it was started with
    evaluation        data set to evaluate at the end and every `evaluate_every` steps (0: only at the end)
    checkpoint_every  steps between two checkpoints, of which the `keep` newest stay (0: only at the end)
    log_every         steps between two lines of the log

    SIGINT finishes the step, writes a checkpoint and returns.
    ValueError for settings that do not fit the data or the checkpoint. NotFiniteError when a loss or gradient is not finite,
    naming the step, its images and the first stage that is not; the last checkpoint is from before that step.
    """
    output, device = Path(output), torch.device(device)
    batch_size = batch_size or config.optimizer.batch_size
    settings = {"seed": seed, "batch_size": batch_size, "amp": amp, "iterations": iterations}
    _check(config, dataset, evaluation, output, resume)
    output.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(seed)
    model = MaskRCNN(config)
    fresh = initialize(model, weights) if weights is not None and not resume else []
    model.to(device).train()
    optimizer = optim.build(model, config.optimizer)
    start = _resume(output, model, optimizer, config, settings) if resume else 0

    def batches(first):
        options = {"batch_size": batch_size, "workers": workers, "seed": seed, "training": True}
        return iter(
            loader(dataset, config, **options, start_iteration=first, iterations=iterations)
        )

    def losses_of(batch, iteration, record=None):
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            return model.batch_losses(
                batch, generator=_generator(seed, iteration, device), record=record
            )

    def measure(iteration):
        metrics = evaluate(
            model, evaluation, workers=workers, output=output / "evaluations" / f"{iteration:08d}"
        )
        log.write(iteration, evaluation=metrics)
        model.train()
        return metrics

    metrics, iteration = None, start
    with (
        Log(output / "log.jsonl", start, iterations, bar=bar) as log,
        _interruptible() as interrupted,
    ):
        if fresh:
            log.write(start, weights=str(weights), not_in_weights=fresh)
        source, window, failed = batches(start), Window(device), torch.zeros((), device=device)
        last = iteration == iterations
        while not last:
            asked = time.perf_counter()
            batch = next(source).to(device)
            waited = time.perf_counter() - asked

            losses = losses_of(batch, iteration)
            loss = sum(losses.values())
            optimizer.zero_grad()
            loss.backward()
            failed = torch.maximum(failed, (~loss.detach().isfinite()).float())
            rate = optim.learning_rate(config.optimizer, iteration, iterations, batch_size)
            norm = optim.step(optimizer, rate, config.optimizer.clip_gradient_norm, failed)
            window.add(losses, loss, norm, batch_size, waited)
            iteration += 1

            last = iteration == iterations or interrupted.is_set()
            save, line, look = (
                last or (every and iteration % every == 0)
                for every in (checkpoint_every, log_every, evaluate_every)
            )
            if save or line or look:
                first = iteration - len(window)
                values, bad = window.read()
                if bad is not None:
                    raise NotFiniteError(
                        _explain(
                            model, losses_of, next(batches(first + bad)).to(device), first + bad
                        )
                    )
                log.write(iteration, **values, learning_rate=rate)
            if save:
                checkpoint.save(
                    output,
                    model,
                    config,
                    categories(dataset),
                    optimizer,
                    iteration,
                    settings=settings,
                    keep=keep,
                )
            if look and evaluation is not None and not last:
                metrics = measure(iteration)
                window = Window(device)
        if evaluation is not None and iteration == iterations:
            metrics = measure(iteration)
    return Result(model, iteration, iteration < iterations, metrics)


# What weights take for granted without its showing in their shapes.
UNSEEN = (
    *(f"transform.{name}" for name in ("channel_order", "pixel_scale", "mean", "std")),
    "backbone.stride_in_1x1",
)


@torch.no_grad()
def initialize(model, weights) -> list[str]:
    """Copy into `model` what a file or folder holds: a whole detector, or a bare backbone (see `interop`).

    The class predictors of a detector with other classes are left as they are. Returns the names of the tensors that were not copied.
    ValueError where names or shapes do not fit, or where the detector was made for other pixels or strides, which no shape shows.
    """
    try:
        source = interop.load(weights)
    except interop.BareBackboneError:
        copied = set(interop.load_backbone(weights, model))
        return [name for name in model.state_dict() if name not in copied]
    for path, theirs, ours in _differences(to_dict(source.config), to_dict(model.config)):
        if path in UNSEEN:
            raise ValueError(
                f"{weights} was made for {path} = {json.dumps(theirs)}, not {json.dumps(ours)}: --set {path}={json.dumps(theirs)}"
            )
    same = (source.config.num_classes, source.config.background) == (
        model.config.num_classes,
        model.config.background,
    )
    tensors, state = source.state_dict(), model.state_dict()
    left = [
        name for name in state if name not in tensors or (not same and name.startswith(PREDICTORS))
    ]
    for name in state.keys() - set(left):
        if tensors[name].shape != state[name].shape:
            raise ValueError(
                f"{weights}: {name} is {list(tensors[name].shape)}, the model's {list(state[name].shape)}"
            )
        state[name].copy_(tensors[name])
    return left


def _generator(seed, iteration, device):
    """Of the sampling priorities of one step."""
    return torch.Generator(device).manual_seed(
        int(np.random.SeedSequence([seed, iteration]).generate_state(1)[0])
    )


def _check(config, dataset, evaluation, output, resume):
    if len(dataset) == 0:
        raise ValueError("the data set has no images")
    if len(dataset.category_ids) != config.num_classes:
        raise ValueError(
            f"the data set has {len(dataset.category_ids)} categories, but num_classes is {config.num_classes}"
        )
    if evaluation is not None and categories(evaluation) != categories(dataset):
        raise ValueError("the data sets for training and evaluation have different categories")
    if not resume and (output / "last").exists():
        raise ValueError(f"{output} already holds a run: resume it, or choose another folder")


def _resume(output, model, optimizer, config, settings) -> int:
    """Restore the last checkpoint of the run; the number of steps taken."""
    found = checkpoint.read(output)
    for before, now in ((to_dict(found.config), to_dict(config)), (found.settings, settings)):
        for path, a, b in _differences(before, now):
            if path != "iterations":  # a longer run may go on from a shorter one
                raise ValueError(
                    f"{output} was started with {path} = {a!r}, not {b!r}: resume it with that, or choose another folder"
                )
    if found.iteration > settings["iterations"]:
        raise ValueError(
            f"{output} has taken {found.iteration} steps already, more than {settings['iterations']}"
        )
    return checkpoint.restore(output, model, optimizer).iteration


def _differences(a: dict, b: dict, path=""):
    for name in a:
        if isinstance(a[name], dict):
            yield from _differences(a[name], b[name], f"{path}{name}.")
        elif a[name] != b.get(name):
            yield f"{path}{name}", a[name], b.get(name)


def _explain(model, losses_of, batch, iteration) -> str:
    stage = first_failure(model, lambda record: losses_of(batch, iteration, record), batch)
    images = ", ".join(str(image_id) for image_id in batch.image_ids)
    return f"iteration {iteration}: {stage} is not finite (images {images}); training stopped, the last checkpoint is from before"


@contextmanager
def _interruptible():
    """An event that the first SIGINT sets; a second one interrupts as usual. Without effect outside the main thread."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(*_):
        event.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
