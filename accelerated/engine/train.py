"""Training: load, step, check, log, checkpoint, evaluate, in a loop that can be read.

    RUN/log.jsonl  RUN/checkpoints/<iteration>/  RUN/last  RUN/best
    RUN/evaluations/<iteration>/  RUN/run.json (the command's options)

The random draws of a step (images, augmentation, sampling priorities) are a function of (seed,
iteration) alone. So the state of a run is its weights, its optimizer and the number of steps taken,
and on a CPU a resumed run continues bit for bit. Several processes, see `group`, take a slice of
every batch each; the averages of their gradients are those of one process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from accelerated import optimizer as torch_optimizer
from accelerated import processes
from accelerated.data.dataset import Dataset, categories
from accelerated.data.own_function import Function
from accelerated.data.text_files import write_json
from accelerated.engine import (
    average,
    checkpoint,
    fingerprint,
    group,
    layers,
    start,
)
from accelerated.engine.best import Best
from accelerated.engine.callbacks import Callback
from accelerated.engine.early_stopping import EarlyStopping
from accelerated.engine.interruption import Asked, interruptible
from accelerated.engine.log import Log
from accelerated.engine.run import Job, Run
from accelerated.engine.run_folder import alone, origin, settle
from accelerated.engine.settings import Intervals, Settings, check_execution, check_processes
from accelerated.engine.tensorboard import TensorBoard
from accelerated.engine.tensorboard import check as check_tensorboard
from accelerated.interop import Loaded
from accelerated.mask_rcnn import MaskRCNN
from accelerated.parameters import set_memory_format
from reference.config import Config


@dataclass(frozen=True)
class Result:
    """A finished or interrupted training run."""

    # With the weights of the last checkpoint: with `ema`, the averages.
    model: MaskRCNN
    # Steps taken.
    iteration: int
    # The signal that ended it early, after a checkpoint.
    interrupted: int | None
    # Of the last evaluation, see `evaluate.score`.
    metrics: dict | None
    # The checkpoint RUN/best; None without an evaluation.
    best: Best | None
    # Why it ended before its last step, as if finished; None if it did not.
    stopped: str | None = None


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
    ema: float = 0.0,
    function: Function | None = None,
    accumulate: int = 1,
    rates: Sequence[str] = (),
    freeze: Sequence[str] = (),
    weights: str | Path | Loaded | None = None,
    resume: bool = False,
    resume_from: int | None = None,
    keep_schedule: bool = False,
    evaluation: Dataset | None = None,
    evaluate_every: int = 0,
    stop_early: int = 0,
    validation_losses: bool = False,
    checkpoint_every: int = 1000,
    checkpoint_minutes: float = 0.0,
    keep: int = 3,
    log_every: int = 20,
    bar: bool = True,
    tensorboard: bool = False,
    callbacks: Sequence[Callback] = (),
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
    ema               decay of the moving average of the weights, such as 0.999, warmed up by
                      `average.warmed_up`; it is what is evaluated, and what checkpoints hold as the
                      weights (0: none)
    function          augments images as well, in place of `config.augment.function`; see `loader`
    accumulate        equal parts in which a batch is worked on one after the other, see
                      `accumulation`: less memory, the same result
    rates             factors of the learning rate, such as "backbone.*=0.1", by names of parameters
    freeze            names of parameters that are not trained, such as "backbone.*"; see `layers`
    weights           file, folder, name or loaded model to start from, see `interop`; None: random
    resume            continue from output/last, if there is one, with the same configuration,
                      categories, seed and batch size
    resume_from       step of the checkpoint to continue from instead, with `resume`
    keep_schedule     a resumed run of another length keeps the learning rates of the old one
    evaluation        data set to evaluate at the end and every `evaluate_every` steps (0: only at
                      the end). output/best is the checkpoint with the highest AP of masks, or of
                      boxes for a model without masks
    stop_early        evaluations without a better average precision after which the run ends as if
                      finished (0: never)
    validation_losses
                      compute the losses of training at evaluations too, see `validation`
    checkpoint_every  steps between two checkpoints, of which the `keep` newest and the best stay
                      (0: only at evaluations and at the end)
    checkpoint_minutes
                      also write one when so many minutes have passed since the last (0: never)
    log_every         steps between two lines of the log
    bar               show the progress on standard output: a bar in a terminal, elsewhere lines
    tensorboard       also write the numbers of the log to output/tensorboard
    callbacks         objects whose methods are called at events of the training, see `callbacks`
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
    more = {"ema": ema, "accumulate": accumulate, "rates": tuple(rates), "freeze": tuple(freeze)}
    settings = Settings(seed, batch_size, amp, iterations, iterations, fixed_shapes, **more)
    check_execution(device, fixed_shapes, compile, graph, accumulate)
    evaluations = evaluate_every if evaluation is not None else 0
    watching = watchers(evaluations, stop_early, tensorboard)
    check_processes(config, batch_size)
    resumed = origin(folder, resume, resume_from)
    settings = start.check(folder, config, dataset, evaluation, settings, resumed, keep_schedule)
    is_first = processes.is_first()
    group.require_same(
        settings=settings,
        configuration=config,
        data=fingerprint.summary(dataset),
        checkpoint=resumed and resumed.name,
    )
    if is_first:
        resumed = resumed and settle(folder, resumed)
        fingerprint.write(folder, dataset, evaluation)
        if options is not None:
            write_json(folder / "run.json", options)
    resumed = group.share(resumed)

    torch.manual_seed(seed)
    model = MaskRCNN(config)
    model.categories = categories(dataset)
    fresh = []
    if weights is not None and resumed is None:
        taken = start.initialize(model, weights)
        fresh = taken.fresh
        if bar and is_first:
            print(*taken.lines, sep="\n", flush=True)
    model.to(device).train()
    # A step is fastest with channels-last weights.
    set_memory_format(model, torch.channels_last)
    layers.freeze_parameters(model, freeze)
    factors = layers.factors(model, rates)
    optimizer = torch_optimizer.build(model, config.optimizer, factors)
    averaged = average.Average(model, ema) if ema else None
    first = 0
    if resumed is not None:
        first = checkpoint.restore(resumed, model, optimizer, averaged).iteration
    every = Intervals(log_every, checkpoint_every, checkpoint_minutes, evaluate_every, keep)
    job = Job(
        folder=folder,
        dataset=dataset,
        evaluation=evaluation,
        settings=settings,
        every=every,
        workers=workers,
        compile=compile,
        graph=graph,
        validation_losses=validation_losses,
        callbacks=[*callbacks, *watching],
        function=function,
    )

    with (
        Log(folder / "log.jsonl" if is_first else None, first, iterations, bar=bar) as log,
        interruptible() as asked,
    ):
        if fresh:
            log.write(first, weights=str(weights), not_in_weights=fresh)
        run = Run(job, model, optimizer, averaged, log, first)
        run.call_and_agree("on_start")
        _loop(run, asked)
        if run.is_finished() and run.evaluated != run.iteration:
            run.evaluate()
        run.call("on_end")
    if averaged is not None:
        averaged.exchange()
    # Safetensors, for one, takes no other weights.
    set_memory_format(model, torch.contiguous_format)
    interrupted = None if run.is_finished() else run.signal
    stopped = run.reason if run.iteration < iterations else None
    return Result(model, run.iteration, interrupted, run.metrics, run.best, stopped)


def watchers(evaluate_every: int, stop_early: int, tensorboard: bool) -> list[Callback]:
    """Return the callbacks that the options of a training ask for.

    Raises ValueError if one lacks what it needs.
    """
    found: list[Callback] = []
    if tensorboard:
        check_tensorboard()
        found.append(TensorBoard())
    if stop_early:
        if not evaluate_every:
            raise ValueError("--stop-early counts evaluations: add --evaluate-every and --val")
        found.append(EarlyStopping(stop_early))
    return found


def _loop(run: Run, asked: Asked) -> None:
    """Train until the last step, a signal or a reason to stop, and end with a checkpoint."""
    every, batches = run.job.every, run.batches(run.iteration)
    # The run was killed before the evaluation that was due.
    evaluated = group.share(run.log.evaluated)
    if run.is_due(every.evaluation) and not (run.is_over() or evaluated or run.iteration == 0):
        run.evaluate()
    while not run.is_over():
        batch, waited = run.load(batches)
        run.step(batch, waited)
        save = run.agree(asked)
        evaluate = run.job.evaluation is not None and run.is_due(every.evaluation)
        # What is evaluated may be the best so far.
        save = save or run.is_over() or evaluate or run.is_due(every.checkpoint)
        if save or run.is_due(every.log):
            run.check_and_log()
        if save:
            run.save_checkpoint()
        if evaluate and not run.is_over():
            run.evaluate()
