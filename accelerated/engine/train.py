"""Training: load, step, check, log, checkpoint, evaluate, in a loop that can be read.

    RUN/log.jsonl  RUN/checkpoints/<iteration>/  RUN/last  RUN/best
    RUN/evaluations/<iteration>/  RUN/run.json (the command's options)

The random draws of a step (images, augmentation, sampling priorities) are a function of (seed,
iteration) alone. So the state of a run is its weights, its optimizer and the number of steps taken,
and on a CPU a resumed run continues bit for bit.
Between two lines of the log nothing waits for the step in flight.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accelerated import optimizer as torch_optimizer
from accelerated.data import padding
from accelerated.data.dataset import Dataset, categories
from accelerated.data.loader import loader
from accelerated.data.text_files import write_json
from accelerated.engine import best, checkpoint, fingerprint, start
from accelerated.engine.best import Best
from accelerated.engine.capture import Draws, Graphs, draw_priorities
from accelerated.engine.evaluate import evaluate
from accelerated.engine.failure import NotFiniteError, first_failure
from accelerated.engine.interruption import Asked, interruptible
from accelerated.engine.log import Log, Window
from accelerated.engine.prefetch import Pace, prefetched
from accelerated.engine.run_folder import alone, origin, settle
from accelerated.engine.settings import Settings, check_execution, machine
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
    # The signal that ended it early, after a checkpoint.
    interrupted: int | None
    # Of the last evaluation, see `evaluate.score`.
    metrics: dict | None
    # The checkpoint RUN/best; None without an evaluation.
    best: Best | None


@alone
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
    resume_from: int | None = None,
    keep_schedule: bool = False,
    evaluation: Dataset | None = None,
    evaluate_every: int = 0,
    checkpoint_every: int = 1000,
    checkpoint_minutes: float = 0.0,
    keep: int = 3,
    log_every: int = 20,
    bar: bool = True,
    options: dict[str, Any] | None = None,
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
    resume            continue from output/last, if there is one, with the same configuration,
                      categories, seed and batch size
    resume_from       step of the checkpoint to continue from instead, with `resume`
    keep_schedule     a resumed run of another length keeps the learning rates of the old one
    evaluation        data set to evaluate at the end and every `evaluate_every` steps (0: only at
                      the end). output/best is the checkpoint with the highest AP of masks, or of
                      boxes for a model without masks
    checkpoint_every  steps between two checkpoints, of which the `keep` newest and the best stay
                      (0: only at evaluations and at the end)
    checkpoint_minutes
                      also write one when so many minutes have passed since the last (0: never)
    log_every         steps between two lines of the log
    bar               show the progress on standard output: a bar in a terminal, elsewhere lines
    options           written to output/run.json: how the run can be started again

    SIGINT, SIGTERM and SIGHUP finish the step, write a checkpoint and return; SIGUSR1 finishes the
    step, writes a checkpoint and goes on.
    Raises ValueError for settings that do not fit the data or the checkpoint, a checkpoint that is
    damaged, or a folder in which another process trains. Raises OSError for a file that cannot be
    written, naming it and the checkpoint from which the run can go on.
    Raises NotFiniteError for a loss or gradient that is not finite, naming the step, its images and
    the first stage that is not finite; a checkpoint, if there is one, precedes that step.
    """
    folder, device = Path(output), torch.device(device)
    batch_size = batch_size or config.optimizer.batch_size
    settings = Settings(seed, batch_size, amp, iterations, fixed_shapes, iterations)
    check_execution(device, fixed_shapes, compile, graph)
    resumed = origin(folder, resume, resume_from)
    settings = start.check(folder, config, dataset, evaluation, settings, resumed, keep_schedule)
    if resumed is not None:
        resumed = settle(folder, resumed)
    fingerprint.write(folder, dataset, evaluation)
    if options is not None:
        write_json(folder / "run.json", options)

    torch.manual_seed(seed)
    model = MaskRCNN(config)
    model.categories = categories(dataset)
    fresh = []
    if weights is not None and resumed is None:
        taken = start.initialize(model, weights)
        fresh = taken.fresh
        if bar:
            print(*taken.lines, sep="\n", flush=True)
    model.to(device).train()
    # A step is fastest with channels-last weights.
    set_memory_format(model, torch.channels_last)
    optimizer = torch_optimizer.build(model, config.optimizer)
    first = 0 if resumed is None else checkpoint.restore(resumed, model, optimizer).iteration

    with (
        Log(folder / "log.jsonl", first, iterations, bar=bar) as log,
        interruptible() as asked,
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
        stop = _loop(
            run, asked, checkpoint_every, checkpoint_minutes, log_every, evaluate_every, keep
        )
        if run.iteration == iterations:
            run.evaluate()
    # Safetensors, for one, takes no other weights.
    set_memory_format(model, torch.contiguous_format)
    interrupted = stop if run.iteration < iterations else None
    return Result(model, run.iteration, interrupted, run.metrics, run.best)


def _loop(run, asked, checkpoint_every, checkpoint_minutes, log_every, evaluate_every, keep) -> int:
    """Train until the last iteration or a signal, and end with a checkpoint.

    Returns the signal or 0.
    """
    batches, iterations, stop = run.batches(run.iteration), run.settings.iterations, 0
    is_last = run.iteration == iterations
    # The run was killed before the evaluation that was due.
    if run.is_due(evaluate_every) and not (is_last or run.log.evaluated or run.iteration == 0):
        run.evaluate()
    while not is_last:
        batch, waited = run.load(batches)
        run.step(batch, waited)
        stop, save = run.agree(asked, checkpoint_minutes)
        is_last = run.iteration == iterations or stop > 0
        evaluate = run.evaluation is not None and run.is_due(evaluate_every)
        # What is evaluated may be the best so far.
        save = save or is_last or evaluate or run.is_due(checkpoint_every)
        if save or run.is_due(log_every):
            run.check_and_log()
        if save:
            run.save_checkpoint(keep)
        if evaluate and not is_last:
            run.evaluate()
    return stop


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
        # Steps taken, and when the last checkpoint was written.
        self.iteration, self.saved = iteration, time.monotonic()
        self.device = model.weight.device
        self.window, self.rate, self.pace = Window(self.device), 0.0, Pace(self.device)
        # 1 once a loss or gradient was not finite: then weights are no longer updated.
        self.failed = torch.zeros((), device=self.device)
        self.metrics, self.best = None, best.read(folder) if iteration else None
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
            self.model.config.optimizer, self.iteration, settings.schedule, settings.batch_size
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

    def agree(self, asked: Asked, minutes: float) -> tuple[int, bool]:
        """Return the signal to stop by, or 0, and whether to save now: by a signal or the clock."""
        stop, save = asked.take()
        return stop, save or 0 < 60 * minutes <= time.monotonic() - self.saved

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
        exists = checkpoint.exists(self.folder)
        last = "the last checkpoint precedes this step" if exists else "no checkpoint was written"
        return (
            f"iteration {iteration}: {stage} is not finite (images {images});"
            f" training stopped, {last}"
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
            machine=machine(self.device, self.compile),
            keep=keep,
        )
        self.saved = time.monotonic()

    def evaluate(self) -> None:
        """Evaluate the model, if there is a data set for it; show, log and compare its metrics."""
        if self.evaluation is None:
            return
        self.release()
        output = best.evaluations(self.folder, self.iteration)
        self.metrics = evaluate(self.model, self.evaluation, workers=self.workers, output=output)
        self.best = best.update(self.folder, self.iteration, self.metrics, self.best)
        step = None if self.best is None else self.best.iteration
        self.log.write(self.iteration, evaluation=self.metrics, best=step)
        self.log.shown.say(best.describe(self.iteration, self.metrics, self.best))
        self.model.train()
        # The time of the evaluation does not count as training.
        self.window = Window(self.device)


def _generator(seed, iteration, device):
    """Make the generator of the sampling priorities of one step."""
    state = np.random.SeedSequence([seed, iteration]).generate_state(1)
    return torch.Generator(device).manual_seed(int(state[0]))
