"""The settings of a training run besides its configuration, and whether they fit together."""

from dataclasses import dataclass, replace

import torch

from accelerated import processes
from accelerated.engine.capture import check_capture
from reference.config import Config, flat


@dataclass(frozen=True)
class Settings:
    """The settings that decide a run's numbers; they are stored in its checkpoints.

    schedule  the steps that the learning rate is laid out for, usually `iterations`
    """

    seed: int
    batch_size: int
    amp: bool
    iterations: int
    fixed_shapes: bool
    schedule: int


def fit_warmup(config: Config, iterations: int) -> Config:
    """Shorten the warm-up to a tenth of a run of `iterations` steps if it is longer."""
    optimizer = config.optimizer
    steps = min(optimizer.warmup_iterations, iterations // 10)
    return replace(config, optimizer=replace(optimizer, warmup_iterations=steps))


def check_execution(
    device: torch.device, fixed_shapes: bool, compile: str | None, graph: bool
) -> None:
    """Raise ValueError where compiled or captured steps cannot run."""
    check_capture(device, compile, graph)
    if (graph or compile is not None) and not fixed_shapes:
        option = "--graph" if graph else "--compile"
        raise ValueError(f"{option} needs batches of a few shapes: add --fixed-shapes")


def check_processes(config: Config, batch_size: int, compile: str | None, graph: bool) -> None:
    """Raise ValueError for what several processes cannot do as one would."""
    count = processes.number()
    if count == 1:
        return
    if batch_size % count:
        raise ValueError(
            f"--batch-size {batch_size} is that of all {count} processes together: choose a"
            " multiple of their number"
        )
    for path, value in flat(config).items():
        if path.endswith(".norm") and value == "batch":
            raise ValueError(
                f"{path} = batch would average over the images of one process alone:"
                f" add --set {path}=sync_batch"
            )
    if graph or compile is not None:
        option = "--graph" if graph else "--compile"
        raise ValueError(f"{option} is for one process: leave it out")
