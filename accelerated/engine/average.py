"""The exponential moving average of a model's weights over the steps of a training.

It is what checkpoints hold and evaluations judge. Training goes on with the weights themselves, as
it would without an average.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def check(decay: float) -> None:
    """Raise ValueError unless `decay` is at least 0, which means no average, and below 1."""
    if not 0 <= decay < 1:
        raise ValueError(f"--ema {decay:g}: expected a decay from 0 (no average) to below 1")


def warmed_up(decay: float, step: int) -> float:
    """Return the decay of step `step`, counted from 1: min(decay, (1 + step) / (10 + step)).

    So the first weights, far from any good ones, are soon forgotten.
    """
    return min(decay, (1 + step) / (10 + step))


class Average:
    """The averages of the parameters that are trained, on their device and in their dtype.

    tensors  {name: average}; they stay where they are, so that a captured step updates them

    Parameters that are not trained and buffers, such as running statistics, are not averaged.
    """

    def __init__(self, model: nn.Module, decay: float):
        check(decay)
        self.decay = decay
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.tensors = {name: p.detach().clone() for name, p in self.trained.items()}
        first = next(iter(self.tensors.values()))
        # The share of the weights in the next average, where a captured step can read it.
        self._share = torch.zeros((), dtype=first.dtype, device=first.device)

    def prepare(self, step: int) -> None:
        """Set the decay for the update of step `step`, counted from 1."""
        self._share.fill_(1 - warmed_up(self.decay, step))

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages to the weights, without waiting for the device."""
        for name, parameter in self.trained.items():
            self.tensors[name].lerp_(parameter, self._share)

    @torch.no_grad()
    def exchange(self) -> None:
        """Let the model have the averages, and this object its weights; twice changes nothing."""
        for name, parameter in self.trained.items():
            average = self.tensors[name]
            weight = parameter.clone()
            parameter.copy_(average)
            average.copy_(weight)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Let the model have the averages for as long as this lasts."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()
