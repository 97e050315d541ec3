"""The settings of a training run besides its configuration, and whether they fit together."""

from dataclasses import MISSING, asdict, dataclass, fields, replace

import torch

import accelerated
from accelerated import backend, processes
from accelerated.engine.capture import check_capture
from reference.config import Config, flat


@dataclass(frozen=True)
class Settings:
    """The settings that decide a run's numbers; they are stored in its checkpoints.

    schedule    the steps that the learning rate is laid out for, usually `iterations`
    ema         decay of the averages of the weights, see `average`; 0: there are none
    accumulate  parts in which a batch is worked on, see `accumulation`
    rates       factors of learning rates by patterns of names, see `layers`
    freeze      patterns of the names of parameters that are not trained

    What has a default is off by it, as in checkpoints that are older than it.
    """

    seed: int
    batch_size: int
    amp: bool
    iterations: int
    schedule: int
    fixed_shapes: bool = False
    ema: float = 0.0
    accumulate: int = 1
    rates: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()

    def stored(self) -> dict:
        """Return the settings as a checkpoint's JSON holds them."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _plain(value):
    """Return lists instead of tuples, which JSON does not have."""
    return list(value) if isinstance(value, tuple) else value


# What older checkpoints do not name, they had no choice of.
OLDER = {x.name: _plain(x.default) for x in fields(Settings) if x.default is not MISSING}


@dataclass(frozen=True)
class Intervals:
    """When a run writes and evaluates, in steps where no other unit is named; 0: never.

    keep  checkpoints that stay besides the best one
    """

    log: int
    checkpoint: int
    checkpoint_minutes: float
    evaluation: int
    keep: int


def fit_warmup(config: Config, iterations: int) -> Config:
    """Shorten the warm-up to a tenth of a run of `iterations` steps if it is longer."""
    optimizer = config.optimizer
    steps = min(optimizer.warmup_iterations, iterations // 10)
    return replace(config, optimizer=replace(optimizer, warmup_iterations=steps))


def check_execution(
    device: torch.device,
    fixed_shapes: bool,
    compile: str | None,
    graph: bool,
    accumulate: int = 1,
) -> None:
    """Raise ValueError where compiled or captured steps cannot run."""
    option = "--graph" if graph else None if compile is None else "--compile"
    if option and processes.number() > 1:
        raise ValueError(f"{option} is for one process: leave it out")
    if option and accumulate > 1:
        raise ValueError(f"--accumulate and {option} exclude each other: choose one")
    check_capture(device, compile, graph)
    if option and not fixed_shapes:
        raise ValueError(f"{option} needs batches of a few shapes: add --fixed-shapes")


def check_processes(config: Config, batch_size: int) -> None:
    """Raise ValueError for settings with which several processes cannot do what one would."""
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


def machine(device: torch.device, compile: str | None = None) -> dict[str, str | int]:
    """Name what decides the last bits of a run's numbers besides its settings.

    A checkpoint stores it. `machine_change` tells a change.
    """
    name = f"cpu with {torch.backends.cpu.get_cpu_capability()}"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "processes": processes.number(),
        "threads": torch.get_num_threads(),
        "device": name,
        "backend": backend.resolve("auto", torch.empty(0, device=device)),
        "PyTorch": torch.__version__,
        "maskrcnn": accelerated.__version__,
        "compiled by": compile or "nothing",
    }


def machine_change(before: dict, now: dict) -> str | None:
    """Tell what differs between two machines; None if nothing that both name."""
    changes = [
        f"{name}: {before[name]} before, {now[name]} now"
        for name in now
        if name in before and before[name] != now[name]
    ]
    return f"goes on, but not bit for bit: {'; '.join(changes)}" if changes else None
