"""The settings of a training run besides its configuration, and whether they fit together."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from accelerated.data.dataset import Dataset
from accelerated.engine.capture import check_capture
from accelerated.engine.evaluate import categories
from reference.config import Config


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


def check(
    config: Config, dataset: Dataset, evaluation: Dataset | None, folder: Path, resume: bool
) -> None:
    """Raise ValueError unless the data fits the configuration and the folder is free to use."""
    if len(dataset) == 0:
        raise ValueError("the data set has no images")
    if len(dataset.category_ids) != config.num_classes:
        raise ValueError(
            f"the data set has {len(dataset.category_ids)} categories,"
            f" but num_classes is {config.num_classes}"
        )
    if evaluation is not None and categories(evaluation) != categories(dataset):
        raise ValueError("the data sets for training and evaluation have different categories")
    if not resume and (folder / "last").exists():
        raise ValueError(f"{folder} already holds a run: resume it, or choose another folder")


def check_execution(
    device: torch.device, fixed_shapes: bool, compile: str | None, graph: bool
) -> None:
    """Raise ValueError where compiled or captured steps cannot run."""
    check_capture(device, compile, graph)
    if (graph or compile is not None) and not fixed_shapes:
        option = "--graph" if graph else "--compile"
        raise ValueError(f"{option} needs batches of a few shapes: add --fixed-shapes")
