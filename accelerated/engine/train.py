"""Training: load, step, check, log, checkpoint, evaluate, in a loop that can be read.

    RUN/log.jsonl  RUN/checkpoints/<iteration>/  RUN/last  RUN/evaluations/<iteration>/

The random draws of a step (images, augmentation, sampling priorities) are a function of (seed,
iteration) alone. So the state of a run is its weights, its optimizer and the number of steps taken,
and on a CPU a resumed run continues bit for bit.
Between two lines of the log nothing waits for the step in flight.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial, reduce
from pathlib import Path

import numpy as np
import torch

from accelerated import optimizer as torch_optimizer
from accelerated.data import padding
from accelerated.data.dataset import Dataset
from accelerated.data.loader import loader
from accelerated.engine import checkpoint, start
from accelerated.engine.capture import Draws, Graphs, check_capture, draw_priorities
from accelerated.engine.classes import first_difference
from accelerated.engine.evaluate import categories, evaluate
from accelerated.engine.failure import NotFiniteError, first_failure
from accelerated.engine.log import Log, Window
from accelerated.engine.prefetch import Pace, prefetched
from accelerated.interop import Loaded
from accelerated.mask_rcnn import MaskRCNN
from accelerated.parameters import set_memory_format
from accelerated.structures import Batch, Stages
from reference.config import Config


@dataclass(frozen=True)
class Result:
    """A finished or interrupted training run."""

    model: MaskRCNN
    # Steps taken.
    iteration: int
    # By SIGINT, after a checkpoint.
    interrupted: bool
    # Of the last evaluation, see `evaluate.score`.
    metrics: dict | None


@dataclass(frozen=True)
class Settings:
    """The settings of a run besides its configuration; they are stored in its checkpoints."""

    seed: int
    batch_size: int
    amp: bool
    iterations: int
    fixed_shapes: bool


def train(
    config: Config,
    dataset: Dataset,
    output: str | Path,
    *,
    iterations: int,
    batch_size: int | None = None,
    workers: int = 0,
    device: torch.device | str = "cpu",
    seed: int = 0,
    amp: bool = False,
    fixed_shapes: bool = False,
    compile: str | None = None,
    graph: bool = False,
    weights: str | Path | Loaded | None = None,
    resume: bool = False,
    evaluation: Dataset | None = None,
    evaluate_every: int = 0,
    checkpoint_every: int = 1000,
    keep: int = 3,
    log_every: int = 20,
    bar: bool = True,
) -> Result:
    """Train a model of `config` on `dataset` for `iterations` steps and write into folder `output`.

    batch_size        images per step (default: config.optimizer.batch_size), to which the learning
                      rate is proportional
    amp               bfloat16 autocast
    fixed_shapes      pad batches to a few shapes, see `padding.fixed_shapes`, instead of to their
                      own images and objects. Other shapes draw other sampling priorities
    compile           backend of torch.compile for the losses, such as "inductor", or None
    graph             capture steps as CUDA graphs, see `capture`; both need fixed_shapes
    weights           file, folder, name or loaded model to start from, see `interop`; None: random
    resume            continue from output/last, with the same configuration, seed and batch size
    evaluation        data set to evaluate at the end and every `evaluate_every` steps (0: only at
                      the end)
    checkpoint_every  steps between two checkpoints, of which the `keep` newest stay (0: only at the
                      end)
    log_every         steps between two lines of the log

    SIGINT finishes the step, writes a checkpoint and returns.
    Raises ValueError for settings that do not fit the data or the checkpoint.
    Raises NotFiniteError for a loss or gradient that is not finite, naming the step, its images and
    the first stage that is not finite; the last checkpoint precedes that step.
    """
    folder, device = Path(output), torch.device(device)
    batch_size = batch_size or config.optimizer.batch_size
    settings = Settings(seed, batch_size, amp, iterations, fixed_shapes)
    _check(config, dataset, evaluation, folder, resume)
    _check_capture(device, fixed_shapes, compile, graph)
    folder.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(seed)
    model = MaskRCNN(config)
    model.categories = categories(dataset)
    fresh = []
    if weights is not None and not resume:
        taken = start.initialize(model, weights)
        fresh = taken.fresh
        if bar:
            print(*taken.lines, sep="\n", flush=True)
    model.to(device).train()
    # A step is fastest with channels-last weights.
    set_memory_format(model, torch.channels_last)
    optimizer = torch_optimizer.build(model, config.optimizer)
    first = start.resume(folder, model, optimizer, asdict(settings)) if resume else 0

    with (
        Log(folder / "log.jsonl", first, iterations, bar=bar) as log,
        _interruptible() as interrupted,
    ):
        if fresh:
            log.write(first, weights=str(weights), not_in_weights=fresh)
        run = Run(
            model,
            optimizer,
            settings,
            folder,
            dataset,
            evaluation,
            log,
            first,
            workers,
            compile,
            graph,
        )
        _loop(run, interrupted, checkpoint_every, log_every, evaluate_every, keep)
        if run.iteration == iterations:
            run.evaluate()
    # Safetensors, for one, takes no other weights.
    set_memory_format(model, torch.contiguous_format)
    return Result(model, run.iteration, run.iteration < iterations, run.metrics)


def _loop(run, interrupted, checkpoint_every, log_every, evaluate_every, keep):
    """Train until the last iteration or an interruption, and end with a checkpoint."""
    batches, iterations = run.batches(run.iteration), run.settings.iterations
    is_last = run.iteration == iterations
    while not is_last:
        batch, waited = run.load(batches)
        run.step(batch, waited)
        is_last = run.iteration == iterations or interrupted.is_set()
        save = is_last or run.is_due(checkpoint_every)
        if save or run.is_due(log_every) or run.is_due(evaluate_every):
            run.check_and_log()
        if save:
            run.save_checkpoint(keep)
        if run.is_due(evaluate_every) and not is_last:
            run.evaluate()


class Run:
    """The state of a training run and its single actions."""

    def __init__(
        self,
        model: MaskRCNN,
        optimizer: torch.optim.Optimizer,
        settings: Settings,
        folder: Path,
        dataset: Dataset,
        evaluation: Dataset | None,
        log: Log,
        iteration: int,
        workers: int,
        compile: str | None,
        graph: bool,
    ):
        self.model, self.optimizer, self.settings, self.folder = model, optimizer, settings, folder
        self.dataset, self.evaluation, self.log, self.workers = dataset, evaluation, log, workers
        # Steps taken.
        self.iteration = iteration
        self.device = model.weight.device
        self.window, self.rate, self.pace = Window(self.device), 0.0, Pace(self.device)
        # 1 once a loss or gradient was not finite: then weights are no longer updated.
        self.failed = torch.zeros((), device=self.device)
        self.metrics = None
        self.compile, self.graph, self.batch_losses = compile, graph, model.batch_losses
        if compile is not None:
            self.batch_losses = torch.compile(
                model.batch_losses, backend=compile, fullgraph=True, dynamic=False
            )
        self.release()

    def batches(self, start: int) -> Iterator[Batch]:
        """Return the batches from iteration `start` on, on the device."""
        config, settings = self.model.config, self.settings
        shapes = (
            padding.fixed_shapes(self.dataset, config.transform) if settings.fixed_shapes else None
        )
        source = loader(
            self.dataset,
            config,
            batch_size=settings.batch_size,
            workers=self.workers,
            seed=settings.seed,
            training=True,
            start_iteration=start,
            iterations=settings.iterations,
            shapes=shapes,
        )
        return prefetched(source, config.transform, self.device)

    def load(self, batches: Iterator[Batch]) -> tuple[Batch, float]:
        """Return the next batch and the seconds spent waiting for it."""
        self.pace.wait()
        start = time.perf_counter()
        batch = next(batches)
        return batch, time.perf_counter() - start

    def step(self, batch: Batch, waited: float) -> None:
        """Update the weights once, without waiting for the device."""
        settings = self.settings
        self.rate = torch_optimizer.learning_rate(
            self.model.config.optimizer, self.iteration, settings.iterations, settings.batch_size
        )
        torch_optimizer.set_rate(self.optimizer, self.rate)
        losses, loss, norm = self.take(batch, self.draws(batch, self.iteration))
        self.window.add(losses, loss, norm, settings.batch_size, waited)
        self.iteration += 1

    def update(
        self, batch: Batch, draws: Draws
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """Update the weights; return the losses, their sum and the gradients' norm.

        On a GPU this is what a graph captures: its state is in tensors that stay where they are.
        """
        self.optimizer.zero_grad()
        losses = self.losses(batch, draws)
        loss = reduce(torch.add, losses.values())
        loss.backward()
        failed = (~loss.detach().isfinite()).float()
        self.failed.copy_(torch.maximum(self.failed, failed))
        limit = self.model.config.optimizer.clip_gradient_norm
        norm = torch_optimizer.update(self.optimizer, limit, self.failed)
        return {name: value.detach() for name, value in losses.items()}, loss.detach(), norm

    def draws(self, batch: Batch, iteration: int) -> Draws:
        """Return what step `iteration` samples by: a generator, or the numbers drawn from it."""
        generator = _generator(self.settings.seed, iteration, self.device)
        if self.compile is None and not self.graph:
            return {"generator": generator}
        return {"priorities": draw_priorities(self.model, batch, generator)}

    def losses(
        self, batch: Batch, draws: Draws, record: Stages | None = None
    ) -> dict[str, torch.Tensor]:
        """Compute the losses of a batch, with a record never by compiled code."""
        function = self.batch_losses if record is None else self.model.batch_losses
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.amp):
            return function(batch, record=record, **draws)

    def release(self) -> None:
        """Drop captured steps: their memory, and what they rely on to stay in caches."""
        self.take = Graphs(self.update, self.device) if self.graph else self.update

    def is_due(self, every: int) -> bool:
        """Tell whether the number of steps taken is a multiple of `every` (0: never)."""
        return every > 0 and self.iteration % every == 0

    def check_and_log(self) -> None:
        """Log the averages since the last line. Raises NotFiniteError if one is not finite."""
        first = self.iteration - len(self.window)
        values, failed = self.window.read()
        if failed is not None:
            raise NotFiniteError(self.explain(first + failed))
        self.log.write(self.iteration, **values, learning_rate=self.rate)

    def explain(self, iteration: int) -> str:
        """Repeat the failed step `iteration` and name its images and the first failed stage."""
        self.release()
        batch = next(self.batches(iteration))
        losses_of = partial(self.losses, batch, self.draws(batch, iteration))
        stage = first_failure(self.model, losses_of, batch)
        images = ", ".join(str(image_id) for image_id in batch.image_ids)
        return (
            f"iteration {iteration}: {stage} is not finite (images {images});"
            " training stopped, the last checkpoint precedes this step"
        )

    def save_checkpoint(self, keep: int) -> None:
        """Write a checkpoint and delete all but the `keep` newest."""
        checkpoint.save(
            self.folder,
            self.model,
            self.model.config,
            categories(self.dataset),
            self.optimizer,
            self.iteration,
            settings=asdict(self.settings),
            keep=keep,
        )

    def evaluate(self) -> None:
        """Evaluate the model and log its metrics, if there is a data set for it."""
        if self.evaluation is None:
            return
        self.release()
        output = self.folder / "evaluations" / f"{self.iteration:08d}"
        self.metrics = evaluate(self.model, self.evaluation, workers=self.workers, output=output)
        self.log.write(self.iteration, evaluation=self.metrics)
        self.model.train()
        # The time of the evaluation does not count as training.
        self.window = Window(self.device)


def _generator(seed, iteration, device):
    """Make the generator of the sampling priorities of one step."""
    state = np.random.SeedSequence([seed, iteration]).generate_state(1)
    return torch.Generator(device).manual_seed(int(state[0]))


def _check(config, dataset, evaluation, folder, resume):
    if len(dataset) == 0:
        raise ValueError("the data set has no images")
    if len(dataset.category_ids) != config.num_classes:
        raise ValueError(
            f"the data set has {len(dataset.category_ids)} categories,"
            f" but num_classes is {config.num_classes}"
        )
    if evaluation is not None:
        difference = first_difference(categories(dataset), categories(evaluation))
        if difference:
            raise ValueError(f"the evaluation data does not fit the training data: {difference}")
    if not resume and (folder / "last").exists():
        raise ValueError(f"{folder} already holds a run: resume it, or choose another folder")


def _check_capture(device, fixed_shapes, compile, graph):
    check_capture(device, compile, graph)
    if (graph or compile is not None) and not fixed_shapes:
        option = "--graph" if graph else "--compile"
        raise ValueError(f"{option} needs batches of a few shapes: add --fixed-shapes")


@contextmanager
def _interruptible():
    """Yield an event that the first SIGINT sets; a second one interrupts as usual.

    Outside the main thread signals cannot be handled, and the event is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def finish(*_):
        event.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, finish)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
