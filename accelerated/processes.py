"""The processes that share the work: which is this one, and sums over all, with gradients.

In training each has a part of every batch. DistributedDataParallel averages gradients. So losses
are divided by counts averaged over the processes, and their gradients are those of one process on
the whole batch. How processes meet, and exchange what is no tensor, is in `engine.group`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed

_apart = False
_change: Callable[[str, Any], Any] | None = None


def number() -> int:
    """Return the number of processes that work together, 1 without torch.distributed."""
    joined = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if joined else 1


def rank() -> int:
    """Return the index of this process."""
    return distributed.get_rank() if number() > 1 else 0


def is_first() -> bool:
    """Tell whether this is the process that writes files and prints."""
    return rank() == 0


@contextmanager
def apart() -> Iterator[None]:
    """Make sums those of this process alone, so that it can be examined without the others."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


@contextmanager
def counting(change: Callable[[str, Any], Any]) -> Iterator[None]:
    """Let change(what, number) see, and replace, the numbers that losses count in a batch."""
    global _change
    before, _change = _change, change
    try:
        yield
    finally:
        _change = before


class Total(torch.autograd.Function):
    """The sum over all processes, in each of them; the backward sums over all processes too."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return Total.apply(grad)


def total(x: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all processes, with a gradient."""
    return x if _is_alone() else Total.apply(x)


def mean(x: torch.Tensor) -> torch.Tensor:
    """Average a tensor over all processes, with a gradient."""
    return x if _is_alone() else Total.apply(x) / number()


def of_batch(what: str, number: Any) -> Any:
    """Return how many a process has in its whole batch, of which the part at hand has `number`."""
    return number if _change is None else _change(what, number)


def count(chosen: torch.Tensor, what: str) -> torch.Tensor:
    """Count the True entries of all processes, at least 1, divided by their number: bool -> [].

    what  "anchors", "rois" or "objects", by which `counting` tells the counts apart
    """
    counted = total(of_batch(what, chosen.sum())).clamp(min=1)
    return counted if _is_alone() else counted / number()


def _is_alone():
    return number() == 1 or _apart


def rand(
    rows: int, width: int, device: torch.device, generator: torch.Generator | None
) -> torch.Tensor:
    """Draw numbers in [0, 1): [rows, width], of several processes this one's rows of the batch.

    The generators of all processes must be in the same state.
    """
    whole = torch.rand(rows * number(), width, device=device, generator=generator)
    return whole.chunk(number())[rank()]
