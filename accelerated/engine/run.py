"""A training run: its state, and its actions, from which `train` makes a loop.

Between two lines of the log nothing waits for the step in flight.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path

import numpy as np
import torch

from accelerated import optimizer as torch_optimizer
from accelerated import processes
from accelerated.data import padding
from accelerated.data.dataset import Dataset, categories
from accelerated.data.loader import loader
from accelerated.data.own_function import Function
from accelerated.engine import accumulation, best, checkpoint, group, validation
from accelerated.engine.average import Average
from accelerated.engine.callbacks import Callback, call
from accelerated.engine.capture import Draws, Graphs, draw_priorities
from accelerated.engine.evaluate import evaluate
from accelerated.engine.failure import NORM, NotFiniteError, first_failure
from accelerated.engine.interruption import Asked
from accelerated.engine.log import Log, Window
from accelerated.engine.prefetch import Pace, prefetched
from accelerated.engine.settings import Intervals, Settings, machine
from accelerated.mask_rcnn import MaskRCNN
from accelerated.structures import Batch, Stages


@dataclass(frozen=True)
class Job:
    """What a run is to do, and how. `settings` alone decide its numbers.

    evaluation         data set to evaluate on, or None
    compile, graph     how steps run, see `train`
    validation_losses  whether evaluations compute the losses of training as well
    function           augments images, see `train`
    """

    folder: Path
    dataset: Dataset
    evaluation: Dataset | None
    settings: Settings
    every: Intervals
    workers: int
    compile: str | None
    graph: bool
    validation_losses: bool = False
    callbacks: Sequence[Callback] = ()
    function: Function | None = None


class Run:
    """The state of a training run and its single actions."""

    def __init__(
        self,
        job: Job,
        model: MaskRCNN,
        optimizer: torch.optim.Optimizer,
        average: Average | None,
        log: Log,
        iteration: int,
    ):
        self.job, self.settings, self.folder = job, job.settings, job.folder
        self.model, self.optimizer, self.average, self.log = model, optimizer, average, log
        # Steps taken, and when the last checkpoint was written.
        self.iteration, self.saved = iteration, time.monotonic()
        # The step of the last evaluation of this process.
        self.evaluated = None
        self.device = model.weight.device
        self.window, self.rate, self.pace = Window(self.device), 0.0, Pace(self.device)
        # 1 once a loss or gradient was not finite: then weights are no longer updated.
        self.failed = torch.zeros((), device=self.device, dtype=torch.float32)
        self.metrics, self.best = None, best.read(self.folder) if iteration else None
        # The last line of the log, and the losses of the last evaluation.
        self.values, self.validation = {}, None
        # The signal that ended the run, or 0; why it is to stop early, and whether all agreed.
        self.signal, self.reason, self.is_stopped = 0, None, False
        self.batch_losses, self.parallel = model.batch_losses, None
        if job.compile is not None:
            self.batch_losses = torch.compile(
                model.batch_losses, backend=job.compile, fullgraph=True, dynamic=False
            )
        if processes.number() > 1:
            self.batch_losses = self.parallel = group.parallel(model)
        self.release()

    def batches(self, start: int) -> Iterator[Batch]:
        """Return the batches from iteration `start` on, on the device."""
        config, settings = self.model.config, self.settings
        shapes = None
        if settings.fixed_shapes:
            shapes = padding.fixed_shapes(self.job.dataset, config.transform, config.augment)
        source = loader(
            self.job.dataset,
            config,
            batch_size=settings.batch_size,
            workers=self.job.workers,
            seed=settings.seed,
            training=True,
            start_iteration=start,
            iterations=settings.iterations,
            shapes=shapes,
            part=(processes.rank(), processes.number()),
            function=self.job.function,
        )
        if processes.number() > 1:
            source = (padding.pad_alike(batch, shapes, group.maximum) for batch in source)
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
        group.at_step(self.iteration)
        self.rate = torch_optimizer.learning_rate(
            self.model.config.optimizer, self.iteration, settings.schedule, settings.batch_size
        )
        torch_optimizer.set_rate(self.optimizer, self.rate)
        if self.average is not None:
            self.average.prepare(self.iteration + 1)
        losses, loss, norm = self.take(batch, self.draws(batch, self.iteration))
        self.window.add(losses, loss, norm, settings.batch_size, waited)
        self.iteration += 1
        self.call("on_step")

    def update(
        self, batch: Batch, draws: Draws
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """Update the weights; return the losses, their sum and the gradients' norm.

        On a GPU this is what a graph captures: its state is in tensors that stay where they are.
        """
        self.optimizer.zero_grad()
        losses = self.backward(batch, draws)
        loss = reduce(torch.add, losses.values())
        values = processes.mean(torch.stack([*losses.values(), loss]))
        *averages, loss = values.unbind()
        failed = (~loss.isfinite()).float()
        self.failed.copy_(torch.maximum(self.failed, failed))
        limit = self.model.config.optimizer.clip_gradient_norm
        norm = torch_optimizer.update(self.optimizer, limit, self.failed)
        if self.average is not None:
            self.average.update()
        return dict(zip(losses, averages, strict=True)), loss, norm

    def backward(self, batch: Batch, draws: Draws) -> dict[str, torch.Tensor]:
        """Compute the gradients of a batch, at once or in parts; return its losses."""
        if self.settings.accumulate > 1:
            parts, one = self.parts(batch, draws), (self.model, self.parallel)
            return accumulation.backward(*one, self.losses, self.precision, parts)
        losses = self.losses(batch, draws)
        reduce(torch.add, losses.values()).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def parts(self, batch: Batch, draws: Draws) -> list[tuple[Batch, Draws]]:
        """Cut a batch into the parts that are worked on one after the other."""
        return accumulation.split(batch, draws, self.settings.accumulate)

    def draws(self, batch: Batch, iteration: int) -> Draws:
        """Return what step `iteration` samples by: a generator, or the numbers drawn from it."""
        generator = _generator(self.settings.seed, iteration, self.device)
        given = self.job.compile is not None or self.job.graph or self.settings.accumulate > 1
        if not given:
            return {"generator": generator}
        return {"priorities": draw_priorities(self.model, batch, generator)}

    def losses(
        self, batch: Batch, draws: Draws, record: Stages | None = None
    ) -> dict[str, torch.Tensor]:
        """Compute the losses of a batch, with a record never by compiled code."""
        function = self.batch_losses if record is None else self.model.batch_losses
        with self.precision():
            return function(batch, record=record, **draws)

    def precision(self) -> torch.autocast:
        """Make the context in which the model computes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.amp)

    def release(self) -> None:
        """Drop captured steps: their memory, and what they rely on to stay in caches."""
        self.take = Graphs(self.update, self.device) if self.job.graph else self.update

    def agree(self, asked: Asked) -> bool:
        """Take note of what ends the run; return whether to save now, by a signal or the clock."""
        stop, save = asked.take()
        due = 0 < 60 * self.job.every.checkpoint_minutes <= time.monotonic() - self.saved
        self.signal, save, stopped = group.maximum(stop, save or due, self.reason is not None)
        self.is_stopped = stopped > 0
        return save > 0

    def stop(self, reason: str) -> None:
        """End the run as if finished: at an evaluation at once, otherwise after the next step."""
        self.reason = self.reason or reason

    def is_finished(self) -> bool:
        """Tell whether the run took its last step, or was to stop before."""
        return self.iteration == self.settings.iterations or self.is_stopped

    def is_over(self) -> bool:
        """Tell whether the run is finished, or a signal ended it."""
        return self.is_finished() or self.signal > 0

    def call(self, event: str) -> None:
        """Call the method `event` of the callbacks."""
        if processes.is_first():
            call(self.job.callbacks, event, self)

    def call_and_agree(self, event: str) -> None:
        """Call the callbacks where all processes are at the same point; they may stop the run."""
        self.call(event)
        self.reason = group.share(self.reason)
        self.is_stopped = self.reason is not None

    def is_due(self, every: int) -> bool:
        """Tell whether the number of steps taken is a multiple of `every` (0: never)."""
        return every > 0 and self.iteration % every == 0

    def check_and_log(self) -> None:
        """Log the averages since the last line. Raises NotFiniteError if one is not finite."""
        first = self.iteration - len(self.window)
        values, failed = self.window.read()
        if failed is not None:
            raise NotFiniteError(self.explain(first + failed))
        self.values = values | {"learning_rate": self.rate}
        self.log.write(self.iteration, **self.values)
        self.call("on_log")

    def explain(self, iteration: int) -> str:
        """Repeat the failed step `iteration` and name its images and the first failed stage."""
        self.release()
        batch = next(self.batches(iteration))
        draws = self.draws(batch, iteration)
        parts = [(batch, draws)]
        if self.settings.accumulate > 1:
            parts = self.parts(batch, draws)
        stage, image_ids = NORM, batch.image_ids
        with processes.apart():
            for part, own in parts:
                stage = first_failure(self.model, partial(self.losses, part, own), part)
                if stage != NORM:
                    image_ids = part.image_ids
                    break
        found = group.share(group.collect((stage, image_ids)))
        # The first process that has one, unless all have finite values.
        stage, image_ids = min(found, key=lambda pair: pair[0] == NORM)
        images = ", ".join(map(str, image_ids))
        exists = checkpoint.exists(self.folder)
        last = "the last checkpoint precedes this step" if exists else "no checkpoint was written"
        return (
            f"iteration {iteration}: {stage} is not finite (images {images});"
            f" training stopped, {last}"
        )

    def save_checkpoint(self) -> None:
        """Write a checkpoint and delete all but the newest ones and the best."""
        if processes.is_first():
            checkpoint.save(
                self.folder,
                self.model,
                self.model.config,
                categories(self.job.dataset),
                self.optimizer,
                self.iteration,
                average=self.average,
                settings=self.settings.stored(),
                machine=machine(self.device, self.job.compile),
                keep=self.job.every.keep,
            )
        self.saved = time.monotonic()
        self.call("on_checkpoint")

    def evaluate(self) -> None:
        """Evaluate what a checkpoint holds, if there is data for it; show, log and compare it."""
        if self.job.evaluation is None:
            return
        self.release()
        output, workers = best.evaluations(self.folder, self.iteration), self.job.workers
        with nullcontext() if self.average is None else self.average.in_model():
            self.metrics = evaluate(self.model, self.job.evaluation, workers=workers, output=output)
            if self.job.validation_losses:
                how = {"seed": self.settings.seed, "workers": workers, "amp": self.settings.amp}
                self.validation = validation.losses(self.model, self.job.evaluation, **how)
        if processes.is_first():
            self.best = best.update(self.folder, self.iteration, self.metrics, self.best)
        self.best = group.share(self.best)
        step = None if self.best is None else self.best.iteration
        more = {} if self.validation is None else {"validation": self.validation}
        self.log.write(self.iteration, evaluation=self.metrics, best=step, **more)
        self.log.shown.say(best.describe(self.iteration, self.metrics, self.best))
        self.model.train()
        self.evaluated = self.iteration
        self.call_and_agree("on_evaluation")
        # The time of the evaluation does not count as training.
        self.window = Window(self.device)


def _generator(seed, iteration, device):
    """Make the generator of the sampling priorities of one step."""
    state = np.random.SeedSequence([seed, iteration]).generate_state(1)
    return torch.Generator(device).manual_seed(int(state[0]))
